"""Single operations on cgroup files, always relative to an open directory, each failure told in words.

Owns: mkdir, rmdir, read, write, and what each errno of cgroupfs means and asks for.
Refuses: to know controllers or layouts. One openat per operation: this is the hot path of every sandbox.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from pytest_isolate.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: cgroupfs answers these when the file, its controller or the whole directory is not there (any more).
GONE = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CLOEXEC
_NEWLINE = ord("\n")
_WHAT_TO_DO = {
    errno.EACCES: "this cgroup is not delegated to this user; see --isolate-cgroup=systemd",
    errno.EPERM: "this cgroup is not delegated to this user; see --isolate-cgroup=systemd",
    errno.EROFS: "cgroupfs is mounted read-only here; mount it read-write (containers: a private cgroup namespace)",
    errno.EAGAIN: "cgroup.max.depth or cgroup.max.descendants of a cgroup above is reached; raise it or run fewer at once",
    errno.ENOENT: "the cgroup was removed from outside, or the controller was disabled above it",
    errno.ENODEV: "the cgroup was removed from outside while it was in use",
    errno.EBUSY: "the cgroup still holds processes, or already uses more than the new limit",
    errno.EINVAL: "the kernel does not take this value",
    errno.ERANGE: "the kernel does not take this value",
    errno.ENOSPC: "the cpuset above allows none of the CPUs or memory nodes asked for",
}


def fault(step: str, error: OSError, path: str, value: str = "") -> SetupError:
    """The SetupError of one failed operation: step ``cgroup memory.max``, errno, place, remedy."""
    code = error.errno or errno.EIO
    detail = f"(writing {value!r} in {path})" if value else f"({path})"
    return SetupError(f"cgroup {step}", code, detail=detail, remedy=_WHAT_TO_DO.get(code, ""))


def open_directory(path: str, dir_fd: int | None = None) -> int:
    """Open a cgroup as a directory fd, which the caller owns."""
    return os.open(path, _DIRECTORY, dir_fd=dir_fd)


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """The cgroup ``path`` as a directory fd, for a moment: a fd that stays open is handed on to every forked child.

    Raises:
        SetupError: step ``cgroup open``.
    """
    try:
        fd = open_directory(path)
    except OSError as error:
        raise fault("open", error, path) from error
    try:
        yield fd
    finally:
        os.close(fd)


def exists(dir_fd: int, name: str) -> bool:
    """Whether the cgroup ``name`` is below ``dir_fd``."""
    try:
        os.stat(name, dir_fd=dir_fd)
    except OSError:
        return False
    return True


def make(dir_fd: int, name: str, shown: str = "") -> None:
    """Make the cgroup ``name`` below ``dir_fd``; ``shown`` is what an error calls it.

    Raises:
        SetupError: step ``cgroup mkdir``.
    """
    try:
        os.mkdir(name, 0o755, dir_fd=dir_fd)
    except OSError as error:
        raise fault("mkdir", error, shown or name) from error


def remove(dir_fd: int, name: str) -> bool:
    """Remove ``name`` and the empty cgroups inside it. False while processes hold it; True also if it was gone."""
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in GONE:
            return True
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise fault("rmdir", error, name) from error
        return _remove_inside(dir_fd, name)
    return True


def _remove_inside(dir_fd: int, name: str) -> bool:
    """Deepest first, for a sandbox that made cgroups of its own inside; EBUSY again means processes."""
    removed = [remove(dir_fd, inner) for inner in children(dir_fd, name)]  # all of them, also after one that is held
    if not all(removed):
        return False
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as error:
        return error.errno in GONE
    return True


def read(dir_fd: int, path: str) -> str | None:
    """The text of a file; None where the file, its controller or its cgroup is not there."""
    try:
        fd = os.open(path, _READ, dir_fd=dir_fd)
        try:
            text = os.read(fd, 4096)
            # A seq_file hands out at most a page of whole lines at once, and the usual small file in one read.
            while (len(text) % 4096 == 0 or text[-1] != _NEWLINE) and (more := os.read(fd, 65536)):
                text += more
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise fault(os.path.basename(path), error, path) from error
    return text.decode("ascii", "replace")


def write(dir_fd: int, path: str, value: str) -> None:
    """Write ``value`` to a file in one write, as cgroupfs requires.

    Raises:
        SetupError: step ``cgroup <file name>`` with the kernel's errno.
    """
    try:
        fd = os.open(path, _WRITE, dir_fd=dir_fd)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise fault(os.path.basename(path), error, path, value) from error


def children(dir_fd: int, name: str) -> list[str]:
    """Paths, relative to ``dir_fd``, of the cgroups directly inside ``name``."""
    try:
        # kernfs counts a directory's subdirectories in st_nlink: two means none, and spares the listing.
        if os.stat(name, dir_fd=dir_fd).st_nlink <= 2:
            return []
        fd = open_directory(name, dir_fd)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return [f"{name}/{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    finally:
        os.close(fd)


def subtree(dir_fd: int, name: str) -> Iterator[str]:
    """``name`` and every cgroup below it, parents first."""
    yield name
    for inner in children(dir_fd, name):
        yield from subtree(dir_fd, inner)


def numbers(text: str | None) -> dict[str, int]:
    """The flat-keyed format (``oom_kill 1`` per line) as a mapping; empty for None."""
    if text is None:
        return {}
    words = text.split()
    return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=False) if value.isdigit()}


def number(text: str | None) -> int | None:
    """A file of one number; None for ``max``, for nothing, and for what is no number."""
    return int(text) if text is not None and text.strip().isdigit() else None
