"""Which limit a test hit: told by evidence, not by the look of the failure.

Owns: the rules from an exception in the test, or from its cgroup's counters, to a cause and a line of words.
Refuses: to guess: an EMFILE without a limit of ours on open files is the test's own affair.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from pytest_isolate.outcome import Cause
from pytest_isolate.policy import UNLIMITED, Limits
from pytest_isolate.units import format_bytes

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import Cgroup, CgroupEvents

#: errno of a refused request -> the rlimit that refuses it so, and the cause. Source: getrlimit(2), open(2), write(2).
_BY_ERRNO = {errno.EMFILE: ("NOFILE", Cause.NOFILE), errno.EFBIG: ("FSIZE", Cause.FSIZE)}


def of_exception(error: BaseException, limits: Limits) -> tuple[Cause, str] | None:
    """In the child: the cause of an exception that one of our rlimits explains; chained exceptions are looked at."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if (found := _of_one(current, limits)) is not None:
            return found
        current = current.__cause__ or current.__context__
    return None


def _of_one(error: BaseException, limits: Limits) -> tuple[Cause, str] | None:
    if isinstance(error, MemoryError) and limits.memory_fallback == "rlimit" and limits.memory_bytes:
        size = format_bytes(limits.memory_bytes)
        return (
            Cause.OOM,
            f"OOM: an allocation was refused under the limit of {size} (RLIMIT_DATA; it cannot see MAP_SHARED)",
        )
    name, cause = _BY_ERRNO.get(getattr(error, "errno", None) or 0, ("", None))
    soft, _ = limits.rlimits.get(name, (UNLIMITED, UNLIMITED))
    if cause is None or soft == UNLIMITED:
        return None
    return cause, f"{cause.value}: the limit RLIMIT_{name} = {soft} was reached"


def of_group(cgroup: Cgroup | None, before: CgroupEvents | None) -> list[tuple[Cause, str]]:
    """In the parent: what the group's limits caught since ``before``."""
    if cgroup is None:
        return []
    return [(cause, text) for cause, text in cgroup.verdicts(before)]


def mark(report: Any, causes: list[tuple[Cause, str]]) -> None:
    """Put causes on a report: the first one names it, each has its line."""
    if not causes:
        return
    report.isolate_cause = causes[0][0].value
    report.sections.append(("Limits reached", "\n".join(text for _, text in causes)))
