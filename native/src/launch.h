/* SPDX-License-Identifier: MIT */
/*
 * launch.h - one start of one child, as caller and child see it. Private to the library.
 *
 * Words: the caller is the process that asked; the init is PID 1 of a new PID namespace; the main process is the
 * program or the test. A launch lives on the caller's stack; a child that shares the caller's memory writes its
 * results straight into it.
 */
#ifndef ISO_LAUNCH_H
#define ISO_LAUNCH_H

#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "isolate.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

#define ISO_STACK_BYTES (256u << 10) /* for each of init and main; atfork handlers of libraries run on it */
#define ISO_GUARD_BYTES 4096u
#define ISO_MAP_TEXT_BYTES (16u << 10) /* the kernel takes 340 lines, less than one page of text in practice */
#define ISO_WRITER_STACK_BYTES (64u << 10)
#define ISO_ARENA_BYTES (2 * (ISO_GUARD_BYTES + ISO_STACK_BYTES) + 2 * ISO_MAP_TEXT_BYTES + ISO_WRITER_STACK_BYTES)

struct iso_clone {
	uint64_t flags; /* CLONE_* without exit signal */
	char *stack;	/* lowest address */
	size_t stack_bytes;
	int cgroup_fd;	  /* -1: none */
	int pidfd;	  /* out */
	bool used_clone2; /* out, before the child runs: no clone3, so no CLONE_INTO_CGROUP, CLONE_CLEAR_SIGHAND */
};

struct launch {
	const struct iso_plan *plan;
	const struct iso_exec *exec; /* NULL: iso_fork */
	uint64_t late_namespaces;    /* made by unshare(2) after the cgroup step, not by the clone */
	bool has_init;		     /* a PID namespace is made or joined, or flat: init and main are two processes */
	bool flat;		     /* no PID namespace: the init is a monitor, the subreaper of main's tree */
	bool parent_maps;	     /* uid_map and gid_map are written with the caller's privileges */
	bool shared_memory;	     /* the first child runs in the caller's memory */
	bool private_main;	     /* spawned main must not share memory: it enters a time namespace by itself */
	bool reports;		     /* a step of the main process may fail where the caller cannot see it */
	int dumpable;		     /* prctl(2) PR_GET_DUMPABLE of the caller */
	int init_fd;		     /* isolate-init, opened for this launch; -1 without init */
	int parent_pidfd;	     /* the caller, watched by the init; -1 without init */
	int status_fd[2];	     /* caller, init: one byte down, one struct iso_exit up; -1 without init */
	int proc_fd;		     /* flat: /proc as the caller has it, whatever is mounted there later; else -1 */
	pid_t monitor_pid;	     /* flat: written by the monitor before it starts the main process */
	int gate_fd[2];	  /* main, init: closed as the init leaves the caller's memory; -1 without a cgroup */
	int report_fd[2]; /* caller, main: struct iso_failure up; -1 when memory is shared up to exec */
	int held_fd[3];	  /* takes a number of 0..2 that the caller has not open; else -1 */
	pid_t caller_pid;
	uint32_t caller_uid, caller_gid; /* effective */
	sigset_t caller_mask;
	stack_t caller_altstack;
	struct sigaction caller_sigchld; /* written by the init before it starts the main process */
	jmp_buf caller_stack;		 /* where the forked main process goes on */
	char *arena;			 /* two stacks, the texts of the maps, and the stack of their writer */
	bool borrowed_arena;		 /* the caller keeps it */
	char *init_stack, *main_stack, *uid_text, *gid_text, *writer_stack;
	struct iso_clone clone; /* of the first child */
	/* Written by the child. */
	struct iso_failure failure;
	int main_pidfd;
	pid_t first_pid; /* of the first child, by the caller's numbers */
	/* Futexes. */
	int maps_asked;	  /* mapwriter.c */
	int maps_written; /* 0: wait, 1: done, < 0: -errno, the child gives up */
};

/*
 * Code that runs in the child: namespaces.c, supervise.c, program.c, child.c. They return only on success; failure is
 * recorded and the child ends.
 */
void iso_enter_namespaces(struct launch *l);
void iso_hear_of_children(struct launch *l);
void iso_watch_over(struct launch *l);
void iso_become_main(struct launch *l);
_Noreturn void iso_exec_program(struct launch *l);
_Noreturn void iso_exec_init(struct launch *l, pid_t main_pid);
_Noreturn void iso_fail(struct launch *l, int step, int err, int index);
void iso_restore_thread(const struct launch *l);
void iso_report(struct launch *l);

/* mounts.c, child code too. Returns 0, or -errno with *index. */
int iso_mount_table(const struct iso_mount *table, uint32_t count, int *index);

/* maps.c: raw system calls only. proc is "/proc/self/" or "/proc/<pid>/". Returns 0 or -errno with *index. */
int iso_write_maps(const char *proc, const char *uid_text, const char *gid_text, bool deny_setgroups, int *index);
size_t iso_map_text(char *text, size_t bytes, const struct iso_idmap *map, uint32_t count);
void iso_proc_path(char path[32], pid_t pid);

/* mapwriter.c */
pid_t iso_start_map_writer(struct launch *l);
int iso_ask_map_writer(struct launch *l);
void iso_end_map_writer(struct launch *l, pid_t writer);

/* clone.c */
pid_t iso_clone(struct iso_clone *c, int (*run)(void *), void *arg);

/* prepare.c (open) and launch.c: the caller's side of both entries. */
int iso_launch_open(struct launch *l, const struct iso_plan *plan, const struct iso_exec *exec);
int iso_launch_helper(struct launch *l, int (*run)(void *));
int iso_launch_await(struct launch *l, pid_t writes_maps_of);
int iso_launch_finish(struct launch *l, int err, struct iso_child *child, struct iso_failure *failure);
int iso_launch_note(struct launch *l, int step, int err);
void iso_launch_close(struct launch *l);
void iso_forget_old_frames(char *at, size_t bytes);

/* wait.c */
pid_t iso_pid_of(int pidfd);
int iso_pidfd_open(pid_t pid);

static inline const void *iso_ptr(uint64_t address)
{
	return (const void *)(uintptr_t)address;
}

#endif
