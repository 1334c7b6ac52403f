"""pytest-rerunfailures across processes: a test whose process ended is repeated in a new one.

Owns: how often an item was tried, which each child knows only of itself, and the decision to try again after a crash,
made by the options and marks of pytest-rerunfailures. Within one process that plugin repeats the test itself.
Refuses: to repeat anything without that plugin, or without having been asked to.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import pytest

#: Its names when it is loaded by its entry point, and by `-p`.
_PLUGINS = ("rerunfailures", "pytest_rerunfailures")


class Attempts:
    """The tries of one item, counted in the parent."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._plugin: Any = next(filter(None, map(item.config.pluginmanager.getplugin, _PLUGINS)), None)
        self.made = 0

    def again(self, made_there: int, found: pytest.TestReport, idle: Callable[[float], None]) -> bool:
        """True when the item, whose process ended on its ``made_there``-th try, is to be tried again.

        ``found``, the report of the crash, is then told as a rerun; ``idle`` is called with the seconds to wait before.
        """
        self._count(max(made_there, 1))
        self._item.execution_count = self.made  # type: ignore[attr-defined]
        if self._plugin is None or found.outcome != "failed" or not self._wanted(found):
            return False
        found.outcome = "rerun"  # type: ignore[assignment]
        found.rerun = self.made - 1  # type: ignore[attr-defined]
        idle(self._delay_s())
        return True

    def succeeded(self, execution_count: Any) -> None:
        """The item's last process told how often the item was tried, tries in earlier processes included."""
        if self._plugin is not None and isinstance(execution_count, int):
            self._count(execution_count - self.made)

    def _count(self, tries: int) -> None:
        """Add tries; those beyond a process's first were repeated by the plugin, in its own copy of the suite's count."""
        self.made += tries
        database = getattr(self._item.config, "failures_db", None)
        if database is not None and not hasattr(database, "sock"):
            for _ in range(tries - 1):
                with contextlib.suppress(AttributeError):
                    database.increment_suite_reruns()

    def _wanted(self, found: pytest.TestReport) -> bool:
        reruns = self._plugin.get_reruns_count(self._item)
        if not reruns or self.made > reruns or self._excluded() or self._filtered(str(found.longrepr)):
            return False
        if not self._plugin.get_reruns_condition(self._item):
            return False
        most = self._item.config.getoption("max_suite_reruns", None)
        return most is None or bool(self._item.config.failures_db.try_increment_suite_reruns(most))  # type: ignore[attr-defined]

    def _excluded(self) -> bool:
        excluded = getattr(self._plugin, "_is_rerun_path_excluded", None)
        return excluded is not None and bool(excluded(self._item))

    def _filtered(self, text: str) -> bool:
        """True when --only-rerun or --rerun-except speaks against it."""
        only, never = self._patterns("only_rerun"), self._patterns("rerun_except")
        return (bool(only) and not _matches(only, text)) or _matches(never, text)

    def _patterns(self, name: str) -> list[Any]:
        mark = self._item.get_closest_marker("flaky")
        if mark is not None and name in mark.kwargs:
            found = mark.kwargs[name]
            return list(found) if isinstance(found, list | tuple) else [found]
        found = self._item.config.getoption(name, None)
        if not found:
            with contextlib.suppress(ValueError, KeyError):
                found = self._item.config.getini(name)
        return list(found or ())

    def _delay_s(self) -> float:
        delay_s = float(self._plugin.get_reruns_delay(self._item))
        backoff = getattr(self._plugin, "get_reruns_delay_backoff_factor", None)  # 16.0 on
        return delay_s if backoff is None else float(delay_s * backoff(self._item) ** (self.made - 1))


def _matches(patterns: list[Any], text: str) -> bool:
    """A crash is no exception that a class could name; a pattern is searched in its text."""
    return any(isinstance(pattern, str) and re.search(pattern, f"IsolatedCrash: {text}") for pattern in patterns)


def resume(item: pytest.Item, made: int) -> None:
    """In a child: let the plugin count on from the tries that other processes made, as it does after a crash of xdist's."""
    database = getattr(item.config, "failures_db", None)
    if database is None or not made:
        return
    known = database.get_test_failures

    def failures(nodeid: str) -> int:
        return made if nodeid == item.nodeid else int(known(nodeid))

    database.get_test_failures = failures
