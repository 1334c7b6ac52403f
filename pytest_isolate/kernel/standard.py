"""Descriptors 0, 1 and 2 of this process: they are open before anything of ours is.

Owns: hold(). Refuses: to touch one that is open.
"""

from __future__ import annotations

import errno
import os

from pytest_isolate.errors import SetupError


def hold() -> None:
    """Open /dev/null as each of 0, 1 and 2 that is not open, here and for programs, as a daemon has it.

    Else the next descriptor that anyone opens, a cgroup's directory say, would be the standard input of who asks for 0.

    Raises:
        SetupError: stdio; /dev/null cannot be opened.
    """
    for number in range(3):
        if is_open(number):
            continue
        try:
            fd = os.open(os.devnull, os.O_RDWR)
        except OSError as error:
            raise SetupError("stdio", error.errno or errno.ENOENT, detail=f"({os.devnull})") from error
        if fd == number:
            os.set_inheritable(fd, True)
        else:  # another thread was faster; it is open now
            os.close(fd)


def is_open(fd: int) -> bool:
    """True where the number is a descriptor of this process."""
    try:
        os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return False
    return True
