// SPDX-License-Identifier: MIT
/*
 * ============================ THIS CODE RUNS IN THE CHILD ============================
 * targets.c - finds and makes the places that mounts go on. The rules of child.c hold.
 *
 * While a new root is being built (the table has a PIVOT to come, and the target lies below its directory), targets are
 * resolved with that directory as root, so that a symlink planted in a source tree cannot lead outside
 * (openat2 RESOLVE_IN_ROOT, Linux 5.6). Other targets are the caller's own words and resolve as usual.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mounts.h"

#define PATH_BYTES 4096

/* ---- resolving ---- */

/* The part of target below the new root ("" for the root itself), or NULL when it is not below one. */
static const char *below_root(const struct builder *b, const char *target)
{
	if (!b->root || strncmp(target, b->root, b->root_length))
		return NULL;
	target += b->root_length;
	if (*target && *target != '/')
		return NULL;
	while (*target == '/')
		target++;
	return target;
}

static int open_below(int root_fd, const char *path)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};

	return (int)result(syscall(SYS_openat2, root_fd, path, &how, sizeof(how)));
}

void iso_forget_root(struct builder *b, const char *target)
{
	const char *below = target ? below_root(b, target) : NULL;

	if (b->root_fd < 0 || (below && *below))
		return;
	close(b->root_fd);
	b->root_fd = -1;
}

/* The builder's own descriptor of the new root, or -errno. */
static int root_of(struct builder *b)
{
	if (b->root_fd < 0)
		b->root_fd = (int)result(open(b->root, O_PATH | O_DIRECTORY | O_CLOEXEC));
	return b->root_fd;
}

int iso_open_target(struct builder *b, const char *target)
{
	const char *below = below_root(b, target);
	int root_fd;

	if (!below)
		return (int)result(open(target, O_PATH | O_CLOEXEC));
	root_fd = root_of(b);
	if (root_fd < 0)
		return root_fd;
	return *below ? open_below(root_fd, below) : (int)result(fcntl(root_fd, F_DUPFD_CLOEXEC, 0));
}

static void name_fd(char name[32], int fd)
{
	char digits[12];
	size_t n = 0, at = 14;

	memcpy(name, "/proc/self/fd/", at);
	do {
		digits[n++] = (char)('0' + fd % 10);
		fd /= 10;
	} while (fd);
	while (n)
		name[at++] = digits[--n];
	name[at] = 0;
}

int iso_find_place(struct builder *b, const char *target, struct place *place)
{
	place->fd = iso_open_target(b, target);
	if (place->fd < 0)
		return place->fd;
	name_fd(place->name, place->fd);
	return 0;
}

/* ---- making targets ---- */

/* A copy of path's first `length` characters. */
static int prefix(char out[PATH_BYTES], const char *path, size_t length)
{
	if (length >= PATH_BYTES)
		return -ENAMETOOLONG;
	memcpy(out, path, length);
	out[length] = 0;
	return 0;
}

static size_t parent_length(const char *path)
{
	size_t n = strlen(path);

	while (n && path[n - 1] == '/')
		n--;
	while (n && path[n - 1] != '/')
		n--;
	return n;
}

void iso_forget_parent(struct builder *b)
{
	if (b->parent_fd >= 0)
		close(b->parent_fd);
	b->parent_fd = -1;
}

/* The directory that holds path's last component, whose name is copied: a descriptor of the builder's, or -errno. */
static int parent_of(struct builder *b, const char *path, char name[256])
{
	char parent[PATH_BYTES];
	const char *below;
	size_t n = parent_length(path), end = strlen(path);
	int err = prefix(parent, path, n);

	while (end > n && path[end - 1] == '/')
		end--;
	if (err || end - n > 255)
		return -ENAMETOOLONG;
	memcpy(name, path + n, end - n);
	name[end - n] = 0;
	below = below_root(b, parent);
	if (below && !*below)
		return root_of(b);
	if (b->parent_fd >= 0 && n == b->parent_length && !strncmp(path, b->parent, n))
		return b->parent_fd;
	iso_forget_parent(b);
	b->parent = path;
	b->parent_length = n;
	b->parent_fd = iso_open_target(b, n ? parent : ".");
	return b->parent_fd;
}

static int make_directory(struct builder *b, const char *path, mode_t mode)
{
	char name[256];
	int parent_fd = parent_of(b, path, name);
	long err;

	if (parent_fd < 0)
		return parent_fd;
	err = *name ? result(mkdirat(parent_fd, name, mode)) : 0;
	iso_forget_parent(b); /* path is the caller's, and for a moment */
	return err == -EEXIST ? 0 : (int)err;
}

