"""One check per limit of a group: a positive control, the limit hit, the kernel's own counter as evidence.

Owns: CHECKS, name -> function of the layout, returning the evidence in one line.
Refuses: to pass without having seen the limit act.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import struct
import time
from collections.abc import Callable

from . import victims
from .groups import Group, Layout, fields, read
from .telling import Degraded, Refused
from .victims import MIB

SCRATCH = "/dev/vm/data"
SYS_CLONE3 = 435
CLONE_INTO_CGROUP = 0x200000000
MAP_HUGETLB = 0x40000


def memory(layout: Layout) -> str:
    with layout.group("memory") as group:
        _set_memory(group, 64 * MIB)
        assert victims.run(group, lambda: victims.touch_shared(16 * MIB)) == 0, "control died"
        status = victims.run(group, lambda: victims.touch_shared(128 * MIB))
        assert status == -signal.SIGKILL, f"status {status}"
        kills, peak = _oom_kills(group), _peak(group)
    return f"128 MiB MAP_SHARED of 64: SIGKILL, oom_kill {kills}, {peak}"


def memory_group(layout: Layout) -> str:
    with layout.group("memory") as group:
        if group.version == 1:
            raise Refused("v1 has no memory.oom.group")
        _set_memory(group, 64 * MIB)
        group.set("memory.oom.group", 1)
        bystander = victims.start(group, lambda: time.sleep(60))
        status = victims.run(group, lambda: victims.touch(128 * MIB))
        assert status == -signal.SIGKILL, f"status {status}"
        assert os.waitstatus_to_exitcode(os.waitpid(bystander, 0)[1]) == -signal.SIGKILL
        return f"the bystander died too, oom_kill {_oom_kills(group)}"


def memory_high(layout: Layout) -> str:
    with layout.group("memory") as group:
        if group.version == 1:
            raise Refused("v1 has no memory.high")
        group.set("memory.high", 32 * MIB)
        assert victims.run(group, lambda: victims.touch(40 * MIB)) == 0
        throttled = fields(group.file("memory.events"))["high"]
        assert throttled > 0, "never throttled"
    return f"40 MiB of 32: throttled {throttled} times, not killed"


def swap(layout: Layout) -> str:
    if len(read("/proc/swaps").splitlines()) < 2:
        raise Refused("no swap in use")
    with layout.group("memory") as group:
        _set_memory(group, 32 * MIB, swap_bytes=96 * MIB)
        assert victims.run(group, lambda: victims.touch(64 * MIB)) == 0, "control died: nothing was swapped"
        _set_memory(group, 32 * MIB, swap_bytes=0)
        status = victims.run(group, lambda: victims.touch(64 * MIB))
        assert status == -signal.SIGKILL, f"status {status}"
    return "64 MiB of 32 + 96 swap lived, of 32 + 0 got SIGKILL"


def pids(layout: Layout) -> str:
    with layout.group("pids") as group:
        group.set("pids.max", 20)
        made = victims.run(group, lambda: os._exit(victims.bomb(60)))
        refused = fields(group.file("pids.events"))["max"]
        peak = f", pids.peak {read(group.file('pids.peak')).strip()}" if group.has("pids.peak") else ""
    assert made == 19, f"{made} forks"
    assert refused > 0
    return f"{made} forks below 20, then EAGAIN, events max {refused}{peak}"


def cpu(layout: Layout) -> str:
    with layout.group("cpu") as group:
        if group.version == 2:
            group.set("cpu.max", "20000 100000")
        else:
            group.set("cpu.cfs_period_us", 100000)
            group.set("cpu.cfs_quota_us", 20000)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        victims.run(group, lambda: victims.spin(3))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        throttled = fields(group.file("cpu.stat"))["nr_throttled"]
    share = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 3
    assert share < 0.35, f"used {share:.2f} cores"
    assert throttled > 5, f"throttled {throttled} times"
    return f"used {share:.2f} cores of 0.20, throttled {throttled} times in 3 s"


def cpu_weight(layout: Layout) -> str:
    """Two spinners on one CPU, weights 1 to 8: the heavy one gets several times more."""
    used = []
    with layout.group("cpu") as light:
        heavy = Group(f"{light.path}-heavy", light.version)
        os.mkdir(heavy.path)
        try:
            for group, weight in ((light, 50), (heavy, 400)):
                group.set("cpu.weight" if group.version == 2 else "cpu.shares", weight)
            running = [victims.start(group, _spin_on_first_cpu) for group in (light, heavy)]
            for pid in running:
                usage = os.wait4(pid, 0)[2]
                used.append(usage.ru_utime + usage.ru_stime)
        finally:
            heavy.remove()
    ratio = used[1] / used[0]
    assert ratio > 2, f"ratio {ratio:.1f}"
    return f"weights 1:8 on one CPU got 1:{ratio:.1f}"


def cpuset(layout: Layout) -> str:
    with layout.group("cpuset") as group:
        group.set("cpuset.cpus", 1)
        if group.version == 1:
            group.set("cpuset.mems", 0)
        allowed = victims.run(group, lambda: os._exit(10 * len(os.sched_getaffinity(0)) + min(os.sched_getaffinity(0))))
    assert allowed == 11, f"affinity code {allowed}"
    return f"1 of {os.cpu_count()} CPUs, number 1"


def io(layout: Layout) -> str:
    if not os.path.exists(SCRATCH):
        raise Refused("no scratch disk")
    number = os.stat(SCRATCH).st_rdev
    device = f"{os.major(number)}:{os.minor(number)}"
    with layout.group("blkio" if "blkio" in layout.v1 else "io") as group:
        free_s = _timed(lambda: victims.run(group, lambda: victims.write_disk(SCRATCH, 4 * MIB)))
        if group.version == 2:
            group.set("io.max", f"{device} wbps={MIB}")
        else:
            group.set("blkio.throttle.write_bps_device", f"{device} {MIB}")
        bound_s = _timed(lambda: victims.run(group, lambda: victims.write_disk(SCRATCH, 4 * MIB)))
    assert bound_s > 2.5 > free_s, f"{free_s:.2f} s free, {bound_s:.2f} s bound"
    return f"4 MiB at 1 MiB/s took {bound_s:.2f} s, {free_s:.2f} s without"


def hugetlb(layout: Layout) -> str:
    with layout.group("hugetlb") as group:
        group.set("hugetlb.2MB.max" if group.version == 2 else "hugetlb.2MB.limit_in_bytes", 2 * MIB)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
        assert victims.run(group, lambda: victims.touch(2 * MIB, flags)) == 0, "control died"
        status = victims.run(group, lambda: victims.touch(4 * MIB, flags))
    assert status == -signal.SIGBUS, f"status {status}"
    return "second 2 MiB page of 1: SIGBUS"


def freeze(layout: Layout) -> str:
    with layout.group("freezer" if "freezer" in layout.v1 else "any") as group:
        ticks_fd, end = os.pipe()
        os.set_blocking(ticks_fd, False)
        victims.start(group, lambda: victims.tick(end))
        name, on, off = ("cgroup.freeze", 1, 0) if group.version == 2 else ("freezer.state", "FROZEN", "THAWED")
        running = victims.ticks(ticks_fd)
        group.set(name, on)
        victims.ticks(ticks_fd)
        frozen = victims.ticks(ticks_fd)
        group.set(name, off)
        again = victims.ticks(ticks_fd)
    assert running > 0 < again, f"{running}, {again} ticks"
    assert frozen == 0, f"{frozen} ticks while frozen"
    return f"{running}, {frozen}, {again} ticks running, frozen, thawed"


def kill(layout: Layout) -> str:
    with layout.group("freezer" if "freezer" in layout.v1 else "any") as group:
        victims.run(group, lambda: victims.bomb(10))
        held = len(group.pids())
        how = group.kill()
    assert held == 10, f"{held} processes"
    if how != "cgroup.kill":
        raise Degraded(f"10 killed by {how}: no cgroup.kill here")
    return "10 killed by cgroup.kill"


def into(layout: Layout) -> str:
    """clone3 straight into a group. Source: clone(2), struct clone_args; Linux 5.7, v2 only."""
    libc = ctypes.CDLL(None, use_errno=True)
    with layout.group("any") as group:
        fd = os.open(group.path, os.O_RDONLY)
        arguments = bytearray(88)
        struct.pack_into("Q", arguments, 0, CLONE_INTO_CGROUP)
        struct.pack_into("Q", arguments, 32, signal.SIGCHLD)
        struct.pack_into("Q", arguments, 80, fd)
        pid = libc.syscall(SYS_CLONE3, (ctypes.c_char * 88).from_buffer(arguments), 88)
        if pid == 0:
            os._exit(7 if os.path.basename(group.path) in read("/proc/self/cgroup") else 8)
        os.close(fd)
        if pid < 0:
            raise OSError(ctypes.get_errno(), "clone3", "clone3(CLONE_INTO_CGROUP)")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 7, f"status {status}"
    return "born inside"


def _set_memory(group: Group, memory_bytes: int, swap_bytes: int = 0) -> None:
    """Bound memory and swap; raises Refused where swap was asked for and cannot be bound."""
    if group.version == 2:
        group.set("memory.max", memory_bytes)
        if swap_bytes or group.has("memory.swap.max"):
            group.set("memory.swap.max", swap_bytes)
        return
    both = group.file("memory.memsw.limit_in_bytes")
    if not os.path.exists(both):
        if swap_bytes:
            raise Refused("no memory.memsw.limit_in_bytes")
        group.set("memory.swappiness", 0)
        group.set("memory.limit_in_bytes", memory_bytes)
        return
    group.set("memory.memsw.limit_in_bytes", -1)  # must not be below the limit while that is being set
    group.set("memory.limit_in_bytes", memory_bytes)
    group.set("memory.memsw.limit_in_bytes", memory_bytes + swap_bytes)


def _oom_kills(group: Group) -> int:
    kills = fields(group.file("memory.events" if group.version == 2 else "memory.oom_control"))["oom_kill"]
    assert kills > 0, "no oom_kill counted"
    return kills


def _peak(group: Group) -> str:
    name = "memory.peak" if group.version == 2 else "memory.max_usage_in_bytes"
    return f"{name} {int(read(group.file(name))) >> 20} MiB" if group.has(name) else f"no {name}"


def _timed(action: Callable[[], int]) -> float:
    started = time.monotonic()
    status = action()
    assert status == 0, f"status {status}"
    return time.monotonic() - started


def _spin_on_first_cpu() -> None:
    os.sched_setaffinity(0, {0})
    victims.spin(3)


CHECKS = {
    "memory": memory,
    "memory-high": memory_high,
    "oom-group": memory_group,
    "swap": swap,
    "pids": pids,
    "cpu": cpu,
    "cpu-weight": cpu_weight,
    "cpuset": cpuset,
    "io": io,
    "hugetlb": hugetlb,
    "freeze": freeze,
    "kill": kill,
    "clone-into": into,
}
