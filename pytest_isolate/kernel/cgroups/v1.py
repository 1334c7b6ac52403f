"""cgroup v1: which file takes which limit, and where the counters are.

Owns: the v1 table of limits, and reading v1 counters of one cgroup's directories.
Refuses: what v1 cannot enforce (memory_high, swap alone), by an error that says so. Source: cgroup-v1/*.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel.cgroups.cgroupfs import number, numbers
from pytest_isolate.kernel.cgroups.devices import whole_disk
from pytest_isolate.kernel.cgroups.settings import CPU_PERIOD_USEC, Setting, Table, cpu_quota

if TYPE_CHECKING:
    from pytest_isolate.policy import IoLimit, Limits

#: Written to a throw-away cgroup to see whether we may: each asks for what is so anyway.
NEUTRAL = {
    "memory": ("memory.limit_in_bytes", "-1"),
    "pids": ("pids.max", "max"),
    "cpu": ("cpu.cfs_quota_us", "-1"),
    "freezer": ("freezer.state", "THAWED"),
}
#: What one file answers, given controller and file name; None where it is not there.
Reader = Callable[[str, str], "str | None"]
#: The longest clock tick there is (CONFIG_HZ=100).
_TICK_NS = 10_000_000
_MEMORY, _MEMSW = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
_THROTTLE = {"read_bps": "read_bps", "write_bps": "write_bps", "read_iops": "read_iops", "write_iops": "write_iops"}


def _memory(limits: Limits, old: Limits) -> list[Setting]:
    if limits.memory_high_bytes:
        raise BackendUnavailable("memory_high_bytes", "cgroup v1 has no such limit", "use a host with cgroup v2")
    if limits.memory_bytes is None:
        if limits.swap_bytes is not None:
            raise BackendUnavailable("swap_bytes", "cgroup v1 limits memory and swap together", "set memory_bytes too")
        lifted = [Setting("memory", _MEMSW, "-1", optional=True), Setting("memory", _MEMORY, "-1")]
        return lifted if old.memory_bytes else []
    both = limits.memory_bytes + (limits.swap_bytes or 0)
    low = Setting("memory", _MEMORY, str(limits.memory_bytes))
    high = Setting("memory", _MEMSW, str(both), optional=limits.swap_bytes is None)
    # memsw may never be below memory: grow it first, shrink it last.
    return [high, low] if old.memory_bytes and both > old.memory_bytes + (old.swap_bytes or 0) else [low, high]


def _pids(limits: Limits, old: Limits) -> list[Setting]:
    if limits.pids or old.pids:
        return [Setting("pids", "pids.max", str(limits.pids or "max"))]
    return []


def _cpu(limits: Limits, old: Limits) -> list[Setting]:
    table: list[Setting] = []
    if limits.cpu_cores:
        quota, period = cpu_quota(limits.cpu_cores)
        if period != CPU_PERIOD_USEC or old.cpu_cores:
            table.append(Setting("cpu", "cpu.cfs_period_us", str(period)))
        table.append(Setting("cpu", "cpu.cfs_quota_us", str(quota)))
    elif old.cpu_cores:
        table.append(Setting("cpu", "cpu.cfs_quota_us", "-1"))
        if cpu_quota(old.cpu_cores)[1] != CPU_PERIOD_USEC:  # the next quota is written for the usual one
            table.append(Setting("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_USEC)))
    if limits.cpu_weight or old.cpu_weight:
        table.append(Setting("cpu", "cpu.shares", str(shares(limits.cpu_weight or 100))))
    return table


def shares(weight: int) -> int:
    """cpu.shares for a v2 weight, default to default (100 is 1024). Source: systemd cgroup_cpu_weight_to_shares."""
    return max(2, min(262144, weight * 1024 // 100))


def _io(limits: Limits, old: Limits) -> list[Setting]:
    table = [setting for limit in limits.io for setting in _throttle(limit)]
    kept = {(s.file, s.value.split()[0]) for s in table}
    lifted = (s for limit in old.io for s in _throttle(limit))
    dropped = [(s.file, s.value.split()[0]) for s in lifted if (s.file, s.value.split()[0]) not in kept]
    return [*table, *(Setting("io", file, f"{device} 0") for file, device in dropped)]


def _throttle(limit: IoLimit) -> list[Setting]:
    device = whole_disk(limit.path)
    values = {name: getattr(limit, name) for name in _THROTTLE}
    return [
        Setting("io", f"blkio.throttle.{_THROTTLE[name]}_device", f"{device} {value}")
        for name, value in values.items()
        if value is not None
    ]


def _hugetlb(limits: Limits, old: Limits) -> list[Setting]:
    wanted = dict.fromkeys(old.hugetlb_bytes, "-1") | {s: str(v) for s, v in limits.hugetlb_bytes.items()}
    return [Setting("hugetlb", f"hugetlb.{size}.limit_in_bytes", value) for size, value in wanted.items()]


def _cpuset(limits: Limits, old: Limits) -> list[Setting]:
    """Dropped from a live cgroup it is empty, for which the writer puts what the run's directory has."""
    return [Setting("cpuset", "cpuset.cpus", limits.cpuset or "")] if limits.cpuset or old.cpuset else []


