// SPDX-License-Identifier: MIT
/*
 * init.c - isolate-init, PID 1 of a sandbox or, with a second argument, the monitor of one without a PID namespace:
 * `isolate-init <pid of main> [monitor]`, with the descriptors of init.h.
 *
 * Collects every orphan, writes one struct iso_exit when the main process ends, leaves when nothing is left, and ends
 * (and with it the whole PID namespace) when the caller dies. A static program without libc: it starts in
 * microseconds and holds nothing open. All signals are blocked; the kernel lets nobody inside kill PID 1.
 *
 * The monitor is the subreaper of main's tree: whoever in it loses its parent becomes the monitor's child. So killing
 * its children until it has none ends the whole tree, whatever sessions were made in it. It does so when the caller
 * dies, and when the caller writes a byte. It refuses to look for its children anywhere but in the /proc it was given.
 */
#include <linux/signal.h>
#include <linux/resource.h>
#include <linux/time.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/poll.h>
#include <linux/wait.h>
#include <linux/types.h>
#include <stdint.h>

#include "init.h"
#include "isolate_abi.h"
#include "raw.h"

#define MSG_DONTWAIT 0x40 /* linux/socket.h keeps them from user space */
#define MSG_NOSIGNAL 0x4000

#ifndef CHILDREN_FILE /* a test names one that is not there */
#define CHILDREN_FILE "thread-self/children"
#endif
#define KILL_AGAIN_MS 5 /* at first; a process in an uninterruptible sleep is asked ever less often */
#define KILL_SELDOM_MS 200

enum { CALLER, STATUS, CHILDREN, WATCHED };

static int number(const char *text)
{
	int n = 0;

	while (*text >= '0' && *text <= '9')
		n = n * 10 + (*text++ - '0');
	return n;
}

static _Noreturn void leave(int status)
{
	for (;;)
		raw1(__NR_exit_group, status);
}

static void close_range_of_fds(unsigned int first, unsigned int last)
{
	unsigned int fd;

	if (first > last || raw3(__NR_close_range, first, last, 0) == 0)
		return;
	for (fd = first; fd <= last && fd < 65536; fd++) /* before Linux 5.9 */
		raw1(__NR_close, fd);
}

static uint64_t usec(long sec, long micro)
{
	return (uint64_t)sec * 1000000u + (uint64_t)micro;
}

static void fill_exit(struct iso_exit *record, int status, const struct rusage *usage)
{
	record->magic = ISO_EXIT_MAGIC;
	record->status = status;
	record->user_usec = usec(usage->ru_utime.tv_sec, usage->ru_utime.tv_usec);
	record->system_usec = usec(usage->ru_stime.tv_sec, usage->ru_stime.tv_usec);
	record->max_rss_bytes = (uint64_t)usage->ru_maxrss << 10;
	record->minor_faults = (uint64_t)usage->ru_minflt;
	record->major_faults = (uint64_t)usage->ru_majflt;
	record->voluntary_switches = (uint64_t)usage->ru_nvcsw;
	record->involuntary_switches = (uint64_t)usage->ru_nivcsw;
	record->blocks_in = (uint64_t)usage->ru_inblock;
	record->blocks_out = (uint64_t)usage->ru_oublock;
}

/* Collects all that has ended. Returns 1 while children live, 0 when none is left. */
static int collect(int main_pid, struct iso_exit *record)
{
	struct rusage usage;
	int status = 0;
	long pid;

	for (;;) {
		pid = raw4(__NR_wait4, -1, &status, WNOHANG | __WALL, &usage);
		if (pid == main_pid)
			fill_exit(record, status, &usage);
		if (pid <= 0)
			return pid == 0;
	}
}

/* Tells the caller, once the main process has ended, once. Who stays without a further word to hear closes the socket. */
static void tell(struct iso_exit *record, int leftovers, int monitors)
{
	if (!record->magic || record->pad)
		return;
	record->leftovers = (uint32_t)leftovers;
	raw6(__NR_sendto, ISO_INIT_STATUS_FD, (long)record, sizeof(*record), MSG_NOSIGNAL, 0, 0);
	record->pad = 1;
	if (!monitors && leftovers)
		raw1(__NR_close, ISO_INIT_STATUS_FD);
}

/* ---- the end of a tree ---- */

static int is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static void kill_child(int pid)
{
	if (pid > 1) /* 1 and 0 are nobody's children, and -1 is everybody */
		raw2(__NR_kill, pid, SIGKILL);
}

/* Numbers with a space after each, as proc(5) has them; one may be cut in two by the end of the buffer. */
static void kill_listed(int fd)
{
	char text[1024];
	long n, i;
	int pid = 0;

	while ((n = raw3(__NR_read, fd, text, sizeof(text))) > 0)
		for (i = 0; i < n; i++) {
			if (is_digit(text[i])) {
				pid = pid * 10 + (text[i] - '0');
				continue;
			}
			kill_child(pid);
			pid = 0;
		}
	kill_child(pid);
}

/* The parent in /proc/PID/stat: the second field after the last parenthesis, which ends the command's name. */
static int parent_in(const char *stat, long n)
{
	while (n > 0 && stat[n - 1] != ')')
		n--;
	return n > 0 ? number(stat + n + 3) : 0;
}

static int parent_of(const char *pid)
{
	char path[24], stat[512];
	const char *tail = "/stat";
	long fd, n, i = 0;

	while (*pid && i < 16)
		path[i++] = *pid++;
	while (*tail)
		path[i++] = *tail++;
	path[i] = 0;
	fd = raw4(__NR_openat, ISO_INIT_PROC_FD, path, O_RDONLY, 0);
	if (fd < 0)
		return 0;
	n = raw3(__NR_read, fd, stat, sizeof(stat) - 1);
	raw1(__NR_close, fd);
	stat[n > 0 ? n : 0] = 0;
	return parent_in(stat, n);
}

