// SPDX-License-Identifier: MIT
/*
 * ============================ THIS CODE RUNS IN THE CHILD ============================
 * namespaces.c - from the clone to the place it asked for: cgroup, maps, joined namespaces, hostname, loopback, mounts,
 * working directory. The rules of child.c hold.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "child.h"

bool iso_caller_is_gone(const struct launch *l)
{
	struct pollfd caller = {.fd = l->parent_pidfd, .events = POLLIN};

	if (l->parent_pidfd < 0)
		return getppid() != l->caller_pid;
	return poll(&caller, 1, 0) > 0; /* getppid() is 0 in a new PID namespace */
}

/* The signal is sent when the thread that called us ends; the init later watches the whole process instead. */
static void die_with_caller(struct launch *l)
{
	unsigned long signum = l->has_init ? SIGKILL : l->plan->pdeathsig;

	if (!signum)
		return;
	check(l, prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0), ISO_STEP_PDEATHSIG, -1);
	if (iso_caller_is_gone(l))
		iso_fail(l, ISO_STEP_PDEATHSIG, ESRCH, -1);
}

static void write_own_pid(struct launch *l, int fd, int index)
{
	check(l, write(fd, "0", 1), ISO_STEP_CGROUP, index);
}

/* Where the clone could not place us: fork(2) and clone(2) know no CLONE_INTO_CGROUP. */
static void enter_cgroup_fd(struct launch *l)
{
	int fd;

	if (!l->plan->cgroup_fd_plus1 || l->clone.cgroup_fd >= 0)
		return;
	fd = openat((int)l->plan->cgroup_fd_plus1 - 1, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	check(l, fd, ISO_STEP_CGROUP, -1);
	write_own_pid(l, fd, -1);
	close(fd);
}

static void enter_cgroups(struct launch *l)
{
	const int32_t *fds = iso_ptr(l->plan->cgroup_procs_fds);
	uint32_t i;

	if (l->clone.used_clone2)
		l->clone.cgroup_fd = -1;
	enter_cgroup_fd(l);
	for (i = 0; i < l->plan->cgroup_procs_fds_count; i++)
		write_own_pid(l, fds[i], (int)i);
}

/* unshare(CLONE_NEWTIME) moves only later children; one who has no later child follows by setns(2). */
static void follow_time_namespace(struct launch *l)
{
	int fd, ret;

	fd = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
	check(l, fd, ISO_STEP_UNSHARE, -1);
	ret = setns(fd, CLONE_NEWTIME);
	close(fd);
	check(l, ret, ISO_STEP_UNSHARE, -1);
}

static void unshare_late(struct launch *l)
{
	if (!l->late_namespaces)
		return;
	check(l, unshare((int)l->late_namespaces), ISO_STEP_UNSHARE, -1);
	if (l->late_namespaces & CLONE_NEWTIME)
		follow_time_namespace(l);
}

/* 1 when the maps are written with the caller's privileges, else -errno. */
static int await_caller_maps(struct launch *l)
{
	struct iso_failure please = {.step = ISO_STEP_MAPS};
	int written = 0;

	if (l->shared_memory)
		return iso_ask_map_writer(l);
	if (write(l->report_fd[1], &please, sizeof(please)) < 0)
		return -errno;
	return read(l->report_fd[1], &written, sizeof(written)) == sizeof(written) ? written : -EPIPE;
}

static bool maps_outside(const struct iso_idmap *map, uint32_t count, uint32_t id)
{
	uint32_t i;

	for (i = 0; i < count; i++)
		if (id >= map[i].outside && id - map[i].outside < map[i].count)
			return true;
	return false;
}

/* A caller whose own ids are not in the maps would be nobody inside: become the first id of each map. */
static void become_mapped(struct launch *l, uint32_t uid, uint32_t gid)
{
	const struct iso_idmap *uids = iso_ptr(l->plan->uid_map), *gids = iso_ptr(l->plan->gid_map);
	uint32_t id;

	if (l->plan->gid_map_count && !maps_outside(gids, l->plan->gid_map_count, gid)) {
		id = gids[0].inside;
		check(l, syscall(SYS_setresgid, id, id, id), ISO_STEP_MAPS, 2);
	}
	if (l->plan->uid_map_count && !maps_outside(uids, l->plan->uid_map_count, uid)) {
		id = uids[0].inside;
		check(l, syscall(SYS_setresuid, id, id, id), ISO_STEP_MAPS, 0);
	}
}

static void set_maps(struct launch *l, uint32_t uid, uint32_t gid)
{
	int index = -1, err;

	if (!l->plan->uid_map_count && !l->plan->gid_map_count)
		return;
	if (l->parent_maps) {
		err = await_caller_maps(l);
		if (err < 0)
			iso_fail(l, ISO_STEP_MAPS, -err, l->shared_memory ? l->failure.index : -1);
		become_mapped(l, uid, gid);
		return;
	}
	err = iso_write_maps("/proc/self/", l->uid_text, l->gid_text, true, &index);
	if (err)
		iso_fail(l, ISO_STEP_MAPS, -err, index);
}

/* Only flags in mask. A time namespace refuses who shares memory, so the main process joins it by itself. */
void iso_join(struct launch *l, uint64_t mask)
{
	const struct iso_join *joins = iso_ptr(l->plan->joins);
	uint32_t i, flags;

	for (i = 0; i < l->plan->joins_count; i++) {
		flags = joins[i].flags & (uint32_t)mask;
		if (flags)
			check(l, setns(joins[i].fd, (int)flags), ISO_STEP_JOIN, (int)i);
	}
}

static void set_hostname(struct launch *l)
{
	const char *name = iso_ptr(l->plan->hostname);

	if (name)
		check(l, sethostname(name, strlen(name)), ISO_STEP_HOSTNAME, -1);
}

static void loopback_up(struct launch *l)
{
	struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int fd, ret;

	if (!(l->plan->flags & ISO_LOOPBACK_UP))
		return;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	check(l, fd, ISO_STEP_LOOPBACK, -1);
	ret = ioctl(fd, SIOCSIFFLAGS, &lo);
	close(fd);
	check(l, ret, ISO_STEP_LOOPBACK, -1);
}

static void do_mounts(struct launch *l)
{
	int err, index = -1;
	mode_t umask_before;

	if (!l->plan->mounts_count)
		return;
	umask_before = umask(0); /* modes in the table are exact */
	err = iso_mount_table(iso_ptr(l->plan->mounts), l->plan->mounts_count, &index);
	umask(umask_before);
	if (err)
		iso_fail(l, ISO_STEP_MOUNTS, -err, index);
}

static void change_directory(struct launch *l)
{
	const char *cwd = iso_ptr(l->plan->cwd);

	if (cwd)
		check(l, chdir(cwd), ISO_STEP_CWD, -1);
}

void iso_enter_namespaces(struct launch *l)
{
	uint64_t joinable = l->shared_memory ? ~(uint64_t)CLONE_NEWTIME : ~(uint64_t)0;
	uint32_t uid = l->caller_uid, gid = l->caller_gid;

	die_with_caller(l);
	enter_cgroups(l);
	unshare_late(l);
	set_maps(l, uid, gid);
	iso_join(l, joinable);
	if (l->parent_maps || l->plan->joins_count)
		die_with_caller(l); /* a change of credentials cleared it */
	set_hostname(l);
	loopback_up(l);
	do_mounts(l);
	change_directory(l);
}
