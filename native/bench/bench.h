/* SPDX-License-Identifier: MIT */
/*
 * bench.h - what the measuring programs share: a clock, and one line of output for each operation.
 *
 * isolate-bench is not part of the library, and nothing links against it: `pytest-isolate bench` runs it.
 */
#ifndef ISO_BENCH_H
#define ISO_BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <time.h>

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Nanoseconds of one operation, or -errno of one that failed. */
static inline void say(int64_t ns_or_error)
{
	printf("%lld\n", (long long)ns_or_error);
}

/* What one start takes, the same for the floor and for the library. */
struct row {
	const char *name;
	uint64_t namespaces;
	int mounts; /* a new root of four read-only binds, pivot_root */
	int fork;   /* copy the page tables, as fork(2) does */
};

extern const char *const bound[4];

/* WHOLE: NULL, or the directory of the program: bound, too, in a root that has a /dev and is read-only, as Sandbox's is. */
int floor_start(const struct row *row, int program_fd, int init_fd, const char *stage, const char *whole);
int library_start(const struct row *row, int program_fd, const char *init, const char *stage);

#endif