struct entry { /* struct linux_dirent64, getdents64(2) */
	uint64_t ino;
	int64_t off;
	unsigned short reclen;
	unsigned char type;
	char name[];
};

/* A kernel without CONFIG_PROC_CHILDREN: all processes whose parent we are. */
static void kill_found(void)
{
	char entries[4096] __attribute__((aligned(8)));
	int self = (int)raw1(__NR_getpid, 0);
	struct entry *one;
	long n, at;

	raw3(__NR_lseek, ISO_INIT_PROC_FD, 0, 0);
	while ((n = raw3(__NR_getdents64, ISO_INIT_PROC_FD, entries, sizeof(entries))) > 0)
		for (at = 0; at < n; at += one->reclen) {
			one = (struct entry *)(entries + at);
			if (is_digit(one->name[0]) && parent_of(one->name) == self)
				kill_child(number(one->name));
		}
}

static void kill_children(void)
{
	long fd = raw4(__NR_openat, ISO_INIT_PROC_FD, CHILDREN_FILE, O_RDONLY, 0);

	if (fd < 0) {
		kill_found();
		return;
	}
	kill_listed((int)fd);
	raw1(__NR_close, fd);
}

/* Until nobody is left. A child cannot be mistaken for a stranger: its number is free only when we have collected it. */
static _Noreturn void end_tree(int main_pid, struct iso_exit *record, int children_fd)
{
	struct pollfd ended = {children_fd, POLLIN, 0};
	struct timespec pause = {0, KILL_AGAIN_MS * 1000000};
	char drained[512];
	int alive;

	if (!record->magic)
		kill_child(main_pid);
	raw3(__NR_setpriority, 0, 0, -20); /* not SCHED_FIFO: its throttling holds us up for whole seconds */
	while ((alive = collect(main_pid, record))) {
		tell(record, alive, 1);
		kill_children();
		if (raw5(__NR_ppoll, &ended, 1, &pause, 0, 0) > 0)
			raw3(__NR_read, children_fd, drained, sizeof(drained));
		else if (pause.tv_nsec < KILL_SELDOM_MS * 1000000)
			pause.tv_nsec *= 2;
	}
	tell(record, 0, 1);
	leave(0);
}

/* ---- watching ---- */

/* SIGCHLD is blocked, and not ignored (iso_hear_of_children): one that came before is still to be read. */
static int open_child_signals(void)
{
	uint64_t child_signal = 1ull << (SIGCHLD - 1);

	return (int)raw4(__NR_signalfd4, -1, &child_signal, sizeof(child_signal), 0);
}

/* Sleeps until a child ended (1), or the caller said something (0) or is gone (-1). An fd of -1 is not watched. */
static int wait_for(int status_fd, int children_fd)
{
	struct pollfd watched[WATCHED] = {
		{ISO_INIT_CALLER_FD, POLLIN, 0}, {status_fd, POLLIN, 0}, {children_fd, POLLIN, 0}};

	while (raw5(__NR_ppoll, watched, WATCHED, 0, 0, 0) <= 0)
		;
	if (watched[CALLER].revents)
		return -1;
	return !watched[STATUS].revents;
}

static int hear(void)
{
	char word;

	return raw3(__NR_read, ISO_INIT_STATUS_FD, &word, 1) == 1;
}

/*
 * The caller sends one byte when it has read the main process's number from its pidfd: until then nobody collects it.
 * Mostly it has come before we have begun.
 */
static int wait_for_go(void)
{
	char word;

	if (raw6(__NR_recvfrom, ISO_INIT_STATUS_FD, (long)&word, 1, MSG_DONTWAIT, 0, 0) == 1)
		return 1;
	return wait_for(ISO_INIT_STATUS_FD, -1) >= 0 && hear();
}

static _Noreturn void serve(int main_pid)
{
	int children_fd = -1, alive;
	struct iso_exit record = {0};
	char drained[512];

	if (!wait_for_go())
		leave(1);
	for (;;) {
		alive = collect(main_pid, &record);
		tell(&record, alive, 0);
		if (!alive)
			leave(0);
		if (children_fd < 0)
			children_fd = open_child_signals();
		if (wait_for(-1, children_fd) < 0)
			leave(1);
		raw3(__NR_read, children_fd, drained, sizeof(drained));
	}
}

/* The caller may close its end, having heard all it wants: then only its death ends the tree. */
static _Noreturn void monitor(int main_pid)
{
	int children_fd = open_child_signals(), status_fd = ISO_INIT_STATUS_FD, alive, event;
	struct iso_exit record = {0};
	char drained[512];

	if (!wait_for_go())
		end_tree(main_pid, &record, children_fd);
	for (;;) {
		alive = collect(main_pid, &record);
		tell(&record, alive, 1);
		if (!alive)
			leave(0);
		event = wait_for(status_fd, children_fd);
		if (event < 0 || (event == 0 && hear()))
			end_tree(main_pid, &record, children_fd);
		if (event == 0)
			status_fd = -1;
		else
			raw3(__NR_read, children_fd, drained, sizeof(drained));
	}
}

__attribute__((used)) static _Noreturn void begin(long *stack)
{
	char **argv = (char **)(stack + 1);
	long argc = stack[0];

	if (argc < 2)
		leave(2);
	close_range_of_fds(argc > 2 ? ISO_INIT_PROC_FD + 1 : ISO_INIT_PROC_FD, ~0u);
	if (argc > 2)
		monitor(number(argv[1]));
	serve(number(argv[1]));
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tmov x0, sp\n\tbl begin\n\tbrk 1\n");
#endif
