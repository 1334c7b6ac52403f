/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * np_report.h - counters and events.
 *
 * Owns: one event per newly denied or logged flow, none for an allowed one, and the count of those that did not fit.
 * Refuses: verdicts.
 */
#ifndef NP_REPORT_H
#define NP_REPORT_H
#include "np_maps.h"
#include "np_packet.h"

/* True the first time this socket of this attachment meets this peer under this ruleset. */
NP_INLINE int np_first_report(const struct np_policy *p, const struct np_packet *k, __u64 cookie, __u8 where)
{
	struct np_seen key = {.cookie = cookie,
			      .ruleset = p->ruleset,
			      .port = where & NP_IN ? k->local_port : k->port,
			      .protocol = k->ipproto,
			      .where = where & (NP_OUT | NP_IN | NP_BIND),
			      .id = p->id};
	__u32 one = 1;

	__builtin_memcpy(key.address, k->peer, 16);
	return map_add(np_reported, &key, &one) == 0;
}

NP_INLINE void np_fill(struct np_event *e, const struct np_policy *p, const struct np_packet *k, __u8 verdict,
		       __u8 reason)
{
	e->time_ns = bpf_ktime_get_ns();
	e->id = p->id;
	e->ruleset = p->ruleset;
	e->pid = 0;
	e->port = k->port;
	e->verdict = verdict;
	e->reason = reason;
	e->protocol = k->ipproto;
	e->family = k->family;
	e->local_port = k->local_port;
	__builtin_memcpy(e->address, k->peer, 16);
	e->pad = 0;
	__builtin_memset(e->comm, 0, sizeof(e->comm));
}

/* A packet's process, where its socket is one that np_callers knows. */
NP_INLINE void np_name_caller(struct np_event *e, __u64 cookie)
{
	struct np_caller *caller = map_get(np_callers, &cookie);

	if (!caller)
		return;
	e->pid = caller->pid;
	__builtin_memcpy(e->comm, caller->comm, sizeof(e->comm));
}

/* with_process is a constant at every call: programs that may not ask for the process contain no such call. */
NP_INLINE void np_report(struct np_policy *p, struct np_counters *c, const struct np_packet *k, __u64 cookie,
			 __u8 verdict, __u8 reason, __u8 where, const int with_process)
{
	struct np_event *e;

	if (!np_first_report(p, k, cookie, where))
		return;
	e = ring_reserve(np_events, sizeof(*e));
	if (!e) {
		np_add(c->events_lost, 1);
		return;
	}
	np_fill(e, p, k, verdict, reason);
	if (with_process) {
		e->pid = bpf_get_current_pid_tgid() >> 32;
		bpf_get_current_comm(e->comm, sizeof(e->comm));
	} else if (cookie) {
		np_name_caller(e, cookie);
	}
	np_debug("np: verdict %d reason %d port %d\n", verdict, reason, e->port);
	ring_submit(e);
}

/* L3 and L4 header bytes of a GSO packet without options in L3: TCP says its own length, UDP has 8. */
NP_INLINE __u32 np_header_bytes(struct __sk_buff *skb, __u32 l3)
{
	__u8 head[54] = {};
	__u32 l4;

	if (bpf_skb_load_bytes(skb, l3, head, sizeof(head)))
		return 0;
	l4 = head[0] >> 4 == 4 ? (head[0] & 15) * 4 : 40;
	if ((head[0] >> 4 == 4 ? head[9] : head[6]) == NP_IPPROTO_UDP)
		return l4 + 8;
	return bpf_skb_load_bytes(skb, l3 + l4 + 12, head, 1) ? 0 : l4 + (head[0] >> 4) * 4;
}

/* What the device makes of one skb beyond the one packet. headers: of L3 and L4 if known, else 0. */
NP_INLINE void np_count_gso(struct __sk_buff *skb, struct np_counters *c, const int out, const __u32 l3, __u32 headers)
{
	__u32 segments = skb->gso_segs;

	if (np_likely(segments <= 1))
		return;
	headers = headers ? headers : np_header_bytes(skb, l3);
	np_add(*(out ? &c->gso_packets_out : &c->gso_packets_in), segments - 1);
	np_add(*(out ? &c->gso_bytes_out : &c->gso_bytes_in), np_gso_bytes(segments, headers));
}

/* Once in four million packets. Whatever interleaves, each step adds what another takes away: the sum stays exact. */
NP_INLINE void np_empty(__u64 *packed, __u64 *packets, __u64 *bytes)
{
	__u64 now = *(volatile __u64 *)packed;

	np_add(*packed, -now);
	np_add(*packets, np_packed_packets(now));
	np_add(*bytes, np_packed_bytes(now));
}

NP_INLINE void np_count_plain(struct __sk_buff *skb, struct np_counters *c, const int out, const __u32 l3)
{
	__u32 bytes = skb->len - l3;

	if (!out) {
		c->packets_in += 1;
		c->bytes_in += bytes;
		return;
	}
	np_add(c->packed_out, NP_PACKET_UNIT + bytes);
	if (np_unlikely((__s64)c->packed_out >= NP_PACKED_FULL * NP_PACKET_UNIT))
		np_empty(&c->packed_out, &c->packets_out, &c->bytes_out);
}

/* Counts a packet that passes. */
NP_INLINE void np_count(struct __sk_buff *skb, struct np_counters *c, const int out, const __u32 l3, __u32 headers)
{
	np_count_plain(skb, c, out, l3);
	np_count_gso(skb, c, out, l3, headers);
}
#endif
