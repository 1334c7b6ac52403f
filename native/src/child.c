// SPDX-License-Identifier: MIT
/*
 * ============================ THIS CODE RUNS IN THE CHILD ============================
 * Between clone and exec, in the caller's memory and on the caller's thread-local storage, or after a fork of a
 * process with threads. Async-signal-safe functions only: no malloc, no stdio, no locks, and none of glibc's
 * set*id, which signal all threads of the process (`make check-child` compares the undefined symbols with a list).
 * Every fd opened here is closed here: the init shares the caller's table until it executes isolate-init.
 * A failure is one struct iso_failure, and the end of the child.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "launch.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_landlock_restrict_self
#define SYS_landlock_restrict_self 446
#endif
#define CLOSE_RANGE_CLOEXEC_FLAG 4u /* Linux 5.11 */

/* ---- failure ---- */

void iso_report(struct launch *l)
{
	if (l->report_fd[1] < 0)
		return;
	while (write(l->report_fd[1], &l->failure, sizeof(l->failure)) < 0 && errno == EINTR)
		;
	close(l->report_fd[1]);
	l->report_fd[1] = -1;
}

_Noreturn void iso_fail(struct launch *l, int step, int err, int index)
{
	l->failure.step = step;
	l->failure.err = err;
	l->failure.index = index;
	if (!l->has_init || getpid() != 1)
		iso_report(l); /* the init's memory is the caller's own */
	for (;;)
		syscall(SYS_exit_group, 127);
}

static void check(struct launch *l, long ret, int step, int index)
{
	if (ret < 0)
		iso_fail(l, step, errno, index);
}

/* ---- inside the namespaces ---- */

static bool caller_is_gone(const struct launch *l)
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
	if (caller_is_gone(l))
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

/* 1 when the caller has written the maps, else -errno. */
static int await_caller_maps(struct launch *l)
{
	struct iso_failure please = {.step = ISO_STEP_MAPS};
	int written = 0;

	if (l->shared_memory) {
		while (!(written = __atomic_load_n(&l->maps_written, __ATOMIC_ACQUIRE)))
			syscall(SYS_futex, &l->maps_written, FUTEX_WAIT, 0, NULL, NULL, 0);
		return written;
	}
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
static void join(struct launch *l, uint64_t mask)
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
	join(l, joinable);
	if (l->parent_maps || l->plan->joins_count)
		die_with_caller(l); /* a change of credentials cleared it */
	set_hostname(l);
	loopback_up(l);
	do_mounts(l);
	change_directory(l);
}

/*
 * An inherited SIG_IGN or SA_NOCLDWAIT would let the kernel collect the main process, status and all, before the init
 * can. Our table of handlers is our own; the forked main process gets the caller's action back.
 */
void iso_hear_of_children(struct launch *l)
{
	struct sigaction by_default = {.sa_handler = SIG_DFL};

	check(l, sigaction(SIGCHLD, &by_default, &l->caller_sigchld), ISO_STEP_SIGNALS, SIGCHLD);
}

/*
 * A signal to the caller's process group must not reach the monitor; main leaves it by its session, or stays in it, and
 * then the monitor leaves when main is made. Not by setsid(2): that makes a scheduling group (sched(7), autogroup), which
 * costs milliseconds on a busy machine.
 */
static void leave_group(struct launch *l)
{
	check(l, setpgid(0, 0), ISO_STEP_SESSION, -1);
}

/*
 * The monitor, before the main process exists: orphans come to it from now on. The death of the caller no longer ends
 * it, for it has a tree to end first; it will see that death by the caller's pidfd.
 */
void iso_watch_over(struct launch *l)
{
	if (!l->flat)
		return;
	check(l, prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), ISO_STEP_INIT, -1);
	check(l, prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0), ISO_STEP_PDEATHSIG, -1);
	if (caller_is_gone(l))
		iso_fail(l, ISO_STEP_PDEATHSIG, ESRCH, -1);
	if (l->plan->flags & ISO_NEW_SESSION)
		leave_group(l);
	l->monitor_pid = getpid();
}

