"""A plan as the C library reads it: compiled once, varied for each launch.

Owns: the memory that the C structs point to. Refuses: to start anything (native.py), to decide anything (backends/).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel import abi
from pytest_isolate.kernel.library import find
from pytest_isolate.kernel.namespaces import CLONE_NEWNET
from pytest_isolate.kernel.plan import LandlockRuleset
from pytest_isolate.remembered import Remembered

if TYPE_CHECKING:
    from pytest_isolate.kernel.plan import IdMap, LandlockRule, MountOp, Plan

Arg = Union[bytes, str, "os.PathLike[str]"]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan as C reads it; ``alive`` owns the memory that its addresses point to."""

    plan: abi.Plan
    alive: tuple[Any, ...]


class Memory:
    """Collects what the addresses in a struct point to."""

    def __init__(self) -> None:
        self.alive: list[Any] = []

    def text(self, value: Arg) -> int:
        """The address of a NUL-ended copy; 0 for the empty text."""
        raw = _whole(value)
        return self.array(ctypes.create_string_buffer(raw)) if raw else 0

    def array(self, value: Any) -> int:
        self.alive.append(value)
        return ctypes.addressof(value)

    def structs(self, kind: Any, rows: Sequence[tuple[Any, ...]]) -> int:
        return self.array((kind * len(rows))(*rows)) if rows else 0

    def texts(self, values: Sequence[Arg]) -> int:
        """The address of a NULL-ended array of strings, as argv."""
        return self.array((ctypes.c_char_p * (len(values) + 1))(*map(_whole, values), None))


def _whole(value: Arg) -> bytes:
    """Its bytes; C would read it up to the first NUL, and do something else than was asked."""
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise PolicyError("a text for the kernel", f"{value!r} holds a NUL byte", "leave it out: it would end the text")
    return raw


def _id_rows(lines: Sequence[IdMap]) -> list[tuple[int, ...]]:
    return [(line.inside, line.outside, line.count, 0) for line in lines]


def _mount_row(memory: Memory, op: MountOp) -> tuple[int, ...]:
    text = memory.text
    return (op.kind, 0, op.flags, text(op.source), text(op.target), text(op.fstype), text(op.data))


def _landlock_row(memory: Memory, rule: LandlockRule) -> tuple[int, ...]:
    return (rule.rights, memory.text(rule.path), rule.port, int(rule.optional))


def _kept(fds: Sequence[int]) -> Any:
    """In order, as the C library closes what is between them; it leaves the first three alone."""
    numbers = sorted({fd for fd in fds if fd > 2})
    return (ctypes.c_int32 * len(numbers))(*numbers)


def _flags(plan: Plan) -> int:
    chosen = {
        abi.Flag.NEW_SESSION: plan.new_session,
        abi.Flag.LOOPBACK_UP: plan.loopback_up,
        abi.Flag.NO_NEW_PRIVS: plan.no_new_privs,
        abi.Flag.CLOSE_FDS: plan.close_fds,
        abi.Flag.SET_UMASK: plan.umask >= 0,
        abi.Flag.SET_CAPABILITIES: plan.capabilities is not None,
        abi.Flag.MONITOR: plan.monitor,
    }
    return sum(flag for flag, wanted in chosen.items() if wanted)


_ALL_ONES = 2**64 - 1  # RLIM_INFINITY


