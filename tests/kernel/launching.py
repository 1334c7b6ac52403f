"""Starts real children for the tests of kernel/native.py and brings back what they saw.

Owns: run() for programs, forked() for Python functions, both bounded in time. Refuses: to hide a failure of either.
"""

from __future__ import annotations

import json
import os
import select
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import IdMap, MountKind, MountOp, Plan

from .throwaway import change_user, open_to_everyone, own_mounts

LIMIT_S = 20.0

#: CLONE_NEW* by the name in /proc/self/ns. Source: linux/sched.h.
NAMESPACES = {
    "pid": 0x20000000,
    "user": 0x10000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "mnt": 0x00020000,
    "net": 0x40000000,
    "time": 0x00000080,
}
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
PRIVATE = MountOp(kind=MountKind.PROPAGATION, target="/", flags=MS_REC | MS_PRIVATE)
PROC = MountOp(kind=MountKind.MOUNT, source="proc", target="/proc", fstype="proc", flags=14)


def flags(*names: str) -> int:
    return sum(NAMESPACES[name] for name in names)


def own_maps() -> dict[str, tuple[IdMap, ...]]:
    """This user and group, under the same numbers: what a plain user may map."""
    return {
        "uid_map": (IdMap(inside=os.geteuid(), outside=os.geteuid(), count=1),),
        "gid_map": (IdMap(inside=os.getegid(), outside=os.getegid(), count=1),),
    }


def plan(*names: str, **settings: Any) -> Plan:
    """A plan with these namespaces, a private mount table and a fresh /proc where they have a meaning."""
    mounts = settings.pop("mounts", ())
    if "mnt" in names:
        mounts = (PRIVATE, *((PROC,) if "pid" in names else ()), *mounts)
    if "user" in names and "uid_map" not in settings:
        settings.update(own_maps())
    return Plan(namespaces=flags(*names), mounts=mounts, **settings)


def read_all(fd: int, limit_s: float = LIMIT_S) -> bytes:
    """Everything until end of stream; the writers are our own tests' children."""
    chunks = []
    poller = select.poll()  # select() knows no descriptor above 1023
    poller.register(fd, select.POLLIN)
    while True:
        assert poller.poll(limit_s * 1000), f"nothing within {limit_s} s after {b''.join(chunks)!r}"
        chunk = os.read(fd, 65536)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


@contextmanager
def pipe() -> Iterator[list[int]]:
    """[read, write]; whoever closes an end early puts -1 there."""
    ends = list(os.pipe())
    try:
        yield ends
    finally:
        for fd in ends:
            if fd >= 0:
                os.close(fd)


def close_end(ends: list[int], index: int) -> None:
    os.close(ends[index])
    ends[index] = -1


@dataclass
class Ran:
    """What came out of a program or of a forked function."""

    exited: native.Exited
    output: bytes

    @property
    def text(self) -> str:
        return self.output.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.output)


def finish(child: native.Child, ends: list[int]) -> Ran:
    with child:
        close_end(ends, 1)
        output = read_all(ends[0])
        exited = child.wait(LIMIT_S)
        assert exited is not None, "the child did not end"
        return Ran(exited, output)


def run(a_plan: Plan, *argv: str, **settings: Any) -> Ran:
    """Run a program and collect its standard output."""
    with pipe() as ends:
        return finish(native.spawn(a_plan, argv, stdout_fd=ends[1], **settings), ends)


def leave_after(function: Callable[..., Any], arguments: Sequence[Any], fd: int) -> NoReturn:
    """In a child: its result as JSON, then the end, without pytest's own clean-up."""
    status = 99
    try:
        os.write(fd, json.dumps(function(*arguments)).encode())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def forked(a_plan: Plan, function: Callable[..., Any], *arguments: Any) -> Ran:
    """Fork this interpreter into a sandbox, call there, collect the result as JSON."""
    with pipe() as ends:
        child = native.fork(a_plan)
        if child is None:
            leave_after(function, arguments, ends[1])
        return finish(child, ends)


def value(a_plan: Plan, function: Callable[..., Any], *arguments: Any) -> Any:
    """forked(), where nothing but a result is expected."""
    ran = forked(a_plan, function, *arguments)
    assert ran.exited.status.code == 0, ran.exited
    return ran.json


def helper(function: Callable[..., Any], *arguments: Any, uid: int | None = None) -> Any:
    """Call in an ordinary throw-away fork of this process, as another user if asked; its result."""
    with pipe() as ends:
        pid = os.fork()
        if pid == 0:
            if uid is not None:
                become(uid)
            leave_after(function, arguments, ends[1])
        close_end(ends, 1)
        output = read_all(ends[0], 60)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return json.loads(output)


def become(uid: int) -> None:
    """Another user, in mounts of its own, where it may enter this checkout."""
    own_mounts()
    open_to_everyone()
    change_user(uid)


def open_fds() -> set[int]:
    """Not that of the look itself: its number changes when a thread in accept(2), which has one reserved, is interrupted."""
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}
