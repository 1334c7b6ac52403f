// SPDX-License-Identifier: MIT
/*
 * ============================ THIS CODE RUNS IN THE CHILD ============================
 * mounts.c - interprets the mount table in the sandbox's own mount namespace. The rules of child.c hold.
 *
 * While a new root is being built (the table has a PIVOT to come, and the target lies below its directory), targets are
 * resolved with that directory as root, so that a symlink planted in a source tree cannot lead outside
 * (openat2 RESOLVE_IN_ROOT, Linux 5.6). Other targets are the caller's own words and resolve as usual.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "launch.h"

/* <sys/mount.h> and <linux/mount.h> contradict each other before glibc 2.37. */
extern int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
extern int umount2(const char *target, int flags);
#define DETACH 2 /* MNT_DETACH */

#define ATTRIBUTES_OF_BIND (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)
#define PATH_BYTES 4096

struct builder {
	const char *root; /* target of the PIVOT to come, or NULL */
	size_t root_length;
};

/* A target, pinned: fd is O_PATH; name is what mount(2) is told. */
struct place {
	int fd;
	char name[32];
};

static long result(long ret)
{
	return ret < 0 ? -errno : ret;
}

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

	return (int)result(syscall(SYS_openat2, root_fd, *path ? path : ".", &how, sizeof(how)));
}

static int open_root(const struct builder *b)
{
	return (int)result(open(b->root, O_PATH | O_DIRECTORY | O_CLOEXEC));
}

