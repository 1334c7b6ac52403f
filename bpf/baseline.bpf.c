// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* baseline.bpf.c - what the product is measured against; never attached to a test.
 *
 * Owns: the floor (returns 1), the founding specification's scheme taken literally (LRU session table, ktime, plain
 * increments on shared values), systemd's address filter and accounting rewritten, one technique at a time, and a generator.
 * Refuses: to be fast.
 */
#include "np_dual.h"
#include "np_abi.h"

struct base_key {
	__u32 source, destination;
	__u16 source_port, destination_port;
	__u8 protocol, pad[3];
};

struct base_session {
	__u64 created, last, packets_out, packets_in, bytes_out, bytes_in;
	__u32 verdict, generation;
	__u64 rule;
};

struct base_counters {
	__u64 packets, bytes, misses, pad;
};

MAP(base_sessions, BPF_MAP_TYPE_LRU_HASH, struct base_key, struct base_session, 100000, 0);
MAP(base_stats, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct base_counters, 4, 0);
MAP(base_shared, BPF_MAP_TYPE_ARRAY, __u32, __u64, 4, 0);
MAP(base_allow, BPF_MAP_TYPE_LPM_TRIE, struct np_key4, __u64, 10000, BPF_F_NO_PREALLOC);
MAP(base_deny, BPF_MAP_TYPE_LPM_TRIE, struct np_key4, __u64, 10000, BPF_F_NO_PREALLOC);

PROGRAM("cgroup_skb/egress", base_floor_out, __sk_buff)
{
	return 1;
}

PROGRAM("cgroup_skb/ingress", base_floor_in, __sk_buff)
{
	return 1;
}

NP_INLINE void base_stat(__u32 index, __u32 bytes)
{
	struct base_counters *c = map_get(base_stats, &index);

	if (c) {
		c->packets += 1;
		c->bytes += bytes;
	}
}

NP_INLINE int base_policy(const struct base_key *key)
{
	struct np_key4 prefix = {.prefixlen = 64, .peer = key->destination};

	return map_get(base_deny, &prefix) == 0;
}

NP_INLINE int base_session(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct base_key key = {};
	struct base_session *s, fresh = {};
	struct iphdr *ip = data;
	__u16 *ports = (void *)(ip + 1);

	if ((void *)(ip + 1) > end)
		return 1;
	key.source = ip->saddr;
	key.destination = ip->daddr;
	key.protocol = ip->protocol;
	if ((void *)(ports + 2) <= end) {
		key.source_port = ports[0];
		key.destination_port = ports[1];
	}
	base_stat(0, skb->len);
	s = map_get(base_sessions, &key);
	if (s) {
		s->last = bpf_ktime_get_ns();
		s->packets_out += 1;
		s->bytes_out += skb->len;
		base_stat(1, skb->len);
		return s->verdict & 1;
	}
	fresh.created = bpf_ktime_get_ns();
	fresh.verdict = base_policy(&key);
	fresh.packets_out = 1;
	map_put(base_sessions, &key, &fresh);
	base_stat(2, skb->len);
	return fresh.verdict & 1;
}

PROGRAM("cgroup_skb/egress", base_session_out, __sk_buff)
{
	return base_session(ctx);
}

PROGRAM("cgroup_skb/ingress", base_session_in, __sk_buff)
{
	return base_session(ctx);
}

/* Two lookups by bpf_skb_load_bytes, two atomics on shared values: systemd's bpf-firewall.c, by reading of it. */
NP_INLINE int base_systemd(struct __sk_buff *skb, __u32 at)
{
	struct np_key4 prefix = {.prefixlen = 64};
	__u32 zero = 0, one = 1;
	int verdict = 0;
	__u64 *value;

	if (skb->protocol == np_htons(ETH_P_IP)) {
		bpf_skb_load_bytes(skb, at, &prefix.peer, 4);
		if (map_get(base_deny, &prefix))
			verdict |= 2;
		bpf_skb_load_bytes(skb, at, &prefix.peer, 4);
		if (map_get(base_allow, &prefix))
			verdict |= 1;
	}
	value = map_get(base_shared, &zero);
	if (value)
		np_add(*value, 1);
	value = map_get(base_shared, &one);
	if (value)
		np_add(*value, skb->len);
	return verdict != 2;
}

PROGRAM("cgroup_skb/egress", base_systemd_out, __sk_buff)
{
	return base_systemd(ctx, 16);
}

PROGRAM("cgroup_skb/ingress", base_systemd_in, __sk_buff)
{
	return base_systemd(ctx, 12);
}

