/* SPDX-License-Identifier: MIT */
/*
 * mounts.h - what the mount table's two halves share: finding and making targets, and mounting on them.
 */
#ifndef ISO_MOUNTS_H
#define ISO_MOUNTS_H

#include <errno.h>
#include <stddef.h>

#include "launch.h"

struct builder {
	const char *root; /* target of the PIVOT to come, or NULL */
	size_t root_length;
	int root_fd; /* the root, opened at the first need and as it is now; -1: not yet */
	const char *parent;
	size_t parent_length;
	int parent_fd; /* the first parent_length characters of parent: where the last entry was made; -1: look again */
};

/* A target, pinned: fd is O_PATH; name is what mount(2) is told. */
struct place {
	int fd;
	char name[32];
};

static inline long result(long ret)
{
	return ret < 0 ? -errno : ret;
}

/* targets.c: an O_PATH descriptor, or -errno. */
int iso_open_target(struct builder *b, const char *target);
int iso_find_place(struct builder *b, const char *target, struct place *place);

/* After an op that may have mounted something: the directory of the next entry is looked up anew. */
void iso_forget_parent(struct builder *b);

/* After an op on target: forgets the root, where something else may be there now: on it, or above it. NULL: in any case. */
void iso_forget_root(struct builder *b, const char *target);

/* targets.c: missing parents are made, a file or directory that is there stays; 0 or -errno. */
int iso_make_dir(struct builder *b, const struct iso_mount *op);
int iso_make_file(struct builder *b, const struct iso_mount *op);
int iso_make_symlink(struct builder *b, const struct iso_mount *op);
int iso_make_node(struct builder *b, const struct iso_mount *op);

#endif
