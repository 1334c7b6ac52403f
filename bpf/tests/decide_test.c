// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* decide_test.c - the decisions of np_decide.h, on the host, under the sanitizers. Exit status 0: all hold.
 * Refuses: maps, helpers, kernels; those are tests/kernel/network.
 */
#include <linux/types.h>
#include <stdio.h>
#include <string.h>
#include "np_decide.h"

static int failures;

#define CHECK(claim)                                                                                                   \
	do {                                                                                                           \
		if (!(claim)) {                                                                                        \
			failures++;                                                                                    \
			printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #claim);                                     \
		}                                                                                                      \
	} while (0)

static struct np_entry line(__u16 lo, __u16 hi, __u8 protocols, __u8 where, __u8 verdict, __u16 redirect)
{
	return (struct np_entry){lo, hi, protocols, where << 4 | verdict, redirect};
}

static void the_first_line_that_fits_decides(void)
{
	struct np_list list = {.count = 3,
			       .entries = {line(80, 80, NP_TCP, NP_OUT, NP_DENY, 0),
					   line(0, 1023, NP_TCP | NP_UDP, NP_OUT, NP_ALLOW, 0),
					   line(0, 65535, 15, NP_OUT | NP_IN, NP_REDIRECT, 7)}};

	CHECK(np_match(&list, NP_TCP, 80, NP_OUT) == NP_DENY);
	CHECK(np_match(&list, NP_UDP, 80, NP_OUT) == NP_ALLOW);
	CHECK(np_match(&list, NP_TCP, 1023, NP_OUT) == NP_ALLOW);
	CHECK(np_match(&list, NP_TCP, 1024, NP_OUT) == (NP_REDIRECT | 7u << 16));
	CHECK(np_match(&list, NP_TCP, 80, NP_IN) == (NP_REDIRECT | 7u << 16));
	CHECK(np_match(&list, NP_TCP, 80, NP_BIND) == NP_UNSET);
	list.count = 0;
	CHECK(np_match(&list, NP_TCP, 80, NP_OUT) == NP_UNSET);
}

static void a_count_that_lies_is_bounded(void)
{
	struct np_list list = {.count = 0xffffffff};

	CHECK(np_match(&list, NP_TCP, 80, NP_OUT) == NP_UNSET);
	list.entries[NP_LIST_MAX - 1] = line(80, 80, NP_TCP, NP_OUT, NP_ALLOW, 0);
	CHECK(np_match(&list, NP_TCP, 80, NP_OUT) == NP_ALLOW);
}

static void every_port_is_in_exactly_the_ranges_that_hold_it(void)
{
	struct np_list list = {.count = 1};

	for (__u32 lo = 0; lo < 65536; lo += 4099)
		for (__u32 port = 0; port < 65536; port += 7) {
			__u32 hi = lo + 500 > 65535 ? 65535 : lo + 500;

			list.entries[0] = line(lo, hi, NP_TCP, NP_OUT, NP_ALLOW, 0);
			CHECK((np_match(&list, NP_TCP, port, NP_OUT) == NP_ALLOW) == (port >= lo && port <= hi));
		}
}

static void an_unset_default_is_a_denial(void)
{
	struct np_policy p = {0};

	CHECK(!np_valid(&p));
	CHECK(np_default(&p, NP_OUT) == NP_DENY && np_default(&p, NP_IN) == NP_DENY &&
	      np_default(&p, NP_BIND) == NP_DENY);
	p.magic = NP_MAGIC;
	p.default_out = NP_ALLOW;
	CHECK(np_valid(&p) && np_default(&p, NP_OUT | NP_PACKET) == NP_ALLOW && np_default(&p, NP_IN) == NP_DENY);
}

static void fragments_pass_unless_every_port_is_denied(void)
{
	CHECK(np_fragment_verdict(NP_DENY, NP_DENY) == NP_DENY);
	CHECK(np_fragment_verdict(NP_UNSET, NP_UNSET) == NP_ALLOW);
	CHECK(np_fragment_verdict(NP_ALLOW, NP_DENY) == NP_ALLOW);
}

static void only_syn_without_ack_opens(void)
{
	for (int flags = 0; flags < 256; flags++) {
		CHECK(np_opens(flags) == ((flags & 2) && !(flags & 16)));
		CHECK(np_answers(flags) == ((flags & 2) && (flags & 16)));
	}
}

static void gso_repeats_the_headers(void)
{
	CHECK(np_gso_bytes(0, 52) == 0 && np_gso_bytes(1, 52) == 0);
	CHECK(np_gso_bytes(10, 28) == 9 * 28);
	CHECK(np_gso_bytes(65535, 60) == 65534ull * 60);
}

