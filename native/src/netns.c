// SPDX-License-Identifier: MIT
/*
 * netns.c - iso_netns: a network namespace without a process in it, made ahead of the sandbox that will join it.
 *
 * A child makes it: this thread never leaves its own network. It shares our descriptors, so the one that it opens is ours. No /proc is needed: a socket tells its namespace (SIOCGSKNS, Linux 4.9).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "launch.h"
#include "raw.h"

#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C
#endif
#ifndef CLONE_CLEAR_SIGHAND
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#endif
#define STACK_BYTES 16384

struct netns {
	int loopback;
	int fd; /* or -errno */
};

/* Child. The rules of child.c hold. */
static int open_inside(void *arg)
{
	struct netns *made = arg;
	struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	made->fd = fd;
	if (fd >= 0 && (!made->loopback || ioctl(fd, SIOCSIFFLAGS, &lo) == 0))
		made->fd = ioctl(fd, SIOCGSKNS);
	else if (fd >= 0)
		made->fd = -1;
	if (made->fd < 0)
		made->fd = -errno;
	if (fd >= 0)
		close(fd);
	return 0;
}

static int collect(int pidfd)
{
	struct iso_exit how;
	int ret;

	while ((ret = iso_wait(pidfd, 1, &how)) == -EINTR)
		;
	close(pidfd);
	return ret == 1 && how.status == 0 ? 0 : -ECHILD;
}

int iso_netns(int loopback)
{
	char stack[STACK_BYTES] __attribute__((aligned(16)));
	struct netns made = {.loopback = loopback, .fd = -ECHILD};
	struct iso_clone c = {.flags = CLONE_NEWNET | CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_CLEAR_SIGHAND,
			      .stack = stack,
			      .stack_bytes = sizeof(stack),
			      .cgroup_fd = -1};
	uint64_t all = ~0ull, before = 0;
	pid_t pid;
	int err;

	raw4(__NR_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof(all));
	pid = iso_clone(&c, open_inside, &made);
	raw4(__NR_rt_sigprocmask, SIG_SETMASK, &before, 0, sizeof(before));
	if (pid < 0)
		return pid;
	err = collect(c.pidfd);
	if (err && made.fd >= 0)
		close(made.fd);
	return err ? err : made.fd;
}
