// SPDX-License-Identifier: MIT
/*
 * ============================ THIS CODE RUNS IN THE CHILD ============================
 * descriptors.c - which descriptors the main process holds, and under which numbers. The rules of child.c hold.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "child.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#define CLOSE_RANGE_CLOEXEC_FLAG 4u /* Linux 5.11 */

/* Numbers 0..2 that are to become another of 0..2 step aside first. */
void iso_place_stdio(struct launch *l)
{
	int wanted[3] = {(int)l->exec->stdin_fd_plus1 - 1, (int)l->exec->stdout_fd_plus1 - 1,
			 (int)l->exec->stderr_fd_plus1 - 1};
	int i;

	for (i = 0; i < 3; i++)
		if (wanted[i] >= 0 && wanted[i] < 3 && wanted[i] != i) {
			wanted[i] = fcntl(wanted[i], F_DUPFD_CLOEXEC, 3);
			check(l, wanted[i], ISO_STEP_STDIO, i);
		}
	for (i = 0; i < 3; i++) {
		if (wanted[i] == i)
			check(l, fcntl(i, F_SETFD, 0), ISO_STEP_STDIO, i);
		else if (wanted[i] >= 0)
			check(l, dup2(wanted[i], i), ISO_STEP_STDIO, i);
	}
}

/* Kernels before 5.9, and before 5.11 for the flag: one by one, up to the limit on descriptors. */
static void close_one_by_one(unsigned int first, unsigned int last, bool at_exec)
{
	struct rlimit64 limit;
	unsigned int fd;

	if (!prlimit64(0, RLIMIT_NOFILE, NULL, &limit) && limit.rlim_max < last)
		last = (unsigned int)limit.rlim_max;
	for (fd = first; fd <= last; fd++)
		if (at_exec)
			fcntl((int)fd, F_SETFD, FD_CLOEXEC);
		else
			close((int)fd);
}

/* A program loses its fds at exec, when we no longer need ours; a fork at once. */
static void close_gap(struct launch *l, unsigned int first, unsigned int last)
{
	unsigned int spared = (unsigned int)l->report_fd[1];
	bool at_exec = l->exec != NULL;

	if (first > last)
		return;
	if (!at_exec && spared >= first && spared <= last) {
		if (spared > first)
			close_gap(l, first, spared - 1);
		close_gap(l, spared + 1, last);
		return;
	}
	if (!syscall(SYS_close_range, first, last, at_exec ? CLOSE_RANGE_CLOEXEC_FLAG : 0))
		return;
	if (errno != ENOSYS && errno != EINVAL)
		iso_fail(l, ISO_STEP_FDS, errno, -1);
	close_one_by_one(first, last, at_exec);
}

void iso_close_fds(struct launch *l)
{
	const int32_t *keep = iso_ptr(l->plan->keep_fds);
	unsigned int first = 3;
	uint32_t i;

	if (!(l->plan->flags & ISO_CLOSE_FDS))
		return;
	for (i = 0; i < l->plan->keep_fds_count; i++) {
		close_gap(l, first, (unsigned int)keep[i] - 1);
		first = (unsigned int)keep[i] + 1;
	}
	close_gap(l, first, ~0u);
}

void iso_pass_kept_fds(struct launch *l)
{
	const int32_t *keep = iso_ptr(l->plan->keep_fds);
	uint32_t i;

	for (i = 0; i < l->plan->keep_fds_count; i++) {
		int flags = fcntl(keep[i], F_GETFD);

		check(l, flags, ISO_STEP_FDS, (int)i);
		if (l->exec && (flags & FD_CLOEXEC))
			check(l, fcntl(keep[i], F_SETFD, flags & ~FD_CLOEXEC), ISO_STEP_FDS, (int)i);
	}
}