static void extension_headers_have_the_lengths_of_the_rfcs(void)
{
	CHECK(np_extension_bytes(0, 0) == 8 && np_extension_bytes(60, 1) == 16 && np_extension_bytes(43, 2) == 24);
	CHECK(np_extension_bytes(44, 255) == 8);
	CHECK(np_extension_bytes(51, 4) == 24);
	CHECK(!np_is_extension(6) && !np_is_extension(17) && !np_is_extension(58) && !np_is_extension(59));
}

static void addresses_are_what_they_reach(void)
{
	__u32 mapped[4] = {0, 0, NP_MAPPED_WORD_LE, 1}, plain[4] = {0, 0, 0, 1};
	unsigned char bytes[4] = {127, 0, 0, 1};
	__u32 loopback;

	memcpy(&loopback, bytes, 4);
	CHECK(np_is_mapped(mapped) && !np_is_mapped(plain));
	CHECK(np_reached4(0) == loopback && np_reached4(5) == 5);
}

/* Every IPv4 protocol and every TCP flag; a first byte that is not 0x45 is never plain. */
static void plain_packets_were_judged_at_their_call(void)
{
	__u8 v4[54] = {0x45}, v6[54] = {0x60};

	for (int protocol = 0; protocol < 256; protocol++)
		for (int flags = 0; flags < 256; flags++) {
			int tcp = protocol == 6, udp = protocol == 17;

			v4[9] = v6[6] = protocol;
			v4[33] = v6[53] = flags;
			CHECK(np_plain4(v4, 1) == (tcp || udp) && np_plain6(v6, 1) == (tcp || udp));
			CHECK(np_plain4(v4, 0) == (tcp && !np_opens(flags)));
			CHECK(np_plain6(v6, 0) == (tcp && !np_opens(flags)));
			v4[0] = 0x46;
			CHECK(!np_plain4(v4, 1) && !np_plain4(v4, 0));
			v4[0] = 0x45;
		}
}

static void what_a_cpu_knows_of_a_policy_is_never_too_much(void)
{
	struct np_policy p = {.magic = NP_MAGIC};

	CHECK(np_fast_bits(&p) == (NP_FAST_OUT_PLAIN | NP_FAST_IN));
	p.flags = NP_F_INBOUND;
	CHECK(np_fast_bits(&p) == (NP_FAST_OUT_PLAIN | NP_FAST_IN_PLAIN));
	p.flags = NP_F_COUNT_ONLY;
	CHECK(np_fast_bits(&p) == (NP_FAST_OUT | NP_FAST_IN));
	for (__u32 flag = NP_F_PER_PACKET; flag <= NP_F_BUDGET; flag <<= 1) {
		p.flags = flag | NP_F_COUNT_ONLY;
		CHECK((np_fast_bits(&p) == 0) == (flag != NP_F_FLOWS));
	}
	p.flags = 0;
	p.magic = 0;
	CHECK(np_fast_bits(&p) == 0);
}

static void packed_counts_come_apart_whatever_was_added(void)
{
	__u64 packed = 0;

	for (long packets = 1; packets <= 1000; packets++) {
		packed += NP_PACKET_UNIT + 65535;
		CHECK(np_packed_packets(packed) == packets && np_packed_bytes(packed) == packets * 65535);
	}
	packed = 0; /* two emptied the same: what is left is negative, and is still the right sum */
	packed -= 3 * NP_PACKET_UNIT + 200;
	CHECK(np_packed_packets(packed) == -3 && np_packed_bytes(packed) == -200);
	packed = (NP_PACKED_FULL + 1) * NP_PACKET_UNIT + NP_PACKED_FULL * 65535;
	CHECK(np_packed_packets(packed) == NP_PACKED_FULL + 1 && np_packed_bytes(packed) == NP_PACKED_FULL * 65535);
}

static void protocols_have_their_bits(void)
{
	CHECK(np_protocol_bit(6) == NP_TCP && np_protocol_bit(17) == NP_UDP && np_protocol_bit(1) == NP_ICMP);
	CHECK(np_protocol_bit(58) == NP_ICMP && np_protocol_bit(132) == NP_OTHER && np_protocol_bit(262) == NP_OTHER);
	CHECK(np_keeps_link(58, 135) && np_keeps_link(58, 143) && np_keeps_link(2, 0) && !np_keeps_link(58, 128) &&
	      !np_keeps_link(1, 135));
}

int main(void)
{
	the_first_line_that_fits_decides();
	a_count_that_lies_is_bounded();
	every_port_is_in_exactly_the_ranges_that_hold_it();
	an_unset_default_is_a_denial();
	fragments_pass_unless_every_port_is_denied();
	only_syn_without_ack_opens();
	gso_repeats_the_headers();
	extension_headers_have_the_lengths_of_the_rfcs();
	addresses_are_what_they_reach();
	protocols_have_their_bits();
	packed_counts_come_apart_whatever_was_added();
	plain_packets_were_judged_at_their_call();
	what_a_cpu_knows_of_a_policy_is_never_too_much();
	printf("%s\n", failures ? "FAILED" : "ok");
	return failures != 0;
}
