"""One value to write into one cgroup file, and the arithmetic that v1 and v2 share.

Owns: Setting, the CPU quota and what a Limits asks of which controller.
Refuses: I/O and file names; v1.py and v2.py hold the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_isolate.policy import Limits

#: The kernel's default period; quotas below its minimum of 1 ms get the longest period, 1 s (cpu.max, cgroup-v2.rst).
CPU_PERIOD_USEC = 100_000
_LONGEST_PERIOD_USEC = 1_000_000
_LEAST_QUOTA_USEC = 1_000


@dataclass(frozen=True, slots=True)
class Setting:
    """``value`` for ``file`` of ``controller``; ``optional``: fine where the kernel has no such file.

    ``late``: to be written only when the sandbox's first process has a memory of its own (``Cgroup.started``).
    """

    controller: str
    file: str
    value: str
    optional: bool = False
    late: bool = False


#: (new limits, limits that hold now) -> files to write. Raises PolicyError or BackendUnavailable for the impossible.
Table = Callable[[Limits, Limits], list[Setting]]


def cpu_quota(cores: float) -> tuple[int, int]:
    """(quota, period) in microseconds for a number of cores: at least a thousandth of one, as Limits has it."""
    quota = int(cores * CPU_PERIOD_USEC)
    if quota >= _LEAST_QUOTA_USEC:
        return quota, CPU_PERIOD_USEC
    return max(int(cores * _LONGEST_PERIOD_USEC), _LEAST_QUOTA_USEC), _LONGEST_PERIOD_USEC


def controllers_for(limits: Limits) -> frozenset[str]:
    """The controllers that these limits cannot do without."""
    asked = {
        "memory": limits.memory_bytes or limits.memory_high_bytes or limits.swap_bytes is not None,
        "pids": limits.pids,
        "cpu": limits.cpu_cores or limits.cpu_weight,
        "cpuset": limits.cpuset,
        "io": limits.io,
        "hugetlb": limits.hugetlb_bytes,
    }
    return frozenset(name for name, wanted in asked.items() if wanted)
