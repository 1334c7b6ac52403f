// SPDX-License-Identifier: MIT
/*
 * test_isolate.c - the library as a C program sees it, without Python: plain, and under ASan and UBSan.
 *
 * Usage: test_isolate <isolate-init>. As root every row runs; as a plain user a user namespace is added.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "isolate.h"

static int checks, failed;
static const char *init_path;

static void expect(int holds, const char *text, int line)
{
	checks++;
	if (holds)
		return;
	failed++;
	fprintf(stderr, "test_isolate.c:%d: not so: %s\n", line, text);
}
#define EXPECT(condition) expect((condition), #condition, __LINE__)

static const struct iso_mount private_proc[] = {
	{.kind = ISO_MOUNT_PROPAGATION, .flags = MS_REC | MS_PRIVATE, .target = (uintptr_t) "/"},
	{.kind = ISO_MOUNT_MOUNT,
	 .flags = MS_NOSUID | MS_NODEV | MS_NOEXEC,
	 .source = (uintptr_t) "proc",
	 .target = (uintptr_t) "/proc",
	 .fstype = (uintptr_t) "proc"},
};
static struct iso_idmap own_uid, own_gid;

#define MONITORED (1ull << 63) /* besides namespaces: no CLONE_NEW* flag is there */

static struct iso_plan make_plan(uint64_t namespaces)
{
	struct iso_plan plan = {
		.size = sizeof(plan), .version = ISO_ABI_VERSION, .namespaces = namespaces & ~MONITORED};

	plan.flags = ISO_NEW_SESSION | (namespaces & MONITORED ? ISO_MONITOR : 0);
	plan.pdeathsig = SIGKILL;
	plan.init = (uintptr_t)init_path;
	if (namespaces & CLONE_NEWUSER || geteuid()) {
		own_uid = (struct iso_idmap){.inside = geteuid(), .outside = geteuid(), .count = 1};
		own_gid = (struct iso_idmap){.inside = getegid(), .outside = getegid(), .count = 1};
		plan.namespaces |= CLONE_NEWUSER;
		plan.uid_map = (uintptr_t)&own_uid;
		plan.gid_map = (uintptr_t)&own_gid;
		plan.uid_map_count = plan.gid_map_count = 1;
	}
	if (namespaces & CLONE_NEWNS) {
		plan.mounts = (uintptr_t)private_proc;
		plan.mounts_count = namespaces & CLONE_NEWPID ? 2 : 1;
	}
	return plan;
}

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* Waits, collects, closes. Returns the status as wait(2) has it, -1 when there is none. */
static int finish(struct iso_child *child)
{
	struct iso_exit record = {0};
	int status;

	if (child->init_pidfd >= 0) {
		status = read(child->status_fd, &record, sizeof(record)) == sizeof(record) ? record.status : -1;
		while (iso_wait(child->init_pidfd, 1, &record) == -EINTR)
			;
		close(child->init_pidfd);
		close(child->status_fd);
	} else {
		while (iso_wait(child->main_pidfd, 1, &record) == -EINTR)
			;
		status = record.status;
	}
	EXPECT(record.magic == ISO_EXIT_MAGIC);
	close(child->main_pidfd);
	return status;
}

static int spawn_shell(const struct iso_plan *plan, const char *script, struct iso_child *child,
		       struct iso_failure *failure)
{
	const char *paths[] = {"/nonexistent/sh", "/bin/sh", NULL};
	const char *argv[] = {"sh", "-c", script, NULL};
	struct iso_exec exec = {.size = sizeof(exec), .paths = (uintptr_t)paths, .argv = (uintptr_t)argv};

	return iso_spawn(plan, &exec, child, failure);
}

static const uint64_t sets[] = {
	0,
	CLONE_NEWUTS,
	CLONE_NEWPID,
	CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC,
	CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET,
	MONITORED,
	MONITORED | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC,
};
#define SETS (sizeof(sets) / sizeof(sets[0]))

