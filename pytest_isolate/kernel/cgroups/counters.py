"""Reading what one cgroup has counted, whichever of its directories holds the counter.

Owns: bringing v1's and v2's counters together, and noticing that those of a limit are gone.
Refuses: to write, and to judge what it read (evidence.py).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel.cgroups import cgroupfs, v1, v2
from pytest_isolate.kernel.cgroups.usage import CgroupEvents, CgroupUsage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from pytest_isolate.kernel.cgroups.placement import Branch
    from pytest_isolate.kernel.cgroups.processes import Place

VERSIONS: Mapping[int, ModuleType] = {1: v1, 2: v2}
#: A file that is there as long as the controller is, for limits whose counters we do not read anyway.
_WITNESS = {
    (1, "cpuset"): "cpuset.cpus",
    (2, "cpuset"): "cpuset.cpus",
    (1, "io"): "blkio.throttle.io_serviced",
    (2, "io"): "io.max",
}
#: A counter of _events that is None only when the controller's files are gone.
_COUNTER = {"memory": "oom_kill", "pids": "pids_max", "cpu": "nr_periods", "hugetlb": "hugetlb_max"}


@dataclass(slots=True)
class Counters:
    """The readable side of one cgroup.

    ``places``, by the fd of their branch, is the Cgroup's own dict; ``limited`` are the controllers with a limit,
    ``huge_pages`` the sizes of huge pages with one.
    """

    name: str
    branch_of: Mapping[str, Branch]
    places: Mapping[int, Place]
    limited: frozenset[str] = frozenset()
    huge_pages: tuple[str, ...] = ()

    def read(self, controller: str, file: str) -> str | None:
        """One file of one controller; None where this cgroup has no such directory or file."""
        branch = self.branch_of.get(controller)
        if branch is None or branch.fd not in self.places:
            return None
        return cgroupfs.read(branch.fd, f"{self.name}/{file}")

    def _inner(self, controller: str) -> list[v1.Reader]:
        """Readers of the cgroups that the sandbox made inside its own."""
        branch = self.branch_of[controller]
        inside = list(cgroupfs.subtree(branch.fd, self.name))[1:]

        def reader(name: str) -> v1.Reader:
            return lambda _, file: cgroupfs.read(branch.fd, f"{name}/{file}")

        return [reader(name) for name in inside]

    def _version(self, controller: str) -> int:
        """1 or 2; 0 where this cgroup has no directory for the controller."""
        branch = self.branch_of.get(controller)
        return branch.version if branch is not None and branch.fd in self.places else 0

    def _v2_place(self) -> Place | None:
        return next((place for place in self.places.values() if place.version == 2), None)

    def events(self) -> CgroupEvents:
        """The counters that verdicts compare."""
        v2_place = self._v2_place()
        return self._events(cgroupfs.numbers(v2_place.read("cpu.stat")) if v2_place else {}, None)

    def _events(self, stat: dict[str, int], cpu_usec: int | None) -> CgroupEvents:
        """``stat``: v2's cpu.stat, read once for both its uses."""
        seen: dict[str, Any] = {"cpu_usec": stat.get("usage_usec", cpu_usec)}
        match self._version("memory"):
            case 1:
                seen |= v1.memory_events(self.read, self._inner("memory"))
            case 2:
                seen |= v2.memory_events(self.read)
        if version := self._version("pids"):
            seen |= VERSIONS[version].pids_events(self.read, self._inner("pids"))
        if self.huge_pages and (version := self._version("hugetlb")):
            seen |= VERSIONS[version].hugetlb_events(self.read, self.huge_pages)
        match self._version("cpu"):
            case 1:
                seen |= v1.throttling(self.read)
            case 2:
                seen |= v2.throttling(stat)
        if seen["cpu_usec"] is None:
            seen |= {"cpu_usec": v1.cpu(self.read)["cpu_usec"]}
        return CgroupEvents(**seen, lost=self._lost(seen))

    def _lost(self, seen: dict[str, Any]) -> tuple[str, ...]:
        """Controllers we set limits of, whose files are not there any more."""
        gone = []
        for name in sorted(self.limited):
            if name in _COUNTER:
                here = seen.get(_COUNTER[name]) is not None
            else:
                witness = _WITNESS.get((self._version(name), name))
                here = witness is None or self.read(name, witness) is not None
            gone += [] if here else [name]
        return tuple(gone)

    def usage(self, *, current: bool = True, pressure: bool = False) -> CgroupUsage:
        """Everything counted, peaks and events. ``current``: what is in use now, of no interest once all is over;
        ``pressure``: the three PSI files of v2. Each file costs some 8 us.
        """
        v2_place = self._v2_place()
        stat = cgroupfs.numbers(v2_place.read("cpu.stat")) if v2_place else {}
        counted: dict[str, Any] = v2.cpu(stat) if stat else v1.cpu(self.read)
        if version := self._version("memory"):
            counted |= VERSIONS[version].memory(self.read, current=current)
        if version := self._version("io"):
            counted |= VERSIONS[version].io(self.read)
        if self._version("pids"):
            counted["pids"] = cgroupfs.number(self.read("pids", "pids.current")) if current else None
            counted["pids_peak"] = cgroupfs.number(self.read("pids", "pids.peak"))  # Linux 6.1
        if pressure and v2_place:
            for name in ("memory", "cpu", "io"):
                counted[f"{name}_pressure"] = v2.pressure(_pressure_text(v2_place, name))
        return CgroupUsage(**counted, events=self._events(stat, counted["cpu_usec"]))


def _pressure_text(place: Place, name: str) -> str | None:
    with contextlib.suppress(SetupError):
        return place.read(f"{name}.pressure")
    return None
