"""What may stand in a frame: each reader returns values that the rest of the runner can rely on.

Owns: the checks of a frame's content. The test may have written the frame itself.
Refuses: to act on it; what is not as it must be raises WireError, and the test is blamed.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import pytest

from pytest_isolate import wire
from pytest_isolate.outcome import Cause, Leftover
from pytest_isolate.runner import compat
from pytest_isolate.runner.brief import PHASES, UNKNOWN, Heard, in_full, is_place, told_by_pytest_alone
from pytest_isolate.runner.process import COSTS
from pytest_isolate.runner.verdict import FITS

#: A timer beyond this is no timer; poll(2) counts milliseconds in an int.
_LONGEST_S = 1e6
#: More tries of one item than any plugin makes.
_MOST_TRIES = 100_000
_MOST_STATUS = 2**31 - 1
#: pytest's words to itself in a report that was told, which it does not take out again.
_LEFT_THERE = ("$report_type", "_report_type", "_subtest.context")
_CAUSES = frozenset(cause.value for cause in Cause)
_Words = ParamSpec("_Words")
_Value = TypeVar("_Value")


def _or_else(what: str) -> Callable[[Callable[_Words, _Value]], Callable[_Words, _Value]]:
    """Whatever goes wrong when a frame is read is the writer's fault: a WireError that says what it is."""

    def decorated(read: Callable[_Words, _Value]) -> Callable[_Words, _Value]:
        @functools.wraps(read)
        def reading(*args: _Words.args, **words: _Words.kwargs) -> _Value:
            try:
                return read(*args, **words)
            except wire.WireError:
                raise
            except Exception as error:
                raise wire.WireError(what) from error

        return reading

    return decorated


@_or_else(UNKNOWN)
def read_report(item: pytest.Item, data: Any) -> pytest.TestReport:
    """The report in a frame, checked as far as reporters rely on it."""
    report: pytest.TestReport = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    compat.restore_subtest(report, data)
    for name in _LEFT_THERE:
        vars(report).pop(name, None)
    if report.nodeid != item.nodeid:
        raise wire.WireError(f"a report of another test, {str(report.nodeid)[:200]}")
    if not _is_usual(report):
        raise wire.WireError(UNKNOWN)
    _share(item, report)
    return report


@_or_else(UNKNOWN)
def read_passed(heard: Heard, data: Any) -> pytest.TestReport:
    """The report of a phase that passed; where a plugin takes part in how reports are told, it is asked."""
    report = heard.read(data)
    return report if told_by_pytest_alone(heard.item.config) else read_report(heard.item, in_full(report))


def _is_usual(report: pytest.TestReport) -> bool:
    fields, kind = vars(report), type(report)
    known = report.when in PHASES and isinstance(fields.get("outcome"), str)
    known = known and math.isfinite(report.duration)  # below 0 where a test froze the clock (freezegun)
    known = known and all(tuple(map(type, pair)) == (str, str) for pair in report.sections)
    known = known and all(len(pair) == 2 for pair in report.user_properties)
    known = known and type(report.keywords) is dict and is_place(report.location)
    known = known and all(_is_cause(fields[name]) for name in ("isolate_cause", FITS) if name in fields)
    known = known and isinstance(fields.get("wasxfail", ""), str)
    if report.outcome == "skipped" and "wasxfail" not in fields:
        known = known and is_place(report.longrepr)
    return known and not any(callable(getattr(kind, name, None)) for name in fields)  # which would hide its methods


def _is_cause(found: Any) -> bool:
    return isinstance(found, str) and found in _CAUSES


def _share(item: pytest.Item, report: pytest.TestReport) -> None:
    """Keep once what the item has, too: reporters hold every report to the end of the run, in a heap that is forked."""
    report.nodeid = item.nodeid
    if report.location == item.location:
        report.location = item.location
    if set(map(type, report.keywords)) == {str}:
        report.keywords = {sys.intern(name): value for name, value in report.keywords.items()}


def read_phase(data: Any) -> int:
    """Which phase begins: 0 setup, 1 call, 2 teardown."""
    if data not in PHASES:
        raise wire.WireError("a phase that pytest does not know")
    return PHASES.index(data)


def read_again(data: Any) -> bool:
    """Whether the try before this one was finished."""
    match data:
        case {"finished": bool(finished)}:
            return finished
    raise wire.WireError("a repetition that says nothing known")


@_or_else("a timer without seconds")
def read_timer(data: Any) -> float | None:
    """The seconds of a timer frame; None: cancelled."""
    timeout_s = data["timeout_s"]
    if timeout_s is None or 0 < float(timeout_s) < _LONGEST_S:
        return None if timeout_s is None else float(timeout_s)
    raise wire.WireError(f"a timer of {str(timeout_s)[:20]} seconds")


@_or_else("an end that says nothing known")
def read_done(data: Any) -> Any:
    """The last frame of an item; how the run is to go on is one of three things."""
    known = _is_count(data.get("execution_count"), _MOST_TRIES)
    known = known and all(math.isfinite(data.get(name, 0)) for name in COSTS)
    match data["control"]:
        case None | {"kind": "interrupt", "text": str()} if known:
            return data
        case {"kind": "exit", "text": str(), "returncode": status} if known and _is_count(status, _MOST_STATUS):
            return data
    raise wire.WireError("an end that says nothing known")


def _is_count(found: Any, most: int) -> bool:
    """A number that nobody has to fear, or none."""
    return found is None or (isinstance(found, int) and abs(found) <= most)


@_or_else("leftovers that are no processes")
def read_leftovers(data: Any) -> list[Leftover]:
    """What a fresh interpreter saw living beside it at its end; the numbers are those inside."""
    return [
        Leftover(pid=int(pid), command=str(command), age_s=float(age_s))
        for pid, command, age_s in data.get("leftovers", ())
    ]


@_or_else("a warning that pytest does not know")
def read_warning(data: Any) -> dict[str, Any]:
    """The arguments of pytest_warning_recorded out of a frame."""
    module, name = data["category"]
    category = getattr(sys.modules.get(module), name, None)
    if not (isinstance(category, type) and issubclass(category, Warning)):
        category = UserWarning
    line, location = data["line"], data["location"]
    if not (isinstance(line, str | None) and (location is None or is_place(location))):
        raise wire.WireError("a warning that pytest does not know")
    message = warnings.WarningMessage(
        UserWarning(data["text"]), category, str(data["filename"]), int(data["lineno"]), line=line
    )
    told = {"when": str(data["when"]), "nodeid": str(data["nodeid"]), "location": location}
    return {"warning_message": message, **told}
