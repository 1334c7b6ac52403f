// SPDX-License-Identifier: MIT
/*
 * prepare.c - the caller's side of a start, before the clone: looks at the plan, decides how the child will be made, and
 * makes what it will need. What is made here, iso_launch_close() takes away.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "launch.h"
#include "raw.h"

#define ALL_NAMESPACES                                                                                                 \
	((uint64_t)CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |        \
	 CLONE_NEWNET | CLONE_NEWTIME)

static bool sane(const struct iso_plan *plan, const struct iso_exec *exec)
{
	bool maps = plan->uid_map_count || plan->gid_map_count;

	if (plan->version != ISO_ABI_VERSION || plan->size != sizeof(*plan) || (exec && exec->size != sizeof(*exec)))
		return false;
	if (plan->namespaces & ~ALL_NAMESPACES || plan->flags & ~(uint64_t)ISO_FLAGS_ALL)
		return false;
	if (plan->seccomp_count > 4096 || plan->landlock_count > 4096 || plan->pdeathsig > 64)
		return false;
	return !maps || (plan->namespaces & CLONE_NEWUSER);
}

static uint64_t joined_namespaces(const struct iso_plan *plan)
{
	const struct iso_join *joins = iso_ptr(plan->joins);
	uint64_t all = 0;
	uint32_t i;

	for (i = 0; i < plan->joins_count; i++)
		all |= joins[i].flags;
	return all;
}

/* One id that is our own may be mapped by the child itself; all else needs our privileges. user_namespaces(7). */
static bool is_own_id(const struct iso_idmap *map, uint32_t count, uint32_t id)
{
	return count == 0 || (count == 1 && map->count == 1 && map->outside == id);
}

/* Lowering a limit that exists cannot fail. */
static bool limits_only_lower(const struct iso_plan *plan)
{
	const struct iso_rlimit *limits = iso_ptr(plan->rlimits);
	struct rlimit64 now;
	uint32_t i;

	for (i = 0; i < plan->rlimits_count; i++)
		if (prlimit64(0, (enum __rlimit_resource)limits[i].resource, NULL, &now) ||
		    limits[i].hard > now.rlim_max || limits[i].soft > limits[i].hard)
			return false;
	return true;
}

/* What is left to the forked process itself: session, umask, no_new_privs cannot fail either. */
static bool main_cannot_fail(const struct launch *l)
{
	const struct iso_plan *plan = l->plan;
	bool inside = plan->namespaces || plan->joins_count || plan->mounts_count || plan->cwd || plan->hostname ||
		      plan->cgroup_fd_plus1 || plan->cgroup_procs_fds_count || (plan->flags & ISO_LOOPBACK_UP);

	if (!l->has_init && inside)
		return false;
	if (plan->landlock_fd_plus1 || plan->landlock_fs || plan->landlock_net || plan->landlock_scoped ||
	    plan->securebits)
		return false;
	if (joined_namespaces(plan) & CLONE_NEWTIME)
		return false; /* the only one that an init leaves to it */
	return !(plan->flags & (ISO_SET_CAPABILITIES | ISO_CLOSE_FDS)) && !plan->seccomp_count &&
	       !plan->keep_fds_count && limits_only_lower(plan);
}

static void decide(struct launch *l)
{
	const struct iso_plan *plan = l->plan;
	uint64_t joined = joined_namespaces(plan);

	l->has_init = (plan->namespaces | joined) & CLONE_NEWPID;
	l->flat = !l->has_init && (plan->flags & ISO_MONITOR);
	l->has_init |= l->flat;
	l->private_main = l->exec && (joined & CLONE_NEWTIME);
	l->shared_memory = l->has_init || (l->exec && !l->private_main);
	l->parent_maps = !is_own_id(iso_ptr(plan->uid_map), plan->uid_map_count, l->caller_uid) ||
			 !is_own_id(iso_ptr(plan->gid_map), plan->gid_map_count, l->caller_gid);
	l->reports = l->exec ? l->private_main : !main_cannot_fail(l);
	if (!l->has_init && !l->exec)
		l->late_namespaces = plan->namespaces; /* fork(2) takes no flags */
	else if (plan->cgroup_procs_fds_count)
		l->late_namespaces = plan->namespaces & CLONE_NEWCGROUP; /* its root is where we then are */
}

