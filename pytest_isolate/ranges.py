"""Which numbers each limit takes: what the kernel's own counter holds and acts on, and no more.

Owns: the range of every numeric limit, and the one line that refuses what is outside of it.
Refuses: texts (units.py), and what only this host can tell: which CPUs and disks it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pytest_isolate.errors import PolicyError
from pytest_isolate.units import MAX_BYTES, shown

#: What the kernel counts time in is a signed 64-bit number of nanoseconds: 292 years. Source: ktime_t, linux/ktime.h.
MAX_SECONDS = MAX_BYTES // 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Of the limit ``what``, as its word is written: ``least`` to ``most`` of ``unit``. ``also``: a word it takes besides."""

    what: str
    least: float
    most: int
    unit: str
    whole: bool = True
    also: str = ""

    @property
    def write(self) -> str:
        """What to write, for the end of an error."""
        least = f"{self.least:f}".rstrip("0").rstrip(".") or "0"
        return f"write {least} to {self.most} {self.unit}{f', or {self.also!r}' if self.also else ''}"

    def check(self, value: Any) -> None:
        """Raises:
        PolicyError: no number, no whole one where it has to be, or one outside of the range.
        """
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            raise PolicyError(
                self.what, f"{shown(value)} is not a {'whole ' if self.whole else ''}number of {self.unit}", self.write
            )
        if not self.least <= value <= self.most:  # NaN is nowhere
            raise PolicyError(self.what, f"{shown(value)} is out of range", self.write)


def _seconds(what: str, least: float = 0.000001) -> Range:
    return Range(what=what, least=least, most=MAX_SECONDS, unit="seconds", whole=False)


#: By field of Limits. Sources: page_counter.c (signed pages); PIDS_MAX, kernel/cgroup/pids.c; cgroup-v2.rst for cpu.weight; a
#: quota of 1 ms in the longest period, 1 s, for cores.
LIMITS: Mapping[str, Range] = MappingProxyType(
    {
        "memory_bytes": Range(what="memory", least=1, most=MAX_BYTES, unit="bytes"),
        "memory_high_bytes": Range(what="memory_high", least=1, most=MAX_BYTES, unit="bytes"),
        "swap_bytes": Range(what="swap", least=0, most=MAX_BYTES, unit="bytes"),
        "pids": Range(what="pids", least=1, most=2**22, unit="processes"),
        "cpu_cores": Range(what="cpu", least=0.001, most=10_000, unit="cores", whole=False),
        "cpu_weight": Range(what="cpu_weight", least=1, most=10_000, unit="(100 is usual)"),
        "cpu_time_s": _seconds("cpu_time"),
    }
)
#: By field of IoLimit. The counters of operations are 32 bits wide, and all ones mean no limit: block/blk-throttle.h.
IO: Mapping[str, Range] = MappingProxyType(
    {
        "read_bps": Range(what="io read_bps", least=1, most=MAX_BYTES, unit="bytes a second"),
        "write_bps": Range(what="io write_bps", least=1, most=MAX_BYTES, unit="bytes a second"),
        "read_iops": Range(what="io read_iops", least=1, most=2**32 - 2, unit="operations a second"),
        "write_iops": Range(what="io write_iops", least=1, most=2**32 - 2, unit="operations a second"),
    }
)
TIMEOUT = _seconds("timeout")
GRACE = _seconds("grace", least=0)


def of_huge_pages(size: str) -> Range:
    """Of the bytes in huge pages of ``size``."""
    return Range(what=f"hugetlb {size}", least=1, most=MAX_BYTES, unit="bytes")


def of_rlimit(name: str, unit: str) -> Range:
    """Of the rlimit ``name``, UNLIMITED aside; what Python's resource module passes on, a signed 64-bit number.

    CPU: seconds that the kernel multiplies to nanoseconds, and 0 would be no limit to one kernel and the end to another.
    Sources: update_rlimit_cpu, kernel/time/posix-cpu-timers.c; getrlimit(2).
    """
    least, most = (1, MAX_SECONDS) if name == "CPU" else (0, MAX_BYTES)
    return Range(what=f"rlimit {name}", least=least, most=most, unit=f"({unit})", also="unlimited")
