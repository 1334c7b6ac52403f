"""What a cgroup has counted: plain values, None where this host or this cgroup does not count it.

Owns: CgroupEvents (what verdicts compare) and CgroupUsage (what reports print).
Refuses: I/O; v1.py and v2.py read.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupEvents:
    """Counters that only grow; a new cgroup's are all zero, so ``CgroupEvents()`` is the state before.

    Attributes:
        oom: times the memory limit was hit and nothing could be reclaimed (v2 only; v1 does not count it).
        oom_kill: processes of this cgroup killed by the OOM killer, ours or that of a cgroup above.
        memory_max: times usage was pushed against the limit (v2 ``max``, v1 both failcnt, and only after a kill).
        pids_max: forks refused. cpu_usec: CPU time of all processes together.
        hugetlb_max: huge pages refused (where there is a limit on them).
        nr_periods, nr_throttled, throttled_usec: the CPU quota's periods, those cut short, and time lost.
        lost: controllers with a limit whose files are gone: the limit does not hold any more.
    """

    oom: int | None = 0
    oom_kill: int | None = 0
    memory_max: int | None = 0
    pids_max: int | None = 0
    hugetlb_max: int | None = 0
    cpu_usec: int | None = 0
    nr_periods: int | None = 0
    nr_throttled: int | None = 0
    throttled_usec: int | None = 0
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """Pressure stall information: microseconds in which some, or all, processes waited for a resource."""

    some_usec: int = 0
    full_usec: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupUsage:
    """What the sandbox cost as a group. Bytes, microseconds, counts; None: not counted here."""

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    swap_peak_bytes: int | None = None
    cpu_usec: int | None = None
    cpu_user_usec: int | None = None
    cpu_system_usec: int | None = None
    pids: int | None = None
    pids_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    io_read_ops: int | None = None
    io_write_ops: int | None = None
    memory_pressure: Pressure | None = None
    cpu_pressure: Pressure | None = None
    io_pressure: Pressure | None = None
    events: CgroupEvents = field(default_factory=CgroupEvents)
