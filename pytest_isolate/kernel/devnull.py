"""A /dev/null of one's own: a device node on a tmpfs that is mounted nowhere, so that its owner and mode are nobody else's.

Owns: private_null(), and the question whether this process may make device nodes. Refuses: to say who needs one.
Source: fsopen(2), fsmount(2), Linux 5.2; linux/mount.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat

# The same on every architecture. Source: asm-generic/unistd.h.
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSCONFIG_CMD_CREATE, _FSMOUNT_CLOEXEC = 1, 6, 1
_NULL = os.makedev(1, 3)  # Documentation/admin-guide/devices.txt


def private_null() -> int:
    """A descriptor for reading and writing, close-on-exec.

    Raises:
        OSError: capabilities, the cgroup of devices, a seccomp profile or an older kernel allow no such thing.
    """
    with contextlib.ExitStack() as stack:
        filesystem_fd = _call(stack, _SYS_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC)
        if ctypes.CDLL(None, use_errno=True).syscall(_SYS_FSCONFIG, filesystem_fd, _FSCONFIG_CMD_CREATE, None, None, 0):
            raise OSError(ctypes.get_errno(), "fsconfig")
        mount_fd = _call(stack, _SYS_FSMOUNT, filesystem_fd, _FSMOUNT_CLOEXEC, 0)
        os.mknod("null", stat.S_IFCHR | 0o600, _NULL, dir_fd=mount_fd)
        return os.open("null", os.O_RDWR | os.O_CLOEXEC, dir_fd=mount_fd)


@functools.cache
def makes_devices() -> bool:
    """True where this process may make device nodes, and use them. Found by doing it, once."""
    try:
        os.close(private_null())
    except OSError:
        return False
    return True


def is_null(fd: int) -> bool:
    """True for an open /dev/null, whoever's."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL


def _call(stack: contextlib.ExitStack, number: int, *words: bytes | int) -> int:
    """A system call that gives a descriptor, closed by ``stack``."""
    fd: int = ctypes.CDLL(None, use_errno=True).syscall(number, *words)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    stack.callback(os.close, fd)
    return fd