static void test_programs_report_their_status(void)
{
	struct iso_failure failure;
	struct iso_child child;
	size_t i;

	for (i = 0; i < SETS; i++) {
		struct iso_plan plan = make_plan(sets[i]);

		EXPECT(spawn_shell(&plan, "exit 7", &child, &failure) == 0);
		EXPECT(finish(&child) == 7 << 8);
		EXPECT(spawn_shell(&plan, "kill -TERM $$", &child, &failure) == 0);
		EXPECT(finish(&child) == SIGTERM);
	}
}

/* The child uses its heap and its stack, and leaves with a sum that shows both were right. */
static int use_memory(const char *kept, const char *on_heap)
{
	char *mine = malloc(100000);

	memset(mine, 1, 100000);
	free(mine);
	return kept[0] + on_heap[0];
}

static void test_forks_go_on_where_they_were(void)
{
	struct iso_hooks hooks = {0};
	struct iso_failure failure;
	struct iso_child child;
	char kept[64] = "\x05", *on_heap = strdup("\x04");
	size_t i;

	for (i = 0; i < SETS; i++) {
		struct iso_plan plan = make_plan(sets[i]);
		int ret = iso_fork(&plan, &hooks, &child, &failure);

		if (ret == 0)
			_exit(use_memory(kept, on_heap));
		EXPECT(ret == 1);
		EXPECT(finish(&child) == 9 << 8);
		ret = iso_fork(&plan, &hooks, &child, &failure);
		if (ret == 0) {
			signal(SIGABRT, SIG_DFL);
			abort();
		}
		EXPECT((finish(&child) & 0x7f) == SIGABRT);
	}
	free(on_heap);
}

/* Runs in the init, between the fork and the exec. */
static int slow_init;
static void dawdle(void)
{
	if (slow_init)
		usleep(50000);
}

/* What execve(2) sets as soon as the new memory is in place; "" where it cannot be seen. */
static void name_of_parent(char *name, size_t bytes)
{
	char path[64];
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/comm", getppid());
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		n = read(fd, name, bytes - 1);
	close(fd);
	name[n > 0 ? n : 0] = 0;
}

static void test_in_a_cgroup_a_fork_begins_when_its_init_has_left_our_memory(void)
{
	uint64_t with_init[] = {MONITORED, CLONE_NEWPID | CLONE_NEWNS};
	int procs = open("/dev/null", O_WRONLY | O_CLOEXEC), before = count_fds();
	struct iso_hooks hooks = {0};
	struct iso_failure failure;
	struct iso_child child;
	char name[32];
	size_t i;

	EXPECT(pthread_atfork(NULL, dawdle, NULL) == 0);
	slow_init = 1;
	for (i = 0; i < 2; i++) {
		struct iso_plan plan = make_plan(with_init[i]);

		plan.cgroup_procs_fds = (uintptr_t)&procs;
		plan.cgroup_procs_fds_count = 1;
		if (iso_fork(&plan, &hooks, &child, &failure) == 0) {
			name_of_parent(name, sizeof(name));
			_exit(count_fds() == before ? strcmp(name, "isolate-init\n") != 0 : 2);
		}
		EXPECT(finish(&child) == 0);
	}
	slow_init = 0;
	EXPECT(count_fds() == before);
	close(procs);
}

static void test_failures_name_their_place_and_leave_outputs_alone(void)
{
	struct iso_rlimit limits[] = {{.resource = 4}, {.resource = 99, .soft = 1, .hard = 1}};
	struct iso_child child, untouched;
	struct iso_hooks hooks = {0};
	struct iso_failure failure;
	int before = count_fds();
	size_t i;

	memset(&untouched, 0x55, sizeof(untouched));
	for (i = 0; i < SETS; i++) {
		struct iso_plan plan = make_plan(sets[i]);

		child = untouched;
		plan.rlimits = (uintptr_t)limits;
		plan.rlimits_count = 2;
		EXPECT(spawn_shell(&plan, "exit 0", &child, &failure) == -EINVAL);
		EXPECT(failure.step == ISO_STEP_RLIMITS && failure.err == EINVAL && failure.index == 1);
		if (iso_fork(&plan, &hooks, &child, &failure) == 0)
			_exit(0);
		EXPECT(failure.step == ISO_STEP_RLIMITS && failure.err == EINVAL && failure.index == 1);
		EXPECT(!memcmp(&child, &untouched, sizeof(child)));
	}
	EXPECT(count_fds() == before);
	EXPECT(waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD);
}

