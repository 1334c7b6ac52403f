// SPDX-License-Identifier: MIT
/*
 * main.c - isolate-bench, run by `pytest-isolate bench`: one measurement per call, one line per operation.
 *
 *   isolate-bench forkexec FORM ROW COUNT STAGE DIR   FORM: floor, bare (no init), whole (a root as Sandbox makes it),
 *                                                     library; DIR holds isolate-tiny and -init
 *   isolate-bench command COUNT PROGRAM ARG...        any program, by vfork and exec
 *   isolate-bench pidns OPERATION COUNT DEPTH TINY    getpid, fork, thread, exec; DEPTH PID namespaces further down
 *   isolate-bench lookup COUNT PATH                   stat(2)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#define ALL (CLONE_NEWPID | CLONE_NEWUSER | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWIPC | CLONE_NEWNS | CLONE_NEWNET)
#define INNER 1000 /* operations per line where one takes nanoseconds */

static struct row rows[] = {
	{"standard", 0, 0, 0},	     {"simple", 0, 0, 1},
	{"pid", CLONE_NEWPID, 0, 0}, {"user", CLONE_NEWUSER, 0, 0},
	{"uts", CLONE_NEWUTS, 0, 0}, {"cgroup", CLONE_NEWCGROUP, 0, 0},
	{"ipc", CLONE_NEWIPC, 0, 0}, {"mnt", CLONE_NEWNS, 0, 0},
	{"net", CLONE_NEWNET, 0, 0}, {"mnt+pivot", CLONE_NEWNS, 1, 0},
	{"all", ALL, 0, 0},	     {"all+pivot", ALL, 1, 0},
};

/* Only the owner of a user namespace may make the others: a plain user gets one with each. */
static const struct row *find_row(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (!strcmp(rows[i].name, name)) {
			if (geteuid() && rows[i].namespaces)
				rows[i].namespaces |= CLONE_NEWUSER;
			return &rows[i];
		}
	return NULL;
}

static int open_beside(const char *directory, const char *name)
{
	int at = open(directory, O_PATH | O_CLOEXEC), fd = openat(at, name, O_PATH | O_CLOEXEC);

	close(at);
	return fd;
}

static int forkexec(char **argv)
{
	const struct row *row = find_row(argv[1]);
	int count = atoi(argv[2]), tiny_fd = open_beside(argv[4], "isolate-tiny"), with_init, i, err;
	char init[4096];

	if (!row || tiny_fd < 0)
		return 2;
	snprintf(init, sizeof(init), "%s/isolate-init", argv[4]);
	with_init = strcmp(argv[0], "bare") && (row->namespaces & CLONE_NEWPID);
	for (i = -3; i < count; i++) { /* three to warm up */
		uint64_t begun = now_ns();

		if (!strcmp(argv[0], "library"))
			err = library_start(row, tiny_fd, init, argv[3]);
		else
			err = floor_start(row, tiny_fd, with_init ? tiny_fd : -1, argv[3],
					  strcmp(argv[0], "whole") ? NULL : argv[4]);
		if (i >= 0)
			say(err ? err : (int64_t)(now_ns() - begun));
	}
	return 0;
}

static int run(char **argv)
{
	int status;
	pid_t pid = vfork();

	if (pid == 0) {
		execv(argv[0], argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return -errno;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -ECHILD;
}

static int command(int count, char **argv)
{
	int i, err;

	for (i = -1; i < count; i++) {
		uint64_t begun = now_ns();

		err = run(argv);
		if (i >= 0)
			say(err ? err : (int64_t)(now_ns() - begun));
	}
	return 0;
}

static void *nothing(void *arg)
{
	return arg;
}

static int do_getpid(void)
{
	int i;

	for (i = 0; i < INNER; i++)
		syscall(SYS_getpid);
	return 0;
}

static int do_fork(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	return pid < 0 || waitpid(pid, NULL, 0) < 0 ? -errno : 0;
}

static int do_thread(void)
{
	pthread_t thread;
	int err = pthread_create(&thread, NULL, nothing, NULL);

	return err ? -err : -pthread_join(thread, NULL);
}

static char *tiny[] = {NULL, NULL};

static int do_exec(void)
{
	return run(tiny);
}

static const struct {
	const char *name;
	int (*act)(void);
	int inner;
} operations[] = {{"getpid", do_getpid, INNER}, {"fork", do_fork, 1}, {"thread", do_thread, 1}, {"exec", do_exec, 1}};

/* Only the innermost process comes back with 0. */
static int go_down(int depth)
{
	int status;
	pid_t pid;

	while (depth-- > 0) {
		if (unshare(CLONE_NEWPID) || (pid = fork()) < 0)
			return 3;
		if (pid)
			exit(waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : 3);
	}
	return 0;
}

static int pidns(const char *name, int count, int depth)
{
	size_t at;
	int i, err;

	for (at = 0; at < 4 && strcmp(operations[at].name, name);)
		at++;
	if (at == 4 || go_down(depth))
		return 2;
	for (i = -3; i < count; i++) {
		uint64_t begun = now_ns();

		err = operations[at].act();
		if (i >= 0)
			say(err ? err : (int64_t)(now_ns() - begun) / operations[at].inner);
	}
	return 0;
}

static int lookup(int count, const char *path)
{
	struct stat found;
	int i, j;

	for (i = -1; i < count; i++) {
		uint64_t begun = now_ns();

		for (j = 0; j < INNER; j++)
			if (stat(path, &found))
				return 2;
		if (i >= 0)
			say((int64_t)(now_ns() - begun) / INNER);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 7 && !strcmp(argv[1], "forkexec"))
		return forkexec(argv + 2);
	if (argc >= 4 && !strcmp(argv[1], "command"))
		return command(atoi(argv[2]), argv + 3);
	if (argc == 6 && !strcmp(argv[1], "pidns")) {
		tiny[0] = argv[5];
		return pidns(argv[2], atoi(argv[3]), atoi(argv[4]));
	}
	if (argc == 4 && !strcmp(argv[1], "lookup"))
		return lookup(atoi(argv[2]), argv[3]);
	return 2;
}
