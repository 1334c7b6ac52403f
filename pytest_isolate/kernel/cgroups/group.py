"""One sandbox's cgroup: a directory in each hierarchy it needs, behind one face.

Owns: its directories and file descriptors; limits, live updates, freeze, kill, counters, verdicts, removal.
Refuses: to block in close(): what cannot go at once is handed to the run, which retries.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_isolate.errors import BackendUnavailable, CleanupError, SetupError
from pytest_isolate.kernel import forks
from pytest_isolate.kernel.cgroups import cgroupfs, kernel_log, processes
from pytest_isolate.kernel.cgroups.counters import VERSIONS, Counters
from pytest_isolate.kernel.cgroups.devices import check_huge_pages
from pytest_isolate.kernel.cgroups.evidence import Verdict, throttling, verdicts
from pytest_isolate.kernel.cgroups.processes import Place
from pytest_isolate.kernel.cgroups.settings import Setting, controllers_for
from pytest_isolate.kernel.cgroups.usage import CgroupEvents, CgroupUsage
from pytest_isolate.kernel.cgroups.volunteer import JOIN_FILE
from pytest_isolate.policy import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from pytest_isolate.kernel.cgroups.placement import Branch

_NOTHING = Limits()


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a cgroup with these limits is made: where its directories are, what is written to them, and what ``late``."""

    limits: Limits
    needed: frozenset[str]
    branches: tuple[Branch, ...]
    table: tuple[tuple[Branch, Setting], ...]
    late: tuple[tuple[Branch, Setting], ...] = ()


def table_of(
    branch_of: Mapping[str, Branch], controllers: Collection[str], limits: Limits, old: Limits = _NOTHING
) -> list[tuple[Branch, Setting]]:
    """The files of ``controllers`` to write for new limits over old ones, each with the branch it is in.

    Raises:
        BackendUnavailable, PolicyError: a limit that cannot be.
    """
    if "hugetlb" in controllers:
        check_huge_pages(limits.hugetlb_bytes)
    return [
        (branch_of[name], setting)
        for name in sorted(controllers)
        for setting in VERSIONS[branch_of[name].version].TABLES[name](limits, old)
    ]