/* A child that executes a program never leaves its frames, so a sanitizer still thinks of them at this address. */
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
void iso_forget_old_frames(char *at, size_t bytes)
{
#ifdef SANITIZED
	extern void __asan_unpoison_memory_region(void const volatile *at, size_t bytes);

	__asan_unpoison_memory_region(at, bytes);
#else
	(void)at;
	(void)bytes;
#endif
}

static char *second_stack(char *arena)
{
	return arena + ISO_GUARD_BYTES + ISO_STACK_BYTES + ISO_GUARD_BYTES;
}

void *iso_arena(void)
{
	char *at =
		mmap(NULL, ISO_ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return NULL;
	if (!mprotect(at, ISO_GUARD_BYTES, PROT_NONE) &&
	    !mprotect(second_stack(at) - ISO_GUARD_BYTES, ISO_GUARD_BYTES, PROT_NONE))
		return at;
	munmap(at, ISO_ARENA_BYTES);
	return NULL;
}

static int open_arena(struct launch *l)
{
	char *given = l->exec ? (char *)(uintptr_t)l->exec->arena : NULL;

	l->arena = given ? given : iso_arena();
	if (!l->arena)
		return -ENOMEM;
	l->borrowed_arena = given;
	iso_forget_old_frames(l->arena, ISO_ARENA_BYTES);
	l->init_stack = l->arena + ISO_GUARD_BYTES;
	l->main_stack = second_stack(l->arena);
	l->uid_text = l->main_stack + ISO_STACK_BYTES;
	l->gid_text = l->uid_text + ISO_MAP_TEXT_BYTES;
	l->writer_stack = l->gid_text + ISO_MAP_TEXT_BYTES;
	return 0;
}

static int write_map_texts(struct launch *l)
{
	const struct iso_plan *plan = l->plan;
	size_t bytes = ISO_MAP_TEXT_BYTES;

	if (plan->uid_map_count && !iso_map_text(l->uid_text, bytes, iso_ptr(plan->uid_map), plan->uid_map_count))
		return -E2BIG;
	if (plan->gid_map_count && !iso_map_text(l->gid_text, bytes, iso_ptr(plan->gid_map), plan->gid_map_count))
		return -E2BIG;
	return 0;
}

/*
 * An exec ends the vfork before it takes the new memory. In between the OOM killer, called by the test in the same
 * cgroup, would find the init there with all of the caller's memory, and end both. And a test may kill its monitor:
 * one that dies within fork(2) leaves the locks of malloc taken in the caller's memory, for ever. So the test waits for
 * what close-on-exec does later (linux/fs/exec.c begin_new_exec()).
 */
static bool needs_gate(const struct launch *l)
{
	bool same_cgroup = l->plan->cgroup_fd_plus1 || l->plan->cgroup_procs_fds_count;

	return l->has_init && !l->exec && (l->flat || same_cgroup);
}

/* A pipe would do but where a forked child without shared memory asks for its maps and waits. */
static int open_channels(struct launch *l)
{
	int type = SOCK_STREAM | SOCK_CLOEXEC;

	if (l->reports && socketpair(AF_UNIX, type, 0, l->report_fd))
		return -errno;
	if (needs_gate(l) && pipe2(l->gate_fd, O_CLOEXEC))
		return -errno;
	if (!l->has_init)
		return 0;
	if (socketpair(AF_UNIX, type, 0, l->status_fd))
		return -errno;
	l->parent_pidfd = iso_pidfd_open(l->caller_pid);
	return l->parent_pidfd < 0 ? l->parent_pidfd : 0;
}

static int note_index(struct launch *l, int step, int err, int index)
{
	iso_launch_note(l, step, err);
	l->failure.index = index;
	return -err;
}

/* A number that is not open may be one of our own descriptors when the child comes to it: then the program would get that. */
static int check_given(struct launch *l)
{
	const int32_t *keep = iso_ptr(l->plan->keep_fds);
	int32_t given[3] = {-1, -1, -1};
	uint32_t i;

	if (l->exec) {
		given[0] = (int32_t)l->exec->stdin_fd_plus1 - 1;
		given[1] = (int32_t)l->exec->stdout_fd_plus1 - 1;
		given[2] = (int32_t)l->exec->stderr_fd_plus1 - 1;
	}
	for (i = 0; i < 3; i++)
		if (given[i] >= 0 && fcntl(given[i], F_GETFD) < 0)
			return note_index(l, ISO_STEP_STDIO, errno, (int)i);
	for (i = 0; i < l->plan->keep_fds_count; i++)
		if (fcntl(keep[i], F_GETFD) < 0)
			return note_index(l, ISO_STEP_FDS, errno, (int)i);
	return 0;
}

/* So all that is opened from here on, here and in the child, is above 2: nobody takes it for standard input. */
static int hold_stdio(struct launch *l)
{
	int fd;

	for (fd = 0; fd < 3; fd++) {
		if (fcntl(fd, F_GETFD) >= 0)
			continue;
		l->held_fd[fd] = eventfd(0, EFD_CLOEXEC);
		if (l->held_fd[fd] < 0)
			return iso_launch_note(l, ISO_STEP_PREPARE, errno);
	}
	return 0;
}

static int open_init(struct launch *l)
{
	const char *path = iso_ptr(l->plan->init);

	if (!l->has_init)
		return 0;
	l->init_fd = path ? open(path, O_PATH | O_CLOEXEC) : -1;
	if (l->init_fd >= 0)
		return 0;
	return iso_launch_note(l, ISO_STEP_INIT, path ? errno : ENOENT);
}

/* The monitor finds its children there; numbers of another PID namespace would make it kill strangers. */
static int open_proc(struct launch *l)
{
	char self[16];
	ssize_t n;

	if (!l->flat)
		return 0;
	l->proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	n = l->proc_fd < 0 ? -1 : readlinkat(l->proc_fd, "self", self, sizeof(self) - 1);
	self[n > 0 ? n : 0] = 0;
	return atoi(self) == l->caller_pid ? 0 : iso_launch_note(l, ISO_STEP_PROC, ESRCH);
}

/* Raw, so that glibc's own two signals are blocked too, which pthread_sigmask refuses. */
static void block_signals(struct launch *l)
{
	uint64_t all = ~0ull;

	sigemptyset(&l->caller_mask);
	raw4(__NR_rt_sigprocmask, SIG_SETMASK, &all, &l->caller_mask, sizeof(all));
}

/* What the child restores or maps; a start that needs none of it does not pay for asking. */
static void note_caller(struct launch *l)
{
	if (l->plan->namespaces & CLONE_NEWUSER) {
		l->caller_uid = geteuid();
		l->caller_gid = getegid();
	}
	if (!l->exec)
		sigaltstack(NULL, &l->caller_altstack);
	if (!l->exec || l->plan->namespaces & CLONE_NEWUSER || l->plan->joins_count)
		l->dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
}

int iso_launch_open(struct launch *l, const struct iso_plan *plan, const struct iso_exec *exec)
{
	int err;

	memset(l, 0, sizeof(*l));
	l->plan = plan;
	l->exec = exec;
	l->init_fd = l->proc_fd = l->parent_pidfd = l->main_pidfd = l->clone.pidfd = l->clone.cgroup_fd = -1;
	l->status_fd[0] = l->status_fd[1] = l->report_fd[0] = l->report_fd[1] = -1;
	l->gate_fd[0] = l->gate_fd[1] = -1;
	l->held_fd[0] = l->held_fd[1] = l->held_fd[2] = -1;
	l->failure.index = -1;
	l->caller_pid = getpid();
	block_signals(l);
	if (!sane(plan, exec))
		return iso_launch_note(l, ISO_STEP_PLAN, EINVAL);
	note_caller(l);
	decide(l);
	err = check_given(l);
	if (!err)
		err = hold_stdio(l);
	if (!err)
		err = open_init(l);
	if (!err)
		err = open_proc(l);
	if (err)
		return err;
	err = open_arena(l);
	if (!err)
		err = write_map_texts(l);
	if (!err)
		err = open_channels(l);
	return err ? iso_launch_note(l, ISO_STEP_PREPARE, -err) : 0;
}
