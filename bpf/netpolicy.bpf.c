// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* netpolicy.bpf.c - the hooks on a test's cgroup.
 *
 * Owns: one function per hook: gather, ask np_judge.h, count and report, translate the verdict once.
 * Refuses: to know what Python is. A cgroup without a policy never runs these; one with a malformed policy is denied.
 */
#include "np_dual.h"
#include "np_report.h"
#include "np_judge.h"
#include "np_flows.h"
#include "np_links.h"

/* ---- system calls: connect, sendmsg, bind, socket --------------------------------------------------------------- */

NP_INLINE int np_refuse(const struct np_policy *p)
{
#ifndef NP_NO_SET_RETVAL /* bpf_set_retval is 5.18; without it the kernel answers EPERM */
	if (p->error)
		bpf_set_retval(-(int)p->error);
#endif
	return 0;
}

NP_INLINE void np_from_addr4(struct bpf_sock_addr *ctx, struct np_packet *k)
{
	np_map4(k->peer, ctx->user_ip4);
	k->family = NP_AF_INET;
	k->ipproto = ctx->protocol;
	k->port = np_ntohs((__u16)ctx->user_port);
}

NP_INLINE void np_from_addr6(struct bpf_sock_addr *ctx, struct np_packet *k)
{
	k->peer[0] = ctx->user_ip6[0];
	k->peer[1] = ctx->user_ip6[1];
	k->peer[2] = ctx->user_ip6[2];
	k->peer[3] = ctx->user_ip6[3];
	k->family = NP_AF_INET6;
	k->ipproto = ctx->protocol;
	k->port = np_ntohs((__u16)ctx->user_port);
}

NP_INLINE void np_reached(struct np_packet *k)
{
	if (np_is_mapped(k->peer))
		k->peer[3] = np_reached4(k->peer[3]);
	else if (!(k->peer[0] | k->peer[1] | k->peer[2] | k->peer[3]))
		k->peer[3] = 0x01000000; /* ::1 */
}

NP_INLINE void np_to_addr(struct bpf_sock_addr *ctx, const int v6, const __u32 *address, __u32 port)
{
	if (v6) {
		ctx->user_ip6[0] = address[0];
		ctx->user_ip6[1] = address[1];
		ctx->user_ip6[2] = address[2];
		ctx->user_ip6[3] = address[3];
	} else {
		ctx->user_ip4 = address[3];
	}
	ctx->user_port = np_htons((__u16)port);
}

/* Sends the call elsewhere and remembers where it wanted to go. 0 when it cannot: the caller refuses. */
NP_INLINE int np_redirect(struct bpf_sock_addr *ctx, const int v6, const struct np_packet *k, __u32 index, __u64 cookie)
{
	struct np_redirect *to = map_get(np_redirects, &index);
	struct np_original_key key = {.cookie = cookie};
	struct np_original original = {.port = k->port};

	if (!to || (!v6 && !np_is_mapped(to->address)))
		return 0;
	__builtin_memcpy(key.address, to->address, 16);
	key.port = to->port ? to->port : k->port;
	__builtin_memcpy(original.address, k->peer, 16);
	map_put(np_originals, &key, &original);
	np_to_addr(ctx, v6, to->address, key.port);
	return 1;
}

NP_INLINE int np_denied_call(struct np_policy *p, const struct np_packet *k, __u64 cookie, __u8 reason, __u8 where)
{
	struct np_counters *c = storage_get(np_counts);

	np_add(c->denied_out, 1);
	np_report(p, c, k, cookie, NP_DENY, reason, where, 1);
	return np_refuse(p);
}

/* connect(2) of UDP sends nothing: name look-ups do it to sort the addresses to which they then connect by TCP, or with no port
 * at all. Where that is allowed it passes, and what the socket then sends is judged as packets, which have no process of
 * their own to name. Elsewhere it is refused here: a client that hears of it only when it sends may wait for a time-out; and
 * so it is where packets pass because a redirect leads there: nothing tells those of this socket from the redirected. */