/* ---- one technique each, for `pytest-isolate bench network` ------------------------------------------------------- */

struct base_slot {
	__u64 packets, bytes;
};

MAP(base_slots, BPF_MAP_TYPE_ARRAY, __u32, struct base_slot, 1, 0);
MAP(base_own_slots, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct base_slot, 1, 0);
MAP(base_flows, BPF_MAP_TYPE_HASH, struct base_key, __u64, 4096, 0);
MAP(base_lru_flows, BPF_MAP_TYPE_LRU_HASH, struct base_key, __u64, 4096, 0);
MAP(base_cookies, BPF_MAP_TYPE_ARRAY, __u32, __u64, 65536, 0);
MAP(base_lru_cookies, BPF_MAP_TYPE_LRU_HASH, __u64, __u32, 8192, 0);

#define TECHNIQUE(name) PROGRAM("cgroup_skb/egress", base_t_##name, __sk_buff)
/* What was read must be used, or it is not read. */
#define USED(x)                                                                                                        \
	({                                                                                                             \
		__asm__ volatile("" : : "r"(x));                                                                       \
		1;                                                                                                     \
	})

TECHNIQUE(jiffies)
{
	return USED(bpf_jiffies64());
}

TECHNIQUE(ktime)
{
	return USED(bpf_ktime_get_ns());
}

TECHNIQUE(direct)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	return data + 28 > end ? 0 : USED(*(__u32 *)(data + 16)) & USED(*(__u32 *)(data + 20));
}

TECHNIQUE(load_bytes)
{
	__u32 address = 0, ports = 0;

	bpf_skb_load_bytes(ctx, 16, &address, 4);
	bpf_skb_load_bytes(ctx, 20, &ports, 4);
	return USED(address) & USED(ports);
}

TECHNIQUE(percpu_plain)
{
	__u32 zero = 0;
	struct base_slot *s = map_get(base_own_slots, &zero);

	if (s) {
		s->packets += 1;
		s->bytes += ctx->len;
	}
	return 1;
}

TECHNIQUE(percpu_packed)
{
	__u32 zero = 0;
	struct base_slot *s = map_get(base_own_slots, &zero);

	if (s)
		np_add(s->packets, (1LL << 40) + ctx->len);
	return 1;
}

TECHNIQUE(percpu_atomic)
{
	__u32 zero = 0;
	struct base_slot *s = map_get(base_own_slots, &zero);

	if (s) {
		np_add(s->packets, 1);
		np_add(s->bytes, ctx->len);
	}
	return 1;
}

TECHNIQUE(shared_atomic)
{
	__u32 zero = 0;
	struct base_slot *s = map_get(base_slots, &zero);

	if (s) {
		np_add(s->packets, 1);
		np_add(s->bytes, ctx->len);
	}
	return 1;
}

TECHNIQUE(hash)
{
	struct base_key key = {.source = 1};
	__u64 *found = map_get(base_flows, &key), zero = 0;

	if (!found)
		map_put(base_flows, &key, &zero);
	return 1;
}

TECHNIQUE(lru)
{
	struct base_key key = {.source = 1};
	__u64 *found = map_get(base_lru_flows, &key), zero = 0;

	if (!found)
		map_put(base_lru_flows, &key, &zero);
	return 1;
}

TECHNIQUE(lpm)
{
	struct np_key4 prefix = {.prefixlen = 64, .peer = 1};
	__u64 zero = 0;

	if (!map_get(base_allow, &prefix))
		map_put(base_allow, &prefix, &zero);
	return 1;
}

/* The count stands for cookies, which come in sequence. */
NP_INLINE __u64 base_next_cookie(void)
{
	__u32 zero = 0;
	struct base_slot *s = map_get(base_own_slots, &zero);

	return s ? ++s->packets : 0;
}

TECHNIQUE(remember)
{
	__u64 cookie = base_next_cookie(), *slot;
	__u32 low = (__u32)cookie & 65535;

	slot = map_get(base_cookies, &low);
	if (slot)
		*slot = cookie;
	return 1;
}

TECHNIQUE(remember_lru)
{
	__u64 cookie = base_next_cookie();
	__u32 one = 1;

	map_put(base_lru_cookies, &cookie, &one);
	return 1;
}

/* The generator: BPF_PROG_TEST_RUN with live frames hands every frame to the stack as if the interface received it. */
PROGRAM("xdp", base_generate, xdp_md)
{
	return XDP_PASS;
}

#ifndef NP_BCC
char _license[] SEC("license") = "Dual MIT/GPL";
#endif
