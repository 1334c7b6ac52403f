"""Network namespaces by file descriptor: enter one for a moment.

Owns: setns(2). Refuses: to make namespaces that stay (interfaces.py) and those of children (the plan).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def setns(fd: int, kind: int) -> None:
    """Move this thread into the namespace ``fd``. Raises OSError."""
    if _libc.setns(fd, kind):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Give this thread new namespaces. Raises OSError."""
    if _libc.unshare(flags):
        code = ctypes.get_errno()
        raise OSError(code, f"unshare: {os.strerror(code)}")


@contextlib.contextmanager
def inside_netns(fd: int) -> Iterator[None]:
    """This thread in network namespace ``fd`` for the block; -1: stay. Sockets made there keep that namespace."""
    if fd < 0:
        yield
        return
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(own, CLONE_NEWNET)
    finally:
        os.close(own)
