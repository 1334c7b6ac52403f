/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * np_abi.h - what the eBPF programs and user space say to each other: layouts and numbers, nothing else.
 *
 * Owns: every struct that lies in a map. Compiles as BPF C (clang and bcc) and as host C.
 * Refuses: helpers, maps, decisions. Rules: fixed width, explicit padding, zero means unset, append only.
 * tests/abi_dump.c prints every field's offset; a Python test compares them with kernel/bpf/layout.py.
 */
#ifndef NP_ABI_H
#define NP_ABI_H

#ifndef NP_MAGIC	    /* benchmarks compile with 0: BPF_PROG_TEST_RUN gives a program zeroed storage */
#define NP_MAGIC 0x6e703031 /* "np01": a policy without it is malformed, which means deny */
#endif

/* Verdicts. Deliberately not the return codes of any hook: those are made once, at the edge. */
#define NP_UNSET 0
#define NP_ALLOW 1
#define NP_DENY 2
#define NP_LOG 3 /* allow, and say so */
#define NP_REDIRECT 4

/* Where a rule holds (np_entry.where, a mask). */
#define NP_OUT 1    /* the test opens: the peer's address, the peer's port */
#define NP_IN 2	    /* the peer opens: the peer's address, the test's port */
#define NP_BIND 4   /* bind(2): the test's own address and port */
#define NP_PACKET 8 /* packets only: what a redirect leads to, without allowing a connect to it by name */

/* Protocols (np_entry.protocols, a mask). */
#define NP_TCP 1
#define NP_UDP 2
#define NP_ICMP 4 /* ICMP and ICMPv6 */
#define NP_OTHER 8

/* np_policy.flags */
#define NP_F_COUNT_ONLY 1 /* no policy was asked for: allow and count */
#define NP_F_PER_PACKET 2 /* judge every packet: the policy changed under live sockets, or asks for it */
#define NP_F_FLOWS 4	  /* keep the flow table */
#define NP_F_RAW 8	  /* raw sockets may be made (their packets are judged all the same) */
#define NP_F_BUDGET 16	  /* limits are set */
#define NP_F_INBOUND 32	  /* inbound packets need a rule too (default_in is DENY, or there are inbound rules) */

/* np_counters.fast: packets that are counted without a look at the rules. All of one way, or those np_is_plain() knows. */
#define NP_FAST_OUT 1
#define NP_FAST_IN 2
#define NP_FAST_OUT_PLAIN 4
#define NP_FAST_IN_PLAIN 8

#define NP_LIST_MAX 32	  /* entries of one port list */
#define NP_LISTS 2048	  /* port lists (list 0 is never used: it is what a malformed rule points to) */
#define NP_RULES 32768	  /* prefixes of each address family, of all policies together */
#define NP_REDIRECTS 256  /* redirect 0 is never used */
#define NP_BUDGETS 1024	  /* budget 0 is never used */
#define NP_SEEN 4096	  /* denied or logged flows remembered, to report each once */
#define NP_ACCEPTED 65536 /* accepted TCP sockets remembered, to know who opened them; a power of two */
#define NP_ORIGINALS 1024 /* redirected destinations remembered, for getpeername and recvmsg */
#define NP_STRAYS 1024	  /* attachments at once whose UDP sockets may be connected where the policy refuses */
#define NP_CALLERS 1024	  /* such sockets remembered, to name their process when they send */
#define NP_RING_BYTES (256 * 1024)
#define NP_LINKS 1024 /* interfaces under tcx or clsact */

/* The policy of one attachment: value of np_policies (cgroup storage) and np_links (by ifindex). */
struct np_policy {
	__u32 magic;
	__u32 flags;   /* beside magic: both are tested by one load */
	__u32 id;      /* of the attachment: scope of its flows and events */
	__u32 ruleset; /* scope of its rules; a change of policy is a new number */
	__u8 default_out;
	__u8 default_in;
	__u8 default_bind;
	__u8 pad0;
	__u32 error;  /* errno of a denied connect, sendmsg, bind or socket */
	__u32 budget; /* index into np_budgets, 0: none */
	__u32 limit_connections;
	__u64 limit_bytes;
	__u64 limit_pps;
	__u64 pad1[2];
};

/* Counters of one attachment on one CPU.
 * Out: a system call that sends can be preempted, or a softirq can send over it, so adding is atomic; and because an
 * atomic waits for every store before it, packets and bytes share one word, emptied into two before it overflows.
 * In: receiving runs with softirqs off, so nothing nests on one CPU and adding is plain. */
