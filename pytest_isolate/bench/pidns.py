"""What a PID namespace costs who lives in it, by depth, and inside this package's sandboxes.

Owns: the operations and the places. Source of the question: the kernel of 2007 had two models under review, and their costs by depth.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pytest_isolate.bench.measure import Batch, Effort, Samples, bench, in_turns, lines_of
from pytest_isolate.bench.table import Table, ratio
from pytest_isolate.kernel.library import find
from pytest_isolate.policy import Policy
from pytest_isolate.profile import STANDARD, vary
from pytest_isolate.sandbox import Sandbox

DEPTHS = (0, 1, 2, 5, 10, 30)
#: operation -> how many of a batch's operations it takes for as long as one fork takes.
OPERATIONS = {"getpid": 1, "fork": 4, "thread": 10, "exec": 4}


def measure(effort: Effort) -> list[Table]:
    """One table an operation, a row a place; times in nanoseconds."""
    return [_table(operation, effort) for operation in OPERATIONS if effort.wants(operation)]


def _table(operation: str, effort: Effort) -> Table:
    places: dict[str, Batch] = {
        f"depth {depth}": _at(operation, depth) for depth in DEPTHS if depth == 0 or _may_nest()
    }
    places["sandbox, own PID namespace"] = _inside(operation, vary(STANDARD, namespaces="+pid"))
    places["sandbox, flat"] = _inside(operation, STANDARD)
    found = in_turns(places, effort)
    return Table(
        title=f"PID namespaces: {operation}",
        head=("where", "median ns", "p99 ns", "ok", "errors", "x depth 0", "x depth 1"),
        rows=tuple((where, *_cells(samples, found)) for where, samples in found.items()),
        notes=() if _may_nest() else ("deeper rows take CAP_SYS_ADMIN",),
    )


def _may_nest() -> bool:
    return os.geteuid() == 0


def _cells(samples: Samples, found: Mapping[str, Samples]) -> tuple[str, ...]:
    figures = (f"{samples.median_ns:.0f}", f"{samples.p99_ns:.0f}", str(len(samples.times_ns)), str(samples.errors))
    return (*figures, *(ratio(samples, found[depth]) if depth in found else "-" for depth in ("depth 0", "depth 1")))


def _words(operation: str, count: int, depth: int) -> list[str]:
    return bench("pidns", operation, count * OPERATIONS[operation], depth, find("isolate-tiny"))


def _at(operation: str, depth: int) -> Batch:
    return lambda count: lines_of(_words(operation, count, depth))


def _inside(operation: str, policy: Policy) -> Batch:
    def batch(count: int) -> list[int]:
        with Sandbox(policy, name="bench") as sandbox:
            outcome = sandbox.run(_words(operation, count, 0))
            return [int(line) for line in outcome.stdout.split()] if outcome.status.code == 0 else [-1]

    return batch
