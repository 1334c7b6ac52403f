// SPDX-License-Identifier: MIT
/*
 * floor.c - the floor: nothing but the system calls that a start takes, in the order in which the library makes them.
 * No checks between them that a result could not do without, no errors told, no descriptors for the caller, no limits.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

extern int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
extern int umount2(const char *target, int flags);
#define REC_PRIVATE (16384 | (1 << 18))
#define DETACH 2
#define RDONLY 1
#define NOSUID 2
#define NODEV 4
#define NOEXEC 8
#define AS_IT_IS (32 | 4096) /* a change of this mount, and not of its file system: MS_REMOUNT, MS_BIND */

const char *const bound[4] = {"usr", "lib", "lib64", "bin"};

struct start {
	const struct row *row;
	int program_fd, init_fd; /* init_fd -1: the program itself is PID 1 */
	const char *stage, *whole;
	unsigned int uid, gid;
	int err;
};
static char stacks[2][64 << 10] __attribute__((aligned(16)));
static char *no_environment[] = {NULL};

static _Noreturn void give_up(struct start *s)
{
	s->err = errno;
	for (;;)
		syscall(SYS_exit_group, 127);
}

static void need(struct start *s, long ret)
{
	if (ret < 0)
		give_up(s);
}

static void put(struct start *s, const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	need(s, fd);
	need(s, write(fd, text, strlen(text)));
	close(fd);
}

static char *decimal(char *end, unsigned int n)
{
	do
		*--end = (char)('0' + n % 10);
	while (n /= 10);
	return end;
}

/* "ID ID 1" */
static void map_self(struct start *s, const char *path, unsigned int id)
{
	char text[32], digits[12] = {0};
	char *number = decimal(digits + 11, id), *at = text;
	size_t n = strlen(number);

	at = (char *)memcpy(at, number, n) + n;
	*at++ = ' ';
	at = (char *)memcpy(at, number, n) + n;
	memcpy(at, " 1\n", 4);
	put(s, path, text);
}

/* SOURCE, an absolute path, at the same place below this directory, where something is to mount it on. */
static void bind_read_only(struct start *s, const char *source)
{
	struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID};
	int fd = (int)syscall(SYS_open_tree, AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

	need(s, fd);
	need(s, syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &read_only, sizeof(read_only)));
	need(s, syscall(SYS_move_mount, fd, "", AT_FDCWD, source + 1, MOVE_MOUNT_F_EMPTY_PATH));
	close(fd);
}

static void bind_named(struct start *s, const char *name)
{
	char source[16] = "/";

	need(s, mkdir(name, 0755));
	bind_read_only(s, strcat(source, name));
}

static const struct {
	const char *path;
	unsigned int major, minor;
} devices[] = {{"/dev/null", 1, 3},   {"/dev/zero", 1, 5},    {"/dev/full", 1, 7},
	       {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0}};
static const char *const links[][2] = {{"pts/ptmx", "dev/ptmx"},
				       {"/proc/self/fd", "dev/fd"},
				       {"/proc/self/fd/0", "dev/stdin"},
				       {"/proc/self/fd/1", "dev/stdout"},
				       {"/proc/self/fd/2", "dev/stderr"}};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* Nobody may in a user namespace. */
static int makes_devices(const struct start *s)
{
	return !s->uid && !(s->row->namespaces & CLONE_NEWUSER);
}

/* A /dev as a sealed view of the library's has it: nodes of its own; where none can be made they are the host's, read-only. */
static void own_devices(struct start *s)
{
	size_t i;

	need(s, mkdir("dev", 0755));
	if (makes_devices(s))
		need(s, mount("tmpfs", "dev", "tmpfs", NOSUID, "mode=755"));
	umask(0);
	for (i = 0; i < COUNT(devices); i++) {
		const char *path = devices[i].path;

		if (makes_devices(s)) {
			need(s, mknod(path + 1, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)));
		} else {
			need(s, mknod(path + 1, S_IFREG | 0600, 0));
			bind_read_only(s, path);
		}
	}
	umask(022);
	need(s, mkdir("dev/shm", 0755));
	need(s, mount("tmpfs", "dev/shm", "tmpfs", NOSUID | NODEV, "mode=1777"));
	need(s, mkdir("dev/pts", 0755));
	need(s, mount("devpts", "dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=666,mode=620"));
	for (i = 0; i < COUNT(links); i++)
		need(s, symlink(links[i][0], links[i][1]));
}

/* The directory of a program, and those above it, which nothing else has made. */
static void make_directories(struct start *s, const char *path)
{
	char made[4096];
	size_t at;

	for (at = 1; at < sizeof(made) && path[at]; at++) {
		made[at - 1] = path[at];
		made[at] = 0;
		if (path[at + 1] == '/' || !path[at + 1])
			if (mkdir(made, 0755) && errno != EEXIST)
				give_up(s);
	}
}

static void new_root(struct start *s)
{
	int i;

	need(s, mount("none", "/", NULL, REC_PRIVATE, NULL));
	need(s, mount("tmpfs", s->stage, "tmpfs", s->whole ? NOSUID | NODEV : 0, s->whole ? "mode=755" : NULL));
	need(s, chdir(s->stage));
	if (s->whole)
		own_devices(s);
	for (i = 0; i < 4; i++)
		bind_named(s, bound[i]);
	if (s->whole) {
		make_directories(s, s->whole);
		bind_read_only(s, s->whole);
		need(s, mount(NULL, ".", NULL, AS_IT_IS | RDONLY | NOSUID | NODEV, NULL));
		if (makes_devices(s))
			need(s, mount(NULL, "dev", NULL, AS_IT_IS | RDONLY | NOSUID, NULL));
	}
	need(s, syscall(SYS_pivot_root, ".", "."));
	need(s, umount2(".", DETACH));
	need(s, chdir("/"));
}

static int run_program(void *arg)
{
	struct start *s = arg;
	char *argv[] = {(char *)"tiny", NULL};

	syscall(SYS_execveat, s->program_fd, "", argv, no_environment, AT_EMPTY_PATH);
	give_up(s);
}

static int enter(void *arg)
{
	struct start *s = arg;
	char *argv[] = {(char *)"init", NULL};

	if (s->row->namespaces & CLONE_NEWUSER) {
		map_self(s, "/proc/self/uid_map", s->uid);
		put(s, "/proc/self/setgroups", "deny");
		map_self(s, "/proc/self/gid_map", s->gid);
	}
	if (s->row->mounts)
		new_root(s);
	if (s->init_fd < 0)
		run_program(s);
	need(s, clone(run_program, stacks[1] + sizeof(stacks[1]), CLONE_VM | CLONE_VFORK | SIGCHLD, s));
	syscall(SYS_execveat, s->init_fd, "", argv, no_environment, AT_EMPTY_PATH);
	give_up(s);
}

/* Start and wait: 0 or -errno. */
int floor_start(const struct row *row, int program_fd, int init_fd, const char *stage, const char *whole)
{
	struct start s = {row, program_fd, init_fd, stage, whole, geteuid(), getegid(), 0};
	int flags = (int)row->namespaces | SIGCHLD | (row->fork ? 0 : CLONE_VM | CLONE_VFORK);
	int status;
	pid_t pid = row->fork ? fork() : clone(enter, stacks[0] + sizeof(stacks[0]), flags, &s);

	if (row->fork && pid == 0)
		run_program(&s);
	if (pid < 0)
		return -errno;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (s.err)
		return -s.err;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -ECHILD;
}