/* ---- the main process ---- */

static void start_session(struct launch *l)
{
	if (l->plan->flags & ISO_NEW_SESSION)
		check(l, setsid(), ISO_STEP_SESSION, -1);
}

/* A monitor, and the init of a joined PID namespace, are not PID 1: nobody would end us with them. */
static void die_with_monitor(struct launch *l)
{
	if (!l->has_init || (l->plan->namespaces & CLONE_NEWPID))
		return;
	check(l, prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), ISO_STEP_PDEATHSIG, -1);
	if (l->flat && getppid() != l->monitor_pid)
		iso_fail(l, ISO_STEP_PDEATHSIG, ESRCH, -1);
}

static void set_umask(struct launch *l)
{
	if (l->plan->flags & ISO_SET_UMASK)
		umask((mode_t)l->plan->umask);
}

static void set_rlimits(struct launch *l)
{
	const struct iso_rlimit *limits = iso_ptr(l->plan->rlimits);
	struct rlimit64 limit;
	uint32_t i;

	for (i = 0; i < l->plan->rlimits_count; i++) {
		limit.rlim_cur = limits[i].soft;
		limit.rlim_max = limits[i].hard;
		check(l, prlimit64(0, (enum __rlimit_resource)limits[i].resource, &limit, NULL), ISO_STEP_RLIMITS,
		      (int)i);
	}
}

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

static void drop_capabilities(struct launch *l)
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

static void set_no_new_privs(struct launch *l)
{
	if (l->plan->flags & ISO_NO_NEW_PRIVS)
		check(l, prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), ISO_STEP_NO_NEW_PRIVS, -1);
}

static void enforce_landlock(struct launch *l)
{
	if (l->plan->landlock_fd_plus1)
		check(l, syscall(SYS_landlock_restrict_self, (int)l->plan->landlock_fd_plus1 - 1, 0), ISO_STEP_LANDLOCK,
		      -1);
}

/* Numbers 0..2 that are to become another of 0..2 step aside first. */
static void place_stdio(struct launch *l)
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

static void close_fds(struct launch *l)
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

static void pass_kept_fds(struct launch *l)
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

static void enforce_seccomp(struct launch *l)
{
	struct sock_fprog program = {.len = (unsigned short)l->plan->seccomp_count,
				     .filter = (struct sock_filter *)(uintptr_t)l->plan->seccomp};

	if (program.len)
		check(l, syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), ISO_STEP_SECCOMP, -1);
}

void iso_become_main(struct launch *l)
{
	start_session(l);
	die_with_monitor(l);
	if (l->has_init)
		join(l, CLONE_NEWTIME);
	set_umask(l);
	set_rlimits(l);
	drop_capabilities(l);
	set_no_new_privs(l);
	enforce_landlock(l);
	if (l->exec)
		place_stdio(l);
	pass_kept_fds(l);
	close_fds(l);
	enforce_seccomp(l);
}

/* ---- ends ---- */

/* What the clone's CLONE_CLEAR_SIGHAND does, by hand: a handler must not run in the caller's memory. */
static void reset_handlers(void)
{
	struct sigaction now, by_default = {.sa_handler = SIG_DFL};
	int signum;

	for (signum = 1; signum < NSIG; signum++)
		if (!sigaction(signum, NULL, &now) && now.sa_handler != SIG_IGN && now.sa_handler != SIG_DFL)
			sigaction(signum, &by_default, NULL);
}

static void restore_signals(struct launch *l)
{
	struct sigaction by_default = {.sa_handler = SIG_DFL};
	uint64_t pending = l->exec->default_signals;
	int signum;

	if (l->clone.used_clone2)
		reset_handlers();
	for (signum = 1; pending; signum++, pending >>= 1)
		if (pending & 1)
			check(l, sigaction(signum, &by_default, NULL), ISO_STEP_SIGNALS, signum);
	check(l, sigprocmask(SIG_SETMASK, &l->caller_mask, NULL), ISO_STEP_SIGNALS, -1);
}