NP_INLINE int np_connect_stray(struct bpf_sock_addr *ctx, const struct np_policy *p, const struct np_packet *k,
			       __u64 cookie)
{
	struct np_caller caller = {.pid = bpf_get_current_pid_tgid() >> 32};
	struct np_packet stream = *k;

	if (ctx->protocol != NP_IPPROTO_UDP)
		return 0;
	stream.ipproto = NP_IPPROTO_TCP;
	if (k->port && ((np_judge(p, &stream, NP_OUT, 0) & 15) == NP_DENY ||
			np_passes(np_judge(p, k, NP_OUT | NP_PACKET, 0) & 15)))
		return 0;
	if (!np_add_stray(p))
		return 0;
	bpf_get_current_comm(caller.comm, sizeof(caller.comm));
	map_put(np_callers, &cookie, &caller);
	return 1;
}

/* connect(2) and sendto(2) with an address. */
NP_INLINE int np_open(struct bpf_sock_addr *ctx, const int v6, const __u8 reason)
{
	struct np_policy *p = storage_get(np_policies);
	struct np_counters *c;
	struct np_packet k = {};
	__u64 cookie;
	__u32 v;

	if (np_valid(p) && (p->flags & NP_F_COUNT_ONLY))
		return 1;
	if (v6)
		np_from_addr6(ctx, &k);
	else
		np_from_addr4(ctx, &k);
	np_reached(&k);
	if (!np_valid(p))
		return np_denied_call(p, &k, bpf_get_socket_cookie(ctx), NP_R_MALFORMED, NP_OUT);
	if (reason == NP_R_SENDMSG && ctx->sk)
		k.local_port = ctx->sk->src_port; /* a server's answer from a port it offers passes */
	v = np_judge(p, &k, NP_OUT, reason == NP_R_SENDMSG ? NP_IN : 0);
	if (np_likely(v == NP_ALLOW && !(p->flags & NP_F_BUDGET)))
		return 1;
	cookie = bpf_get_socket_cookie(ctx);
	if ((v & 15) == NP_DENY)
		return (reason == NP_R_CONNECT && np_connect_stray(ctx, p, &k, cookie)) ||
		       np_denied_call(p, &k, cookie, reason, NP_OUT);
	if (reason == NP_R_CONNECT && ctx->type == NP_SOCK_STREAM && (p->flags & NP_F_BUDGET) && !np_take_connection(p))
		return np_denied_call(p, &k, cookie, NP_R_LIMIT_CONNECTIONS, NP_OUT);
	c = storage_get(np_counts);
	if ((v & 15) == NP_LOG) {
		np_add(c->logged, 1);
		np_report(p, c, &k, cookie, NP_LOG, reason, NP_OUT, 1);
	}
	if ((v & 15) == NP_REDIRECT) {
		if (!np_redirect(ctx, v6, &k, v >> 16, cookie))
			return np_denied_call(p, &k, cookie, reason, NP_OUT);
		np_add(c->redirected, 1);
	}
	return 1;
}

PROGRAM("cgroup/connect4", np_connect4, bpf_sock_addr)
{
	return np_open(ctx, 0, NP_R_CONNECT);
}

PROGRAM("cgroup/connect6", np_connect6, bpf_sock_addr)
{
	return np_open(ctx, 1, NP_R_CONNECT);
}

PROGRAM("cgroup/sendmsg4", np_sendmsg4, bpf_sock_addr)
{
	return np_open(ctx, 0, NP_R_SENDMSG);
}

PROGRAM("cgroup/sendmsg6", np_sendmsg6, bpf_sock_addr)
{
	return np_open(ctx, 1, NP_R_SENDMSG);
}

