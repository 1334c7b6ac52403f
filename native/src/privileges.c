// SPDX-License-Identifier: MIT
/*
 * ============================ THIS CODE RUNS IN THE CHILD ============================
 * privileges.c - what the main process gives up for good: capabilities, new privileges, paths, system calls. The rules
 * of child.c hold.
 */
#define _GNU_SOURCE
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "child.h"

#ifndef SYS_landlock_restrict_self
#define SYS_landlock_restrict_self 446
#endif

/* Without CAP_SETPCAP the bounding set stays; that gives nothing away when no exec can gain privileges. */
static bool bounding_may_stay(const struct launch *l, int err)
{
	return err == EPERM && (l->plan->flags & ISO_NO_NEW_PRIVS);
}

static void drop_bounding_set(struct launch *l)
{
	int cap;

	for (cap = 0; cap < 64; cap++) {
		int held = prctl(PR_CAPBSET_READ, cap, 0, 0, 0);

		if (held < 0)
			return; /* beyond the last capability of this kernel */
		if (!held || (l->plan->capabilities >> cap & 1))
			continue;
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && !bounding_may_stay(l, errno))
			iso_fail(l, ISO_STEP_CAPABILITIES, errno, cap);
	}
}

void iso_drop_capabilities(struct launch *l)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[2];
	int i;

	if (!(l->plan->flags & ISO_SET_CAPABILITIES))
		return;
	drop_bounding_set(l);
	check(l, syscall(SYS_capget, &head, sets), ISO_STEP_CAPABILITIES, -1);
	for (i = 0; i < 2; i++) {
		uint32_t remains = (uint32_t)(l->plan->capabilities >> (32 * i));

		sets[i].effective &= remains;
		sets[i].permitted &= remains;
		sets[i].inheritable &= remains;
	}
	check(l, syscall(SYS_capset, &head, sets), ISO_STEP_CAPABILITIES, -1);
}

void iso_set_no_new_privs(struct launch *l)
{
	if (l->plan->flags & ISO_NO_NEW_PRIVS)
		check(l, prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), ISO_STEP_NO_NEW_PRIVS, -1);
}

void iso_enforce_landlock(struct launch *l)
{
	if (l->plan->landlock_fd_plus1)
		check(l, syscall(SYS_landlock_restrict_self, (int)l->plan->landlock_fd_plus1 - 1, 0), ISO_STEP_LANDLOCK,
		      -1);
}

void iso_enforce_seccomp(struct launch *l)
{
	struct sock_fprog program = {.len = (unsigned short)l->plan->seccomp_count,
				     .filter = (struct sock_filter *)(uintptr_t)l->plan->seccomp};

	if (program.len)
		check(l, syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), ISO_STEP_SECCOMP, -1);
}
