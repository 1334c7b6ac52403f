"""What differs between runs of one suite: pure functions on the records that parity_recorder wrote.

Owns: Run, summary(), differences(), flaky(). Refuses: I/O, and to forgive: a test that differs between two plain runs is
listed as flaky, by name, and is left out of the verdict only for that reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a suite. ``tests`` maps a nodeid to its reports in order, as the recorder wrote them."""

    exitstatus: int
    collected: int
    wall_s: float
    tests: Mapping[str, Sequence[Mapping[str, Any]]]
    collect_errors: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One test whose outcome is not the same, with what each run said and why."""

    nodeid: str
    plain: str
    other: str
    why: str


def outcome_of(reports: Sequence[Mapping[str, Any]]) -> str:
    """What a reader of the summary sees: error, failed, xpassed, xfailed, skipped or passed; the worst phase decides."""
    whole = [report for report in reports if not report["subtest"]]
    if any(report["outcome"] == "failed" and report["when"] != "call" for report in whole):
        return "error"
    seen = {report["outcome"] for report in reports}
    for outcome in ("failed", "xpassed", "xfailed", "skipped"):
        if outcome in seen:
            return outcome
    return "passed" if "passed" in seen else MISSING


def phases_of(reports: Sequence[Mapping[str, Any]]) -> str:
    """Everything that is compared: the phases in order, then the subtests counted by outcome."""
    phases = [f"{report['when']} {report['outcome']}" for report in reports if not report["subtest"]]
    subtests = Counter(report["outcome"] for report in reports if report["subtest"])
    phases += [f"{count} subtests {outcome}" for outcome, count in sorted(subtests.items())]
    return ", ".join(phases) or MISSING


def incomplete(run: Run) -> str:
    """Why this run says nothing about its suite, or the empty string: pytest gave up, or did not run all that it collected."""
    if run.exitstatus not in (0, 1):
        return f"pytest ended with exit status {run.exitstatus}"
    if len(run.tests) < run.collected:
        return f"{run.collected} tests were collected, {len(run.tests)} ran"
    return ""


def summary(run: Run) -> Counter[str]:
    """How many tests had which outcome; ``tests`` counts them all, ``errors in collection`` the files that did not load."""
    counts = Counter(outcome_of(reports) for reports in run.tests.values())
    counts["tests"] = len(run.tests)
    counts["collection"] = len(run.collect_errors)
    return counts


def differences(plain: Run, other: Run) -> list[Difference]:
    """Every test, collection error and exit status that is not the same in both."""
    found = [
        Difference(nodeid=nodeid, plain=left, other=right, why=_why(plain, other, nodeid))
        for nodeid in sorted(plain.tests.keys() | other.tests.keys())
        if (left := phases_of(plain.tests.get(nodeid, ()))) != (right := phases_of(other.tests.get(nodeid, ())))
    ]
    for nodeid in sorted(plain.collect_errors.keys() ^ other.collect_errors.keys()):
        left, right = (("collected", "collection error")[nodeid in run.collect_errors] for run in (plain, other))
        why = plain.collect_errors.get(nodeid) or other.collect_errors.get(nodeid) or ""
        found.append(Difference(nodeid=nodeid, plain=left, other=right, why=why))
    if plain.exitstatus != other.exitstatus:
        left, right = (f"exit status {run.exitstatus}" for run in (plain, other))
        found.append(Difference(nodeid="<the run>", plain=left, other=right, why=""))
    return found


def flaky(plain_runs: Sequence[Run]) -> set[str]:
    """The nodeids that differ among plain runs."""
    first, *rest = plain_runs
    return {difference.nodeid for run in rest for difference in differences(first, run)}


def _why(plain: Run, other: Run, nodeid: str) -> str:
    for name, run in (("", other), ("plainly: ", plain)):
        for report in run.tests.get(nodeid, ()):
            if report["why"]:
                return f"{name}{report['why']}"
    return ""
