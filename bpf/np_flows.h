/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * np_flows.h - the flow table: one entry per conversation, verdict remembered, counted per destination.
 *
 * Owns: keys from packets, hits and misses. With flows on, np_counters hold only what is in no flow. An entry is {test's end, peer's end}, whatever way the packet goes.
 * Refuses: eviction. When the table is full a flow is judged anew for each packet and counted in flows_lost.
 */
#ifndef NP_FLOWS_H
#define NP_FLOWS_H
#include "np_report.h"
#include "np_judge.h"

NP_INLINE int np_has_ports(__u8 ipproto)
{
	return ipproto == NP_IPPROTO_TCP || ipproto == NP_IPPROTO_UDP;
}

/* 0 when the packet is not one for the table: options, or nothing after the header. Those are judged each time. */
NP_INLINE int np_flow4_key(struct __sk_buff *skb, const struct np_policy *p, const int out, struct np_flow4 *key)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = (void *)data;
	__u16 *ports = (void *)(data + 20);

	if (data + 28 > end || data[0] != 0x45)
		return 0;
	key->prefixlen = 64;
	key->scope = p->id;
	key->peer = out ? ip->daddr : ip->saddr;
	key->local = out ? ip->saddr : ip->daddr;
	key->protocol = ip->protocol;
	key->peer_port = np_has_ports(ip->protocol) ? np_ntohs(out ? ports[1] : ports[0]) : 0;
	key->local_port = np_has_ports(ip->protocol) ? np_ntohs(out ? ports[0] : ports[1]) : 0;
	return 1;
}

NP_INLINE int np_flow6_key(struct __sk_buff *skb, const struct np_policy *p, const int out, struct np_flow6 *key)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 *words = (void *)data;
	__u16 *ports = (void *)(data + 40);

	if (data + 48 > end || np_is_extension(data[6]))
		return 0;
	key->prefixlen = 160;
	key->scope = p->id;
	__builtin_memcpy(key->peer, out ? words + 6 : words + 2, 16);
	__builtin_memcpy(key->local, out ? words + 2 : words + 6, 16);
	key->protocol = data[6];
	key->peer_port = np_has_ports(data[6]) ? np_ntohs(out ? ports[1] : ports[0]) : 0;
	key->local_port = np_has_ports(data[6]) ? np_ntohs(out ? ports[0] : ports[1]) : 0;
	return 1;
}

NP_INLINE struct np_flow *np_flow_find(struct __sk_buff *skb, const struct np_policy *p, const int out)
{
	if (np_likely(skb->protocol == np_htons(ETH_P_IP))) {
		struct np_flow4 key;

		return np_flow4_key(skb, p, out, &key) ? map_get(np_flows4, &key) : 0;
	} else {
		struct np_flow6 key;

		return np_flow6_key(skb, p, out, &key) ? map_get(np_flows6, &key) : 0;
	}
}

/* 0: added. 1: this packet is not one for the table. Negative: it is there already, or the table is full. An int, for
 * before 6.4 the helper is one, called without its sign's extension. Source: "bpf: return long from bpf_map_ops funcs". */
NP_INLINE int np_flow_add(struct __sk_buff *skb, const struct np_policy *p, const int out, const struct np_flow *flow)
{
	if (skb->protocol == np_htons(ETH_P_IP)) {
		struct np_flow4 key;

		return np_flow4_key(skb, p, out, &key) ? (int)map_add(np_flows4, &key, flow) : 1;
	} else {
		struct np_flow6 key;

		return np_flow6_key(skb, p, out, &key) ? (int)map_add(np_flows6, &key, flow) : 1;
	}
}

/* On shared values, by atomics: packets of one flow are on several CPUs. */
NP_INLINE void np_flow_count(struct np_flow *f, struct __sk_buff *skb, const int out)
{
	__u64 *packed = out ? &f->packed_out : &f->packed_in;

	np_add(*packed, NP_PACKET_UNIT + skb->len);
	if (np_unlikely((__s64)*packed >= NP_PACKED_FULL * NP_PACKET_UNIT))
		np_empty(packed, out ? &f->packets_out : &f->packets_in, out ? &f->bytes_out : &f->bytes_in);
}

/* Who opened: the entry knows; for a new one the packet says, or the record of accepted sockets. */
NP_INLINE __u8 np_opener(struct __sk_buff *skb, const struct np_flow *f, const struct np_packet *k, __u64 cookie,
			 const int out)
{
	if (f)
		return f->opener;
	if (k->ipproto == NP_IPPROTO_TCP && !np_opens(k->tcp_flags))
		return np_opened_by_peer(skb, k, cookie) ? NP_IN : NP_OUT;
	return out ? NP_OUT : NP_IN;
}

