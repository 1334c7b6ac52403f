// SPDX-License-Identifier: MIT
/*
 * launch.c - the caller's side of a start, from the clone on: waits, reads what the child says, takes everything away.
 *
 * From the clone until the child no longer shares our memory, the child runs on this thread's thread-local storage:
 * in between only raw system calls are made here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launch.h"
#include "raw.h"

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef CLONE_CLEAR_SIGHAND
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#endif
#define MONITOR_ENDS_MS 2000

int iso_launch_note(struct launch *l, int step, int err)
{
	l->failure.step = step;
	l->failure.err = err;
	l->failure.index = -1;
	return -err;
}

/* ---- during: raw system calls only ---- */

static uint64_t helper_flags(const struct launch *l)
{
	uint64_t flags = l->plan->namespaces & ~l->late_namespaces;

	if (l->shared_memory)
		flags |= CLONE_VM | CLONE_VFORK; /* the kernel then puts the child on this very core */
	if (l->has_init)
		flags |= CLONE_FILES; /* its pidfd of the main process is ours; atfork handlers see our table */
	else
		flags |= CLONE_CLEAR_SIGHAND;
	return flags;
}

static pid_t clone_helper(struct launch *l, int (*run)(void *))
{
	pid_t writer, pid;

	if (!l->shared_memory || !l->parent_maps)
		return iso_clone(&l->clone, run, l);
	writer = iso_start_map_writer(l);
	if (writer < 0)
		return writer;
	pid = iso_clone(&l->clone, run, l);
	iso_end_map_writer(l, writer);
	return pid;
}

int iso_launch_helper(struct launch *l, int (*run)(void *))
{
	pid_t pid;

	l->clone.flags = helper_flags(l);
	l->clone.stack = l->init_stack;
	l->clone.stack_bytes = ISO_STACK_BYTES;
	l->clone.cgroup_fd = (int)l->plan->cgroup_fd_plus1 - 1;
	pid = clone_helper(l, run);
	if (pid < 0)
		return iso_launch_note(l, ISO_STEP_CLONE, -pid);
	l->first_pid = pid;
	return pid;
}

/* ---- after ---- */

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void answer_over_socket(struct launch *l, pid_t pid)
{
	char proc[32];
	int index, written;

	iso_proc_path(proc, pid);
	written = iso_write_maps(proc, l->uid_text, l->gid_text, false, &index);
	written = written ? written : 1;
	send(l->report_fd[0], &written, sizeof(written), MSG_NOSIGNAL);
}

/* Reads the report of the main process: 0 when it says that every step succeeded. */
static int read_report(struct launch *l, pid_t pid)
{
	struct iso_failure said;
	ssize_t n;

	for (;;) {
		n = recv(l->report_fd[0], &said, sizeof(said), MSG_WAITALL);
		if (n == 0 && l->exec)
			return 0; /* closed by exec */
		if (n != sizeof(said))
			return iso_launch_note(l, ISO_STEP_FORK, ECHILD); /* it was killed before it could say */
		if (said.step != ISO_STEP_MAPS || said.err)
			break;
		answer_over_socket(l, pid);
	}
	l->failure = said;
	return said.step ? -said.err : 0;
}

/* What the child left in its words. pid: the child, whose maps we may have to write on request. */
int iso_launch_await(struct launch *l, pid_t pid)
{
	close_fd(&l->report_fd[1]);
	close_fd(&l->status_fd[1]);
	close_fd(&l->gate_fd[1]);
	if (l->failure.step)
		return -l->failure.err;
	if (l->has_init && l->main_pidfd < 0)
		return iso_launch_note(l, ISO_STEP_INIT, ECHILD); /* killed from outside half-way */
	return l->report_fd[0] >= 0 ? read_report(l, pid) : 0;
}

static void kill_and_collect(int pidfd)
{
	struct iso_exit ignored;

	if (pidfd < 0)
		return;
	syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	while (iso_wait(pidfd, 1, &ignored) == -EINTR)
		;
}

/* The byte that lets it begin and the one that tells it to end. It collects the main process, lest that come to us. */
static void let_monitor_end(struct launch *l)
{
	struct pollfd monitor = {.fd = l->clone.pidfd, .events = POLLIN};

	if (l->clone.pidfd < 0 || l->main_pidfd < 0)
		return;
	send(l->status_fd[0], "xx", 2, MSG_NOSIGNAL);
	poll(&monitor, 1, MONITOR_ENDS_MS);
}

static void give_up(struct launch *l)
{
	if (l->main_pidfd >= 0 && l->main_pidfd != l->clone.pidfd)
		syscall(SYS_pidfd_send_signal, l->main_pidfd, SIGKILL, NULL, 0);
	if (l->flat && l->status_fd[0] >= 0)
		let_monitor_end(l);
	kill_and_collect(l->clone.pidfd);
	if (l->main_pidfd != l->clone.pidfd)
		close_fd(&l->main_pidfd);
	close_fd(&l->clone.pidfd);
	close_fd(&l->status_fd[0]);
}

static void hand_over(struct launch *l, struct iso_child *child)
{
	child->main_pidfd = l->has_init ? l->main_pidfd : l->clone.pidfd;
	child->main_pid = l->has_init ? iso_pid_of(child->main_pidfd) : l->first_pid;
	child->init_pidfd = l->has_init ? l->clone.pidfd : -1;
	child->init_pid = l->has_init ? l->first_pid : 0;
	child->status_fd = l->status_fd[0];
	child->monitor = l->flat;
	if (l->has_init)
		send(l->status_fd[0], "", 1, MSG_NOSIGNAL); /* from now on the init may collect the main process */
}

static void unblock_signals(const struct launch *l)
{
	raw4(__NR_rt_sigprocmask, SIG_SETMASK, &l->caller_mask, 0, sizeof(uint64_t));
}

void iso_launch_close(struct launch *l)
{
	close_fd(&l->status_fd[1]);
	close_fd(&l->report_fd[0]);
	close_fd(&l->report_fd[1]);
	close_fd(&l->gate_fd[0]);
	close_fd(&l->gate_fd[1]);
	close_fd(&l->parent_pidfd);
	close_fd(&l->init_fd);
	close_fd(&l->proc_fd);
	close_fd(&l->held_fd[0]);
	close_fd(&l->held_fd[1]);
	close_fd(&l->held_fd[2]);
	if (l->arena && !l->borrowed_arena)
		munmap(l->arena, ISO_ARENA_BYTES);
	unblock_signals(l);
}

int iso_launch_finish(struct launch *l, int err, struct iso_child *child, struct iso_failure *failure)
{
	if (l->dumpable == 1 && (l->parent_maps || l->plan->joins_count))
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* a child in our memory changed its credentials */
	if (err < 0) {
		give_up(l);
		*failure = l->failure;
	} else {
		hand_over(l, child);
	}
	iso_launch_close(l);
	return err < 0 ? err : 0;
}
