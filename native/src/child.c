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
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "child.h"

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

void iso_become_main(struct launch *l)
{
	start_session(l);
	die_with_monitor(l);
	if (l->has_init)
		iso_join(l, CLONE_NEWTIME);
	set_umask(l);
	/* A ruleset and its paths are descriptors: more than a limit on them may leave room for. */
	iso_set_no_new_privs(l);
	iso_enforce_landlock(l);
	set_rlimits(l);
	iso_set_securebits(l);
	iso_drop_capabilities(l);
	if (l->exec)
		iso_place_stdio(l);
	iso_pass_kept_fds(l);
	iso_close_fds(l);
	iso_enforce_seccomp(l);
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
