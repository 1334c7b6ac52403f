// SPDX-License-Identifier: MIT
/*
 * maps.c - user and group id maps of a user namespace, written by the child itself or by the caller.
 *
 * Raw system calls and the stack only: the caller writes them while its child runs on the caller's own
 * thread-local storage. Texts are made beforehand. Source: user_namespaces(7).
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>

#include "launch.h"
#include "raw.h"

static size_t put_number(char *out, uint64_t number)
{
	char digits[20];
	size_t n = 0, i;

	do {
		digits[n++] = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	for (i = 0; i < n; i++)
		out[i] = digits[n - 1 - i];
	return n;
}

static size_t length(const char *text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

static void append(char *out, const char *text)
{
	size_t at = length(out), i;

	for (i = 0; text[i]; i++)
		out[at + i] = text[i];
	out[at + i] = 0;
}

/* "inside outside count\n" for each line, NUL-ended. Returns the length, 0 when it does not fit. */
size_t iso_map_text(char *text, size_t bytes, const struct iso_idmap *map, uint32_t count)
{
	size_t at = 0;
	uint32_t i;

	text[0] = 0;
	for (i = 0; i < count; i++) {
		if (at + 40 > bytes)
			return 0;
		at += put_number(text + at, map[i].inside);
		text[at++] = ' ';
		at += put_number(text + at, map[i].outside);
		text[at++] = ' ';
		at += put_number(text + at, map[i].count);
		text[at++] = '\n';
		text[at] = 0;
	}
	return at;
}

void iso_proc_path(char path[32], pid_t pid)
{
	path[0] = 0;
	append(path, "/proc/");
	path[6 + put_number(path + 6, (uint64_t)pid)] = 0;
	append(path, "/");
}

static int write_file(const char *dir, const char *name, const char *text)
{
	char path[64] = "";
	long fd, ret;

	append(path, dir);
	append(path, name);
	fd = raw4(__NR_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return (int)fd;
	ret = raw3(__NR_write, fd, text, length(text));
	raw1(__NR_close, fd);
	return ret < 0 ? (int)ret : 0;
}

int iso_write_maps(const char *proc, const char *uid_text, const char *gid_text, bool deny_setgroups, int *index)
{
	int err = 0;

	*index = 0;
	if (uid_text[0])
		err = write_file(proc, "uid_map", uid_text);
	if (err || !gid_text[0])
		return err;
	*index = 1;
	if (deny_setgroups)
		err = write_file(proc, "setgroups", "deny");
	if (err)
		return err;
	*index = 2;
	return write_file(proc, "gid_map", gid_text);
}
