"""Programs that run into a limit, and how they are started inside a group.

Owns: start() and the victims. Refuses: to run anywhere but in a group made for them.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .groups import Group


MIB = 1 << 20


def start(group: Group, victim: Callable[[], object]) -> int:
    """Fork ``victim`` into ``group``; exit status 0 when it came through, 99 when it raised. Returns its pid."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            group.set("cgroup.procs", os.getpid())
            victim()
            status = 0
        finally:
            os._exit(status)
    return pid


def run(group: Group, victim: Callable[[], object]) -> int:
    """``start`` and wait; returns the exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(start(group, victim), 0)[1])


def touch(size_bytes: int, flags: int = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) -> None:
    """Write to every page of a fresh mapping."""
    area = mmap.mmap(-1, size_bytes, flags=flags)
    for offset in range(0, size_bytes, mmap.PAGESIZE):
        area[offset] = 1


def touch_shared(size_bytes: int) -> None:
    touch(size_bytes, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def bomb(tries: int) -> int:
    """Fork sleepers until the kernel says no; returns how many there are."""
    for made in range(tries):
        try:
            pid = os.fork()
        except BlockingIOError:
            return made
        if pid == 0:
            time.sleep(60)
            os._exit(0)
    return tries


def write_disk(device: str, size_bytes: int) -> None:
    """Write past the page cache, 64 KiB at a time (O_DIRECT wants aligned memory: an anonymous map is)."""
    block = mmap.mmap(-1, 65536)
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
    try:
        for _ in range(size_bytes // len(block)):
            os.write(fd, block)
    finally:
        os.close(fd)


def tick(fd: int) -> None:
    while True:
        os.write(fd, b".")
        time.sleep(0.01)


def ticks(fd: int) -> int:
    """How many arrive in 0.3 s."""
    time.sleep(0.3)
    try:
        return len(os.read(fd, 65536))
    except BlockingIOError:
        return 0
