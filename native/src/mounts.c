// SPDX-License-Identifier: MIT
/*
 * ============================ THIS CODE RUNS IN THE CHILD ============================
 * mounts.c - interprets the mount table in the sandbox's own mount namespace. The rules of child.c hold.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mounts.h"

/* <sys/mount.h> and <linux/mount.h> contradict each other before glibc 2.37. */
extern int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
extern int umount2(const char *target, int flags);
#define DETACH 2 /* MNT_DETACH */

#define ATTRIBUTES_OF_BIND (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)

/* ---- mounting ---- */

static int mount_op(struct builder *b, const struct iso_mount *op)
{
	struct place place;
	int err = iso_find_place(b, iso_ptr(op->target), &place);

	if (err)
		return err;
	err = (int)result(mount(iso_ptr(op->source), place.name, iso_ptr(op->fstype), op->flags, iso_ptr(op->data)));
	close(place.fd);
	return err;
}

static int propagation_op(struct builder *b, const struct iso_mount *op)
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

static int remount(struct builder *b, const char *target, unsigned long flags)
{
	struct place place;
	int err = iso_find_place(b, target, &place); /* anew: the mount on top */

	if (err)
		return err;
	flags |= locked_flags(place.fd) | MS_REMOUNT | MS_BIND;
	err = (int)result(mount(NULL, place.name, NULL, flags, NULL));
	close(place.fd);
	return err;
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

/* MS_RDONLY is as the table says: a writable place in a read-only view is made by taking it off. Of the others, what data names. */
static int remount_op(struct builder *b, const struct iso_mount *op)
{
	const char *text = op->data ? iso_ptr(op->data) : "";
	unsigned long clear = (unsigned long)number(&text) | MS_RDONLY, flags;
	struct place place;
	int err = *text ? -EINVAL : iso_find_place(b, iso_ptr(op->target), &place);

	if (err)
		return err;
	flags = op->flags | MS_REMOUNT | MS_BIND | (locked_flags(place.fd) & ~clear);
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

static int attach(int tree_fd, struct builder *b, const char *target)
{
	int fd = iso_open_target(b, target);
	long err;

	if (fd < 0)
		return fd;
	err = result(syscall(SYS_move_mount, tree_fd, "", fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
	close(fd);
	return (int)err;
}

static int attach_sealed(int tree_fd, struct builder *b, const struct iso_mount *op)
{
	uint64_t set = attributes(op->flags);
	int err = set ? set_attributes(tree_fd, op->flags & MS_REC, set, 0) : 0;

	return err ? err : attach(tree_fd, b, iso_ptr(op->target));
}

/* -ENOSYS: a kernel before 5.12, or a seccomp profile that does not know these calls. */
static int bind_tree(struct builder *b, const struct iso_mount *op)
{
	unsigned int flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (op->flags & MS_REC ? AT_RECURSIVE : 0);
	int err, tree_fd = (int)result(syscall(SYS_open_tree, AT_FDCWD, (const char *)iso_ptr(op->source), flags));

	if (tree_fd < 0)
		return tree_fd;
	err = attach_sealed(tree_fd, b, op);
	close(tree_fd);
	return err;
}

/* The old way cannot set attributes on a whole tree: refuse rather than bind with less than was asked. */
static int bind_old(struct builder *b, const struct iso_mount *op)
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

static int bind_op(struct builder *b, const struct iso_mount *op)
{
	const char *tree_fd = op->data ? iso_ptr(op->data) : "";
	int err;

	if (*tree_fd)
		return attach_sealed((int)number(&tree_fd), b, op);
	err = bind_tree(b, op);
	return err == -ENOSYS ? bind_old(b, op) : err;
}

static int setattr_op(struct builder *b, const struct iso_mount *op)
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
	fd = iso_open_target(b, iso_ptr(op->target));
	if (fd < 0)
		return fd;
	err = set_attributes(fd, op->flags & MS_REC, set, clear);
	close(fd);
	return err;
}

static int umount_op(struct builder *b, const struct iso_mount *op)
{
	struct place place;
	int err;

	if (!b->root) /* by its own name: what is mounted on /proc by now may have no name for it */
		return (int)result(umount2(iso_ptr(op->target), DETACH));
	err = iso_find_place(b, iso_ptr(op->target), &place);
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
static int send_dir_op(struct builder *b, const struct iso_mount *op)
{
	struct place place;
	int err = iso_find_place(b, iso_ptr(op->target), &place), fd;

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
static int pivot_op(struct builder *b, const struct iso_mount *op)
{
	(void)b;
	if (chdir(iso_ptr(op->target)) || syscall(SYS_pivot_root, ".", ".") || umount2(".", DETACH) || chdir("/"))
		return -errno;
	return 0;
}

/* ---- the table ---- */

static int run_op(struct builder *b, const struct iso_mount *op)
{
	switch (op->kind) {
	case ISO_MOUNT_PROPAGATION:
		return propagation_op(b, op);
	case ISO_MOUNT_MOUNT:
		return mount_op(b, op);
	case ISO_MOUNT_BIND:
		return bind_op(b, op);
	case ISO_MOUNT_MKDIR:
		return iso_make_dir(b, op);
	case ISO_MOUNT_MKFILE:
		return iso_make_file(b, op);
	case ISO_MOUNT_SYMLINK:
		return iso_make_symlink(b, op);
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
	case ISO_MOUNT_MKNOD:
		return iso_make_node(b, op);
	default:
		return -EINVAL;
	}
}

static bool only_makes(uint32_t kind)
{
	return kind == ISO_MOUNT_MKDIR || kind == ISO_MOUNT_MKFILE || kind == ISO_MOUNT_SYMLINK ||
	       kind == ISO_MOUNT_MKNOD;
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
	struct builder b = {.root_fd = -1, .parent_fd = -1};
	uint32_t i;
	int err = 0;

	find_root(&b, table, 0, count);
	for (i = 0; i < count && !err; i++) {
		*index = (int)i;
		err = table[i].target ? run_op(&b, &table[i]) : -EINVAL;
		if (!only_makes(table[i].kind))
			iso_forget_parent(&b);
		iso_forget_root(&b, iso_ptr(table[i].target));
		if (table[i].kind == ISO_MOUNT_PIVOT) {
			iso_forget_root(&b, NULL);
			find_root(&b, table, i + 1, count);
		}
	}
	iso_forget_parent(&b);
	iso_forget_root(&b, NULL);
	return err;
}