static int open_target(const struct builder *b, const char *target)
{
	const char *below = below_root(b, target);
	int root_fd, fd;

	if (!below)
		return (int)result(open(target, O_PATH | O_CLOEXEC));
	root_fd = open_root(b);
	if (root_fd < 0)
		return root_fd;
	fd = open_below(root_fd, below);
	close(root_fd);
	return fd;
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

static int find_place(const struct builder *b, const char *target, struct place *place)
{
	place->fd = open_target(b, target);
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

/* Opens the directory that holds path's last component; *last points at that component. */
static int open_parent(const struct builder *b, const char *path, char name[256])
{
	char parent[PATH_BYTES];
	size_t n = parent_length(path), end = strlen(path);
	int err = prefix(parent, path, n);

	while (end > n && path[end - 1] == '/')
		end--;
	if (err || end - n > 255)
		return -ENAMETOOLONG;
	memcpy(name, path + n, end - n);
	name[end - n] = 0;
	return open_target(b, n ? parent : ".");
}

static int make_directory(const struct builder *b, const char *path, mode_t mode)
{
	char name[256];
	int parent_fd = open_parent(b, path, name);
	long err;

	if (parent_fd < 0)
		return parent_fd;
	err = *name ? result(mkdirat(parent_fd, name, mode)) : 0;
	close(parent_fd);
	return err == -EEXIST ? 0 : (int)err;
}

static int make_parents(const struct builder *b, const char *path)
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
static int make_with_parents(const struct builder *b, const struct iso_mount *op,
			     int (*make)(const struct builder *b, const struct iso_mount *op))
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

/* What the umask took off, and the owner. The directory is ours and new: nothing can have replaced it by a symlink. */
static int set_mode_and_owner(int parent_fd, const char *name, const char *data)
{
	mode_t mode = octal(data, 0755);
	long uid = after_colon(&data), gid = after_colon(&data);

	if (uid >= 0 && gid >= 0 && fchownat(parent_fd, name, (uid_t)uid, (gid_t)gid, AT_SYMLINK_NOFOLLOW))
		return -errno;
	return (int)result(fchmodat(parent_fd, name, mode, 0));
}

static int make_dir_op(const struct builder *b, const struct iso_mount *op)
{
	const char *path = iso_ptr(op->target), *data = iso_ptr(op->data);
	char name[256];
	int parent_fd = open_parent(b, path, name), err;

	if (parent_fd < 0)
		return parent_fd;
	err = *name ? (int)result(mkdirat(parent_fd, name, octal(data, 0755))) : -EEXIST;
	if (!err && data)
		err = set_mode_and_owner(parent_fd, name, data);
	close(parent_fd);
	return err == -EEXIST ? 0 : err;
}

static int make_file_op(const struct builder *b, const struct iso_mount *op)
{
	char name[256];
	int parent_fd = open_parent(b, iso_ptr(op->target), name), fd;

	if (parent_fd < 0)
		return parent_fd;
	fd = (int)result(
		openat(parent_fd, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, octal(iso_ptr(op->data), 0644)));
	close(parent_fd);
	if (fd >= 0)
		close(fd);
	return fd == -EEXIST || fd >= 0 ? 0 : fd;
}

static int make_symlink_op(const struct builder *b, const struct iso_mount *op)
{
	char name[256];
	int parent_fd = open_parent(b, iso_ptr(op->target), name), err;

	if (parent_fd < 0)
		return parent_fd;
	err = (int)result(symlinkat(iso_ptr(op->source), parent_fd, name));
	close(parent_fd);
	return err;
}

/* ---- mounting ---- */

static int mount_op(const struct builder *b, const struct iso_mount *op)
{
	struct place place;
	int err = find_place(b, iso_ptr(op->target), &place);

	if (err)
		return err;
	err = (int)result(mount(iso_ptr(op->source), place.name, iso_ptr(op->fstype), op->flags, iso_ptr(op->data)));
	close(place.fd);
	return err;
}

static int propagation_op(const struct builder *b, const struct iso_mount *op)
{
	(void)b;
	return (int)result(mount(NULL, iso_ptr(op->target), NULL, op->flags, NULL));
}

/* Flags that a user namespace may not take off, and that a remount which does not name them would ask to take off. */
static unsigned long locked_flags(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return 0;
	return ((unsigned long)fs.f_flags & ATTRIBUTES_OF_BIND) | ((fs.f_flags & 4096) ? MS_RELATIME : 0);
}

static int remount(const struct builder *b, const char *target, unsigned long flags)
{
	struct place place;
	int err = find_place(b, target, &place); /* anew: the mount on top */

	if (err)
		return err;
	flags |= locked_flags(place.fd) | MS_REMOUNT | MS_BIND;
	err = (int)result(mount(NULL, place.name, NULL, flags, NULL));
	close(place.fd);
	return err;
}

/* MS_RDONLY alone is as the table says: a writable place in a read-only view is made by taking it off. */
static int remount_op(const struct builder *b, const struct iso_mount *op)
{
	struct place place;
	int err = find_place(b, iso_ptr(op->target), &place);
	unsigned long flags = op->flags | MS_REMOUNT | MS_BIND;

	if (err)
		return err;
	flags |= locked_flags(place.fd) & ~(unsigned long)MS_RDONLY;
	err = (int)result(mount(NULL, place.name, NULL, flags, NULL));
	close(place.fd);
	return err;
}

static int set_attributes(int fd, bool recursive, uint64_t set, uint64_t clear)
{
	struct mount_attr attr = {.attr_set = set, .attr_clr = clear};
	unsigned int flags = AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0);

	return (int)result(syscall(SYS_mount_setattr, fd, "", flags, &attr, sizeof(attr)));
}

static uint64_t attributes(unsigned long flags)
{
	return (flags & MS_RDONLY ? MOUNT_ATTR_RDONLY : 0) | (flags & MS_NOSUID ? MOUNT_ATTR_NOSUID : 0) |
	       (flags & MS_NODEV ? MOUNT_ATTR_NODEV : 0) | (flags & MS_NOEXEC ? MOUNT_ATTR_NOEXEC : 0) |
	       (flags & MS_NOATIME ? MOUNT_ATTR_NOATIME : 0) | (flags & MS_NODIRATIME ? MOUNT_ATTR_NODIRATIME : 0);
}

static int attach(int tree_fd, const struct builder *b, const char *target)
{
	int fd = open_target(b, target);
	long err;

	if (fd < 0)
		return fd;
	err = result(syscall(SYS_move_mount, tree_fd, "", fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
	close(fd);
	return (int)err;
}

/* -ENOSYS: a kernel before 5.12, or a seccomp profile that does not know these calls. */
static int bind_tree(const struct builder *b, const struct iso_mount *op)
{
	bool recursive = op->flags & MS_REC;
	uint64_t set = attributes(op->flags);
	int err = 0, tree_fd;

	tree_fd = (int)result(syscall(SYS_open_tree, AT_FDCWD, (const char *)iso_ptr(op->source),
				      OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0)));
	if (tree_fd < 0)
		return tree_fd;
	if (set)
		err = set_attributes(tree_fd, recursive, set, 0);
	if (!err)
		err = attach(tree_fd, b, iso_ptr(op->target));
	close(tree_fd);
	return err;
}

/* The old way cannot set attributes on a whole tree: refuse rather than bind with less than was asked. */
static int bind_old(const struct builder *b, const struct iso_mount *op)
{
	struct iso_mount plain = *op;
	int err;

	if ((op->flags & MS_REC) && attributes(op->flags))
		return -ENOSYS;
	plain.flags = MS_BIND | (op->flags & MS_REC);
	plain.fstype = 0;
	plain.data = 0;
	err = mount_op(b, &plain);
	if (err || !attributes(op->flags))
		return err;
	return remount(b, iso_ptr(op->target), op->flags & ATTRIBUTES_OF_BIND);
}

static int bind_op(const struct builder *b, const struct iso_mount *op)
{
	int err = bind_tree(b, op);

	return err == -ENOSYS ? bind_old(b, op) : err;
}

static uint64_t number(const char **text)
{
	uint64_t n = 0, base = 10;

	if ((*text)[0] == '0' && (*text)[1] == 'x') {
		base = 16;
		*text += 2;
	}
	for (;; (*text)++) {
		char c = **text;

		if (c >= '0' && c <= '9')
			n = n * base + (uint64_t)(c - '0');
		else if (base == 16 && c >= 'a' && c <= 'f')
			n = n * base + (uint64_t)(c - 'a' + 10);
		else
			return n;
	}
}

static int setattr_op(const struct builder *b, const struct iso_mount *op)
{
	const char *text = op->data ? iso_ptr(op->data) : "";
	uint64_t set = number(&text), clear = 0;
	int fd, err;

	if (*text == ':') {
		text++;
		clear = number(&text);
	}
	if (*text)
		return -EINVAL;
	fd = open_target(b, iso_ptr(op->target));
	if (fd < 0)
		return fd;
	err = set_attributes(fd, op->flags & MS_REC, set, clear);
	close(fd);
	return err;
}

static int umount_op(const struct builder *b, const struct iso_mount *op)
{
	struct place place;
	int err = find_place(b, iso_ptr(op->target), &place);

	if (err)
		return err;
	err = (int)result(umount2(place.name, DETACH));
	close(place.fd);
	return err;
}

static int send_fd(int socket_fd, int fd)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))}};
	struct iovec byte = {.iov_base = (char[]){0}, .iov_len = 1};
	struct msghdr message = {
		.msg_iov = &byte, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control.space)};

	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	return sendmsg(socket_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* Hands a directory to the caller, who can look at it when it is mounted nowhere any more. */
static int send_dir_op(const struct builder *b, const struct iso_mount *op)
{
	struct place place;
	int err = find_place(b, iso_ptr(op->target), &place), fd;

	if (err)
		return err;
	fd = (int)result(open(place.name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	close(place.fd);
	if (fd < 0)
		return fd;
	err = send_fd((int)op->flags, fd);
	close(fd);
	return err;
}

/* Both roots on one directory, then the old one off it: no directory for the old root is needed. pivot_root(2). */
static int pivot_op(const struct builder *b, const struct iso_mount *op)
{
	(void)b;
	if (chdir(iso_ptr(op->target)) || syscall(SYS_pivot_root, ".", ".") || umount2(".", DETACH) || chdir("/"))
		return -errno;
	return 0;
}

/* ---- the table ---- */

static int run_op(const struct builder *b, const struct iso_mount *op)
{
	switch (op->kind) {
	case ISO_MOUNT_PROPAGATION:
		return propagation_op(b, op);
	case ISO_MOUNT_MOUNT:
		return mount_op(b, op);
	case ISO_MOUNT_BIND:
		return bind_op(b, op);
	case ISO_MOUNT_MKDIR:
		return make_with_parents(b, op, make_dir_op);
	case ISO_MOUNT_MKFILE:
		return make_with_parents(b, op, make_file_op);
	case ISO_MOUNT_SYMLINK:
		return make_with_parents(b, op, make_symlink_op);
	case ISO_MOUNT_PIVOT:
		return pivot_op(b, op);
	case ISO_MOUNT_REMOUNT:
		return remount_op(b, op);
	case ISO_MOUNT_SETATTR:
		return setattr_op(b, op);
	case ISO_MOUNT_UMOUNT:
		return umount_op(b, op);
	case ISO_MOUNT_SEND_DIR:
		return send_dir_op(b, op);
	default:
		return -EINVAL;
	}
}

/* The root that is being built at entry i: the target of the next PIVOT. */
static void find_root(struct builder *b, const struct iso_mount *table, uint32_t i, uint32_t count)
{
	b->root = NULL;
	for (; i < count && !b->root; i++)
		if (table[i].kind == ISO_MOUNT_PIVOT)
			b->root = iso_ptr(table[i].target);
	b->root_length = b->root ? strlen(b->root) : 0;
	while (b->root_length > 1 && b->root[b->root_length - 1] == '/')
		b->root_length--;
}

int iso_mount_table(const struct iso_mount *table, uint32_t count, int *index)
{
	struct builder b;
	uint32_t i;
	int err;

	find_root(&b, table, 0, count);
	for (i = 0; i < count; i++) {
		err = table[i].target ? run_op(&b, &table[i]) : -EINVAL;
		if (err) {
			*index = (int)i;
			return err;
		}
		if (table[i].kind == ISO_MOUNT_PIVOT)
			find_root(&b, table, i + 1, count);
	}
	return 0;
}
