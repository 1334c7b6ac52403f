/* SPDX-License-Identifier: MIT */
/*
 * child.h - what the files that run in the child share. The rules of child.c hold for whoever includes it.
 */
#ifndef ISO_CHILD_H
#define ISO_CHILD_H

#include <errno.h>

#include "launch.h"

static inline void check(struct launch *l, long ret, int step, int index)
{
	if (ret < 0)
		iso_fail(l, step, errno, index);
}

/* namespaces.c */
bool iso_caller_is_gone(const struct launch *l);
void iso_join(struct launch *l, uint64_t mask);

/* privileges.c */
void iso_set_securebits(struct launch *l);
void iso_drop_capabilities(struct launch *l);
void iso_set_no_new_privs(struct launch *l);
void iso_enforce_landlock(struct launch *l);
void iso_enforce_seccomp(struct launch *l);

/* descriptors.c */
void iso_place_stdio(struct launch *l);
void iso_pass_kept_fds(struct launch *l);
void iso_close_fds(struct launch *l);

#endif
