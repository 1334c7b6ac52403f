/* SPDX-License-Identifier: MIT */
/*
 * isolate.h - start a process inside new Linux namespaces under limits. The whole API of libisolate.so.
 *
 * Every function returns 0 or a positive number, or -errno; outputs are untouched on failure except `failure`.
 * The library never prints, exits, raises or keeps state: it is a guest in someone's interpreter.
 */
#ifndef ISOLATE_H
#define ISOLATE_H

#include <stdint.h>

#include "isolate_abi.h"

#define ISO_API __attribute__((visibility("default")))

/* Version of the layouts in isolate_abi.h this library was built with. */
ISO_API uint32_t iso_abi_version(void);

/* Every field of every shared struct. *count: rows. The table lives as long as the library. */
ISO_API const struct iso_abi_field *iso_abi_fields(uint32_t *count);

/* The word for a step ("mounts"), or "unknown". */
ISO_API const char *iso_step_name(int32_t step);

/*
 * Memory for iso_exec.arena, to be used again and again: stacks with guard pages. NULL: there is none. A start that makes
 * and unmakes its own pays about 17 us, most of it for telling other CPUs that the mapping is gone.
 */
ISO_API void *iso_arena(void);

/* Start a program under plan. Returns 0, or -errno with *failure filled in and nothing left running. */
ISO_API int iso_spawn(const struct iso_plan *plan, const struct iso_exec *exec, struct iso_child *child,
		      struct iso_failure *failure);

/*
 * Fork the calling process into a sandbox. Returns 0 in the child and 1 in the caller, once every step has succeeded,
 * or -errno in the caller. Handlers registered with pthread_atfork(3) run as for fork(2).
 */
ISO_API int iso_fork(const struct iso_plan *plan, const struct iso_hooks *hooks, struct iso_child *child,
		     struct iso_failure *failure);

/*
 * Wait until the main process of child has ended, at most timeout_ms (-1: for ever, 0: not at all). Returns 1 and fills
 * *result, 0: it still runs, -EINTR, -ECHILD: someone else collected it, -EPIPE: its init was killed before it could say.
 */
ISO_API int iso_await(const struct iso_child *child, int timeout_ms, struct iso_exit *result);

/*
 * End the tree of a child with a monitor: SIGKILL to its main process, a byte to its monitor, which kills the rest and
 * leaves. Does not wait. Returns 0, or -ESRCH when the monitor is gone, with which went everything but orphans.
 */
ISO_API int iso_end_tree(const struct iso_child *child);

/*
 * A new network namespace with nobody in it, held by the descriptor that is returned (close-on-exec), or -errno. loopback: 0 or
 * 1, lo is up. To be entered by iso_plan.joins, once.
 */
ISO_API int iso_netns(int loopback);

/* Collect the child behind pidfd. block: 0 or 1. Returns 1 and fills *result, 0: still running, -ECHILD: not ours. */
ISO_API int iso_wait(int pidfd, int block, struct iso_exit *result);

#endif