struct np_counters {
	__u64 fast;	   /* what this CPU knows of the policy: np_epoch's value when it looked, NP_FAST_* << 32 */
	__u64 packed_out;  /* packets << 40 + L3 bytes, as one signed sum: see np_packed_packets() */
	__u64 packets_in;  /* one per skb, as the socket layer saw them; with flows on, those of no flow */
	__u64 bytes_in;	   /* L3 */
	__u64 packets_out; /* emptied from packed_out: the counts are the sums */
	__u64 bytes_out;
	__u64 gso_packets_out; /* further packets the device made of them: wire packets = packets + gso_packets */
	__u64 gso_bytes_out;   /* headers of those: wire L3 bytes = bytes + gso_bytes */
	__u64 gso_packets_in;
	__u64 gso_bytes_in;
	__u64 denied_out; /* refused calls (connect, sendmsg, socket) and packets */
	__u64 denied_in;
	__u64 connections_out; /* TCP, established */
	__u64 connections_in;
	__u64 logged;
	__u64 redirected;
	__u64 events_lost; /* the ring was full */
	__u64 flows_lost;  /* the flow table was full: counted here above, not per destination */
};

/* One line of a port list. The first that fits decides. */
struct np_entry {
	__u16 port_lo; /* host order */
	__u16 port_hi;
	__u8 protocols;
	__u8 where_verdict; /* where << 4 | verdict */
	__u16 redirect;	    /* index into np_redirects */
};

struct np_list {
	__u32 count;
	__u32 pad;
	struct np_entry entries[NP_LIST_MAX];
};

/* Keys: {prefix length, scope, peer} is the LPM key and the head of the flow key: one layout, no copy. */
struct np_key4 {
	__u32 prefixlen; /* 32 bits of scope + the prefix */
	__u32 scope;
	__u32 peer; /* network order, as in the packet */
};

struct np_key6 {
	__u32 prefixlen;
	__u32 scope;
	__u32 peer[4];
};

struct np_rule { /* value of np_rules4, np_rules6 */
	__u32 list;
	__u32 pad;
};

struct np_flow4 {
	__u32 prefixlen; /* always 64: makes the head an np_key4 */
	__u32 scope;
	__u32 peer;
	__u32 local;
	__u16 peer_port; /* host order */
	__u16 local_port;
	__u32 protocol;
};

struct np_flow6 {
	__u32 prefixlen; /* always 160 */
	__u32 scope;
	__u32 peer[4];
	__u32 local[4];
	__u16 peer_port;
	__u16 local_port;
	__u32 protocol;
};

struct np_flow {	  /* value of np_flows4, np_flows6 */
	__u64 packed_out; /* packets and L3 bytes, as in np_counters: one atomic a packet */
	__u64 packed_in;
	__u64 packets_out; /* emptied from the two above */
	__u64 bytes_out;
	__u64 packets_in;
	__u64 bytes_in;
	__u32 ruleset; /* under which the verdict was reached */
	__u8 verdict;
	__u8 opener; /* NP_OUT or NP_IN */
	__u16 pad0;
};

struct np_budget { /* what is used up, all CPUs together */
	__u64 bytes;
	__u64 connections;
	__u64 window; /* the second pps counts in, of CLOCK_MONOTONIC */
	__u64 packets;
};

struct np_redirect {
	__u32 address[4]; /* network order; IPv4 as ::ffff:a.b.c.d */
	__u32 port;	  /* host order; 0 keeps the port */
	__u32 pad;
};

struct np_seen {
	__u64 cookie; /* of the socket */
	__u32 address[4];
	__u32 ruleset;
	__u16 port;
	__u8 protocol;
	__u8 where; /* NP_OUT, NP_IN or NP_BIND */
	__u32 id;   /* of the attachment: equal policies share a rule set, and frames and some sockets have no cookie */
	__u32 pad;
};

struct np_caller { /* value of np_callers */
	__u32 pid; /* thread group, host's number */
	__u32 pad;
	char comm[16];
};

struct np_original_key {
	__u64 cookie;
	__u32 address[4];
	__u32 port; /* host order */
	__u32 pad;
};

struct np_original {
	__u32 address[4];
	__u32 port;
	__u32 pad;
};

/* Why an event was written (np_event.reason): the hook, or the limit. */
#define NP_R_CONNECT 1
#define NP_R_SENDMSG 2
#define NP_R_BIND 3
#define NP_R_SOCKET 4
#define NP_R_PACKET_OUT 5
#define NP_R_PACKET_IN 6
#define NP_R_LIMIT_CONNECTIONS 7
#define NP_R_LIMIT_BYTES 8
#define NP_R_LIMIT_PPS 9
#define NP_R_MALFORMED 10
#define NP_R_UNTOLD 11 /* user space's own: something was refused, and no event says what */
#define NP_R_NAME 12   /* user space's own: of a host name */

struct np_event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 id;      /* np_policy.id */
	__u32 ruleset;
	__u32 pid; /* thread group, host's number; 0 where a packet has no process */
	__u16 port;
	__u8 verdict;
	__u8 reason;
	__u8 protocol; /* IPPROTO_* */
	__u8 family;   /* AF_* */
	__u16 local_port;
	__u32 address[4]; /* of the peer; IPv4 as ::ffff:a.b.c.d */
	__u32 pad;
	char comm[16];
};

#endif
