"""What a sandbox adds to a fork: os.fork + exit + wait, against native.fork + exit + wait, interleaved in one run.

Usage: python benchmarks/fork_floor.py [--rounds N] [--heaps 0,100,300]
Prints medians in microseconds and the ratio to the bare fork of the same heap. Compare within one run only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import IdMap, MountKind, MountOp, Plan

PID, UTS, IPC, MNT, USER, NET = 0x20000000, 0x04000000, 0x08000000, 0x00020000, 0x10000000, 0x40000000
PRIVATE = MountOp(kind=MountKind.PROPAGATION, target="/", flags=0x4000 | 0x40000)
PROC = MountOp(kind=MountKind.MOUNT, source="proc", target="/proc", fstype="proc", flags=14)
STANDARD = PID | UTS | IPC | MNT


UIDS = (IdMap(inside=os.geteuid(), outside=os.geteuid(), count=1),)
GIDS = (IdMap(inside=os.getegid(), outside=os.getegid(), count=1),)
ROWS = {
    "no namespace": Plan(),
    "monitor": Plan(monitor=True),
    "pid": Plan(namespaces=PID),
    "uts ipc mnt + monitor": Plan(namespaces=UTS | IPC | MNT, mounts=(PRIVATE,), monitor=True),
    "pid uts ipc mnt + /proc": Plan(namespaces=STANDARD, mounts=(PRIVATE, PROC)),
    "... + user": Plan(namespaces=STANDARD | USER, mounts=(PRIVATE, PROC), uid_map=UIDS, gid_map=GIDS),
    "... + user net": Plan(
        namespaces=STANDARD | USER | NET, loopback_up=True, mounts=(PRIVATE, PROC), uid_map=UIDS, gid_map=GIDS
    ),
}


def bare_fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def sandboxed_fork(plan: Plan) -> Callable[[], None]:
    def once() -> None:
        child = native.fork(plan)
        if child is None:
            os._exit(0)
        child.wait()
        child.reap(block=True)
        child.close()

    return once


def usec(operation: Callable[[], None]) -> float:
    begun = time.perf_counter_ns()
    operation()
    return (time.perf_counter_ns() - begun) / 1000


def rows() -> dict[str, Callable[[], None]]:
    """The rows this user may run: a plain user needs the user namespace in each."""
    allowed = {
        name: plan for name, plan in ROWS.items() if os.geteuid() == 0 or not plan.namespaces & ~USER or plan.uid_map
    }
    return {"os.fork": bare_fork, **{name: sandboxed_fork(plan) for name, plan in allowed.items()}}


def measure(rounds: int) -> dict[str, list[float]]:
    operations = rows()
    times: dict[str, list[float]] = {name: [] for name in operations}
    for _ in range(rounds):
        for name, operation in operations.items():
            times[name].append(usec(operation))
    return times


def show(heap_mib: int, times: dict[str, list[float]]) -> None:
    floor = statistics.median(times["os.fork"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{heap_mib:>5} MiB  {name:<26} {median:9.0f} us  {median / floor:6.2f} x  +{median - floor:.0f} us")


def heap(mib: int) -> list[bytes]:
    """Small objects: pages of 4 KiB, as an interpreter's heap has them."""
    return [bytes(1000) for _ in range(mib << 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--heaps", default="0,100,300", help="MiB, separated by commas")
    options = parser.parse_args()
    for mib in map(int, options.heaps.split(",")):
        held = heap(mib)
        show(mib, measure(options.rounds))
        del held


if __name__ == "__main__":
    main()