/* As execvp(3): a name that is not there does not end the search; what was refused is told when nothing else is found. */
static int exec_first(const char *const *paths, char *const *argv, char *const *envp)
{
	int err = ENOENT;

	for (; *paths; paths++) {
		execve(*paths, argv, envp);
		if (errno != ENOENT && errno != ENOTDIR) {
			err = errno;
			if (err != EACCES)
				break;
		}
	}
	return err;
}

_Noreturn void iso_exec_program(struct launch *l)
{
	char *const *argv = iso_ptr(l->exec->argv);
	char *const *envp = l->exec->envp ? iso_ptr(l->exec->envp) : environ;
	int err;

	restore_signals(l);
	if (l->exec->executable_fd_plus1) {
		syscall(SYS_execveat, (int)l->exec->executable_fd_plus1 - 1, "", argv, envp, AT_EMPTY_PATH);
		err = errno;
	} else {
		err = exec_first(iso_ptr(l->exec->paths), argv, envp);
	}
	iso_fail(l, ISO_STEP_EXEC, err, -1);
}

static char *decimal(char text[12], int number)
{
	char *at = text + 11;

	*at = 0;
	do {
		*--at = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	return at;
}

static void pass_to_init(struct launch *l, int fd)
{
	check(l, fcntl(fd, F_SETFD, 0), ISO_STEP_INIT, -1);
}

/* From here on an own fd table: the fds lose close-on-exec here only. A fourth argument makes it a monitor. */
_Noreturn void iso_exec_init(struct launch *l, pid_t main_pid)
{
	char texts[4][12];
	char *argv[] = {(char *)"isolate-init",
			decimal(texts[0], main_pid),
			decimal(texts[1], l->status_fd[1]),
			decimal(texts[2], l->parent_pidfd),
			l->flat ? decimal(texts[3], l->proc_fd) : NULL,
			NULL};
	char *envp[] = {NULL};

	check(l, unshare(CLONE_FILES), ISO_STEP_INIT, -1);
	pass_to_init(l, l->status_fd[1]);
	pass_to_init(l, l->parent_pidfd);
	if (l->flat) {
		pass_to_init(l, l->proc_fd);
		if (!(l->plan->flags & ISO_NEW_SESSION))
			leave_group(l);
	}
	syscall(SYS_execveat, l->init_fd, "", argv, envp, AT_EMPTY_PATH);
	iso_fail(l, ISO_STEP_INIT, errno, -1);
}

/*
 * The forked main process is a copy of a task that was cloned with the caller's memory: what the kernel keeps per
 * task, and drops in such a clone, is set again. Restartable sequences (glibc 2.35) would leave sched_getcpu() stale;
 * the alternate signal stack is where Python's faulthandler runs.
 */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));
#if defined(__x86_64__)
#define RSEQ_SIGNATURE 0x53053053u
#define READ_THREAD_POINTER "mov %%fs:0, %0"
#else
#define RSEQ_SIGNATURE 0xd428bc00u
#define READ_THREAD_POINTER "mrs %0, tpidr_el0"
#endif
#define RSEQ_BYTES 32

static char *thread_pointer(void)
{
	char *pointer;

	__asm__(READ_THREAD_POINTER : "=r"(pointer));
	return pointer;
}

void iso_restore_thread(const struct launch *l)
{
	sigaction(SIGCHLD, &l->caller_sigchld, NULL);
	sigaltstack(&l->caller_altstack, NULL);
	if (l->dumpable == 1 && prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1)
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	if (&__rseq_offset && &__rseq_size && __rseq_size)
		syscall(SYS_rseq, thread_pointer() + __rseq_offset, RSEQ_BYTES, 0, RSEQ_SIGNATURE);
}
