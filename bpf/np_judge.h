/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * np_judge.h - rules and limits looked up for one peer; the answer is a verdict of np_abi.h.
 *
 * Owns: the order of lookups (prefix, port list, default) and what statelessness means for packets.
 * Refuses: hook return codes, counting, events.
 */
#ifndef NP_JUDGE_H
#define NP_JUDGE_H
#include "np_maps.h"
#include "np_packet.h"

/* A question, packed into scalars because that is what a global function takes. */
struct np_question {
	__u16 port;
	__u16 local_port;
	__u8 protocol; /* NP_TCP ... */
	__u8 where;    /* NP_OUT ... */
	__u8 also;     /* a second place at which a rule would do, or 0 */
	__u8 fallback; /* verdict when no rule speaks | 16 for a fragment */
};

union np_packed_question {
	struct np_question q;
	__u64 word;
};

union np_packed_address {
	__u32 address[4];
	__u64 half[2];
};

/* The port list of the longest prefix that covers this peer, or 0. */
NP_INLINE __u32 np_list_id(__u32 ruleset, const __u32 *peer)
{
	struct np_rule *rule;

	if (np_is_mapped(peer)) {
		struct np_key4 key = {.prefixlen = 64, .scope = ruleset, .peer = peer[3]};

		rule = map_get(np_rules4, &key);
	} else {
		struct np_key6 key = {.prefixlen = 160, .scope = ruleset};

		__builtin_memcpy(key.peer, peer, 16);
		rule = map_get(np_rules6, &key);
	}
	return rule ? rule->list : 0;
}

/* What the list says of a port at a place; id 0 is the empty list. */
NP_GLOBAL __u32 np_scan(__u32 id, __u32 protocol, __u32 port, __u32 where)
{
	struct np_list *list = map_get(np_lists, &id);

	__u32 v = list ? np_match(list, protocol, port, where) : NP_DENY;

	np_forget(v);
	return v;
}

NP_INLINE __u32 np_scan_at(__u32 id, const struct np_question *q, __u8 where)
{
	return np_scan(id, q->protocol, where & NP_OUT ? q->port : q->local_port, where);
}

/* verdict | redirect << 16. A datagram from or to a port the test offers (an inbound rule) is part of that exchange,
 * whoever spoke first: that is what `also` is for. */
NP_GLOBAL __u32 np_answer(__u32 ruleset, __u64 high, __u64 low, __u64 question)
{
	union np_packed_address peer = {.half = {high, low}};
	union np_packed_question packed = {.word = question};
	struct np_question *q = &packed.q;
	__u32 id = np_list_id(ruleset, peer.address), v, second;

	if (np_unlikely(q->fallback & 16) && id)
		return np_fragment_verdict(np_scan(id, q->protocol, 0, q->where),
					   np_scan(id, q->protocol, 65535, q->where));
	v = np_scan_at(id, q, q->where);
	if (v == NP_UNSET)
		v = q->fallback & 15;
	if (!q->also || (v & 15) != NP_DENY)
		return v;
	second = np_scan_at(id, q, q->also);
	return second == NP_UNSET ? v : second;
}

NP_INLINE __u32 np_judge(const struct np_policy *p, const struct np_packet *k, __u8 where, __u8 also)
{
	union np_packed_question q = {
		.q = {.port = k->port, .local_port = k->local_port, .where = where, .also = also}};
	union np_packed_address a;

	q.q.protocol = np_protocol_bit(k->ipproto);
	q.q.fallback = np_default(p, where) | k->fragment << 4;
	__builtin_memcpy(a.address, k->peer, 16);
	return np_answer(p->ruleset, a.half[0], a.half[1], q.word);
}

NP_INLINE __u64 *np_accepted_slot(__u64 cookie)
{
	__u32 slot = (__u32)cookie & (NP_ACCEPTED - 1);

	return map_get(np_accepted, &slot);
}

