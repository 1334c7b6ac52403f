// SPDX-License-Identifier: MIT
/*
 * library.c - the same starts through libisolate.so: plan, iso_spawn, iso_await, collect. What the floor is compared with.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"
#include "isolate.h"

#define MS_RDONLY 1
#define MS_NOSUID 2
#define MS_BIND 4096
#define MS_REC_PRIVATE (16384 | (1 << 18))
#define PTR(x) ((uint64_t)(uintptr_t)(x))

static uint32_t mount_table(struct iso_mount table[11], const char *stage)
{
	static char targets[4][64], sources[4][16];
	uint32_t n = 0;
	int i;

	table[n++] = (struct iso_mount){.kind = ISO_MOUNT_PROPAGATION, .flags = MS_REC_PRIVATE, .target = PTR("/")};
	table[n++] = (struct iso_mount){
		.kind = ISO_MOUNT_MOUNT, .source = PTR("tmpfs"), .fstype = PTR("tmpfs"), .target = PTR(stage)};
	for (i = 0; i < 4; i++) {
		snprintf(targets[i], sizeof(targets[i]), "%s/%s", stage, bound[i]);
		snprintf(sources[i], sizeof(sources[i]), "/%s", bound[i]);
		table[n++] = (struct iso_mount){.kind = ISO_MOUNT_MKDIR, .target = PTR(targets[i])};
		table[n++] = (struct iso_mount){.kind = ISO_MOUNT_BIND,
						.flags = MS_BIND | MS_RDONLY | MS_NOSUID,
						.source = PTR(sources[i]),
						.target = PTR(targets[i])};
	}
	table[n++] = (struct iso_mount){.kind = ISO_MOUNT_PIVOT, .target = PTR(stage)};
	return n;
}

/* The init leaves by itself when its namespace is empty, and waits for what is left over. */
static int finish(struct iso_child *child)
{
	struct iso_exit how, of_init;
	int got = iso_await(child, -1, &how);

	if (child->init_pidfd >= 0) {
		if (got != 1 || how.leftovers)
			syscall(SYS_pidfd_send_signal, child->init_pidfd, SIGKILL, NULL, 0);
		iso_wait(child->init_pidfd, 1, &of_init);
		close(child->init_pidfd);
	}
	close(child->main_pidfd);
	if (child->status_fd >= 0)
		close(child->status_fd);
	return got == 1 && how.status == 0 ? 0 : -ECHILD;
}

/* Start and wait: 0 or -errno. */
int library_start(const struct row *row, int program_fd, const char *init, const char *stage)
{
	static char *argv[] = {(char *)"tiny", NULL}, *envp[] = {NULL};
	static const char *paths[] = {NULL};
	struct iso_idmap uid = {.inside = geteuid(), .outside = geteuid(), .count = 1};
	struct iso_idmap gid = {.inside = getegid(), .outside = getegid(), .count = 1};
	struct iso_mount table[11];
	struct iso_plan plan = {
		.size = sizeof(plan), .version = ISO_ABI_VERSION, .namespaces = row->namespaces, .init = PTR(init)};
	struct iso_exec exec = {.size = sizeof(exec),
				.executable_fd_plus1 = (uint32_t)program_fd + 1,
				.paths = PTR(paths),
				.argv = PTR(argv),
				.envp = PTR(envp)};
	struct iso_child child;
	struct iso_failure failure;
	static void *arena;
	int err;

	if (!arena)
		arena = iso_arena();
	exec.arena = PTR(arena);

	if (row->namespaces & CLONE_NEWUSER) {
		plan.uid_map = PTR(&uid);
		plan.gid_map = PTR(&gid);
		plan.uid_map_count = plan.gid_map_count = 1;
	}
	if (row->mounts) {
		plan.mounts = PTR(table);
		plan.mounts_count = mount_table(table, stage);
	}
	err = iso_spawn(&plan, &exec, &child, &failure);
	return err < 0 ? err : finish(&child);
}
