/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * np_decide.h - the decisions, as pure functions of their arguments.
 *
 * Owns: what a rule, a header byte or a limit means. Compiles as host C too; tests/decide_test.c runs it there.
 * Refuses: helpers, maps, contexts. A hook gathers, asks here, and translates the answer once.
 */
#ifndef NP_DECIDE_H
#define NP_DECIDE_H
#include "np_abi.h"

#ifndef NP_INLINE
#define NP_INLINE static inline __attribute__((always_inline, unused))
#endif

#ifdef __clang__
#define NP_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define NP_ROLLED
#endif

#define NP_IPPROTO_ICMP 1
#define NP_IPPROTO_TCP 6
#define NP_IPPROTO_UDP 17
#define NP_IPPROTO_ICMPV6 58
#define NP_SOCK_STREAM 1 /* as on every architecture but MIPS */
#define NP_SOCK_RAW 3

/* Linux's own numbers, the same on every architecture with little-endian BPF headers here. */
#define NP_MAPPED_WORD_LE 0xffff0000u /* third word of ::ffff:0:0/96 as a little-endian load sees it */
#define NP_LOOPBACK4_LE 0x0100007fu   /* 127.0.0.1 */

/* Fail closed: a policy that user space did not finish writing is no policy. */
NP_INLINE int np_valid(const struct np_policy *p)
{
	return p->magic == NP_MAGIC;
}

/* Valid, and none of these flags (a mask) set: one load, one compare. */
NP_INLINE int np_valid_without(const struct np_policy *p, __u64 flags)
{
	__u64 head = *(const __u64 *)p;

	return (head & (flags << 32 | 0xffffffff)) == NP_MAGIC;
}

/* NP_FAST_* of a policy. */
NP_INLINE __u64 np_fast_bits(const struct np_policy *p)
{
	if (!np_valid_without(p, NP_F_PER_PACKET | NP_F_BUDGET | NP_F_RAW))
		return 0;
	if (p->flags & NP_F_COUNT_ONLY)
		return NP_FAST_OUT | NP_FAST_IN;
	return NP_FAST_OUT_PLAIN | (p->flags & NP_F_INBOUND ? NP_FAST_IN_PLAIN : NP_FAST_IN);
}

NP_INLINE __u8 np_protocol_bit(__u32 ipproto)
{
	switch (ipproto) {
	case NP_IPPROTO_TCP:
		return NP_TCP;
	case NP_IPPROTO_UDP:
		return NP_UDP;
	case NP_IPPROTO_ICMP:
	case NP_IPPROTO_ICMPV6:
		return NP_ICMP;
	}
	return NP_OTHER;
}

/* True when the entry speaks of this protocol, port (host order) and place. */
NP_INLINE int np_fits(const struct np_entry *e, __u8 protocol, __u16 port, __u8 where)
{
	return ((e->protocols & protocol) != 0) & (((e->where_verdict >> 4) & where) != 0) & (port >= e->port_lo) &
	       (port <= e->port_hi);
}

/* verdict | redirect << 16 of the first entry that fits; 0 (NP_UNSET) when none does: the default decides. */
NP_INLINE __u32 np_match(const struct np_list *list, __u8 protocol, __u16 port, __u8 where)
{
	NP_ROLLED
	for (__u32 i = 0; i < NP_LIST_MAX; i++) {
		if (i >= list->count)
			break;
		if (np_fits(&list->entries[i], protocol, port, where))
			return (list->entries[i].where_verdict & 15) | (__u32)list->entries[i].redirect << 16;
	}
	return NP_UNSET;
}

/* A fragment after the first has no ports: unless a line speaks against all of them it passes, for the first one is
 * judged in full and without it the rest is nothing. */
NP_INLINE __u32 np_fragment_verdict(__u32 lowest_port, __u32 highest_port)
{
	return lowest_port == NP_DENY && highest_port == NP_DENY ? NP_DENY : NP_ALLOW;
}

NP_INLINE __u8 np_default(const struct np_policy *p, __u8 where)
{
	__u8 v = where & NP_OUT ? p->default_out : where & NP_IN ? p->default_in : p->default_bind;

	return v == NP_UNSET ? NP_DENY : v;
}

