// SPDX-License-Identifier: MIT
/*
 * mapwriter.c - the process that writes the id maps of a helper for which the caller itself sleeps.
 *
 * A helper that shares the caller's memory is made by vfork only: the OOM killer passes over such a process (mm/oom_kill.c,
 * in_vfork(), Linux 4.8). Any other that shares it, and that a limit has put into a cgroup, may be chosen, being the
 * largest there, and with it everyone who shares its memory: the caller. So the caller cannot be awake to write the maps.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launch.h"
#include "raw.h"

enum { NOT_ASKED, ASKED, NEVER }; /* maps_asked */

static void wake(int *word)
{
	raw3(__NR_futex, word, FUTEX_WAKE, 1);
}

static int await_question(struct launch *l)
{
	int asked;

	while ((asked = __atomic_load_n(&l->maps_asked, __ATOMIC_ACQUIRE)) == NOT_ASKED)
		raw4(__NR_futex, &l->maps_asked, FUTEX_WAIT, NOT_ASKED, 0);
	return asked;
}

/*
 * The writer: in the caller's memory and on its thread-local storage, outside of the sandbox's cgroup. Between question
 * and answer the helper only waits, and does not look at errno, so that iso_pid_of() may be called here.
 */
static int run_writer(void *arg)
{
	struct launch *l = arg;
	int index = -1, err;
	char proc[32];
	pid_t helper;

	raw2(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL);
	if (raw1(__NR_getppid, 0) != l->caller_pid || await_question(l) == NEVER)
		return 0;
	helper = iso_pid_of(l->clone.pidfd);
	err = helper < 0 ? helper : 0;
	if (!err) {
		iso_proc_path(proc, helper);
		err = iso_write_maps(proc, l->uid_text, l->gid_text, false, &index);
	}
	l->failure.index = index;
	__atomic_store_n(&l->maps_written, err ? err : 1, __ATOMIC_RELEASE);
	wake(&l->maps_written);
	return 0;
}

/* Before the helper is cloned. Returns the pid, for iso_end_map_writer(), or -errno. */
pid_t iso_start_map_writer(struct launch *l)
{
	struct iso_clone writer = {
		.flags = CLONE_VM | CLONE_FILES, /* the helper's pidfd is in the caller's table */
		.stack = l->writer_stack,
		.stack_bytes = ISO_WRITER_STACK_BYTES,
		.cgroup_fd = -1,
	};
	pid_t pid = iso_clone(&writer, run_writer, l);

	if (pid > 0)
		raw1(__NR_close, writer.pidfd);
	return pid;
}

/* The helper, asking and waiting. 1 when the maps are written, else -errno. */
int iso_ask_map_writer(struct launch *l)
{
	int written;

	__atomic_store_n(&l->maps_asked, ASKED, __ATOMIC_RELEASE);
	wake(&l->maps_asked);
	while (!(written = __atomic_load_n(&l->maps_written, __ATOMIC_ACQUIRE)))
		raw4(__NR_futex, &l->maps_written, FUTEX_WAIT, 0, 0);
	return written;
}

/* After the helper left the caller's memory, or never was: the writer is sent home if nobody asked, and collected. */
void iso_end_map_writer(struct launch *l, pid_t writer)
{
	int expected = NOT_ASKED;

	if (__atomic_compare_exchange_n(&l->maps_asked, &expected, NEVER, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		wake(&l->maps_asked);
	while (raw4(__NR_wait4, writer, NULL, __WALL, NULL) == -EINTR)
		;
}
