"""The report of a phase that passed and says nothing else, told in a few words: most reports of most runs.

Owns: which reports are told so, and both ends of it. What the reports of one item have in common is told with the first.
Refuses: a report in which anybody changed anything else, and a run in which a plugin takes part in how reports are told.
"""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import pytest
from _pytest import reports

from pytest_isolate import wire

PHASES = ("setup", "call", "teardown")
#: What pytest puts into a report of its own, in this version.
_FIELDS = vars(pytest.TestReport("", ("", None, ""), {}, "passed", None, "call")).keys()
_TIMES = tuple(name for name in ("duration", "start", "stop") if name in _FIELDS)
UNKNOWN = "a report that pytest does not know"


class Brief:
    """The child's end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._head: list[Any] = []

    def begins(self) -> None:
        """The reports of another item come."""
        self._head = []

    def told(self, report: pytest.TestReport) -> list[Any] | None:
        """What to tell of it instead of all its fields; None: it says more."""
        if not (_says_nothing_more(report) and told_by_pytest_alone(self._config)):
            return None
        times = [getattr(report, name) for name in _TIMES]
        if not _are_times(times):
            return None
        head = [report.nodeid, report.location, list(report.keywords)]
        known, self._head = head == self._head, head
        return [report.when, times] if known else [report.when, times, *head]


def _says_nothing_more(report: pytest.TestReport) -> bool:
    if report.outcome != "passed" or report.longrepr is not None or type(report) is not pytest.TestReport:
        return False
    empty = report.sections == [] and report.user_properties == [] and report.when in PHASES
    if not empty or vars(report).keys() != _FIELDS or type(report.location) is not tuple:
        return False
    return all(type(name) is str and type(one) is int and one == 1 for name, one in report.keywords.items())


_judged: tuple[list[Any], bool] = ([], False)


def told_by_pytest_alone(config: pytest.Config) -> bool:
    """True while no plugin has a hand in how reports are told; asked often, for one may join at any time."""
    global _judged
    hook = config.hook
    found = [
        *hook.pytest_report_to_serializable.get_hookimpls(),
        *hook.pytest_report_from_serializable.get_hookimpls(),
    ]
    if found != _judged[0]:
        _judged = found, all(_is_pytests(impl.plugin) for impl in found)
    return _judged[1]


def _is_pytests(plugin: object) -> bool:
    return isinstance(plugin, types.ModuleType) and plugin.__name__.startswith("_pytest.")


class Heard:
    """The parent's end: the brief reports of one item. The test may have written them itself."""

    __slots__ = ("_keywords", "_location", "item")

    def __init__(self, item: pytest.Item) -> None:
        self.item = item
        self._keywords: dict[str, Any] | None = None
        self._location = item.location

    def read(self, data: Any) -> pytest.TestReport:
        """The report again.

        Raises:
            WireError: no child of ours tells that.
        """
        match data:
            case [when, list(times), *head] if when in PHASES and len(times) == len(_TIMES) and _are_times(times):
                if head:
                    self._hear(head)
                if self._keywords is not None:
                    words = dict(zip(_TIMES, times, strict=True))
                    keywords = dict(self._keywords)
                    return pytest.TestReport(self.item.nodeid, self._location, keywords, "passed", None, when, **words)
        raise wire.WireError(UNKNOWN)

    def _hear(self, head: list[Any]) -> None:
        """Strings that the item has are kept once: reporters hold every report to the end of the run, in a heap that is forked."""
        match head:
            case [str(nodeid), location, list(names)] if is_place(location) and set(map(type, names)) <= {str}:
                if nodeid != self.item.nodeid:
                    raise wire.WireError(f"a report of another test, {nodeid[:200]}")
                self._location = self.item.location if location == self.item.location else location
                self._keywords = dict.fromkeys(map(sys.intern, names), 1)
            case _:
                raise wire.WireError(UNKNOWN)


def in_full(report: pytest.TestReport) -> Any:
    """What pytest itself would have told of it: for a plugin that has joined in since, and wants to be asked."""
    return reports.pytest_report_to_serializable(report)


def is_place(found: Any) -> bool:
    """(file, line, text), as a location and the reason of a skip are; the line may be unknown."""
    match found:
        case (str(), int() | None, str()):
            return True
    return False


def _are_times(found: list[Any]) -> bool:
    """Below 0, too: a test may have frozen the clock."""
    return all(type(value) is float and math.isfinite(value) for value in found)
