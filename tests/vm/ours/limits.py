"""One check per limit of Limits: made by the product, hit by a real process, told by the product's own verdict.

Owns: CHECKS, name -> function of a manager, returning the product's words.
Refuses: to pass on a limit the product said nothing about, and to hide its error: that text is the evidence.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel.cgroups import Cgroup, CgroupEvents, CgroupManager, open_manager, throttling
from pytest_isolate.outcome import Cause
from pytest_isolate.policy import IoLimit, Limits
from tests.kernel.joining import join
from tests.vm.inside import victims
from tests.vm.inside.groups import read
from tests.vm.inside.telling import Refused
from tests.vm.inside.victims import MIB

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups.run import Mode

SCRATCH = "/dev/vm/data"
MAP_HUGETLB = 0x40000


def hit(mode: str, check: Callable[[CgroupManager], str]) -> str:
    """Run ``check`` with a manager of its own; what the product says it cannot do here is Refused in its words."""
    try:
        with open_manager("vm", mode=cast("Mode", mode)) as manager:
            return check(manager)
    except BackendUnavailable as error:
        raise Refused(str(error)) from None


def memory(manager: CgroupManager) -> str:
    with manager.create("memory", Limits(memory_bytes=64 * MIB)) as cgroup:
        assert _run(cgroup, lambda: victims.touch_shared(16 * MIB)) == 0, "control died"
        assert _run(cgroup, lambda: victims.touch_shared(128 * MIB)) == -signal.SIGKILL
        return _verdict(cgroup, Cause.OOM)


def memory_high(manager: CgroupManager) -> str:
    with manager.create("high", Limits(memory_high_bytes=32 * MIB)) as cgroup:
        assert _run(cgroup, lambda: victims.touch(40 * MIB)) == 0
        assert cgroup.verdicts() == []
        high = (cgroup.counters.read("memory", "memory.events") or "high 0").split("high ")[1].split()[0]
    assert int(high) > 0, "never throttled"
    return f"throttled {high} times, no verdict"


def swap(manager: CgroupManager) -> str:
    assert len(read("/proc/swaps").splitlines()) > 1, "no swap in use"
    with manager.create("swap", Limits(memory_bytes=32 * MIB, swap_bytes=96 * MIB)) as cgroup:
        assert _run(cgroup, lambda: victims.touch(64 * MIB)) == 0, "control died: nothing was swapped"
    with manager.create("no-swap", Limits(memory_bytes=32 * MIB, swap_bytes=0)) as cgroup:
        assert _run(cgroup, lambda: victims.touch(64 * MIB)) == -signal.SIGKILL
        return _verdict(cgroup, Cause.OOM)


def pids(manager: CgroupManager) -> str:
    with manager.create("pids", Limits(pids=20)) as cgroup:
        made = _run(cgroup, lambda: os._exit(victims.bomb(60)))
        told = _verdict(cgroup, Cause.PIDS)
        cgroup.kill()
    assert made == 19, f"{made} forks"
    return told


def cpu(manager: CgroupManager) -> str:
    with manager.create("cpu", Limits(cpu_cores=0.2)) as cgroup:
        assert _run(cgroup, lambda: victims.spin(3)) == 0
        usage = cgroup.usage()
        told = throttling(CgroupEvents(), usage.events, cgroup.limits)
    assert told, "no throttling told"
    if usage.cpu_usec is not None:
        assert usage.cpu_usec < 1.05e6, f"used {usage.cpu_usec / 3e6:.2f} cores"
    return told


def cpu_weight(manager: CgroupManager) -> str:
    used = []
    with (
        manager.create("light", Limits(cpu_weight=50)) as light,
        manager.create("heavy", Limits(cpu_weight=400)) as heavy,
    ):
        running = [_start(cgroup, _spin_on_first_cpu) for cgroup in (light, heavy)]
        for pid in running:
            usage = os.wait4(pid, 0)[2]
            used.append(usage.ru_utime + usage.ru_stime)
    ratio = used[1] / used[0]
    assert ratio > 2, f"ratio {ratio:.1f}"
    return f"weights 1:8 on one CPU got 1:{ratio:.1f}"


def cpu_time(manager: CgroupManager) -> str:
    _need_a_place(manager)  # for one process alone RLIMIT_CPU does it; the tree needs a group that counts
    with manager.create("cpu-time", Limits(cpu_time_s=0.5)) as cgroup:
        assert _run(cgroup, lambda: victims.spin(1.5)) == 0
        return _verdict(cgroup, Cause.CPU)


def cpuset(manager: CgroupManager) -> str:
    with manager.create("cpuset", Limits(cpuset="1")) as cgroup:
        allowed = _run(cgroup, lambda: os._exit(10 * len(os.sched_getaffinity(0)) + min(os.sched_getaffinity(0))))
    assert allowed == 11, f"affinity code {allowed}"
    return f"1 of {os.cpu_count()} CPUs, number 1"


def io(manager: CgroupManager) -> str:
    with manager.create("io", Limits(io=(IoLimit(path=SCRATCH, write_bps=MIB),))) as cgroup:
        started = time.monotonic()
        assert _run(cgroup, lambda: victims.write_disk(SCRATCH, 4 * MIB)) == 0
        took_s = time.monotonic() - started
    assert took_s > 2.5, f"{took_s:.2f} s"
    return f"4 MiB at 1 MiB/s took {took_s:.2f} s"


def hugetlb(manager: CgroupManager) -> str:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
    with manager.create("hugetlb", Limits(hugetlb_bytes={"2MB": 2 * MIB})) as cgroup:
        assert _run(cgroup, lambda: victims.touch(2 * MIB, flags)) == 0, "control died"
        assert _run(cgroup, lambda: victims.touch(4 * MIB, flags)) == -signal.SIGBUS
        return _verdict(cgroup, Cause.OOM)


def freeze(manager: CgroupManager) -> str:
    _need_a_place(manager)
    with manager.create("holding", Limits()) as cgroup:
        ticking, end = os.pipe()
        os.set_blocking(ticking, False)
        _start(cgroup, lambda: victims.tick(end))
        running = victims.ticks(ticking)
        if not cgroup.freeze():
            raise Refused("no freezer on this host")
        victims.ticks(ticking)
        frozen = victims.ticks(ticking)
        cgroup.thaw()
        again = victims.ticks(ticking)
        cgroup.kill()
    assert running > 0 < again, f"{running}, {again} ticks"
    assert frozen == 0, f"{frozen} ticks while frozen"
    return f"{running}, {frozen}, {again} ticks running, frozen, thawed"


def kill(manager: CgroupManager) -> str:
    _need_a_place(manager)
    with manager.create("holding", Limits()) as cgroup:
        _run(cgroup, lambda: victims.bomb(10))
        held = len(cgroup.pids())
        started = time.monotonic()
        cgroup.kill()
        took_s = time.monotonic() - started
        left = cgroup.pids()
    assert (held, left) == (10, []), f"{held} held, {left} left"
    return f"10 killed in {took_s * 1000:.0f} ms"


def _need_a_place(manager: CgroupManager) -> None:
    """Refused, in the product's words, where no cgroup can be made: a cgroup without a limit is no error to it."""
    if not manager.branches:
        memory = manager.capabilities()["memory"]
        raise Refused(f"no cgroup can be made: {memory.reason}. {memory.remedy}")


def _start(cgroup: Cgroup, victim: Callable[[], object]) -> int:
    """Fork ``victim`` into ``cgroup`` through every hierarchy it is in; exit status 99 when it raised."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            join(cgroup)
            victim()
            status = 0
        finally:
            os._exit(status)
    return pid


def _run(cgroup: Cgroup, victim: Callable[[], object]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(_start(cgroup, victim), 0)[1])


def _verdict(cgroup: Cgroup, cause: Cause) -> str:
    """The product's line for ``cause``, which must be the only one."""
    told = cgroup.verdicts()
    assert [each for each, _ in told] == [cause], told
    return f"{cause.value}: {told[0][1]}"


def _spin_on_first_cpu() -> None:
    os.sched_setaffinity(0, {0})
    victims.spin(3)


CHECKS: dict[str, Callable[[CgroupManager], str]] = {
    "memory": memory,
    "memory-high": memory_high,
    "swap": swap,
    "pids": pids,
    "cpu": cpu,
    "cpu-weight": cpu_weight,
    "cpu-time": cpu_time,
    "cpuset": cpuset,
    "io": io,
    "hugetlb": hugetlb,
    "freeze": freeze,
    "kill": kill,
}
