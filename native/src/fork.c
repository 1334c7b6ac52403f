// SPDX-License-Identifier: MIT
/*
 * fork.c - iso_fork: the calling process, forked into a sandbox.
 *
 * With a PID namespace the test must not be PID 1, which ignores its own abort(). So a helper that shares our memory
 * becomes PID 1, does the mounts and so on, calls fork(2) - one copy of the page tables, all of libc's own handlers -
 * and then executes isolate-init. The forked process, PID 2, goes on upon the caller's stack, of which it has a copy.
 * A monitor comes to be in the same way, without the PID namespace.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE /* the jump back to the caller's stack is not "up" as longjmp's check would have it */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "launch.h"

static void call(uint64_t hook)
{
	if (hook)
		((void (*)(void))(uintptr_t)hook)();
}

/* Child: PID 1 or the monitor, in the caller's memory. */
static int run_init(void *arg)
{
	struct launch *l = arg;
	pid_t pid;

	iso_enter_namespaces(l);
	iso_hear_of_children(l);
	iso_watch_over(l);
	pid = fork();
	if (pid == 0)
		longjmp(l->caller_stack, 1);
	if (pid < 0)
		iso_fail(l, ISO_STEP_FORK, errno, -1);
	l->main_pidfd = iso_pidfd_open(pid);
	if (l->main_pidfd < 0)
		iso_fail(l, ISO_STEP_FORK, -l->main_pidfd, -1);
	iso_exec_init(l, pid);
}

/* What belongs to the caller, or to nobody any more. */
static void drop_caller_fds(struct launch *l)
{
	int *fds[] = {&l->clone.pidfd,	&l->status_fd[0], &l->status_fd[1], &l->report_fd[0],
		      &l->parent_pidfd, &l->init_fd,	  &l->proc_fd,	    &l->gate_fd[1],
		      &l->held_fd[0],	&l->held_fd[1],	  &l->held_fd[2]};
	size_t i;

	for (i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
}

#define GATE_MS 1000 /* for a copy of our descriptors that another thread's fork made just then */

/* Child: touches next to nothing before the init is out of the caller's memory, see needs_gate(). */
static void await_gate(struct launch *l)
{
	struct pollfd gate = {.fd = l->gate_fd[0], .events = POLLIN};

	if (gate.fd < 0)
		return;
	poll(&gate, 1, GATE_MS); /* all signals are blocked */
	close(gate.fd);
	l->gate_fd[0] = -1;
}

/* Child: the test, with a copy of everything. */
static void become_test(struct launch *l, const struct iso_hooks *hooks)
{
	drop_caller_fds(l);
	await_gate(l);
	iso_become_main(l);
	iso_report(l);
	call(hooks->child);
	iso_launch_close(l);
}

#define LEFT_BYTES 8192 /* of the caller's stack, by frames that the jump has left: those of iso_launch_helper() */

/* Returns 0 in the child, the pid of the first child in the caller, or -errno. */
static pid_t fork_through_init(struct launch *l)
{
	if (_setjmp(l->caller_stack)) {
		iso_forget_old_frames((char *)__builtin_frame_address(0) - LEFT_BYTES, LEFT_BYTES);
		iso_restore_thread(l);
		return 0;
	}
	return iso_launch_helper(l, run_init);
}

static pid_t fork_direct(struct launch *l)
{
	pid_t pid = fork();

	if (pid < 0)
		return iso_launch_note(l, ISO_STEP_CLONE, errno);
	if (pid == 0) {
		iso_enter_namespaces(l);
		return 0;
	}
	l->first_pid = pid;
	l->clone.pidfd = iso_pidfd_open(pid);
	return l->clone.pidfd < 0 ? iso_launch_note(l, ISO_STEP_PREPARE, -l->clone.pidfd) : pid;
}

int iso_fork(const struct iso_plan *plan, const struct iso_hooks *hooks, struct iso_child *child,
	     struct iso_failure *failure)
{
	struct launch l;
	int err = iso_launch_open(&l, plan, NULL);

	if (err)
		return iso_launch_finish(&l, err, child, failure);
	call(hooks->prepare);
	err = l.has_init ? fork_through_init(&l) : fork_direct(&l);
	if (err == 0) {
		become_test(&l, hooks);
		return 0;
	}
	if (err > 0)
		err = iso_launch_await(&l, err);
	err = iso_launch_finish(&l, err, child, failure);
	call(hooks->parent);
	return err ? err : 1;
}
