// SPDX-License-Identifier: MIT
/*
 * ============================ THIS CODE RUNS IN THE CHILD ============================
 * program.c - the main process becomes the program: signals as the program expects them, then exec. The rules of child.c
 * hold.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "child.h"

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