static void test_another_version_is_refused(void)
{
	struct iso_plan plan = make_plan(0);
	struct iso_failure failure;
	struct iso_child child;

	plan.version++;
	EXPECT(spawn_shell(&plan, "exit 0", &child, &failure) == -EINVAL && failure.step == ISO_STEP_PLAN);
	plan.version--;
	plan.size -= 8;
	EXPECT(spawn_shell(&plan, "exit 0", &child, &failure) == -EINVAL && failure.step == ISO_STEP_PLAN);
	plan.size += 8;
	plan.flags |= 1u << 30;
	EXPECT(spawn_shell(&plan, "exit 0", &child, &failure) == -EINVAL && failure.step == ISO_STEP_PLAN);
}

static void test_the_table_of_fields_is_complete(void)
{
	const struct iso_abi_field *rows;
	uint32_t count, i, sizes = 0;

	rows = iso_abi_fields(&count);
	for (i = 0; i < count; i++)
		sizes += !*rows[i].field;
	EXPECT(sizes == 11);
	EXPECT(!strcmp(iso_step_name(ISO_STEP_MOUNTS), "mounts") && !strcmp(iso_step_name(-1), "unknown"));
}

static void test_descriptors_and_children_are_given_back(void)
{
	struct iso_plan plans[] = {make_plan(0), make_plan(CLONE_NEWPID), make_plan(MONITORED)};
	struct iso_failure failure;
	struct iso_child child;
	int before = count_fds(), i;

	for (i = 0; i < 100; i++) {
		EXPECT(spawn_shell(&plans[i % 3], ":", &child, &failure) == 0);
		EXPECT(finish(&child) == 0);
	}
	EXPECT(count_fds() == before);
	EXPECT(waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD);
}

/* The daemon holds the other end of a pipe: its end of file says that nobody is left. */
static void test_a_monitor_ends_its_tree_when_asked(void)
{
	struct iso_plan plan = make_plan(MONITORED);
	struct iso_failure failure;
	struct iso_child child;
	int held[2];
	char byte;

	EXPECT(pipe(held) == 0);
	EXPECT(spawn_shell(&plan, "setsid sh -c 'sleep 60 & sleep 60' & sleep 60", &child, &failure) == 0);
	EXPECT(child.monitor == 1);
	close(held[1]);
	EXPECT(iso_end_tree(&child) == 0);
	EXPECT(finish(&child) == SIGKILL);
	EXPECT(read(held[0], &byte, 1) == 0);
	close(held[0]);
}

static void test_a_network_made_ahead(void)
{
	int before = count_fds(), fd, i;

	if (geteuid()) {
		EXPECT(iso_netns(1) == -EPERM);
		return;
	}
	for (i = 0; i < 20; i++) {
		fd = iso_netns(i & 1);
		EXPECT(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
		close(fd);
	}
	EXPECT(count_fds() == before);
	EXPECT(waitpid(-1, NULL, __WALL | WNOHANG) == -1 && errno == ECHILD);
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: %s isolate-init\n", argv[0]);
		return 2;
	}
	init_path = argv[1];
	test_the_table_of_fields_is_complete();
	test_another_version_is_refused();
	test_programs_report_their_status();
	test_forks_go_on_where_they_were();
	test_in_a_cgroup_a_fork_begins_when_its_init_has_left_our_memory();
	test_failures_name_their_place_and_leave_outputs_alone();
	test_a_monitor_ends_its_tree_when_asked();
	test_a_network_made_ahead();
	test_descriptors_and_children_are_given_back();
	printf("%d checks, %d failed\n", checks, failed);
	return failed != 0;
}
