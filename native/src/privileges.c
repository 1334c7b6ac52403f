// SPDX-License-Identifier: MIT
/*
 * ============================ THIS CODE RUNS IN THE CHILD ============================
 * privileges.c - what the main process gives up for good: capabilities, new privileges, paths, system calls. The rules
 * of child.c hold.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "child.h"

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

/* linux/landlock.h as of ABI 6; older headers lack the later fields. A field that is zero asks for nothing new. */
struct ruleset {
	uint64_t fs, net, scoped;
};
struct path_rule {
	uint64_t rights;
	int32_t fd;
} __attribute__((packed));
struct port_rule {
	uint64_t rights, port;
};
enum { RULE_OF_PATH = 1, RULE_OF_PORT = 2 };
/* EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE, IOCTL_DEV: the kernel refuses a rule that gives a file any other. */
#define RIGHTS_OF_FILES ((1u << 0) | (1u << 1) | (1u << 2) | (1u << 14) | (1u << 15))

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

void iso_set_securebits(struct launch *l)
{
	if (l->plan->securebits)
		check(l, prctl(PR_SET_SECUREBITS, (unsigned long)l->plan->securebits, 0, 0, 0), ISO_STEP_SECUREBITS,
		      -1);
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

/* Only as long as it must be: a kernel refuses (E2BIG) what is not zero beyond what it knows, and takes what is shorter. */
static size_t ruleset_bytes(const struct ruleset *r)
{
	return r->scoped ? sizeof(*r) : r->net ? offsetof(struct ruleset, scoped) : offsetof(struct ruleset, net);
}

static long add_path(int ruleset_fd, const struct iso_landlock *rule)
{
	struct path_rule of = {.rights = rule->rights};
	struct stat at;
	long ret;

	of.fd = open(iso_ptr(rule->path), O_PATH | O_CLOEXEC);
	if (of.fd < 0)
		return errno == ENOENT && rule->optional ? 0 : -1;
	if (!fstat(of.fd, &at) && !S_ISDIR(at.st_mode))
		of.rights &= RIGHTS_OF_FILES;
	ret = syscall(SYS_landlock_add_rule, ruleset_fd, RULE_OF_PATH, &of, 0);
	close(of.fd);
	return ret;
}

static long add_rule(int ruleset_fd, const struct iso_landlock *rule)
{
	struct port_rule of = {.rights = rule->rights, .port = rule->port};

	if (rule->path)
		return add_path(ruleset_fd, rule);
	return syscall(SYS_landlock_add_rule, ruleset_fd, RULE_OF_PORT, &of, 0);
}

static void restrict_paths_and_ports(struct launch *l)
{
	struct ruleset of = {l->plan->landlock_fs, l->plan->landlock_net, l->plan->landlock_scoped};
	const struct iso_landlock *rules = iso_ptr(l->plan->landlock);
	uint32_t i;
	int fd;

	if (!of.fs && !of.net && !of.scoped)
		return;
	fd = (int)syscall(SYS_landlock_create_ruleset, &of, ruleset_bytes(&of), 0);
	check(l, fd, ISO_STEP_LANDLOCK, -1);
	for (i = 0; i < l->plan->landlock_count; i++)
		check(l, add_rule(fd, &rules[i]), ISO_STEP_LANDLOCK, (int)i);
	check(l, syscall(SYS_landlock_restrict_self, fd, 0), ISO_STEP_LANDLOCK, -1);
	close(fd);
}

void iso_enforce_landlock(struct launch *l)
{
	if (l->plan->landlock_fd_plus1)
		check(l, syscall(SYS_landlock_restrict_self, (int)l->plan->landlock_fd_plus1 - 1, 0), ISO_STEP_LANDLOCK,
		      -1);
	restrict_paths_and_ports(l);
}

void iso_enforce_seccomp(struct launch *l)
{
	struct sock_fprog program = {.len = (unsigned short)l->plan->seccomp_count,
				     .filter = (struct sock_filter *)(uintptr_t)l->plan->seccomp};

	if (program.len)
		check(l, syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), ISO_STEP_SECCOMP, -1);
}
