// SPDX-License-Identifier: MIT
/*
 * abi.c - the library describes its own layout, so that a mirror in another language can be tested against it.
 */
#include <stddef.h>

#include "isolate.h"

#define ASSERT_FIELD(owner, type, name, offset)                                                                        \
	_Static_assert(offsetof(struct owner, name) == (offset), #owner "." #name " moved");

#define ASSERT_IDMAP(t, n, o) ASSERT_FIELD(iso_idmap, t, n, o)
#define ASSERT_RLIMIT(t, n, o) ASSERT_FIELD(iso_rlimit, t, n, o)
#define ASSERT_JOIN(t, n, o) ASSERT_FIELD(iso_join, t, n, o)
#define ASSERT_MOUNT(t, n, o) ASSERT_FIELD(iso_mount, t, n, o)
#define ASSERT_LANDLOCK(t, n, o) ASSERT_FIELD(iso_landlock, t, n, o)
#define ASSERT_PLAN(t, n, o) ASSERT_FIELD(iso_plan, t, n, o)
#define ASSERT_EXEC(t, n, o) ASSERT_FIELD(iso_exec, t, n, o)
#define ASSERT_HOOKS(t, n, o) ASSERT_FIELD(iso_hooks, t, n, o)
#define ASSERT_FAILURE(t, n, o) ASSERT_FIELD(iso_failure, t, n, o)
#define ASSERT_CHILD(t, n, o) ASSERT_FIELD(iso_child, t, n, o)
#define ASSERT_EXIT(t, n, o) ASSERT_FIELD(iso_exit, t, n, o)

ISO_IDMAP_FIELDS(ASSERT_IDMAP)
ISO_RLIMIT_FIELDS(ASSERT_RLIMIT)
ISO_JOIN_FIELDS(ASSERT_JOIN)
ISO_MOUNT_FIELDS(ASSERT_MOUNT)
ISO_LANDLOCK_FIELDS(ASSERT_LANDLOCK)
ISO_PLAN_FIELDS(ASSERT_PLAN)
ISO_EXEC_FIELDS(ASSERT_EXEC)
ISO_HOOKS_FIELDS(ASSERT_HOOKS)
ISO_FAILURE_FIELDS(ASSERT_FAILURE)
ISO_CHILD_FIELDS(ASSERT_CHILD)
ISO_EXIT_FIELDS(ASSERT_EXIT)

#define COUNT_BYTES(type, name, offset) +sizeof(type)
#define ASSERT_NO_PADDING(owner, fields)                                                                               \
	_Static_assert(sizeof(struct owner) == 0 fields(COUNT_BYTES), #owner " has implicit padding");
ISO_STRUCTS(ASSERT_NO_PADDING)

/* The owner's name cannot be passed through a field list, so each field row is made by a macro of its struct. */
#define ROW(owner, type, name, offset) {#owner, #name, offset, sizeof(type)},
#define ROW_IDMAP(t, n, o) ROW(iso_idmap, t, n, o)
#define ROW_RLIMIT(t, n, o) ROW(iso_rlimit, t, n, o)
#define ROW_JOIN(t, n, o) ROW(iso_join, t, n, o)
#define ROW_MOUNT(t, n, o) ROW(iso_mount, t, n, o)
#define ROW_LANDLOCK(t, n, o) ROW(iso_landlock, t, n, o)
#define ROW_PLAN(t, n, o) ROW(iso_plan, t, n, o)
#define ROW_EXEC(t, n, o) ROW(iso_exec, t, n, o)
#define ROW_HOOKS(t, n, o) ROW(iso_hooks, t, n, o)
#define ROW_FAILURE(t, n, o) ROW(iso_failure, t, n, o)
#define ROW_CHILD(t, n, o) ROW(iso_child, t, n, o)
#define ROW_EXIT(t, n, o) ROW(iso_exit, t, n, o)
#define ROW_SIZE(owner, fields) {#owner, "", 0, sizeof(struct owner)},

static const struct iso_abi_field table[] = {
	ISO_IDMAP_FIELDS(ROW_IDMAP) ISO_RLIMIT_FIELDS(ROW_RLIMIT) ISO_JOIN_FIELDS(ROW_JOIN) ISO_MOUNT_FIELDS(ROW_MOUNT)
		ISO_LANDLOCK_FIELDS(ROW_LANDLOCK) ISO_PLAN_FIELDS(ROW_PLAN) ISO_EXEC_FIELDS(ROW_EXEC)
			ISO_HOOKS_FIELDS(ROW_HOOKS) ISO_FAILURE_FIELDS(ROW_FAILURE) ISO_CHILD_FIELDS(ROW_CHILD)
				ISO_EXIT_FIELDS(ROW_EXIT) ISO_STRUCTS(ROW_SIZE)};

uint32_t iso_abi_version(void)
{
	return ISO_ABI_VERSION;
}

const struct iso_abi_field *iso_abi_fields(uint32_t *count)
{
	*count = sizeof(table) / sizeof(table[0]);
	return table;
}

#define STEP_CASE(name, number, text)                                                                                  \
	case ISO_STEP_##name:                                                                                          \
		return text;

const char *iso_step_name(int32_t step)
{
	switch (step) {
		ISO_STEPS(STEP_CASE)
	default:
		return "unknown";
	}
}