static int make_parents(struct builder *b, const char *path)
{
	char ancestor[PATH_BYTES];
	size_t n, end = parent_length(path), skip = below_root(b, path) ? b->root_length : 0;
	int err;

	for (n = skip + 1; n < end; n++) {
		if (path[n] != '/' || path[n - 1] == '/')
			continue;
		err = prefix(ancestor, path, n);
		if (!err)
			err = make_directory(b, ancestor, 0755);
		if (err)
			return err;
	}
	return 0;
}

/* The usual case is that the parents are there: look only when they are not. */
static int make_with_parents(struct builder *b, const struct iso_mount *op,
			     int (*make)(struct builder *b, const struct iso_mount *op))
{
	int err = make(b, op);

	if (err != -ENOENT)
		return err;
	err = make_parents(b, iso_ptr(op->target));
	return err ? err : make(b, op);
}

static mode_t octal(const char *text, mode_t otherwise)
{
	mode_t mode = 0;

	if (!text || !*text)
		return otherwise;
	while (*text >= '0' && *text <= '7')
		mode = mode * 8 + (mode_t)(*text++ - '0');
	return mode;
}

/* The decimal number after the next ':', or -1. */
static long after_colon(const char **text)
{
	long n = 0;

	while (**text && **text != ':')
		(*text)++;
	if (!**text)
		return -1;
	for ((*text)++; **text >= '0' && **text <= '9'; (*text)++)
		n = n * 10 + (**text - '0');
	return n;
}

/* The owner, and the bits of the mode that mkdir(2) does not give. The directory is ours and new: no symlink has replaced it. */
static int set_owner_and_mode(int parent_fd, const char *name, const char *data)
{
	mode_t mode = octal(data, 0755);
	long uid = after_colon(&data), gid = after_colon(&data);

	if (uid >= 0 && gid >= 0 && fchownat(parent_fd, name, (uid_t)uid, (gid_t)gid, AT_SYMLINK_NOFOLLOW))
		return -errno;
	return mode & ~01777 ? (int)result(fchmodat(parent_fd, name, mode, 0)) : 0;
}

static int make_dir_op(struct builder *b, const struct iso_mount *op)
{
	const char *path = iso_ptr(op->target), *data = iso_ptr(op->data);
	char name[256];
	int parent_fd = parent_of(b, path, name), err;

	if (parent_fd < 0)
		return parent_fd;
	err = *name ? (int)result(mkdirat(parent_fd, name, octal(data, 0755))) : -EEXIST;
	if (!err && data)
		err = set_owner_and_mode(parent_fd, name, data);
	return err == -EEXIST ? 0 : err;
}

static int make_file_op(struct builder *b, const struct iso_mount *op)
{
	char name[256];
	int parent_fd = parent_of(b, iso_ptr(op->target), name), fd;

	if (parent_fd < 0)
		return parent_fd;
	fd = (int)result(
		openat(parent_fd, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, octal(iso_ptr(op->data), 0644)));
	if (fd >= 0)
		close(fd);
	return fd == -EEXIST || fd >= 0 ? 0 : fd;
}

static int make_symlink_op(struct builder *b, const struct iso_mount *op)
{
	char name[256];
	int parent_fd = parent_of(b, iso_ptr(op->target), name);

	return parent_fd < 0 ? parent_fd : (int)result(symlinkat(iso_ptr(op->source), parent_fd, name));
}

static int make_node_op(struct builder *b, const struct iso_mount *op)
{
	const char *mode = iso_ptr(op->data), *data = mode;
	char name[256];
	int parent_fd = parent_of(b, iso_ptr(op->target), name);
	long major, minor;

	if (parent_fd < 0)
		return parent_fd;
	major = data ? after_colon(&data) : -1;
	minor = data ? after_colon(&data) : -1;
	if (major < 0 || minor < 0)
		return -EINVAL;
	return (int)result(mknodat(parent_fd, name, S_IFCHR | (octal(mode, 0600) & 07777),
				   makedev((unsigned int)major, (unsigned int)minor)));
}

int iso_make_dir(struct builder *b, const struct iso_mount *op)
{
	return make_with_parents(b, op, make_dir_op);
}

int iso_make_file(struct builder *b, const struct iso_mount *op)
{
	return make_with_parents(b, op, make_file_op);
}

int iso_make_symlink(struct builder *b, const struct iso_mount *op)
{
	return make_with_parents(b, op, make_symlink_op);
}

int iso_make_node(struct builder *b, const struct iso_mount *op)
{
	return make_with_parents(b, op, make_node_op);
}
