/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * np_maps.h - every map: key, value, who writes it. kernel/bpf/objects.py holds the same table for bcc.
 */
#ifndef NP_MAPS_H
#define NP_MAPS_H
#include "np_dual.h"
#include "np_abi.h"

/* cgroup -> its policy. Written by user space, whole, by exchange of the buffer (atomic for readers).
 * Key __u64: one value for every hook of the cgroup. Source: Documentation/bpf/map_cgroup_storage.rst (5.9+). */
MAP_STORAGE(np_policies, BPF_MAP_TYPE_CGROUP_STORAGE, struct np_policy);
/* [0]: a count of policies stored, raised by user space after each. [1]: a count of np_strays, raised by the programs.
 * Reading them is inlined, the storage of a policy is a call. */
MAP(np_epoch, BPF_MAP_TYPE_ARRAY, __u32, __u32, 2, 0);
/* np_policy.id -> 1: a UDP socket of this attachment is connected where the policy refuses, so datagrams are judged one by
 * one. Added to by the programs, deleted by user space. */
MAP(np_strays, BPF_MAP_TYPE_HASH, __u32, __u32, NP_STRAYS, 0);
/* cookie of such a socket -> who connected it. Programs only. */
MAP(np_callers, BPF_MAP_TYPE_LRU_HASH, __u64, struct np_caller, NP_CALLERS, 0);
/* cgroup -> counters of this CPU. Written by the programs, read by user space. */
MAP_STORAGE(np_counts, BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE, struct np_counters);
/* {ruleset, prefix} -> port list. Written by user space. */
MAP(np_rules4, BPF_MAP_TYPE_LPM_TRIE, struct np_key4, struct np_rule, NP_RULES, BPF_F_NO_PREALLOC);
MAP(np_rules6, BPF_MAP_TYPE_LPM_TRIE, struct np_key6, struct np_rule, NP_RULES, BPF_F_NO_PREALLOC);
/* port lists, shared by every prefix that has the same one. Written by user space. */
MAP(np_lists, BPF_MAP_TYPE_ARRAY, __u32, struct np_list, NP_LISTS, 0);
MAP(np_redirects, BPF_MAP_TYPE_ARRAY, __u32, struct np_redirect, NP_REDIRECTS, 0);
/* what limits have used up. Set to zero by user space, added to by the programs. */
MAP(np_budgets, BPF_MAP_TYPE_ARRAY, __u32, struct np_budget, NP_BUDGETS, 0);
/* flows already reported: one event each. Programs only. */
MAP(np_reported, BPF_MAP_TYPE_LRU_HASH, struct np_seen, __u32, NP_SEEN, 0);
/* low bits of a cookie -> cookie of an accepted TCP socket. Programs only. Cookies are given out in sequence, so the newest
 * are there, as in an LRU hash, whose insertion costs 600 ns where this is a store. */
MAP(np_accepted, BPF_MAP_TYPE_ARRAY, __u32, __u64, NP_ACCEPTED, 0);
/* {socket, where it went} -> where it wanted to go. Programs only. */
MAP(np_originals, BPF_MAP_TYPE_LRU_HASH, struct np_original_key, struct np_original, NP_ORIGINALS, 0);
/* flow tables: sized by user space before loading (1: off). A plain hash: never evicts, so never stalls; when it is
 * full a flow is counted in the totals and flows_lost. Added to by the programs, read and emptied by user space. */
MAP(np_flows4, BPF_MAP_TYPE_HASH, struct np_flow4, struct np_flow, 1, 0);
MAP(np_flows6, BPF_MAP_TYPE_HASH, struct np_flow6, struct np_flow, 1, 0);
/* ifindex -> policy, and index (np_policy.budget holds it) -> counters, for the programs on interfaces. */
MAP(np_links, BPF_MAP_TYPE_HASH, __u32, struct np_policy, NP_LINKS, BPF_F_NO_PREALLOC);
MAP(np_link_counts, BPF_MAP_TYPE_PERCPU_HASH, __u32, struct np_counters, NP_LINKS, BPF_F_NO_PREALLOC);
MAP_RING(np_events, NP_RING_BYTES);
#endif
