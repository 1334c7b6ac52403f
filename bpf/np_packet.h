/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * np_packet.h - from an skb to a struct np_packet: who, which port, which protocol.
 *
 * Owns: header walking, through bpf_skb_load_bytes, so that paged data, IP options and extension headers are all read.
 * Refuses: verdicts. What cannot be read in full is -1, which the callers take as malformed: deny.
 */
#ifndef NP_PACKET_H
#define NP_PACKET_H
#include "np_dual.h"
#include "np_decide.h"

struct np_packet {
	__u32 peer[4]; /* network order; IPv4 as ::ffff:a.b.c.d */
	__u16 port;    /* of the peer, host order; 0 without ports */
	__u16 local_port;
	__u32 headers; /* bytes of L3 and L4 headers, what GSO repeats */
	__u8 family;
	__u8 ipproto;
	__u8 tcp_flags;
	__u8 fragment; /* not the first: no ports */
	__u8 icmp_type;
	__u8 pad[3];
};

#define NP_AF_INET 2
#define NP_AF_INET6 10

NP_INLINE void np_map4(__u32 *to, __u32 address)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = NP_MAPPED_WORD_LE;
	to[3] = address;
}

/* Ports, flags or ICMP type of the transport header at byte `at`. */
NP_INLINE int np_read_transport(struct __sk_buff *skb, __u32 l3, __u32 at, int out, struct np_packet *k)
{
	__u8 head[14] = {};
	int tcp = k->ipproto == NP_IPPROTO_TCP, udp = k->ipproto == NP_IPPROTO_UDP;
	__u16 source, destination;

	if (k->fragment || np_protocol_bit(k->ipproto) == NP_OTHER)
		return 0;
	if (bpf_skb_load_bytes(skb, at, head, 8) || (tcp && bpf_skb_load_bytes(skb, at + 8, head + 8, 6)))
		return -1;
	k->icmp_type = head[0];
	k->tcp_flags = head[13];
	k->headers = at - l3 + (tcp ? (head[12] >> 4) * 4 : 8);
	if (tcp || udp) {
		source = head[0] << 8 | head[1];
		destination = head[2] << 8 | head[3];
		k->port = out ? destination : source;
		k->local_port = out ? source : destination;
	}
	return 0;
}

/* Byte at which the transport header starts, or 0 when the packet cannot be read. */
NP_INLINE __u32 np_read4(struct __sk_buff *skb, __u32 l3, int out, struct np_packet *k)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)) || ip.ihl < 5)
		return 0;
	np_map4(k->peer, out ? ip.daddr : ip.saddr);
	k->family = NP_AF_INET;
	k->ipproto = ip.protocol;
	k->fragment = (ip.frag_off & np_htons(0x1fff)) != 0;
	return l3 + ip.ihl * 4;
}

/* Past the extension headers, at most 6: a longer chain is longer than anyone honest sends.
 * Returns next header | fragment << 8 | byte << 16, or 0 when it cannot be read. */
NP_GLOBAL __u32 np_skip_extensions(struct __sk_buff *skb, __u32 at, __u32 next)
{
	__u8 head[4];

	NP_ROLLED
	for (int i = 0; i < 6 && np_is_extension(next); i++) {
		if (bpf_skb_load_bytes(skb, at, head, sizeof(head)))
			return 0;
		if (next == 44 && (head[2] | (head[3] & 0xf8)))
			return head[0] | 1 << 8 | (at + 8) << 16;
		at += np_extension_bytes(next, head[1]);
		next = head[0];
	}
	return np_is_extension(next) ? 0 : next | at << 16;
}

NP_INLINE __u32 np_read6(struct __sk_buff *skb, __u32 l3, int out, struct np_packet *k)
{
	struct ipv6hdr ip;
	__u32 found;

	if (bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)))
		return 0;
	__builtin_memcpy(k->peer, out ? (void *)&ip.daddr : (void *)&ip.saddr, 16);
	k->family = NP_AF_INET6;
	found = np_skip_extensions(skb, l3 + sizeof(ip), ip.nexthdr);
	k->ipproto = found;
	k->fragment = found >> 8 & 1;
	return found >> 16;
}

/* Fills *k from the IP packet that starts at byte l3. out: the test sends it. -1: malformed, or not IP. */
NP_INLINE int np_read(struct __sk_buff *skb, __u32 l3, int out, struct np_packet *k)
{
	__u32 at = 0;
	int result;

	if (skb->protocol == np_htons(ETH_P_IP))
		at = np_read4(skb, l3, out, k);
	else if (skb->protocol == np_htons(ETH_P_IPV6))
		at = np_read6(skb, l3, out, k);
	np_forget(*k);
	np_forget(at);
	result = at ? np_read_transport(skb, l3, at, out, k) : -1;
	np_forget(*k);
	np_forget(result);
	return result;
}

/* True for what never needs a look at the rules (np_plain4, np_plain6). Touches one cache line; says no when in doubt
 * (options, extension headers, paged headers). */
NP_INLINE int np_is_plain(struct __sk_buff *skb, const int out)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (np_likely(skb->protocol == np_htons(ETH_P_IP)))
		return data + (out ? 20 : 34) <= end && np_plain4(data, out);
	if (skb->protocol == np_htons(ETH_P_IPV6))
		return data + (out ? 40 : 54) <= end && np_plain6(data, out);
	return 0;
}
#endif
