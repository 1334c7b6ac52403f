"""From counters before and after to causes in words. Pure: every verdict rests on a counter that moved.

Owns: when a cgroup's evidence means OOM, PIDS, CPU or a limit that was lost, and how that is said.
Refuses: to look at exit statuses: a SIGKILL alone is no OOM, and an OOM can hide behind exit status 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_isolate.kernel.cgroups.usage import CgroupEvents, CgroupUsage
from pytest_isolate.outcome import Cause
from pytest_isolate.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups.kernel_log import Victim
    from pytest_isolate.policy import Limits

Verdict = tuple[Cause, str]
#: The kernel charges memory in batches; a charge that fails found less than a batch free (MEMCG_CHARGE_BATCH pages).
_BATCH_BYTES = 64 * 4096


def verdicts(
    before: CgroupEvents,
    after: CgroupEvents,
    limits: Limits,
    *,
    usage: CgroupUsage | None = None,
    victim: Victim | None = None,
    surely: bool = False,
) -> list[Verdict]:
    """Causes with a line of evidence each, the gravest first; empty when no limit was hit.

    Args:
        before: of a cgroup made for this sandbox, ``CgroupEvents()``.
        usage: for peaks in the text. victim: what the kernel's log says of who was killed.
        surely: leave out what a limit inside the sandbox, as of one that it has made itself, may have done: some
            counters are those of the whole subtree.
    """
    cost = usage or CgroupUsage()
    return [
        *(_lost(name) for name in after.lost),
        *_oom(before, after, limits, cost, victim, surely=surely),
        *_pids(before, after, limits, cost, surely=surely),
        *_hugetlb(before, after, limits),
        *_cpu_time(before, after, limits),
    ]


def throttling(before: CgroupEvents, after: CgroupEvents, limits: Limits) -> str | None:
    """A line on what the CPU quota cost, or None. Being slowed down is what was asked for, so it is no cause."""
    periods, cut = _grown(before.nr_periods, after.nr_periods), _grown(before.nr_throttled, after.nr_throttled)
    if not cut or limits.cpu_cores is None:
        return None
    waited_s = _grown(before.throttled_usec, after.throttled_usec) / 1e6
    share = f"throttled in {cut} of {periods} periods, {format_seconds(waited_s)} in all"
    return f"CPU quota of {limits.cpu_cores:g} cores: {share}"


def _grown(before: int | None, after: int | None) -> int:
    return max(0, (after or 0) - (before or 0))


def _lost(controller: str) -> Verdict:
    why = "its cgroup, or the controller in it, was taken away meanwhile"
    return Cause.SETUP, f"the {controller} limit did not hold: {why}"


def _oom(
    before: CgroupEvents,
    after: CgroupEvents,
    limits: Limits,
    cost: CgroupUsage,
    victim: Victim | None,
    *,
    surely: bool,
) -> list[Verdict]:
    # Only whether, not how many: with memory.oom.group the kernel counts the first victim twice.
    if not _grown(before.oom_kill, after.oom_kill):
        return []
    at_limit = _at_limit(limits, cost)
    if victim is not None and victim.inner_limit:
        if not at_limit:  # whose limit it was is told of it
            return []
        victim = None  # the log does not tell of every kill
    if after.oom is None:
        hit = at_limit or _grown(before.memory_max, after.memory_max) > 0
    else:
        hit = _grown(before.oom, after.oom) > 0
        may_be_ours = at_limit or (limits.memory_bytes is not None and cost.memory_peak_bytes is None)
        if victim is None and hit and not may_be_ours:  # the counter is that of the whole subtree
            return []
    if surely and victim is None and not hit:
        return []
    own = limits.memory_bytes and (victim.own_limit if victim is not None else hit)
    limit = format_bytes(limits.memory_bytes or 0)
    peak = f"peak {format_bytes(cost.memory_peak_bytes)}" if cost.memory_peak_bytes is not None else ""
    if own:
        said = f"OOM-killed: {peak} of {limit}" if peak else f"OOM-killed at the limit of {limit}"
    else:
        inside = ", or inside it" if victim is None and after.oom is None else ""
        said = f"OOM-killed by the host, or by a limit above the sandbox{inside}{': ' if peak else ''}{peak}"
    if victim is not None:
        said += f", killed: {victim.name} pid {victim.pid}, rss {format_bytes(victim.rss_bytes)}"
    return [(Cause.OOM, said)]


def _at_limit(limits: Limits, cost: CgroupUsage) -> bool:
    """The peak is the limit: for v1, which counts no ``oom``; whose failcnt stays 0 (6.18), whose log is rate-limited."""
    if limits.memory_bytes is None or cost.memory_peak_bytes is None:
        return False
    return cost.memory_peak_bytes > limits.memory_bytes - _BATCH_BYTES


def _pids(
    before: CgroupEvents, after: CgroupEvents, limits: Limits, cost: CgroupUsage, *, surely: bool
) -> list[Verdict]:
    refused = _grown(before.pids_max, after.pids_max)
    if not refused:
        return []
    forks = "1 fork refused" if refused == 1 else f"{refused} forks refused"
    reached = cost.pids_peak is None or limits.pids is None or cost.pids_peak >= limits.pids
    if surely and cost.pids_peak is None:
        return []
    if limits.pids is not None and reached:
        return [(Cause.PIDS, f"{forks}: the limit of {limits.pids} processes and threads was reached")]
    if surely:
        return []
    return [(Cause.PIDS, f"{forks} by a pids limit above the sandbox, or inside it")]


def _hugetlb(before: CgroupEvents, after: CgroupEvents, limits: Limits) -> list[Verdict]:
    """The kernel answers a refused huge page with SIGBUS, which by itself says nothing of a limit."""
    refused = _grown(before.hugetlb_max, after.hugetlb_max)
    if not refused:
        return []
    held = ", ".join(f"{format_bytes(most)} of {size} pages" for size, most in sorted(limits.hugetlb_bytes.items()))
    pages = "1 huge page" if refused == 1 else f"{refused} huge pages"
    return [(Cause.OOM, f"{pages} refused (SIGBUS) at the limit of {held}")]


def _cpu_time(before: CgroupEvents, after: CgroupEvents, limits: Limits) -> list[Verdict]:
    used_s = _grown(before.cpu_usec, after.cpu_usec) / 1e6
    if limits.cpu_time_s is None or used_s < limits.cpu_time_s:
        return []
    return [(Cause.CPU, f"used {format_seconds(used_s)} of CPU time of {format_seconds(limits.cpu_time_s)} allowed")]