class Cgroup:
    """A live cgroup. Context manager: leaving it closes the fds and removes the directories, without waiting.

    Made by ``CgroupManager.create``. In a forked child it is inert: only the process that made it kills and removes.
    """

    __slots__ = (
        "_branch_of",
        "_dir_fd",
        "_forget",
        "_late",
        "_owner",
        "_places",
        "_procs_fds",
        "accounts",
        "counters",
        "limits",
        "name",
    )

    def __init__(self, name: str, branch_of: Mapping[str, Branch], forget: Callable[[str, list[Place]], None]) -> None:
        self.name = name
        self.limits = _NOTHING
        self.accounts = False  # its cost was asked for, and what takes more to read is worth it
        self._forget = forget
        self._branch_of = branch_of
        self._places: dict[int, Place] = {}  # by the branch's fd
        self._dir_fd = -1
        self._procs_fds: tuple[int, ...] | None = None
        self._late: tuple[tuple[Branch, Setting], ...] = ()
        self.counters = Counters(name, branch_of, self._places)
        self._owner = forks.here

    def make(self, recipe: Recipe) -> None:
        """Make the directories and set the limits. On any failure nothing is left.

        Raises:
            SetupError: step ``cgroup <file>``, errno. BackendUnavailable, PolicyError: a limit that cannot be.
        """
        try:
            for branch in recipe.branches:
                self._grow(branch)
            for branch, setting in recipe.table:
                self._write(branch, setting)
            self._late = recipe.late
            self._hold(recipe.limits, recipe.needed)
        except BaseException:
            self.close()
            raise

    def _hold(self, limits: Limits, needed: frozenset[str]) -> None:
        """Note what holds from now on."""
        self.limits, self.counters.limited = limits, needed
        self.counters.huge_pages = tuple(limits.hugetlb_bytes)

    def _grow(self, branch: Branch) -> Place:
        branch.make(self.name)
        place = Place(branch.fd, self.name, branch.version, branch.controllers)
        self._places[branch.fd] = place
        return place

    # Joining

    @property
    def dir_fd(self) -> int:
        """Directory fd of the v2 cgroup, for CLONE_INTO_CGROUP and eBPF; -1 without v2. Ours: do not close."""
        if self._dir_fd < 0:
            for place in self._places.values():
                if place.version == 2:
                    self._dir_fd = self._open_directory(place)
        return self._dir_fd

    def _open_directory(self, place: Place) -> int:
        try:
            return cgroupfs.open_directory(self.name, place.dir_fd)
        except OSError as error:
            raise cgroupfs.fault("open", error, self.name) from error

    @property
    def procs_fds(self) -> tuple[int, ...]:
        """An open file of every v1 directory, for a single-threaded child to write ``0`` to. Ours: do not close.

        The number ``0``, not a pid: only so does the kernel skip its global lock (volunteer.JOIN_FILE).
        """
        if self._procs_fds is None:
            self._procs_fds = tuple(self._open_procs(place) for place in self._places.values() if place.version == 1)
        return self._procs_fds

    def _open_procs(self, place: Place) -> int:
        try:
            return os.open(f"{self.name}/{JOIN_FILE[place.version]}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=place.dir_fd)
        except OSError as error:
            raise cgroupfs.fault(JOIN_FILE[place.version], error, self.name) from error

    def started(self) -> None:
        """Said once the first process is started: what had to wait until it shared nobody's memory is set now.

        Raises:
            SetupError: step ``cgroup <file>``.
        """
        late, self._late = self._late, ()
        for branch, setting in late:
            self._write(branch, setting)

    def release_procs_fds(self) -> None:
        """Close the procs fds once the child has joined; with hundreds of sandboxes at once fds are scarce."""
        fds, self._procs_fds = self._procs_fds or (), None
        for fd in fds:
            with contextlib.suppress(OSError):  # in a child whose descriptors were closed (close_fds)
                os.close(fd)

    def close_descriptors(self) -> None:
        """Close what a child joins by; opened again when asked for."""
        self.release_procs_fds()
        fd, self._dir_fd = self._dir_fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def is_there(self) -> bool:
        """False once one of its directories was removed from outside."""
        return all(cgroupfs.exists(place.dir_fd, place.name) for place in self._places.values())

    # Limits

    def update(self, limits: Limits) -> None:
        """Make ``limits`` the limits of this cgroup, live, all of them or none; those it had and ``limits`` has not are lifted.

        Raises:
            SetupError: step ``cgroup <file>``; EBUSY when v1 memory in use is above the new limit. Those that held hold on.
            BackendUnavailable: a limit whose controller cannot be used here. Nothing is changed.
        """
        needed = controllers_for(limits)
        for name in sorted(needed - self._branch_of.keys()):
            raise BackendUnavailable(
                f"cgroup controller {name}", "it cannot be used here", "see `pytest-isolate doctor`"
            )
        touched = needed | self.counters.limited  # those of the new limits, and of those that held until now
        table = table_of(self._branch_of, touched, limits, self.limits)
        back = table_of(self._branch_of, touched, self.limits, limits)
        for name in touched:
            self._reach(self._branch_of[name], name)
        try:
            for branch, setting in table:
                self._write(branch, setting)
        except SetupError as error:
            if lost := self._written_back(back):
                error.remedy += (
                    f"{'; ' if error.remedy else ''}besides, what held before could not be set again: {lost}"
                )
            raise
        self._hold(limits, needed)

    def _written_back(self, table: list[tuple[Branch, Setting]]) -> str:
        """Write every file of ``table``, whatever the kernel says to others; what it refuses, in words."""
        refused = []
        for branch, setting in table:
            try:
                self._write(branch, setting)
            except SetupError as error:
                refused.append(f"{setting.file} ({error.why})")
        return ", ".join(refused)

    def _write(self, branch: Branch, setting: Setting) -> None:
        value = setting.value or branch.inherited.get(setting.file, "")
        try:
            cgroupfs.write(branch.fd, f"{self.name}/{setting.file}", value)
        except SetupError as error:
            if not (setting.optional and error.errno in cgroupfs.GONE):
                raise

    def _reach(self, branch: Branch, controller: str) -> None:
        """Have a directory where the controller is; a live sandbox's processes are brought along."""
        branch.enable(frozenset({controller}))
        if branch.fd in self._places:
            return
        inside = list(self._places.values())
        place = self._grow(branch)
        self.release_procs_fds()
        while moving := set(processes.pids(inside)) - set(processes.pids([place])) - {0}:
            for pid in moving:
                with contextlib.suppress(SetupError):  # it may have ended; whoever stays is seen in the next round
                    place.write("cgroup.procs", str(pid))
            inside = [p for p in inside if processes.pids([p])]

    # Life

    def pids(self) -> list[int]:
        """Processes of the whole subtree, in our PID namespace's numbers (0: one that has no number there)."""
        return processes.pids(self._places.values())

    def nobody(self) -> bool:
        """True when the kernel counts no process inside; one file, where pids() reads a list per hierarchy."""
        return processes.nobody(self._places.values())

    def freeze(self, deadline_s: float = 2.0) -> bool:
        """Stop every process where it stands. False when this host has no freezer.

        v1's freezer is a hierarchy of its own, which a sandbox joins only now: few are ever frozen.
        """
        if "freezer" in self._branch_of and self._places:
            self._reach(self._branch_of["freezer"], "freezer")
        return processes.freeze(self._places.values(), deadline_s)

    def thaw(self) -> None:
        """Let them go on."""
        processes.thaw(self._places.values())

    def kill(self, deadline_s: float = 5.0) -> None:
        """Kill everything inside and wait until it is empty. The counters stay readable.

        Raises:
            CleanupError: names the processes that were still there at the deadline.
        """
        if self._owner is not forks.here:
            return
        left = processes.kill(self._places.values(), deadline_s)
        if left:
            names = ", ".join(f"pid {pid} ({_command(pid)})" for pid in left)
            raise CleanupError(f"kill of cgroup {self.name}", f"still there after {deadline_s:g} s: {names}")

    # Counters

    def usage(self, *, current: bool = True, pressure: bool = False) -> CgroupUsage:
        """Everything counted, peaks and events. ``current``: what is in use now, of no interest once all is over;
        ``pressure``: the three PSI files of v2. Each file costs some 8 us.
        """
        return self.counters.usage(current=current, pressure=pressure)

    def verdicts(
        self, before: CgroupEvents | None = None, usage: CgroupUsage | None = None, *, surely: bool = False
    ) -> list[Verdict]:
        """What the limits caught since ``before`` (default: since it was made), from ``usage`` or read now.

        With ``usage`` a cgroup that is closed answers, too. ``surely``: see evidence.verdicts.
        """
        start, cost = before or CgroupEvents(), usage or self.usage(current=False)
        killed = None
        if (cost.events.oom_kill or 0) > (start.oom_kill or 0):  # only then is the kernel's log worth reading
            killed = kernel_log.victim(f"/{self._branch_of['memory'].name}/{self.name}")
        return verdicts(start, cost.events, self.limits, usage=cost, victim=killed, surely=surely)

    def throttling(self, usage: CgroupUsage, before: CgroupEvents | None = None) -> str:
        """What the CPU quota cost since ``before`` (default: since it was made), in a line; empty where it cost nothing."""
        return throttling(before or CgroupEvents(), usage.events, self.limits) or ""

    # End

    def close(self, *, later: bool = False) -> None:
        """Close the fds and remove the directories; never waits. What is still held goes when the run next looks.

        ``later``: leave the removal (80 us on v1) to CgroupManager.tidy, called while there is nothing else to do.
        """
        self.close_descriptors()
        places = list(self._places.values())
        self._places.clear()
        if self._owner is not forks.here:
            return
        held = [p for p in reversed(places) if later or not cgroupfs.remove(p.dir_fd, p.name)]
        self._forget(self.name, held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Cgroup {self.name} {'open' if self._places else 'closed'}>"


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"
