"""Who is in a cgroup, and making them stop: list, freeze, kill until empty.

Owns: the subtree's process list, both freezers, and the kill loop for kernels without cgroup.kill (before 5.14).
Refuses: to signal a pid it has not pinned with a pidfd and then seen in the cgroup again: numbers are reused.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel.cgroups import cgroupfs

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Place:
    """One cgroup in one hierarchy: ``name`` relative to the borrowed ``dir_fd``."""

    dir_fd: int
    name: str
    version: int
    controllers: frozenset[str]

    def read(self, file: str) -> str | None:
        return cgroupfs.read(self.dir_fd, f"{self.name}/{file}")

    def write(self, file: str, value: str) -> None:
        cgroupfs.write(self.dir_fd, f"{self.name}/{file}", value)


def pids(places: Iterable[Place]) -> list[int]:
    """Processes of the whole subtree in every hierarchy, sorted. 0 stands for one outside our PID namespace."""
    found: set[int] = set()
    for place in places:
        for name in cgroupfs.subtree(place.dir_fd, place.name):
            found.update(map(int, (cgroupfs.read(place.dir_fd, f"{name}/cgroup.procs") or "").split()))
    return sorted(found)


def nobody(places: Iterable[Place]) -> bool:
    """True when the kernel counts no process in the whole subtree: one file instead of every list of processes.

    v2 says ``populated``; of v1's hierarchies only pids counts, which a process may have left. A zombie still counts
    in pids until it is collected, so False means: look.
    """
    asked = sorted(places, key=lambda place: -place.version)
    for place in asked:
        if place.version == 2:
            return cgroupfs.numbers(place.read("cgroup.events")).get("populated") == 0
        if "pids" in place.controllers:
            return cgroupfs.number(place.read("pids.current")) == 0
    return not asked


def kill(places: Iterable[Place], deadline_s: float) -> list[int]:
    """SIGKILL everything inside, forks included, and wait until it is empty. Returns what is left at the deadline.

    A zombie is dead: it holds no cgroup, and collecting it is its parent's business.
    """
    places = list(places)
    end = time.monotonic() + deadline_s
    pause = 0.0002
    patience = 20 if _kill_at_once(places) else 0
    while left := pids(places):
        if patience <= 0:  # no cgroup.kill here, or a process that left the v2 cgroup but not the others
            _kill_each(places)
        patience -= 1
        if time.monotonic() > end:
            break
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return left


def _kill_at_once(places: list[Place]) -> bool:
    """cgroup.kill, atomic against forks. False where there is none."""
    done = False
    for place in places:
        if place.version == 2:
            with contextlib.suppress(SetupError):
                place.write("cgroup.kill", "1")
                done = True
    return done


def _kill_each(places: list[Place]) -> None:
    with contextlib.ExitStack() as stack:
        _stop_forks(places, stack)
        _signal_all(places)


def _stop_forks(places: list[Place], stack: contextlib.ExitStack) -> None:
    """Hold the tree still while it is killed: freeze it, and forbid forks where there is a pids controller."""
    for place in places:
        if "pids" in place.controllers:
            with contextlib.suppress(SetupError):
                place.write("pids.max", "0")
        with contextlib.suppress(SetupError):
            if _freeze(place, frozen=True):
                # v1 delivers a SIGKILL only to the thawed.
                stack.callback(_thaw_quietly, place)


def _thaw_quietly(place: Place) -> None:
    with contextlib.suppress(SetupError):
        _freeze(place, frozen=False)


def _signal_all(places: list[Place]) -> None:
    pinned: dict[int, int] = {}
    try:
        for pid in pids(places):
            if pid:
                with contextlib.suppress(OSError):
                    pinned[pid] = os.pidfd_open(pid)
        still = set(pids(places)) if pinned else set()
        for pid, pidfd in pinned.items():
            if pid in still and not _ended(pidfd):
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        for pidfd in pinned.values():
            os.close(pidfd)


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def freeze(places: Iterable[Place], deadline_s: float) -> bool:
    """Stop every process where it stands. False when no hierarchy here has a freezer.

    Raises:
        SetupError: ETIMEDOUT, when something (an uninterruptible wait) would not stop in time; it is thawed again.
    """
    frozen = [place for place in places if _freeze(place, frozen=True)]
    end = time.monotonic() + deadline_s
    for place in frozen:
        while not _is_frozen(place):
            if time.monotonic() > end:
                thaw(frozen)
                raise cgroupfs.fault("freeze", TimeoutError(110, "timed out"), place.name)
            time.sleep(0.0005)
    return bool(frozen)


def thaw(places: Iterable[Place]) -> None:
    """Let the processes go on. Fine when nothing is frozen."""
    for place in places:
        _freeze(place, frozen=False)


def _freeze(place: Place, *, frozen: bool) -> bool:
    if place.version == 2:
        file, value = "cgroup.freeze", "1" if frozen else "0"
    elif "freezer" in place.controllers:
        file, value = "freezer.state", "FROZEN" if frozen else "THAWED"
    else:
        return False
    try:
        place.write(file, value)
    except SetupError as error:
        if error.errno in cgroupfs.GONE:  # cgroup.freeze: Linux 5.2
            return False
        raise
    return True


def _is_frozen(place: Place) -> bool:
    if place.version == 2:
        return cgroupfs.numbers(place.read("cgroup.events")).get("frozen") != 0
    return (place.read("freezer.state") or "FROZEN").strip() == "FROZEN"
