// SPDX-License-Identifier: MIT
/*
 * init.c - isolate-init, PID 1 of a sandbox: `isolate-init <pid of main> <status fd> <pidfd of the caller>`.
 *
 * Collects every orphan, writes one struct iso_exit when the main process ends, leaves when nothing is left, and ends
 * (and with it the whole PID namespace) when the caller dies. A static program without libc: it starts in
 * microseconds and holds nothing open. All signals are blocked; the kernel lets nobody inside kill PID 1.
 */
#include <linux/signal.h>
#include <linux/resource.h>
#include <linux/time.h>
#include <linux/prctl.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/poll.h>
#include <linux/wait.h>
#include <linux/types.h>
#include <stdint.h>

#include "isolate_abi.h"
#include "raw.h"

#define MSG_NOSIGNAL 0x4000 /* linux/socket.h keeps it from user space */

enum { CALLER, OTHER, WATCHED };
enum { STATUS_FD, CALLER_FD };

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

/* The status socket and the caller's pidfd become 0 and 1; nothing else stays open. */
static void keep_only(int status_fd, int caller_pidfd)
{
	long status = raw3(__NR_fcntl, status_fd, F_DUPFD, 3), caller = raw3(__NR_fcntl, caller_pidfd, F_DUPFD, 3);

	raw3(__NR_dup3, status, STATUS_FD, 0);
	raw3(__NR_dup3, caller, CALLER_FD, 0);
	close_range_of_fds(2, ~0u);
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

/* Tells the caller once. Closing the socket says that nothing more will come. */
static void tell(struct iso_exit *record, int leftovers)
{
	record->leftovers = (uint32_t)leftovers;
	raw6(__NR_sendto, STATUS_FD, (long)record, sizeof(*record), MSG_NOSIGNAL, 0, 0);
	raw1(__NR_close, STATUS_FD);
}

/* Sleeps until other_fd can be read; leaves, and so ends the namespace, when the caller is gone. */
static void wait_for(int other_fd)
{
	struct pollfd watched[WATCHED] = {{CALLER_FD, POLLIN, 0}, {other_fd, POLLIN, 0}};

	raw5(__NR_ppoll, watched, WATCHED, 0, 0, 0);
	if (watched[CALLER].revents)
		leave(1);
}

/* An inherited SIG_IGN would make the kernel collect the children and lose their statuses. */
static int open_child_signals(void)
{
	uint64_t by_default[4] = {0, 0, 0, 0}; /* struct sigaction of the kernel: SIG_DFL is 0 */
	uint64_t child_signal = 1ull << (SIGCHLD - 1);

	raw4(__NR_rt_sigaction, SIGCHLD, by_default, 0, sizeof(uint64_t));
	return (int)raw4(__NR_signalfd4, -1, &child_signal, sizeof(child_signal), 0);
}

/* The caller sends one byte when it has read the main process's number from its pidfd: until then nobody collects it. */
static void wait_for_go(void)
{
	char go;

	wait_for(STATUS_FD);
	raw3(__NR_read, STATUS_FD, &go, 1);
}

static _Noreturn void serve(int main_pid)
{
	int children_fd = open_child_signals(), alive, told = 0;
	struct iso_exit record = {0};
	char drained[512];

	raw5(__NR_prctl, PR_SET_PDEATHSIG, 0, 0, 0, 0); /* it is bound to a thread of the caller; the pidfd is not */
	wait_for_go();
	for (;;) {
		alive = collect(main_pid, &record);
		if (record.magic && !told) {
			tell(&record, alive);
			told = 1;
		}
		if (!alive)
			leave(0);
		wait_for(children_fd);
		raw3(__NR_read, children_fd, drained, sizeof(drained));
	}
}

__attribute__((used)) static _Noreturn void begin(long *stack)
{
	char **argv = (char **)(stack + 1);

	if (stack[0] < 4)
		leave(2);
	keep_only(number(argv[2]), number(argv[3]));
	serve(number(argv[1]));
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tmov x0, sp\n\tbl begin\n\tbrk 1\n");
#endif
