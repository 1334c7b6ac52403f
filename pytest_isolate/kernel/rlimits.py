"""Limits as setrlimit(2) takes them: (resource number, soft, hard).

Owns: the translation, and the check of what this process could not live with.
Refuses: to set anything; the child does, through the C library or the fork backend.
"""

from __future__ import annotations

import math
import resource

from pytest_isolate.errors import PolicyError
from pytest_isolate.policy import RLIMIT_UNITS, Limits
from pytest_isolate.units import format_bytes

#: RLIMIT_SIGPENDING and friends of getrlimit(2), asm-generic numbering, for those that `resource` does not name.
_MISSING = {"LOCKS": 10}


def number_of(name: str) -> int:
    """The RLIMIT_* number of a name such as ``NOFILE``. Source: asm-generic/resource.h."""
    return int(getattr(resource, f"RLIMIT_{name}", _MISSING.get(name, -1)))


def name_of(number: int) -> str:
    """The name of an RLIMIT_* number, such as ``NOFILE``; the number itself where there is none."""
    return next((name for name in RLIMIT_UNITS if number_of(name) == number), str(number))


def compile_rlimits(limits: Limits) -> tuple[tuple[int, int, int], ...]:
    """Every rlimit of ``limits``, those meant by cpu_time_s and by the memory fallback included.

    The CPU limit is whole seconds: SIGXCPU at the next full second, SIGKILL one later. Source: setrlimit(2).
    """
    found = dict(limits.rlimits)
    if limits.cpu_time_s is not None:
        seconds = math.ceil(limits.cpu_time_s)
        found["CPU"] = (seconds, seconds + 1)
    if limits.memory_bytes is not None and limits.memory_fallback == "rlimit":
        found.setdefault("DATA", (limits.memory_bytes, limits.memory_bytes))
    return tuple((number_of(name), soft, hard) for name, (soft, hard) in sorted(found.items()))


def check_room(limits: Limits) -> None:
    """Refuse a memory limit below what this very process, about to be forked, already holds.

    Raises:
        PolicyError: names both figures.
    """
    if limits.memory_bytes is None:
        return
    held = _status_bytes("VmData")
    if limits.memory_bytes <= held:
        raise PolicyError(
            f"memory limit of {format_bytes(limits.memory_bytes)}",
            f"pytest and what it has imported already hold {format_bytes(held)}",
            f"raise it above {format_bytes(held)}",
        )


def _status_bytes(field: str) -> int:
    """A ``kB`` field of /proc/self/status in bytes. Source: proc_pid_status(5)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    return 0
