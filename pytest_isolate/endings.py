"""How a sandbox ended, and what that shows: what still lives, what it cost, which limit its end tells of.

Owns: the rules from an exit status, from rusage and from a cgroup's counters to values of outcome.py.
Refuses: to end anything, and to guess: a SIGKILL is a CPU limit's only when the CPU time says so.
"""

from __future__ import annotations

import signal as signals
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pytest_isolate.backend import Process
from pytest_isolate.kernel import processes
from pytest_isolate.kernel.native import Exited
from pytest_isolate.kernel.rlimits import compile_rlimits, number_of
from pytest_isolate.outcome import Cause, Leftover, Usage
from pytest_isolate.policy import UNLIMITED, Limits
from pytest_isolate.units import format_seconds

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import Cgroup, CgroupUsage, Pressure

#: What is on its way out when the program ends is no leftover.
GRACE_S = 0.25
POLL_S = 0.005
#: CPU time that a program spent and its cgroup did not see: less than this, and a quarter, is spent before it joins.
_UNSEEN_S = 0.2
#: The kernel checks RLIMIT_CPU by whole clock ticks, and reports exact time: killed at 1 s was 0.80 to 1.0 s, measured. On a
#: guest whose host is busy it is less, for time that was stolen counts as ticks: at the least limit there is, a few of them.
_TICKS_RUN_AHEAD = 0.75
_TICKS_RUN_AHEAD_S = 0.5
#: What a Python interpreter starts in, generously: 13 MB of address space, 1 MB of data, 100 KB of stack, measured.
_STARTS_IN = {"AS": 64 << 20, "DATA": 16 << 20, "STACK": 256 << 10, "NOFILE": 8}
_FIRST_MOMENTS_S = 1.0
#: Pages touched: /bin/true 50, a killed exec 1 to 9, a loader that failed 25, measured.
_FAULTS_OF_A_START = 40
_KILLS = (signals.SIGSEGV, signals.SIGBUS, signals.SIGKILL)
_LOADER_FAILED = 127


def living(process: Process, cgroup: Cgroup | None, others: bool) -> list[Leftover]:
    """What still lives of a program that has ended, after a short grace for what is on its way out.

    ``others``: what waiting for it said, of its PID namespace or session. Its cgroup knows also those that left its
    session, where there is no PID namespace to hold them.
    """

    def look() -> list[Leftover]:
        found = process.leftovers() if others else []
        return found + of_group(cgroup, process, found)

    return after_grace(look)


def strays(cgroup: Cgroup) -> list[Leftover]:
    """Who is in the cgroup yet when the program, and all that its init or monitor knew of, is ended and collected.

    A program can kill its monitor: then only the cgroup still holds what left its session.
    """
    return after_grace(lambda: processes.described(cgroup.pids()))


def after_grace(look: Callable[[], list[Leftover]]) -> list[Leftover]:
    """What ``look`` still finds when what is on its way out has had the time to be gone."""
    end = time.monotonic() + GRACE_S
    while (found := look()) and time.monotonic() < end:
        time.sleep(POLL_S)
    return found


def in_pid_namespace(process: Process) -> bool:
    """True when a PID namespace of its own holds all it starts: its end is theirs. A monitor can be killed alone."""
    return getattr(process, "init_pid", 0) > 0 and not is_monitored(process)


def is_monitored(process: Process) -> bool:
    """True when its init is a monitor: it knows and ends the tree, which lives in our PID namespace."""
    return bool(getattr(process, "monitored", False))


def of_group(cgroup: Cgroup | None, process: Process, known: Sequence[Leftover] = ()) -> list[Leftover]:
    """The living processes of a cgroup but for the program's own, its init, and those that are ``known``."""
    if cgroup is None or in_pid_namespace(process):
        return []
    ours = {0, process.pid, getattr(process, "init_pid", 0), *(leftover.pid for leftover in known)}
    return processes.described(pid for pid in cgroup.pids() if pid not in ours)


def usage_of(exited: Exited | None, wall_s: float) -> Usage:
    """The process level of usage: rusage of the program and what it waited for."""
    if exited is None:
        return Usage(wall_s=wall_s)
    spent = exited.rusage
    return Usage(
        wall_s=wall_s,
        user_s=spent.user_s,
        system_s=spent.system_s,
        max_rss_bytes=spent.max_rss_bytes,
        minor_faults=spent.minor_faults,
        major_faults=spent.major_faults,
        voluntary_switches=spent.voluntary_switches,
        involuntary_switches=spent.involuntary_switches,
    )