def compile_plan(plan: Plan) -> Compiled:
    if len(plan.seccomp) % 8:
        raise ValueError(f"plan.seccomp has {len(plan.seccomp)} bytes: a struct sock_filter has 8")
    memory = Memory()
    keep = _kept(plan.keep_fds)
    limits = [(resource, 0, soft & _ALL_ONES, hard & _ALL_ONES) for resource, soft, hard in plan.rlimits]
    landlock = plan.landlock or LandlockRuleset()
    compiled = abi.Plan(
        size=ctypes.sizeof(abi.Plan),
        version=abi.VERSION,
        namespaces=plan.namespaces,
        flags=_flags(plan),
        init=memory.text(find("isolate-init")),
        hostname=memory.text(plan.hostname),
        cwd=memory.text(plan.cwd),
        uid_map=memory.structs(abi.IdMap, _id_rows(plan.uid_map)),
        gid_map=memory.structs(abi.IdMap, _id_rows(plan.gid_map)),
        mounts=memory.structs(abi.Mount, [_mount_row(memory, op) for op in plan.mounts]),
        rlimits=memory.structs(abi.Rlimit, limits),
        joins=memory.structs(abi.Join, plan.join_fds),
        cgroup_procs_fds=memory.array((ctypes.c_int32 * len(plan.cgroup_procs_fds))(*plan.cgroup_procs_fds)),
        keep_fds=memory.array(keep),
        seccomp=memory.array(ctypes.create_string_buffer(plan.seccomp, max(1, len(plan.seccomp)))),
        uid_map_count=len(plan.uid_map),
        gid_map_count=len(plan.gid_map),
        mounts_count=len(plan.mounts),
        rlimits_count=len(plan.rlimits),
        joins_count=len(plan.join_fds),
        cgroup_procs_fds_count=len(plan.cgroup_procs_fds),
        keep_fds_count=len(keep),
        seccomp_count=len(plan.seccomp) // 8,
        capabilities=plan.capabilities or 0,
        cgroup_fd_plus1=plan.cgroup_fd + 1,
        landlock_fd_plus1=plan.landlock_fd + 1,
        pdeathsig=plan.pdeathsig,
        umask=max(plan.umask, 0),
        landlock=memory.structs(abi.Landlock, [_landlock_row(memory, rule) for rule in landlock.rules]),
        landlock_fs=landlock.fs,
        landlock_net=landlock.net,
        landlock_scoped=landlock.scoped,
        landlock_count=len(landlock.rules),
        securebits=plan.securebits,
    )
    return Compiled(compiled, tuple(memory.alive))


@dataclass(frozen=True, slots=True)
class Joined:
    """A cgroup to start in, a network to join: what differs from launch to launch. Descriptors, borrowed.

    Attributes:
        dir_fd: v2 directory for CLONE_INTO_CGROUP, or -1.
        procs_fds: v1 files the child writes itself into.
        netns_fd: network namespace to enter, or -1. The plan then makes none, has nothing to do in it, and joins nothing else.
        keep_fds: what stays open although the plan closes descriptors; they replace the plan's own.
    """

    dir_fd: int = -1
    procs_fds: tuple[int, ...] = ()
    netns_fd: int = -1
    keep_fds: tuple[int, ...] = ()

    def applied(self, ready: abi.Plan) -> tuple[abi.Plan, Any]:
        """A copy of ``ready`` that joins, and the memory it points to."""
        plan = abi.Plan.from_buffer_copy(ready)
        fds = (ctypes.c_int32 * len(self.procs_fds))(*self.procs_fds)
        plan.cgroup_fd_plus1 = self.dir_fd + 1
        plan.cgroup_procs_fds = ctypes.addressof(fds)
        plan.cgroup_procs_fds_count = len(self.procs_fds)
        alive: list[Any] = [fds]
        if self.keep_fds:
            kept = _kept(self.keep_fds)
            plan.keep_fds, plan.keep_fds_count = ctypes.addressof(kept), len(kept)
            alive.append(kept)
        if self.netns_fd >= 0:
            joins = (abi.Join * 1)(abi.Join(self.netns_fd, CLONE_NEWNET))
            plan.joins, plan.joins_count = ctypes.addressof(joins), 1
            plan.namespaces &= ~CLONE_NEWNET
            plan.flags &= ~int(abi.Flag.LOOPBACK_UP)
            alive.append(joins)
        return plan, alive


_known: Remembered[Compiled] = Remembered()


def _ready(plan: Plan) -> abi.Plan:
    """The plan in C, compiled once for each Plan object."""
    return _known.of(plan, lambda: compile_plan(plan)).plan


def launch(plan: Plan, joined: Joined | None) -> tuple[abi.Plan, Any]:
    """The plan in C for one launch; keep the second value while C reads the first."""
    return (_ready(plan), None) if joined is None else joined.applied(_ready(plan))
