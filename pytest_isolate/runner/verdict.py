"""Which limit a test hit: told by evidence, not by the look of the failure.

Owns: the rules from an exception in the test, or from its cgroup's counters, to a cause and a line of words.
Refuses: to guess: an EMFILE without a limit of ours on open files is the test's own affair.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pytest_isolate.outcome import Cause, Outcome
from pytest_isolate.policy import UNLIMITED, Limits
from pytest_isolate.runner.report import LEAK_SECTION, LIMITS_SECTION
from pytest_isolate.units import format_bytes

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import Cgroup, CgroupEvents, CgroupUsage

#: errno of a refused request -> the rlimits that may refuse it so, and the cause. Source: getrlimit(2), open(2),
#: write(2), mmap(2), fork(2). EAGAIN has other meanings: it counts only from a call that starts a process or thread.
_BY_ERRNO = {
    errno.EMFILE: (("NOFILE",), Cause.NOFILE),
    errno.EFBIG: (("FSIZE",), Cause.FSIZE),
    errno.ENOMEM: (("AS", "DATA"), Cause.OOM),
    errno.EAGAIN: (("NPROC",), Cause.PIDS),
}
_STARTERS = frozenset({"fork", "forkpty", "_fork_exec", "fork_exec", "posix_spawn", "posix_spawnp"})
#: What the child calls on a report the value of fitting().
FITS = "isolate_fits"
#: Title of the section of a failure that says what a CPU quota took from the test.
QUOTA_SECTION = "CPU quota"
_EXPLAINS_ALL = (Cause.OOM, Cause.SETUP)
_NO_THREAD = "can't start new thread"  # RuntimeError of _thread.start_new_thread; it drops the errno


def of_exception(error: BaseException, limits: Limits) -> tuple[Cause, str] | None:
    """In the child: the cause of an exception that one of our rlimits explains; chained exceptions are looked at."""
    return next((found for one in chain(error) if (found := _of_one(one, limits)) is not None), None)


def fitting(error: BaseException) -> Cause | None:
    """In the child: the group limit that ``error`` may come of, if one was reached: a refused fork or thread, SIGXCPU of a program."""
    for one in chain(error):
        if _errno_of(one) == errno.EAGAIN and _starts_a_process(one):
            return Cause.PIDS
        if getattr(one, "returncode", None) == -signal.SIGXCPU:
            return Cause.CPU
    return None


def say_fitting(error: BaseException, report: Any) -> None:
    """In the child: note on the report of ``error`` what mark_failure() will ask for."""
    if (cause := fitting(error)) is not None:
        setattr(report, FITS, cause.value)


def chain(error: BaseException) -> Iterator[BaseException]:
    """``error``, then what it came from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _of_one(error: BaseException, limits: Limits) -> tuple[Cause, str] | None:
    if isinstance(error, MemoryError) and limits.memory_fallback == "rlimit" and limits.memory_bytes:
        size = format_bytes(limits.memory_bytes)
        return (
            Cause.OOM,
            f"OOM: an allocation was refused under the limit of {size} (RLIMIT_DATA; it cannot see MAP_SHARED)",
        )
    names, cause = _BY_ERRNO.get(_errno_of(error), ((), None))
    if cause is Cause.PIDS and not _starts_a_process(error):
        return None
    for name in names:
        soft, _ = limits.rlimits.get(name, (UNLIMITED, UNLIMITED))
        if cause is not None and soft != UNLIMITED:
            return cause, f"{cause.value}: the limit RLIMIT_{name} = {soft} was reached"
    return None


def _starts_a_process(error: BaseException) -> bool:
    """True when the innermost Python frame of ``error`` is one that forks, or ``error`` is a thread's refusal."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame.f_code if traceback is not None else None
    return str(error) == _NO_THREAD or (frame is not None and not _STARTERS.isdisjoint(frame.co_names))


def _errno_of(error: BaseException) -> int:
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return errno.EAGAIN
    return getattr(error, "errno", None) or 0


def add_quota(report: Any, cgroup: Cgroup | None, before: CgroupEvents | None, usage: CgroupUsage | None) -> None:
    """Say on the report of a failure what the CPU quota has cost the test since ``before``; nothing where it cost nothing."""
    if cgroup is not None and usage is not None and (text := cgroup.throttling(usage, before)):
        report.sections.append((QUOTA_SECTION, text))


def mark(report: Any, causes: list[tuple[Cause, str]]) -> None:
    """Put causes on a report: the first one names it, each has its line."""
    if not causes:
        return
    report.isolate_cause = causes[0][0].value
    add_section(report, causes)


def mark_failure(report: Any, causes: list[tuple[Cause, str]]) -> None:
    """Put what the group's counters say on the report of an exception. What does not explain it has its line, and names nothing.

    An OOM kill explains any: of what its victim left undone the test may complain in any way. A refused fork does not,
    nor does CPU time that the tree used up together, of which no process was told: there the exception must fit.
    """
    fits = vars(report).pop(FITS, None)
    explain = [found for found in causes if found[0] in _EXPLAINS_ALL or found[0].value == fits]
    if explain:
        report.isolate_cause = explain[0][0].value
    add_section(report, [*explain, *(found for found in causes if found not in explain)])


def add_section(report: Any, causes: list[tuple[Cause, str]]) -> None:
    """Say which limits were reached, a line for each; nothing where none was."""
    if causes:
        report.sections.append((LIMITS_SECTION, "\n".join(text for _, text in causes)))


def line_of(report: Any) -> str:
    """The first line of evidence on a report that was marked."""
    return next((text.partition("\n")[0] for title, text in report.sections if title == LIMITS_SECTION), "")


def outcome_of(report: Any) -> Outcome:
    """What a report with a cause tells, for hooks: how its process ended is known only later."""
    its = LEAK_SECTION if report.isolate_cause == Cause.LEAK.value else LIMITS_SECTION
    told = (text for title, text in report.sections if title == its)
    line = next(told, str(report.longrepr or "")).partition("\n")[0]
    return Outcome(args=(report.nodeid,), causes=(Cause(report.isolate_cause),), detail=(line,) if line else ())