NP_INLINE int np_passes(__u32 verdict)
{
	return verdict == NP_ALLOW || verdict == NP_LOG || verdict == NP_REDIRECT;
}

NP_INLINE int np_is_mapped(const __u32 *a)
{
	return a[0] == 0 && a[1] == 0 && a[2] == NP_MAPPED_WORD_LE;
}

/* connect(2) to 0.0.0.0 or :: reaches the loopback address: judge what will be reached. Source: ip(7). */
NP_INLINE __u32 np_reached4(__u32 address)
{
	return address ? address : NP_LOOPBACK4_LE;
}

/* A TCP segment that opens a connection: SYN without ACK (data in it, fast open, changes nothing). */
NP_INLINE int np_opens(__u8 tcp_flags)
{
	return (tcp_flags & 0x12) == 0x02;
}

/* The second step of a handshake: whoever sends it was called. */
NP_INLINE int np_answers(__u8 tcp_flags)
{
	return (tcp_flags & 0x12) == 0x12;
}

/* Packets that need no look at the rules, by their IP header (20 bytes of it, 34 with that of TCP; 40 and 54).
 * Out: TCP and UDP. Every way to send them to somewhere passes connect(2)'s or sendmsg(2)'s hook first, and that has
 * judged the peer, or put the attachment into np_strays, which turns this off: fast open, io_uring and MPTCP's subflows too; raw sockets do not, and NP_F_RAW turns this off; a header
 * with options (a source route) or extension headers is not plain. In: the second and later packets of TCP. */
NP_INLINE int np_plain4(const __u8 *header, const int out)
{
	if (header[0] != 0x45)
		return 0;
	return header[9] == NP_IPPROTO_TCP ? out || !np_opens(header[33]) : out && header[9] == NP_IPPROTO_UDP;
}

NP_INLINE int np_plain6(const __u8 *header, const int out)
{
	return header[6] == NP_IPPROTO_TCP ? out || !np_opens(header[53]) : out && header[6] == NP_IPPROTO_UDP;
}

/* packets and bytes of one word, as a sum that may be taken apart again: bytes are the low 40 bits, signed. */
#define NP_PACKET_UNIT (1LL << 40)
#define NP_PACKED_FULL (1LL << 22) /* packets; of 64 KB each they are 2^38 bytes, half of what 40 signed bits hold */

NP_INLINE __s64 np_packed_packets(__u64 packed)
{
	return (__s64)(packed + NP_PACKET_UNIT / 2) >> 40;
}

NP_INLINE __s64 np_packed_bytes(__u64 packed)
{
	return (__s64)packed - np_packed_packets(packed) * NP_PACKET_UNIT;
}

/* L3 bytes a device adds when it cuts one skb into `segments`: each further one repeats the headers. */
NP_INLINE __u64 np_gso_bytes(__u32 segments, __u32 headers)
{
	return segments > 1 ? (__u64)(segments - 1) * headers : 0;
}

/* IPv6 extension headers that may precede the transport. Source: RFC 8200 section 4.1, RFC 4302, RFC 6275. */
NP_INLINE int np_is_extension(__u8 next)
{
	return next == 0 || next == 43 || next == 44 || next == 51 || next == 60 || next == 135;
}

/* Bytes of one extension header; `length` is its second byte. Fragment headers are always 8, AH counts in words. */
NP_INLINE __u32 np_extension_bytes(__u8 next, __u8 length)
{
	return next == 44 ? 8 : next == 51 ? (length + 2u) * 4 : (length + 1u) * 8;
}

/* What keeps a link itself alive: ARP is not IP; neighbour, router and multicast listener discovery, and IGMP.
 * Source: RFC 4861, RFC 3810, RFC 3376. */
NP_INLINE int np_keeps_link(__u8 ipproto, __u8 icmp_type)
{
	return ipproto == 2 ||
	       (ipproto == NP_IPPROTO_ICMPV6 && ((icmp_type >= 130 && icmp_type <= 137) || icmp_type == 143));
}
#endif
