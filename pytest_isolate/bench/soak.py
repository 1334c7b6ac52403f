"""Sandboxes one after the other by the clock: what the last of them cost beside the first, and what this process holds.

Owns: the slices of time. Refuses: to compare what the whole machine holds (`python -m tests.soak` does).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

from pytest_isolate.bench.measure import Effort, Samples
from pytest_isolate.bench.table import Table, microseconds
from pytest_isolate.profile import MINIMAL, STANDARD, STRICT, vary
from pytest_isolate.sandbox import Sandbox

_SLICES = 10
_POLICIES = (MINIMAL, STANDARD, STRICT, vary(STANDARD, namespaces="+pid", seccomp="default"))


def measure(effort: Effort) -> list[Table]:
    """One table, a row for each tenth of ``effort.seconds``."""
    with contextlib.ExitStack() as stack:
        sandboxes = [stack.enter_context(Sandbox(policy, name="soak")) for policy in _POLICIES]
        for sandbox in sandboxes:
            sandbox.run(["/bin/true"])
        turns = itertools.cycle(sandboxes)
        began = time.monotonic()
        rows = [_slice(turns, began, effort.seconds * (number + 1) / _SLICES) for number in range(_SLICES)]
    return [
        Table(
            title=f"soak: /bin/true in four profiles in turns, {effort.seconds:g} s",
            head=("until, s", "sandboxes", "median us", "p99 us", "errors", "descriptors", "RSS KiB"),
            rows=tuple(rows),
        )
    ]


def _slice(turns: itertools.cycle[Sandbox], began: float, until_s: float) -> tuple[str, ...]:
    samples = Samples()
    while time.monotonic() - began < until_s:
        start = time.perf_counter_ns()
        outcome = next(turns).run(["/bin/true"])
        samples.add([time.perf_counter_ns() - start if outcome.ok else -1])
    return (
        f"{until_s:.0f}",
        str(len(samples.times_ns)),
        microseconds(samples.median_ns),
        microseconds(samples.p99_ns),
        str(samples.errors),
        str(len(os.listdir("/proc/self/fd"))),
        _rss_kib(),
    )


def _rss_kib() -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("VmRSS:"))
