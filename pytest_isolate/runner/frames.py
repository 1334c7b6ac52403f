"""What may stand in a frame: each reader returns values that the rest of the runner can rely on.

Owns: the checks of a frame's content. The test may have written the frame itself.
Refuses: to act on it; what is not as it must be raises WireError, and the test is blamed.
"""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import pytest

from pytest_isolate import wire
from pytest_isolate.outcome import Leftover
from pytest_isolate.runner import compat

#: A timer beyond this is no timer; poll(2) counts milliseconds in an int.
_LONGEST_S = 1e6
_PHASES = ("setup", "call", "teardown")


def read_report(item: pytest.Item, data: Any) -> pytest.TestReport:
    """The report in a frame, checked as far as reporters rely on it."""
    try:
        report: pytest.TestReport = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        compat.restore_subtest(report, data)
        known = report.when in _PHASES and isinstance(vars(report).get("outcome"), str)
        known = known and math.isfinite(report.duration)  # below 0 where a test froze the clock (freezegun)
        known = known and all(tuple(map(type, pair)) == (str, str) for pair in report.sections)
        known = known and all(len(pair) == 2 for pair in report.user_properties)
    except Exception as error:
        raise wire.WireError("a report that pytest does not know") from error
    if not known:
        raise wire.WireError("a report that pytest does not know")
    if report.nodeid != item.nodeid:
        raise wire.WireError(f"a report of another test, {report.nodeid[:200]}")
    _share(item, report)
    return report


def _share(item: pytest.Item, report: pytest.TestReport) -> None:
    """Keep once what the item has, too: reporters hold every report to the end of the run, in a heap that is forked."""
    report.nodeid = item.nodeid
    if report.location == item.location:
        report.location = item.location
    if set(map(type, report.keywords)) == {str}:
        report.keywords = {sys.intern(name): value for name, value in report.keywords.items()}


def read_phase(data: Any) -> int:
    """Which phase begins: 0 setup, 1 call, 2 teardown."""
    if data not in _PHASES:
        raise wire.WireError("a phase that pytest does not know")
    return _PHASES.index(data)


def read_again(data: Any) -> bool:
    """Whether the try before this one was finished."""
    match data:
        case {"finished": bool(finished)}:
            return finished
    raise wire.WireError("a repetition that says nothing known")


def read_timer(data: Any) -> float | None:
    """The seconds of a timer frame; None: cancelled."""
    try:
        timeout_s = data["timeout_s"]
        if timeout_s is None or 0 < float(timeout_s) < _LONGEST_S:
            return None if timeout_s is None else float(timeout_s)
    except (LookupError, TypeError, ValueError) as error:
        raise wire.WireError("a timer without seconds") from error
    raise wire.WireError(f"a timer of {str(timeout_s)[:20]} seconds")


def read_done(data: Any) -> Any:
    """The last frame of an item; how the run is to go on is one of three things."""
    match data:
        case {"control": None}:
            return data
        case {"control": {"kind": "interrupt", "text": str()}}:
            return data
        case {"control": {"kind": "exit", "text": str(), "returncode": int() | None}}:
            return data
    raise wire.WireError("an end that says nothing known")


def read_leftovers(data: Any) -> list[Leftover]:
    """What a fresh interpreter saw living beside it at its end; the numbers are those inside."""
    try:
        return [
            Leftover(pid=int(pid), command=str(command), age_s=float(age_s))
            for pid, command, age_s in data.get("leftovers", ())
        ]
    except (TypeError, ValueError) as error:
        raise wire.WireError("leftovers that are no processes") from error


def read_warning(data: Any) -> dict[str, Any]:
    """The arguments of pytest_warning_recorded out of a frame."""
    try:
        module, name = data["category"]
        category = getattr(sys.modules.get(module), name, None)
        if not (isinstance(category, type) and issubclass(category, Warning)):
            category = UserWarning
        message = warnings.WarningMessage(
            UserWarning(data["text"]), category, str(data["filename"]), int(data["lineno"]), line=data["line"]
        )
        return {"warning_message": message, **{name: data[name] for name in ("when", "nodeid", "location")}}
    except (LookupError, TypeError, ValueError) as error:
        raise wire.WireError("a warning that pytest does not know") from error