NP_INLINE int np_bind(struct bpf_sock_addr *ctx, const int v6)
{
	struct np_policy *p = storage_get(np_policies);
	struct np_packet k = {};

	if (v6)
		np_from_addr6(ctx, &k);
	else
		np_from_addr4(ctx, &k);
	k.local_port = k.port;
	if (!np_valid(p))
		return np_denied_call(p, &k, bpf_get_socket_cookie(ctx), NP_R_MALFORMED, NP_BIND);
	if ((p->flags & NP_F_COUNT_ONLY) || !k.port) /* port 0: the kernel picks a free one */
		return 1;
	if (np_passes(np_judge(p, &k, NP_BIND, 0)))
		return 1;
	return np_denied_call(p, &k, bpf_get_socket_cookie(ctx), NP_R_BIND, NP_BIND);
}

PROGRAM("cgroup/bind4", np_bind4, bpf_sock_addr)
{
	return np_bind(ctx, 0);
}

PROGRAM("cgroup/bind6", np_bind6, bpf_sock_addr)
{
	return np_bind(ctx, 1);
}

/* Raw sockets: the only kind that reaches this hook and can write its own headers. AF_PACKET and others never come. */
PROGRAM("cgroup/sock_create", np_sock_create, bpf_sock)
{
	struct np_policy *p = storage_get(np_policies);
	struct np_packet k = {.family = ctx->family, .ipproto = ctx->protocol};

	if (np_valid(p) && (ctx->type != NP_SOCK_RAW || (p->flags & (NP_F_RAW | NP_F_COUNT_ONLY))))
		return 1;
	return np_denied_call(p, &k, bpf_get_socket_cookie(ctx), np_valid(p) ? NP_R_SOCKET : NP_R_MALFORMED, NP_OUT);
}

/* What was redirected looks, to its program, as if it had not been. */
NP_INLINE int np_restore(struct bpf_sock_addr *ctx, const int v6)
{
	struct np_original_key key = {.cookie = bpf_get_socket_cookie(ctx)};
	struct np_packet k = {};
	struct np_original *was;

	if (v6)
		np_from_addr6(ctx, &k);
	else
		np_from_addr4(ctx, &k);
	__builtin_memcpy(key.address, k.peer, 16);
	key.port = k.port;
	was = map_get(np_originals, &key);
	if (was)
		np_to_addr(ctx, v6, was->address, was->port);
	return 1;
}

PROGRAM("cgroup/recvmsg4", np_recvmsg4, bpf_sock_addr)
{
	return np_restore(ctx, 0);
}

PROGRAM("cgroup/recvmsg6", np_recvmsg6, bpf_sock_addr)
{
	return np_restore(ctx, 1);
}

PROGRAM("cgroup/getpeername4", np_getpeername4, bpf_sock_addr)
{
	return np_restore(ctx, 0);
}

PROGRAM("cgroup/getpeername6", np_getpeername6, bpf_sock_addr)
{
	return np_restore(ctx, 1);
}

/* ---- TCP connections, counted when established -------------------------------------------------------------------- */

/* Remembers who opened it, for packets that are judged one by one. */
NP_INLINE void np_remember_accepted(struct bpf_sock_ops *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx), *slot = np_accepted_slot(cookie);

	if (slot)
		*slot = cookie;
}

/* Refuses nothing, so user space attaches it first: that makes the storage it then writes the policy to. */
PROGRAM("sockops", np_sockops, bpf_sock_ops)
{
	__u32 op = ctx->op;
	struct np_counters *c;

	if (np_likely(op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB))
		return 1; /* some ten other moments of each connection */
	c = storage_get(np_counts);
	if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
		np_add(c->connections_out, 1);
	} else if (np_valid(storage_get(np_policies))) {
		np_add(c->connections_in, 1);
		np_remember_accepted(ctx);
	}
	return 1;
}

/* ---- packets ------------------------------------------------------------------------------------------------------ */

/* 0 when the packet passes, else why not (NP_R_*). */
NP_INLINE __u8 np_objection(struct __sk_buff *skb, const struct np_policy *p, const struct np_packet *k, __u64 cookie,
			    const int out, __u32 *verdict)
{
	*verdict = np_judge_packet(p, k, out, np_opened_by_peer(skb, k, cookie)) & 15;
	if (*verdict != NP_ALLOW && *verdict != NP_LOG) {
		if (!np_ends(skb, k))
			return out ? NP_R_PACKET_OUT : NP_R_PACKET_IN;
		*verdict = NP_ALLOW;
	}
	return p->flags & NP_F_BUDGET ? np_take_packet(p, skb->len) : 0;
}

