/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * np_links.h - the same policy on whole frames, by interface: tcx (6.6) or clsact at the host end of a veth.
 *
 * Owns: what is different there: a 14-byte header before L3, link upkeep, no sockets, fragments on the wire.
 * Refuses: interfaces without an entry in np_links (not ours: pass on).
 */
#ifndef NP_LINKS_H
#define NP_LINKS_H
#include "np_report.h"
#include "np_judge.h"

#define NP_L2 14
#define NP_PASS_ON (-1) /* TC_ACT_UNSPEC, TCX_NEXT: the next program decides */

/* 0 when the frame passes, else why not. */
NP_INLINE __u8 np_link_objection(const struct np_policy *p, const struct np_packet *k, const int out)
{
	__u32 verdict;

	if (p->flags & NP_F_COUNT_ONLY)
		return 0;
	verdict = np_judge_packet(p, k, out, 0) & 15;
	/* No socket to ask who opened: an answer passes when the inbound side allows it. */
	if (k->ipproto == NP_IPPROTO_TCP && !np_opens(k->tcp_flags) && verdict == NP_DENY)
		verdict = np_judge(p, k, NP_IN, 0) & 15;
	return verdict == NP_ALLOW || verdict == NP_LOG ? 0 : out ? NP_R_PACKET_OUT : NP_R_PACKET_IN;
}

NP_INLINE int np_link(struct __sk_buff *skb, const int out)
{
	__u32 ifindex = skb->ifindex;
	struct np_policy *p = map_get(np_links, &ifindex);
	struct np_counters *c = map_get(np_link_counts, &ifindex);
	__u8 reason = NP_R_MALFORMED;
	struct np_packet k = {};

	if (!p)
		return NP_PASS_ON;
	if (!c || !np_valid(p))
		return TC_ACT_SHOT;
	if (skb->protocol == np_htons(ETH_P_ARP))
		return NP_PASS_ON;
	if (np_read(skb, NP_L2, out, &k) == 0) {
		if (np_keeps_link(k.ipproto, k.icmp_type))
			return NP_PASS_ON; /* the kernel's own, not the test's: not counted */
		reason = np_link_objection(p, &k, out);
	}
	if (!reason) {
		np_count(skb, c, out, NP_L2, k.headers);
		return NP_PASS_ON;
	}
	np_add(*(out ? &c->denied_out : &c->denied_in), 1);
	np_report(p, c, &k, 0, NP_DENY, reason, out ? NP_OUT : NP_IN, 0);
	return TC_ACT_SHOT;
}
#endif
