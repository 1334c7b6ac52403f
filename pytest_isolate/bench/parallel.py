"""Starts one after the other, and as many at once as there are cores.

Owns: which rows of forkexec.py are worth it. Each worker is a process of its own; the kernel is what they share.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pytest_isolate.bench import forkexec
from pytest_isolate.bench.measure import Effort, Samples, at_once, in_turns
from pytest_isolate.bench.table import Table, microseconds, ratio

_ROWS = ("standard", "pid", "all", "all+pivot")
_NOT_AT_ONCE = ("crun", "runsc", "C floor, no init")  # a container has a name; and what says nothing new


def measure(effort: Effort) -> list[Table]:
    """A table for each row that is asked for."""
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="isolate-bench-") as place:
        return [_row(name, Path(place), effort, workers) for name in _ROWS if effort.wants(name)]


def _row(name: str, place: Path, effort: Effort, workers: int) -> Table:
    stage = place / "stage"
    stage.mkdir(exist_ok=True)
    alone = {who: batch for who, batch in forkexec.competitors(name, place, stage) if who not in _NOT_AT_ONCE}
    together = {f"{who} at once": at_once(batch, workers) for who, batch in alone.items()}
    found = in_turns({**alone, **together}, effort)
    floor = found["C floor at once"]
    return Table(
        title=f"fork+exec, {workers} at once: {name}",
        head=("who", "us, 1", f"us, {workers}", "ops/s, 1", f"ops/s, {workers}", "errors", "x floor"),
        rows=tuple((who, *_cells(found[who], found[f"{who} at once"], workers, floor)) for who in alone),
    )


def _cells(one: Samples, many: Samples, workers: int, floor: Samples) -> tuple[str, ...]:
    return (
        microseconds(one.median_ns),
        microseconds(many.median_ns),
        f"{one.per_second:.0f}",
        f"{many.per_second * workers:.0f}",
        str(one.errors + many.errors),
        ratio(many, floor),
    )