/* Everything but plain packets: what peers open, raw and odd protocols, live changes, limits. */
NP_INLINE int np_slow(struct __sk_buff *skb, struct np_policy *p, struct np_counters *c, const int out)
{
	struct np_packet k = {};
	__u64 cookie = bpf_get_socket_cookie(skb);
	__u8 reason = NP_R_MALFORMED;
	__u32 verdict = NP_DENY;

	if (np_read(skb, 0, out, &k) == 0 && np_valid(p))
		reason = np_objection(skb, p, &k, cookie, out, &verdict);
	if (!reason)
		np_count(skb, c, out, 0, k.headers);
	else
		np_add(*(out ? &c->denied_out : &c->denied_in), 1);
	if (reason || verdict == NP_LOG)
		np_report(p, c, &k, cookie, reason ? NP_DENY : NP_LOG,
			  reason ? reason
			  : out	 ? NP_R_PACKET_OUT
				 : NP_R_PACKET_IN,
			  out ? NP_OUT : NP_IN, 0);
	return !reason;
}

/* Looks at the policy and remembers, in one store, what this CPU needs of it. The epoch was read before the policy, so
 * a policy that changes meanwhile is looked at again. */
NP_INLINE __u64 np_look(struct np_counters *c, __u32 epoch)
{
	struct np_policy *p = storage_get(np_policies);
	__u64 fast = np_fast_bits(p), known;

	if ((fast & NP_FAST_OUT_PLAIN) && np_has_strays(p))
		fast &= ~(__u64)NP_FAST_OUT_PLAIN;
	known = fast << 32 | epoch;
	c->fast = known;
	return known;
}

/* True when this packet needs no look at the rules. */
NP_INLINE int np_fast(struct __sk_buff *skb, struct np_counters *c, const int out)
{
	__u64 known = c->fast;
	__u32 zero = 0, one = 1, *stored = map_get(np_epoch, &zero), *strays = map_get(np_epoch, &one), epoch;

	if (!stored || !strays)
		return 0;
	epoch = *stored + (*strays << 20); /* both only rise */
	if (np_unlikely((__u32)known != epoch))
		known = np_look(c, epoch);
	known >>= 32;
	if (known & (out ? NP_FAST_OUT : NP_FAST_IN))
		return 1;
	return (known & (out ? NP_FAST_OUT_PLAIN : NP_FAST_IN_PLAIN)) && np_is_plain(skb, out);
}

NP_INLINE int np_skb(struct __sk_buff *skb, const int out)
{
	struct np_counters *c = storage_get(np_counts);

	if (np_likely(np_fast(skb, c, out))) {
		np_count(skb, c, out, 0, 0);
		return 1;
	}
	return np_slow(skb, storage_get(np_policies), c, out);
}

PROGRAM("cgroup_skb/egress", np_egress, __sk_buff)
{
	return np_skb(ctx, 1);
}

PROGRAM("cgroup_skb/ingress", np_ingress, __sk_buff)
{
	return np_skb(ctx, 0);
}

/* The same with the flow table; attached instead of the two above when flows are asked for. */
PROGRAM("cgroup_skb/egress", np_flow_egress, __sk_buff)
{
	return np_flow_skb(ctx, 1);
}

PROGRAM("cgroup_skb/ingress", np_flow_ingress, __sk_buff)
{
	return np_flow_skb(ctx, 0);
}

/* ---- frames at the host end of a test's veth: what the test cannot evade with packet sockets ---------------------- */

PROGRAM("tc", np_link_out, __sk_buff) /* the host's ingress is what the test sent */
{
	return np_link(ctx, 1);
}

PROGRAM("tc", np_link_in, __sk_buff)
{
	return np_link(ctx, 0);
}

#ifndef NP_BCC
char _license[] SEC("license") = "Dual MIT/GPL";
#endif
