/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * np_dual.h - one source, two compilers: clang -target bpf (libbpf) and bcc.
 *
 * Owns: includes, section names, map definitions and references in either dialect.
 * Refuses: program logic. bcc 0.26 takes no SEC(".maps"), no globals and no map methods in macros, so under bcc user
 * space makes the maps and passes -DFD_<map>=<fd>; bpf_pseudo_fd(1, fd) is what bcc's own rewriter would emit.
 */
#ifndef NP_DUAL_H
#define NP_DUAL_H

#ifdef BCC_SEC /* only bcc's helpers.h defines it */
#define NP_BCC 1
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/in.h>
#include <uapi/linux/pkt_cls.h>
#undef SEC
#define SEC(x)
#define NP_INLINE static inline __attribute__((always_inline, unused))
#define PROGRAM(section, name, ctx_t) int name(struct ctx_t *ctx)
#define np_htons(x) htons(x)
#define np_ntohs(x) ntohs(x)
#define NP_GLOBAL NP_INLINE /* bcc makes no functions */
/* The helper itself: bcc rewrites the other name, and refuses to inside a macro. */
#define np_printk bpf_trace_printk_
/* So the verifier walks every combination of paths through what is inlined: a million. Where paths meet, this makes it
 * forget what they knew: the helper writes the same bytes, which it must take for any bytes. Slow paths only. */
#define np_forget(x) bpf_probe_read_kernel(&(x), sizeof(x), &(x))
#define MAP_REF(name) ((void *)bpf_pseudo_fd(1, FD_##name))
#define MAP(name, type, K, V, entries, mapflags)
#define MAP_STORAGE(name, type, V)
#define MAP_RING(name, bytes)
#else
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#define NP_INLINE static inline __attribute__((always_inline, unused))
#define PROGRAM(section, name, ctx_t) SEC(section) int name(struct ctx_t *ctx)
#define np_htons(x) bpf_htons(x)
#define np_ntohs(x) bpf_ntohs(x)
/* A global function is verified once, by itself, for any arguments: without it loading takes 300 ms, not 20.
 * Scalars and the context only, so that 5.10 takes it. Source: commit 51c39bb1d5d1 (5.6). */
#define NP_GLOBAL __attribute__((noinline))
#define np_printk bpf_trace_printk
#define np_forget(x)
#define MAP_REF(name) (&name)
#define MAP(name, kind, K, V, entries, mapflags)                                                                       \
	struct {                                                                                                       \
		__uint(type, kind);                                                                                    \
		__uint(max_entries, entries);                                                                          \
		__uint(map_flags, mapflags);                                                                           \
		__type(key, K);                                                                                        \
		__type(value, V);                                                                                      \
	} name SEC(".maps")
#define MAP_STORAGE(name, kind, V)                                                                                     \
	struct {                                                                                                       \
		__uint(type, kind);                                                                                    \
		__type(key, __u64);                                                                                    \
		__type(value, V);                                                                                      \
	} name SEC(".maps")
#define MAP_RING(name, bytes)                                                                                          \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                                    \
		__uint(max_entries, bytes);                                                                            \
	} name SEC(".maps")
#endif

#define map_get(map, key) bpf_map_lookup_elem(MAP_REF(map), key)
#define map_put(map, key, value) bpf_map_update_elem(MAP_REF(map), key, value, BPF_ANY)
#define map_add(map, key, value) bpf_map_update_elem(MAP_REF(map), key, value, BPF_NOEXIST)
#define storage_get(map) bpf_get_local_storage(MAP_REF(map), 0)
#define ring_reserve(map, size) bpf_ringbuf_reserve(MAP_REF(map), size, 0)
#define ring_submit(record) bpf_ringbuf_submit(record, 0)

#define np_likely(x) __builtin_expect(!!(x), 1)
#define np_unlikely(x) __builtin_expect(!!(x), 0)
#define np_add(counter, n) __sync_fetch_and_add(&(counter), n)

/* Debug output costs 377 ns a line: not there unless asked for when compiling. The LOG verdict is the everyday form. */
#if DEBUG_MODE
#define np_debug(fmt, ...)                                                                                             \
	({                                                                                                             \
		char text[] = fmt;                                                                                     \
		np_printk(text, sizeof(text), ##__VA_ARGS__);                                                          \
	})
#else
#define np_debug(fmt, ...)
#endif
#endif