NP_INLINE __u32 np_judge_flow(const struct np_policy *p, const struct np_packet *k, __u8 opener)
{
	int inbound = opener == NP_IN;

	if (p->flags & NP_F_COUNT_ONLY)
		return NP_ALLOW;
	return np_judge(p, k, inbound ? NP_IN : NP_OUT | NP_PACKET,
			inbound || k->ipproto == NP_IPPROTO_TCP ? 0 : NP_IN);
}

NP_INLINE void np_flow_insert(struct __sk_buff *skb, const struct np_policy *p, struct np_counters *c, const int out,
			      __u8 opener, __u8 verdict)
{
	struct np_flow fresh = {.ruleset = p->ruleset, .verdict = verdict, .opener = opener}, *f = 0;
	int result;

	*(out ? &fresh.packed_out : &fresh.packed_in) = NP_PACKET_UNIT + skb->len;
	result = np_flow_add(skb, p, out, &fresh);
	if (result == 0)
		return;
	if (result < 0)
		f = np_flow_find(skb, p, out); /* another CPU was first, or the table is full */
	if (f) {
		np_flow_count(f, skb, out);
		return;
	}
	np_count_plain(skb, c, out, 0);
	if (result < 0)
		np_add(c->flows_lost, 1);
}

/* An answer to a peer who spoke first, where sockets may be connected to such a peer against the policy. */
NP_INLINE int np_is_stray(const struct np_policy *p, const struct np_flow *f, const int out)
{
	return out && f && f->opener == NP_IN && np_has_strays(p);
}

/* A packet of a flow that is new, or whose verdict is of another rule set. */
NP_INLINE int np_flow_slow(struct __sk_buff *skb, struct np_policy *p, struct np_counters *c, const int out,
			   struct np_flow *f)
{
	struct np_packet k = {};
	__u64 cookie = bpf_get_socket_cookie(skb);
	__u8 reason = NP_R_MALFORMED, opener = NP_OUT, place = out ? NP_R_PACKET_OUT : NP_R_PACKET_IN;
	__u32 verdict = NP_DENY;
	int ends = 0;

	if (np_read(skb, 0, out, &k) == 0 && np_valid(p)) {
		opener = np_opener(skb, f, &k, cookie, out);
		if (np_is_stray(p, f, out) && k.ipproto == NP_IPPROTO_UDP)
			opener = NP_OUT;
		verdict = np_judge_flow(p, &k, opener) & 15;
		reason = verdict == NP_ALLOW || verdict == NP_LOG ? 0 : place;
		ends = reason && np_ends(skb, &k);
		reason = ends ? 0 : reason;
	}
	if (!reason && (p->flags & NP_F_BUDGET))
		reason = np_take_packet(p, skb->len);
	if (reason)
		np_add(*(out ? &c->denied_out : &c->denied_in), 1);
	else
		np_count_gso(skb, c, out, 0, k.headers);
	if (reason || verdict == NP_LOG)
		np_report(p, c, &k, cookie, reason ? NP_DENY : NP_LOG, reason ? reason : place, opener, 0);
	if (reason)
		return 0;
	if (f && !ends) {
		f->verdict = verdict;
		f->ruleset = p->ruleset;
	}
	if (f)
		np_flow_count(f, skb, out);
	else if (ends)
		np_count_plain(skb, c, out, 0); /* no entry: it would let what follows pass */
	else
		np_flow_insert(skb, p, c, out, opener, verdict);
	return 1;
}

/* Hit: one lookup, no judging, and counted in the flow alone: user space adds the flows up. Limits are judged per
 * packet, so they take the slow path. */
NP_INLINE int np_flow_skb(struct __sk_buff *skb, const int out)
{
	struct np_policy *p = storage_get(np_policies);
	struct np_flow *f = np_flow_find(skb, p, out);

	if (np_likely(f && f->ruleset == p->ruleset && np_valid_without(p, NP_F_BUDGET) && !np_is_stray(p, f, out))) {
		np_flow_count(f, skb, out);
		if (np_unlikely(skb->gso_segs > 1))
			np_count_gso(skb, storage_get(np_counts), out, 0, 0);
		return 1;
	}
	return np_flow_slow(skb, p, storage_get(np_counts), out, f);
}
#endif