def group_usage(counted: CgroupUsage) -> dict[str, Any]:
    """The cgroup level of usage, by the names of Usage."""
    return {
        "cgroup_cpu_usec": counted.cpu_usec,
        "cgroup_user_usec": counted.cpu_user_usec,
        "cgroup_system_usec": counted.cpu_system_usec,
        "cgroup_throttled_usec": counted.events.throttled_usec,
        "cgroup_memory_peak_bytes": counted.memory_peak_bytes,
        "cgroup_swap_peak_bytes": counted.swap_peak_bytes,
        "cgroup_cpu_pressure_usec": _some(counted.cpu_pressure),
        "cgroup_memory_pressure_usec": _some(counted.memory_pressure),
        "cgroup_io_pressure_usec": _some(counted.io_pressure),
        "pids_peak": counted.pids_peak,
        "io_read_bytes": counted.io_read_bytes,
        "io_write_bytes": counted.io_write_bytes,
        "io_read_ops": counted.io_read_ops,
        "io_write_ops": counted.io_write_ops,
    }


def _some(pressure: Pressure | None) -> int | None:
    return None if pressure is None else pressure.some_usec


def runaway(used_s: float, counted: CgroupUsage, limits: Limits) -> list[tuple[Cause, str]]:
    """That a program left its cgroup, and with it its limits, as root can who may write cgroupfs: told by its CPU time.

    The kernel counts it twice, for the process (``used_s``) and for the cgroup. Who left and then did little is not seen.
    """
    if counted.cpu_usec is None or not limits.needs_cgroup:
        return []
    seen_s = counted.cpu_usec / 1e6
    if used_s - seen_s < max(_UNSEEN_S, used_s / 4):
        return []
    spent = f"of {format_seconds(used_s)} of CPU time its cgroup saw {format_seconds(seen_s)}"
    return [(Cause.SETUP, f"the limits did not hold: the program left its cgroup: {spent}")]


def status_verdicts(exited: Exited | None, limits: Limits) -> list[tuple[Cause, str]]:
    """Causes that the signal itself tells: SIGXCPU and SIGXFSZ come from rlimits alone. Source: setrlimit(2).

    SIGXCPU has two senders, RLIMIT_CPU and RLIMIT_RTTIME; which one shows in the CPU time spent.
    """
    if exited is None:
        return []
    number = exited.status.signal
    used_s = exited.rusage.user_s + exited.rusage.system_s
    if number == signals.SIGXCPU:
        return [(Cause.CPU, cpu_text(used_s, limits))]
    if number == signals.SIGKILL and (text := hard_cpu_text(used_s, limits)):
        return [(Cause.CPU, text)]
    if number == signals.SIGXFSZ:
        return [(Cause.FSIZE, "FSIZE: a file grew over the limit on file size (SIGXFSZ)")]
    return []


def too_low_to_start(exited: Exited | None, limits: Limits, wall_s: float) -> list[str]:
    """That a program died in its first moments under an rlimit that is below what programs start in; a line, or none.

    An exec for which the new image, or its stack, does not fit is killed by the kernel, and a loader that cannot map or open
    its libraries leaves with 127; both before they have touched much. Source: execve(2), begin_new_exec in fs/exec.c.
    """
    if exited is None or wall_s > _FIRST_MOMENTS_S:
        return []
    status, untouched = exited.status, 0 < exited.rusage.minor_faults < _FAULTS_OF_A_START
    if status.signal in _KILLS:
        names = ("AS", "DATA", "STACK")
    elif status.code == _LOADER_FAILED and untouched:
        names = ("AS", "DATA", "NOFILE")
    else:
        return []
    softs = {name: limits.rlimits.get(name, (UNLIMITED, UNLIMITED))[0] for name in names}
    low = [f"{name} = {soft}" for name, soft in softs.items() if soft != UNLIMITED and soft < _STARTS_IN[name]]
    if not low:
        return []
    how = "is too low for the program to start" if untouched else "may be too low for the program"
    return [f"rlimit {', '.join(low)} {how}: {status} after {format_seconds(wall_s)}"]


def hard_cpu_text(used_s: float, limits: Limits) -> str:
    """What a SIGKILL after ``used_s`` of CPU time means; empty when no hard limit on it was near."""
    hard = next((hard for number, _, hard in compile_rlimits(limits) if number == number_of("CPU")), UNLIMITED)
    if hard == UNLIMITED or used_s < min(hard * _TICKS_RUN_AHEAD, hard - _TICKS_RUN_AHEAD_S):
        return ""
    return f"CPU: killed after {format_seconds(used_s)} of CPU time at the hard limit RLIMIT_CPU = {hard} s (SIGKILL)"


def cpu_text(used_s: float, limits: Limits) -> str:
    """What SIGXCPU means for a process that has used ``used_s`` of CPU time."""
    soft = next((soft for number, soft, _ in compile_rlimits(limits) if number == number_of("CPU")), UNLIMITED)
    soft_rt, _ = limits.rlimits.get("RTTIME", (UNLIMITED, UNLIMITED))
    if soft_rt != UNLIMITED and (soft == UNLIMITED or used_s < soft):
        return f"CPU: the limit RLIMIT_RTTIME = {soft_rt} us without a pause was reached (SIGXCPU)"
    which = "" if soft == UNLIMITED else f" RLIMIT_CPU = {soft} s"
    return f"CPU: the limit{which} on CPU seconds was reached (SIGXCPU)"
