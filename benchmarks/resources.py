"""What limits, accounting and teardown of a cgroup cost per sandbox, over the same start without them.

    python benchmarks/resources.py [--rounds 600] [--sequential 10000] [--at-once 200] [--gap-ms 0 5]

Owns: A/B runs interleaved one by one, so that a busy neighbour hurts both alike; medians and 99th percentiles; the
growth over many sandboxes, and what is left behind. Refuses: to print a figure it did not measure in this run.
The child is /bin/true through the C library; v2 joins by CLONE_INTO_CGROUP, v1 by the child's writes. The floor is
mkdir, one write per limit, and rmdir of the same directories, straight: what the kernel asks for them. On an emulated
machine (python -m tests.vm --run ...) only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import resource
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pytest_isolate.errors import IsolateError
from pytest_isolate.groups import Groups
from pytest_isolate.kernel import native
from pytest_isolate.kernel.cgroups import Cgroup, CgroupManager, open_manager
from pytest_isolate.kernel.plan import Plan
from pytest_isolate.policy import Limits
from pytest_isolate.running import Running
from pytest_isolate.sandbox import Sandbox

PLAN = Plan()
NAME = "gw0-test_module.py::test_function"
#: What the first runs of a process cost more (caches, lazy imports) is no part of a growth.
WARM_UP = 200
LIMITS: dict[str, dict[str, int | float]] = {
    "memory": {"memory_bytes": 2**28},
    "pids": {"pids": 50},
    "cpu": {"cpu_cores": 1.0},
}


def start(cgroup: Cgroup | None) -> native.Child:
    """Start /bin/true with and without a cgroup: the same vfork-style clone3 and exec."""
    return native.spawn(PLAN, ["/bin/true"], {}, joined=None if cgroup is None else _joined(cgroup))


def _joined(cgroup: Cgroup) -> native.Joined:
    return native.Joined(dir_fd=cgroup.dir_fd, procs_fds=cgroup.procs_fds)


def finish(child: native.Child) -> None:
    with child:
        ended = child.wait(30)
    assert ended is not None
    assert ended.status.code == 0


def plain() -> None:
    finish(start(None))


def sandboxed(manager: CgroupManager, limits: Limits, *, later: bool, marks: list[int] | None = None) -> None:
    """One sandbox's whole life, in the order a runner goes through it."""
    mark = marks.append if marks is not None else _ignore
    mark(time.perf_counter_ns())
    cgroup = manager.create(NAME, limits)
    mark(time.perf_counter_ns())
    child = start(cgroup)
    cgroup.started()
    finish(child)
    mark(time.perf_counter_ns())
    usage = cgroup.usage(current=False)
    assert cgroup.verdicts(usage=usage) == []
    mark(time.perf_counter_ns())
    cgroup.close(later=later)
    mark(time.perf_counter_ns())


