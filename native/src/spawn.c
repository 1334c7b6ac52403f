// SPDX-License-Identifier: MIT
/*
 * spawn.c - iso_spawn: a program in a sandbox, without copying the caller's page tables.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launch.h"

#ifndef CLONE_CLEAR_SIGHAND
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#endif

/* Child: the program, started by the init. */
static int run_main(void *arg)
{
	struct launch *l = arg;

	iso_become_main(l);
	iso_exec_program(l);
}

/* Child: the program itself, without an init. */
static int run_direct(void *arg)
{
	struct launch *l = arg;

	iso_enter_namespaces(l);
	iso_become_main(l);
	iso_exec_program(l);
}

/* A failed main process: where no PID namespace ends with us, nobody else knows that it is ours to collect. */
static _Noreturn void leave_after(pid_t pid)
{
	syscall(SYS_wait4, pid, NULL, __WALL, NULL);
	for (;;)
		syscall(SYS_exit_group, 127);
}

/*
 * Child: PID 1 or the monitor. Its only child is in the program's exec when the clone returns, or has failed. A program
 * cannot be held back as a forked test is, see needs_gate(): between the end of this process's vfork, in its exec, and its
 * own memory are some hundred instructions, and a program in the same cgroup that runs out of memory in just these would
 * end the caller.
 */
static int run_init(void *arg)
{
	struct launch *l = arg;
	struct iso_clone main_clone = {.stack = l->main_stack, .stack_bytes = ISO_STACK_BYTES, .cgroup_fd = -1};
	pid_t pid;

	iso_enter_namespaces(l);
	iso_hear_of_children(l);
	iso_watch_over(l);
	main_clone.flags = CLONE_CLEAR_SIGHAND | (l->private_main ? 0 : CLONE_VM | CLONE_VFORK);
	pid = iso_clone(&main_clone, run_main, l);
	if (pid < 0)
		iso_fail(l, ISO_STEP_FORK, -pid, -1);
	l->main_pidfd = main_clone.pidfd;
	if (l->failure.step)
		leave_after(pid);
	iso_exec_init(l, pid);
}

int iso_spawn(const struct iso_plan *plan, const struct iso_exec *exec, struct iso_child *child,
	      struct iso_failure *failure)
{
	struct launch l;
	int err = iso_launch_open(&l, plan, exec);

	if (!err)
		err = iso_launch_helper(&l, l.has_init ? run_init : run_direct);
	if (err >= 0)
		err = iso_launch_await(&l, err);
	return iso_launch_finish(&l, err, child, failure);
}
