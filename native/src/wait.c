// SPDX-License-Identifier: MIT
/*
 * wait.c - pidfds, and how a direct child ended. Runs in the caller.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launch.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* Linux 6.13, include/uapi/linux/pidfd.h, first published size. */
struct pidfd_info_v0 {
	uint64_t mask, cgroupid;
	uint32_t pid, tgid, ppid, ids[8], pad;
};
#define PIDFD_GET_INFO_V0 _IOWR(0xFF, 11, struct pidfd_info_v0)

int iso_pidfd_open(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : fd;
}

static pid_t pid_from_fdinfo(int pidfd)
{
	char path[48], text[512];
	const char *line;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	line = strstr(text, "\nPid:");
	return line ? (pid_t)strtol(line + 5, NULL, 10) : -ESRCH;
}

/* The process behind pidfd by the caller's numbers; -ESRCH when it was collected already. */
pid_t iso_pid_of(int pidfd)
{
	struct pidfd_info_v0 info = {0};

	if (!ioctl(pidfd, PIDFD_GET_INFO_V0, &info))
		return (pid_t)info.pid;
	return pid_from_fdinfo(pidfd);
}

static int wait_status(const siginfo_t *info)
{
	switch (info->si_code) {
	case CLD_EXITED:
		return (info->si_status & 0xff) << 8;
	case CLD_DUMPED:
		return (info->si_status & 0x7f) | 0x80;
	default:
		return info->si_status & 0x7f;
	}
}

static uint64_t usec(struct timeval t)
{
	return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_usec;
}

static void fill_exit(struct iso_exit *result, const siginfo_t *info, const struct rusage *usage)
{
	memset(result, 0, sizeof(*result));
	result->magic = ISO_EXIT_MAGIC;
	result->status = wait_status(info);
	result->user_usec = usec(usage->ru_utime);
	result->system_usec = usec(usage->ru_stime);
	result->max_rss_bytes = (uint64_t)usage->ru_maxrss << 10;
	result->minor_faults = (uint64_t)usage->ru_minflt;
	result->major_faults = (uint64_t)usage->ru_majflt;
	result->voluntary_switches = (uint64_t)usage->ru_nvcsw;
	result->involuntary_switches = (uint64_t)usage->ru_nivcsw;
	result->blocks_in = (uint64_t)usage->ru_inblock;
	result->blocks_out = (uint64_t)usage->ru_oublock;
}

int iso_wait(int pidfd, int block, struct iso_exit *result)
{
	int options = WEXITED | __WALL | (block ? 0 : WNOHANG);
	struct rusage usage;
	siginfo_t info;
	long ret;

	info.si_pid = 0;
	ret = syscall(SYS_waitid, P_PIDFD, pidfd, &info, options, &usage);
	if (ret < 0)
		return -errno;
	if (!info.si_pid)
		return 0;
	fill_exit(result, &info, &usage);
	return 1;
}

int iso_end_tree(const struct iso_child *child)
{
	syscall(SYS_pidfd_send_signal, child->main_pidfd, SIGKILL, NULL, 0);
	if (syscall(SYS_pidfd_send_signal, child->init_pidfd, SIGCONT, NULL, 0)) /* the test may have stopped it */
		return -errno;
	return send(child->status_fd, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -ESRCH : 0;
}

/* The record of the init. Never waits for the end of the stream: who forked from us meanwhile may hold it open. */
static int read_record(int status_fd, struct iso_exit *result)
{
	struct iso_exit record;
	ssize_t n = recv(status_fd, &record, sizeof(record), MSG_DONTWAIT);

	if (n != sizeof(record) || record.magic != ISO_EXIT_MAGIC)
		return -EPIPE;
	*result = record;
	return 1;
}

int iso_await(const struct iso_child *child, int timeout_ms, struct iso_exit *result)
{
	struct pollfd watched[2] = {{.fd = child->main_pidfd, .events = POLLIN}};
	bool has_init = child->init_pidfd >= 0;
	int ready;

	if (!has_init && timeout_ms < 0)
		return iso_wait(child->main_pidfd, 1, result);
	if (has_init) {
		watched[0].fd = child->status_fd;
		watched[1] = (struct pollfd){.fd = child->init_pidfd, .events = POLLIN};
	}
	ready = poll(watched, has_init ? 2 : 1, timeout_ms);
	if (ready <= 0)
		return ready ? -errno : 0;
	return has_init ? read_record(child->status_fd, result) : iso_wait(child->main_pidfd, 0, result);
}