/* Who opened a TCP connection, asked of its socket: remembered when accepted; before that it is the listener's. */
NP_INLINE int np_opened_by_peer(struct __sk_buff *skb, const struct np_packet *k, __u64 cookie)
{
	struct bpf_sock *sk = skb->sk;
	__u64 *accepted;

	if (k->ipproto != NP_IPPROTO_TCP || np_opens(k->tcp_flags))
		return 0; /* no question, or the packet itself answers it */
	accepted = np_accepted_slot(cookie);
	return (sk && sk->state == BPF_TCP_LISTEN) || (accepted && *accepted == cookie);
}

/* TCP states of a socket whose program has said that it sends no more. Source: uapi linux/bpf.h, BPF_TCP_*. */
#define NP_ENDED (1 << BPF_TCP_FIN_WAIT1 | 1 << BPF_TCP_FIN_WAIT2 | 1 << BPF_TCP_CLOSING | 1 << BPF_TCP_LAST_ACK)

/* True for what only ends a TCP connection: no data, of a socket that is closed for sending. It passes whatever the policy
 * has become meanwhile: it carries nothing, and refused it would come again and again, in the name of the next test of a
 * group. Raw sockets are in none of these states. */
NP_INLINE int np_ends(struct __sk_buff *skb, const struct np_packet *k)
{
	struct bpf_sock *sk = skb->sk;

	return k->ipproto == NP_IPPROTO_TCP && !np_opens(k->tcp_flags) && skb->len == k->headers && sk &&
	       (1 << (sk->state & 31) & NP_ENDED);
}

/* The verdict on one packet. `accepted`: its TCP connection was opened by the peer. */
NP_INLINE __u32 np_judge_packet(const struct np_policy *p, const struct np_packet *k, int out, int accepted)
{
	int tcp = k->ipproto == NP_IPPROTO_TCP;
	__u8 where = NP_OUT | NP_PACKET;

	if (tcp && np_opens(k->tcp_flags))
		where = out ? NP_OUT | NP_PACKET : NP_IN;
	else if (tcp && (accepted || (out && np_answers(k->tcp_flags))))
		where = NP_IN;
	else if (!tcp && !out && p->default_in != NP_DENY)
		where = NP_IN;
	return np_judge(p, k, where, tcp ? 0 : NP_IN);
}

/* True when a UDP socket of this attachment is connected where the policy refuses. */
NP_INLINE int np_has_strays(const struct np_policy *p)
{
	__u32 id = p->id;

	return map_get(np_strays, &id) != 0;
}

/* Makes it so: from now on every CPU judges its datagrams. 0 when there is no room to remember it: the caller refuses. */
NP_INLINE int np_add_stray(const struct np_policy *p)
{
	__u32 id = p->id, one = 1, *epoch = map_get(np_epoch, &one);

	if (np_has_strays(p))
		return 1;
	if (!epoch || (int)map_add(np_strays, &id, &one) != 0)
		return np_has_strays(p); /* another CPU was first */
	np_add(*epoch, 1);
	return 1;
}

/* True when one more connection is within the limit; takes it. Never one too many: a tie between CPUs refuses both. */
NP_INLINE int np_take_connection(const struct np_policy *p)
{
	__u32 slot = p->budget;
	struct np_budget *b = map_get(np_budgets, &slot);

	if (!b || !p->limit_connections)
		return 1;
	np_add(b->connections, 1);
	if (b->connections <= p->limit_connections)
		return 1;
	np_add(b->connections, -1);
	return 0;
}

/* 0, or the NP_R_LIMIT_* this packet would break. */
NP_INLINE __u8 np_take_packet(const struct np_policy *p, __u32 bytes)
{
	__u32 slot = p->budget;
	struct np_budget *b = map_get(np_budgets, &slot);
	__u64 second;

	if (!b)
		return 0;
	if (p->limit_pps) {
		second = bpf_ktime_get_ns() / 1000000000ULL;
		if (b->window != second) {
			b->window = second;
			b->packets = 0;
		}
		np_add(b->packets, 1);
		if (b->packets > p->limit_pps)
			return NP_R_LIMIT_PPS;
	}
	if (p->limit_bytes) {
		np_add(b->bytes, bytes);
		if (b->bytes > p->limit_bytes) {
			np_add(b->bytes, -(__u64)bytes);
			return NP_R_LIMIT_BYTES;
		}
	}
	return 0;
}
#endif
