"""cgroup v2: which file takes which limit, and where the counters are.

Owns: the v2 table of limits, and reading v2 counters of one cgroup's directory.
Refuses: I/O of its own; it is handed a reader. Source: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_isolate.kernel.cgroups.cgroupfs import number, numbers
from pytest_isolate.kernel.cgroups.devices import whole_disk
from pytest_isolate.kernel.cgroups.settings import Setting, Table, cpu_quota
from pytest_isolate.kernel.cgroups.usage import Pressure
from pytest_isolate.policy import IoLimit, Limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_isolate.kernel.cgroups.v1 import Reader

#: Written to a throw-away cgroup to see whether we may: each asks for what is so anyway.
NEUTRAL = {
    "memory": ("memory.max", "max"),
    "pids": ("pids.max", "max"),
    "cpu": ("cpu.max", "max"),
    "cpuset": ("cpuset.cpus", "\n"),
    "freezer": ("cgroup.freeze", "0"),
}
_IO_KEYS = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


def _memory(limits: Limits, old: Limits) -> list[Setting]:
    table: list[Setting] = []
    if limits.memory_bytes and not old.memory_bytes:
        # One process killed and the rest left to misbehave tells nobody anything: the group goes as one. Linux 4.19.
        # A group's kill does not pass over a process in its vfork, and takes along whoever shares a memory: the caller.
        table.append(Setting("memory", "memory.oom.group", "1", optional=True, late=True))
    swap, swap_before = _swap(limits), _swap(old)
    if swap != swap_before:
        table.append(Setting("memory", "memory.swap.max", swap, optional=limits.swap_bytes is None))
    if limits.memory_high_bytes or old.memory_high_bytes:
        table.append(Setting("memory", "memory.high", str(limits.memory_high_bytes or "max")))
    if limits.memory_bytes or old.memory_bytes:
        table.append(Setting("memory", "memory.max", str(limits.memory_bytes or "max")))
    return table


def _swap(limits: Limits) -> str:
    """A memory limit means memory: without a word on swap there is none, or the limit would only move pages out."""
    if limits.swap_bytes is not None:
        return str(limits.swap_bytes)
    return "0" if limits.memory_bytes else "max"


def _cpu(limits: Limits, old: Limits) -> list[Setting]:
    table: list[Setting] = []
    if limits.cpu_cores:
        quota, period = cpu_quota(limits.cpu_cores)
        table.append(Setting("cpu", "cpu.max", f"{quota} {period}"))
    elif old.cpu_cores:
        table.append(Setting("cpu", "cpu.max", "max"))
    if limits.cpu_weight or old.cpu_weight:
        table.append(Setting("cpu", "cpu.weight", str(limits.cpu_weight or 100)))
    return table


def _io(limits: Limits, old: Limits) -> list[Setting]:
    wanted = {whole_disk(limit.path): _io_line(IoLimit(path=limit.path)) for limit in old.io}
    wanted |= {whole_disk(limit.path): _io_line(limit) for limit in limits.io}
    return [Setting("io", "io.max", f"{device} {line}") for device, line in wanted.items()]


def _io_line(limit: IoLimit) -> str:
    values = ((key, getattr(limit, name)) for name, key in _IO_KEYS.items())
    return " ".join(f"{key}={'max' if value is None else value}" for key, value in values)


def _hugetlb(limits: Limits, old: Limits) -> list[Setting]:
    wanted = dict.fromkeys(old.hugetlb_bytes, "max") | {s: str(v) for s, v in limits.hugetlb_bytes.items()}
    return [Setting("hugetlb", f"hugetlb.{size}.max", value) for size, value in wanted.items()]


def _pids(limits: Limits, old: Limits) -> list[Setting]:
    return [Setting("pids", "pids.max", str(limits.pids or "max"))] if limits.pids or old.pids else []


def _cpuset(limits: Limits, old: Limits) -> list[Setting]:
    return [Setting("cpuset", "cpuset.cpus", limits.cpuset or "\n")] if limits.cpuset or old.cpuset else []


#: By controller: the files to write for new limits over old ones (``Limits()`` for a new cgroup).
TABLES: Mapping[str, Table] = {
    "memory": _memory,
    "pids": _pids,
    "cpu": _cpu,
    "cpuset": _cpuset,
    "io": _io,
    "hugetlb": _hugetlb,
}


def memory_events(read: Reader) -> dict[str, int | None]:
    """memory.events, which counts the whole subtree."""
    counted = numbers(read("memory", "memory.events"))
    return {"oom": counted.get("oom"), "oom_kill": counted.get("oom_kill"), "memory_max": counted.get("max")}


def pids_events(read: Reader, inner: list[Reader]) -> dict[str, int | None]:
    """Forks refused. Before Linux 6.11 counted where the forker was, so the subtree's greatest is nearest the truth."""
    counts = [numbers(each("pids", "pids.events")).get("max") for each in (read, *inner)]
    known = [count for count in counts if count is not None]
    return {"pids_max": max(known) if known else None}


def hugetlb_events(read: Reader, sizes: Iterable[str]) -> dict[str, int | None]:
    """Huge pages refused, of all ``sizes`` together, in the whole subtree."""
    counts = [numbers(read("hugetlb", f"hugetlb.{size}.events")).get("max") for size in sizes]
    return {"hugetlb_max": None if None in counts else sum(filter(None, counts))}


def throttling(stat: dict[str, int]) -> dict[str, int | None]:
    """The CPU quota's counters out of cpu.stat; absent without the cpu controller."""
    return {name: stat.get(name) for name in ("nr_periods", "nr_throttled", "throttled_usec")}


def cpu(stat: dict[str, int]) -> dict[str, int | None]:
    """CPU time out of cpu.stat, which every v2 cgroup has, with the cpu controller or without."""
    names = {"cpu_usec": "usage_usec", "cpu_user_usec": "user_usec", "cpu_system_usec": "system_usec"}
    return {field: stat.get(name) for field, name in names.items()}


def memory(read: Reader, *, current: bool) -> dict[str, int | None]:
    """Memory now and at most. Peaks: memory Linux 5.19, swap 6.5; no such file, no figure."""
    return {
        "memory_bytes": number(read("memory", "memory.current")) if current else None,
        "memory_peak_bytes": number(read("memory", "memory.peak")),
        "swap_peak_bytes": number(read("memory", "memory.swap.peak")),
    }


def io(read: Reader) -> dict[str, int | None]:
    """Sum io.stat over all devices; a present but empty file means zero."""
    text = read("io", "io.stat")
    if text is None:
        return {}
    total = {"rbytes": 0, "wbytes": 0, "rios": 0, "wios": 0}
    for key, _, value in (word.partition("=") for line in text.splitlines() for word in line.split()[1:]):
        if key in total:
            total[key] += int(value)
    names = {"io_read_bytes": "rbytes", "io_write_bytes": "wbytes", "io_read_ops": "rios", "io_write_ops": "wios"}
    return {field: total[key] for field, key in names.items()}


def pressure(text: str | None) -> Pressure | None:
    """A ``*.pressure`` file: ``some avg10=0.00 ... total=12``. None where PSI is off (EOPNOTSUPP) or absent."""
    if not text:
        return None
    totals = {line.split(" ", 1)[0]: int(line.rpartition("total=")[2]) for line in text.splitlines()}
    return Pressure(some_usec=totals.get("some", 0), full_usec=totals.get("full", 0))