def floor(manager: CgroupManager, limits: Limits) -> None:
    """Make, limit and remove the same directories, with nothing around the system calls."""
    recipe = manager.recipe(limits)
    for branch in recipe.branches:
        os.mkdir("floor", dir_fd=branch.fd)
    for branch, setting in (*recipe.table, *recipe.late):
        fd = os.open(f"floor/{setting.file}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=branch.fd)
        os.write(fd, setting.value.encode())
        os.close(fd)
    for branch in recipe.branches:
        os.rmdir("floor", dir_fd=branch.fd)


def beside(manager: CgroupManager, limits: Limits) -> tuple[float, float]:
    """As sandbox.run does it from the second run on: made and removed while another program runs, which the clock does not
    see, but the CPU time does.
    """
    cpu = cpu_us()
    manager.make_ready(NAME, limits)
    wall, _ = timed(sandboxed, manager, limits, later=True)
    manager.tidy()
    return wall, cpu_us() - cpu


def _ignore(_: int) -> None:
    pass


def cpu_us() -> float:
    """CPU time of this process and of the children it has waited for: what a busy neighbour does not lengthen."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() / 1000 + (children.ru_utime + children.ru_stime) * 1e6


def timed(work: Callable[..., object], *arguments: object, **options: object) -> tuple[float, float]:
    """Microseconds by the clock, and of CPU time."""
    cpu, begin = cpu_us(), time.perf_counter_ns()
    work(*arguments, **options)
    return (time.perf_counter_ns() - begin) / 1000, cpu_us() - cpu


def show(name: str, costs: list[tuple[float, float]], base: list[tuple[float, float]]) -> None:
    """One line: median and p99 over ``base``, by the clock and in CPU time."""
    cells: list[float] = []
    for mine, other in zip(zip(*costs, strict=True), zip(*base, strict=True), strict=True):
        cells += [statistics.median(mine) - statistics.median(other), p99(mine) - p99(other)]
    print(f"  {name:32} {cells[0]:8.0f} {cells[1]:9.0f} {cells[2]:8.0f} {cells[3]:9.0f}")


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def usable(mode: str) -> Iterator[tuple[CgroupManager, Limits, str]]:
    """The manager of a mode with as many of the three limits as this host has there, and a label that says so."""
    try:
        manager = open_manager("bench", mode=mode)  # type: ignore[arg-type]
    except IsolateError as error:
        print(f"{mode}: not measured: {error}")
        return
    with manager:
        there = [name for name in LIMITS if manager.capabilities()[name].available]
        asked: dict[str, int | float] = {}
        for name in there:
            asked.update(LIMITS[name])
        kinds = (
            "hybrid: v1 limits, v2 kill, freeze and CPU time"
            if mode == "auto" and manager.layout.kind == "hybrid"
            else mode
        )
        yield manager, Limits(**asked), f"{kinds}, {' + '.join(there) or 'no controllers on this host'}"  # type: ignore[arg-type]


def added(mode: str, rounds: int, gap_s: float) -> None:
    for manager, limits, label in usable(mode):
        without, with_it, lagging, phases, least = [], [], [], [], []
        for _ in range(rounds):
            least.append(timed(floor, manager, limits))
            time.sleep(gap_s)
            without.append(timed(plain))
            time.sleep(gap_s)
            marks: list[int] = []
            with_it.append(timed(sandboxed, manager, limits, later=False, marks=marks))
            phases.append([(b - a) / 1000 for a, b in itertools.pairwise(marks)])
            time.sleep(gap_s)
            lagging.append(beside(manager, limits))
        create, run, read, close = (statistics.median(column) for column in zip(*phases, strict=True))
        join = run - statistics.median(wall for wall, _ in without)
        print(f"{label}; {gap_s * 1000:g} ms between sandboxes")
        print(f"  {'us':32} {'by the clock':>18} {'CPU time':>18}")
        print(f"  {'':32} {'median':>8} {'p99':>9} {'median':>8} {'p99':>9}")
        show("the same start without", without, [(0.0, 0.0)])
        show("added", with_it, without)
        show("added, made ready, removed later", lagging, without)
        show("floor: mkdir, write, rmdir", least, [(0.0, 0.0)])
        cost, base, bare = (statistics.median(cpu for _, cpu in column) for column in (with_it, without, least))
        print(f"  added, CPU time: {(cost - base) / base:.2f} of a bare start, {(cost - base) / bare:.2f} of the floor")
        print(
            f"  of it create+limits {create:.0f}, join {join:.0f}, usage+verdict {read:.0f}, close {close:.0f} (clock)"
        )


class Runs:
    """sandbox.run of /bin/true, the whole path: with limits, accounting and verdicts, or without a cgroup."""

    def __init__(self, mode: str, words: Mapping[str, Any]) -> None:
        self._groups = Groups(mode, "bench-run")
        self._box = Sandbox(name="bench", cgroups=self._groups)
        self._words = words

    def without(self) -> None:
        assert self._box.run(["/bin/true"]).ok

    def limited(self) -> None:
        outcome = self._box.run(["/bin/true"], **self._words)
        assert outcome.ok
        assert outcome.usage.cgroup_memory_peak_bytes is not None

    def start(self) -> Running:
        return self._box.spawn(["/bin/sleep", "600"], **self._words)

    @property
    def manager(self) -> CgroupManager:
        return self._groups.manager()

    def __enter__(self) -> Runs:  # noqa: PYI034 (typing.Self is newer than Python 3.10)
        return self

    def __exit__(self, *_: object) -> None:
        self._box.close()
        self._groups.close()


def runs_there(mode: str) -> Iterator[tuple[Runs, str]]:
    """The runs of a mode with as many of the three limits as this host has there."""
    words = {"memory": "256M", "pids": 50, "cpu": 1.0}
    for manager, _, label in usable(mode):
        there = {name: value for name, value in words.items() if manager.capabilities()[name].available}
        if "memory" not in there:
            print(f"sandbox.run, {label}: not measured, nothing to hold")
            continue
        with Runs(mode, there) as runs:
            yield runs, label


def whole(mode: str, rounds: int) -> None:
    """What the limits add to sandbox.run, from the call to the Outcome."""
    for runs, label in runs_there(mode):
        without, with_it = [], []
        for _ in range(10):
            runs.without()
            runs.limited()
        for _ in range(rounds):
            without.append(timed(runs.without))
            with_it.append(timed(runs.limited))
        print(f"sandbox.run, {label}")
        show("sandbox.run without limits", without, [(0.0, 0.0)])
        show("added", with_it, without)


def whole_growth(mode: str, count: int) -> None:
    for runs, label in runs_there(mode):
        for _ in range(WARM_UP):
            runs.limited()
        runs.manager.drop_ready()
        fds = len(os.listdir("/proc/self/fd"))
        costs, bases = [], []
        for number in range(count):
            if number < 100 or number >= count - 100:
                bases.append(timed(runs.without)[1])
            costs.append(timed(runs.limited)[1])
        print(f"sandbox.run, {label}; {count} one after another, CPU time of the whole")
        print(grown(costs, bases))
        print(
            f"  left: {remaining(runs.manager)} cgroups, {len(os.listdir('/proc/self/fd')) - fds} descriptors, {zombies()} zombies"
        )


def whole_at_once(mode: str, count: int) -> None:
    for runs, label in runs_there(mode):
        runs.limited()
        fds, begin = len(os.listdir("/proc/self/fd")), time.perf_counter()
        running = [runs.start() for _ in range(count)]
        made_s = time.perf_counter() - begin
        for one in running:
            assert one.terminate(signal.SIGKILL).usage.cgroup_memory_peak_bytes is not None
        print(f"sandbox.spawn, {label}; {count} at once")
        print(f"  made in {made_s * 1e6 / count:.0f} us each")
        print(
            f"  left: {remaining(runs.manager)} cgroups, {len(os.listdir('/proc/self/fd')) - fds} descriptors, {zombies()} zombies"
        )


def zombies() -> int:
    """Children of ours that have ended and nobody has collected."""
    found = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
            found += state == "Z" and int(parent) == os.getpid()
    return found


def grown(costs: Sequence[float], bases: Sequence[float]) -> str:
    """The first hundred and the last, each in microseconds and over the plain starts beside it; the growth is of the latter."""
    ends = []
    for part in (slice(None, 100), slice(-100, None)):
        cost, base = statistics.median(costs[part]), statistics.median(bases[part])
        ends.append((cost, cost / base))
    (first, first_ratio), (last, last_ratio) = ends
    return (
        f"  first hundred {first:.0f} us, {first_ratio:.3f} of the start without; last hundred {last:.0f} us, "
        f"{last_ratio:.3f}: {100 * (last_ratio / first_ratio - 1):+.1f} %"
    )


def growth(mode: str, count: int) -> None:
    for manager, limits, label in usable(mode):
        fds = len(os.listdir("/proc/self/fd"))
        # The plain start goes along, so that a neighbour's load does not pass for growth; and CPU time is compared.
        costs, bases = [], []
        for _ in range(WARM_UP + count):
            bases.append(timed(plain)[1])
            costs.append(timed(sandboxed, manager, limits, later=False)[1] - bases[-1])
        print(f"{label}; {count} one after another, CPU time added")
        print(grown(costs[WARM_UP:], bases[WARM_UP:]))
        print(
            f"  left: {remaining(manager)} cgroups, {len(os.listdir('/proc/self/fd')) - fds} descriptors{dying(manager)}"
        )


def dying(manager: CgroupManager) -> str:
    """Cgroups that are removed and not yet freed by the kernel, of this run; v2 alone counts them."""
    for branch in manager.branches:
        if branch.version == 2:
            with open(f"{branch.path}/cgroup.stat", encoding="ascii") as file:
                return f", {dict(line.split() for line in file)['nr_dying_descendants']} dying cgroups"
    return ""


def at_once(mode: str, count: int) -> None:
    for manager, limits, label in usable(mode):
        fds, memory = len(os.listdir("/proc/self/fd")), kernel_kib()
        begin = time.perf_counter()
        alive = [manager.create("gw0-many", limits) for _ in range(count)]
        memory = kernel_kib() - memory  # the shorter the time between the two looks, the less others come in between
        children = []
        for cgroup in alive:
            children.append(start(cgroup))
            cgroup.started()
            cgroup.release_procs_fds()
        made_s = time.perf_counter() - begin
        for child in children:
            finish(child)
        for cgroup in alive:
            cgroup.close()
        print(f"{label}; {count} at once")
        print(f"  made in {made_s * 1e6 / count:.0f} us each; kernel memory of a cgroup {memory / count:.0f} KiB")
        print(f"  left: {remaining(manager)} cgroups, {len(os.listdir('/proc/self/fd')) - fds} descriptors")


def remaining(manager: CgroupManager) -> int:
    manager.drop_ready()
    manager.tidy()
    return sum(entry.is_dir() for branch in manager.branches for entry in os.scandir(branch.path))


def kernel_kib() -> int:
    """Slab and per-CPU memory of the kernel: what cgroups are made of."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(("Slab:", "Percpu:")))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--sequential", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--gap-ms", type=float, nargs="*", default=[0, 5])
    parser.add_argument("--modes", nargs="*", default=["v1", "v2", "auto"])
    parser.add_argument("--markdown", action="store_true", help="for docs/PERFORMANCE.md")
    chosen = parser.parse_args()
    load, cpus = os.getloadavg()[0], os.cpu_count()
    print(f"{time.strftime('%Y-%m-%d')}, load average {load:.1f} on {cpus} CPUs, Linux {os.uname().release}")
    print("\n```text" if chosen.markdown else "", flush=True)
    for mode in chosen.modes:
        for gap_ms in chosen.gap_ms:
            added(mode, chosen.rounds, gap_ms / 1000)
        growth(mode, chosen.sequential)
        at_once(mode, chosen.at_once)
        whole(mode, chosen.rounds)
        whole_growth(mode, chosen.sequential)
        whole_at_once(mode, chosen.at_once)
    print("```" if chosen.markdown else "")


if __name__ == "__main__":
    main()