#: By controller: the files to write for new limits over old ones (``Limits()`` for a new cgroup).
TABLES: Mapping[str, Table] = {
    "memory": _memory,
    "pids": _pids,
    "cpu": _cpu,
    "cpuset": _cpuset,
    "io": _io,
    "hugetlb": _hugetlb,
}

# Counters. v1 counts an event only in the cgroup where it happened; ``inner`` are the readers of those further in.


def memory_events(read: Reader, inner: list[Reader]) -> dict[str, int | None]:
    """oom_kill over the whole subtree (``inner``: its cgroups); only after a kill, how often the limit was hit.

    Which of the two counters moves depends on which limit is lower: without swap memsw is as low, and asked first.
    """
    kills = [numbers(each("memory", "memory.oom_control")).get("oom_kill") for each in (read, *inner)]
    known = [count for count in kills if count is not None]  # oom_kill: Linux 4.13
    hits = None
    if sum(known):
        hits = sum(number(read("memory", f"memory.{which}failcnt")) or 0 for which in ("", "memsw."))
    return {"oom": None, "oom_kill": sum(known) if known else None, "memory_max": hits}


def pids_events(read: Reader, inner: list[Reader]) -> dict[str, int | None]:
    """Forks refused: counted where the forker was, so over the whole subtree."""
    counts = [numbers(each("pids", "pids.events")).get("max") for each in (read, *inner)]
    known = [count for count in counts if count is not None]
    return {"pids_max": sum(known) if known else None}


def hugetlb_events(read: Reader, sizes: Iterable[str]) -> dict[str, int | None]:
    """Huge pages refused, of all ``sizes`` together."""
    counts = [number(read("hugetlb", f"hugetlb.{size}.failcnt")) for size in sizes]
    return {"hugetlb_max": None if None in counts else sum(filter(None, counts))}


def throttling(read: Reader) -> dict[str, int | None]:
    """The CPU quota's counters; v1 counts throttled time in nanoseconds."""
    stat = numbers(read("cpu", "cpu.stat"))
    lost_ns = stat.get("throttled_time")
    return {
        "nr_periods": stat.get("nr_periods"),
        "nr_throttled": stat.get("nr_throttled"),
        "throttled_usec": None if lost_ns is None else lost_ns // 1000,
    }


def cpu(read: Reader) -> dict[str, int | None]:
    """CPU time from cpuacct, nanoseconds there.

    ``usage`` is exact; user and system are sampled at ticks, so only their ratio is taken, as v2's cpu.stat does, and
    none of what lasted no longer than a tick.
    """
    usage_ns = number(read("cpuacct", "cpuacct.usage"))
    if usage_ns is None or usage_ns < _TICK_NS:
        return {"cpu_usec": None if usage_ns is None else usage_ns // 1000}
    user_ns, system_ns = number(read("cpuacct", "cpuacct.usage_user")), number(read("cpuacct", "cpuacct.usage_sys"))
    if user_ns is None or system_ns is None:  # Linux 4.7
        return {"cpu_usec": usage_ns // 1000}
    user = usage_ns * user_ns // (user_ns + system_ns or 1)
    return {
        "cpu_usec": usage_ns // 1000,
        "cpu_user_usec": user // 1000,
        "cpu_system_usec": (usage_ns - user) // 1000,
    }


def memory(read: Reader, *, current: bool) -> dict[str, int | None]:
    """Memory now and at most. v1 has no peak of swap alone."""
    return {
        "memory_bytes": number(read("memory", "memory.usage_in_bytes")) if current else None,
        "memory_peak_bytes": number(read("memory", "memory.max_usage_in_bytes")),
    }


def io(read: Reader) -> dict[str, int | None]:
    """Bytes and operations over all devices, nested cgroups included."""
    done = _io_total(read("io", "blkio.throttle.io_service_bytes_recursive"))
    ops = _io_total(read("io", "blkio.throttle.io_serviced_recursive"))
    return {
        "io_read_bytes": done.get("Read"),
        "io_write_bytes": done.get("Write"),
        "io_read_ops": ops.get("Read"),
        "io_write_ops": ops.get("Write"),
    }


def _io_total(text: str | None) -> dict[str, int]:
    """Sum lines of ``8:0 Read 4096`` by kind; a present file without lines means zero."""
    if text is None:
        return {}
    total = {"Read": 0, "Write": 0}
    for fields in (line.split() for line in text.splitlines()):
        if len(fields) == 3 and fields[1] in total:
            total[fields[1]] += int(fields[2])
    return total
