// SPDX-License-Identifier: MIT
/*
 * ============================ THIS CODE RUNS IN THE CHILD ============================
 * supervise.c - what the first child does when it is not the main process: it becomes isolate-init, as PID 1 or as the
 * monitor of a flat tree. The rules of child.c hold.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "child.h"
#include "init.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2u
#endif

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
	if (iso_caller_is_gone(l))
		iso_fail(l, ISO_STEP_PDEATHSIG, ESRCH, -1);
	if (l->plan->flags & ISO_NEW_SESSION)
		leave_group(l);
	l->monitor_pid = getpid();
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

/* What the init will have as 0, 1 and 2, without close-on-exec, is first where none of these numbers overwrites it. */
static int above_stdio(struct launch *l, int fd)
{
	if (fd < 0 || fd > 2)
		return fd;
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	check(l, fd, ISO_STEP_INIT, -1);
	return fd;
}

static void pass_to_init(struct launch *l, int fd, int number)
{
	check(l, dup2(fd, number), ISO_STEP_INIT, -1);
}

/*
 * Docker's default seccomp profile refuses unshare, with whatever flags, and lets close_range (Linux 5.9) pass: beyond the
 * last fd it closes nothing, and copies the table all the same.
 */
static int own_fd_table(void)
{
	if (!unshare(CLONE_FILES))
		return 0;
	return (int)syscall(SYS_close_range, ~0U, ~0U, CLOSE_RANGE_UNSHARE);
}

/* From here on an own fd table. A second argument makes it a monitor. */
_Noreturn void iso_exec_init(struct launch *l, pid_t main_pid)
{
	char text[12];
	char *argv[] = {(char *)"isolate-init", decimal(text, main_pid), l->flat ? (char *)"monitor" : NULL, NULL};
	char *envp[] = {NULL};
	int init_fd, status_fd, caller_pidfd, proc_fd;

	/* It is bound to a thread of the caller, which may end as soon as we execute; the pidfd is not. */
	check(l, prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0), ISO_STEP_PDEATHSIG, -1);
	check(l, own_fd_table(), ISO_STEP_INIT, -1);
	init_fd = above_stdio(l, l->init_fd);
	status_fd = above_stdio(l, l->status_fd[1]);
	caller_pidfd = above_stdio(l, l->parent_pidfd);
	proc_fd = above_stdio(l, l->proc_fd);
	pass_to_init(l, status_fd, ISO_INIT_STATUS_FD);
	pass_to_init(l, caller_pidfd, ISO_INIT_CALLER_FD);
	if (l->flat) {
		pass_to_init(l, proc_fd, ISO_INIT_PROC_FD);
		if (!(l->plan->flags & ISO_NEW_SESSION))
			leave_group(l);
	}
	syscall(SYS_execveat, init_fd, "", argv, envp, AT_EMPTY_PATH);
	iso_fail(l, ISO_STEP_INIT, errno, -1);
}
