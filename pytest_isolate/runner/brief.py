"""The report of a phase that passed and says nothing else, told in a few numbers: most reports of most runs.

Owns: which reports are told so, and both ends of it. What stands in them but the times is their item's, which both sides have.
Refuses: a report in which anybody changed anything, and a run in which a plugin takes part in how reports are told.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from pytest_isolate import wire

PHASES = ("setup", "call", "teardown")
#: What pytest puts into a report of its own, in this version.
_FIELDS = vars(pytest.TestReport("", ("", None, ""), {}, "passed", None, "call")).keys()
_TIMES = tuple(name for name in ("duration", "start", "stop") if name in _FIELDS)


class Brief:
    """The child's end: knows what each report of an item holds, if nobody adds to it."""

    def __init__(self, config: pytest.Config) -> None:
        hooks = (config.hook.pytest_report_to_serializable, config.hook.pytest_report_from_serializable)
        found = (impl.function.__module__ for hook in hooks for impl in hook.get_hookimpls())
        self._may_be = all(module.startswith("_pytest.") for module in found)
        self._item: pytest.Item | None = None
        self._keywords: dict[str, int] = {}

    def begins(self, item: pytest.Item) -> None:
        """From now on reports are ``item``'s; its keywords are those that the parent knows."""
        self._item = item
        self._keywords = dict.fromkeys(item.keywords, 1) if self._may_be else {}

    def told(self, report: pytest.TestReport) -> list[Any] | None:
        """What to tell of it instead of all its fields; None: it says more."""
        item = self._item
        says_more = report.outcome != "passed" or report.longrepr or report.sections or report.user_properties
        if says_more or not self._may_be or item is None or type(report) is not pytest.TestReport:
            return None
        if vars(report).keys() != _FIELDS or report.nodeid != item.nodeid or report.location != item.location:
            return None
        times = [getattr(report, name) for name in _TIMES]
        if report.keywords != self._keywords or report.when not in PHASES or not _are_times(times):
            return None
        return [report.when, *times]


def read(item: pytest.Item, data: Any) -> pytest.TestReport:
    """The report again, in the parent.

    Raises:
        WireError: the test has written it.
    """
    match data:
        case [str(when), *times] if when in PHASES and len(times) == len(_TIMES) and _are_times(times):
            keywords: dict[str, Any] = dict.fromkeys(item.keywords, 1)
            words = dict(zip(_TIMES, times, strict=True))
            return pytest.TestReport(item.nodeid, item.location, keywords, "passed", None, when, **words)  # type: ignore[arg-type]
    raise wire.WireError("a report that pytest does not know")


def _are_times(found: list[Any]) -> bool:
    """Below 0, too: a test may have frozen the clock."""
    return all(type(value) is float and math.isfinite(value) for value in found)
