"""Threads of pytest's own process do not live on in a child, and a lock that one of them holds stays held there.

Owns: the warning that says so, once in a run, naming the threads. CPython's own (3.12 on) does not see our clone.
Refuses: to count the threads that were there before the first test: those of xdist's worker are none of the user's; nor our own,
which take no lock that a child could need (network/resolver.py).
"""

from __future__ import annotations

import threading
import warnings

import pytest

#: How the names of our own threads begin.
OURS = "pytest-isolate-"


class IsolateWarning(pytest.PytestWarning):
    """Something that holds, but not as a user may expect."""


class Watch:
    """Made before the first test; looks once before each fork until it has warned."""

    def __init__(self) -> None:
        self._known = {thread.ident for thread in threading.enumerate()}
        self._done = False

    def look(self, item: pytest.Item) -> None:
        """Warn on behalf of ``item`` when threads have been started since."""
        if self._done or threading.active_count() <= 1:
            return
        new = (thread for thread in threading.enumerate() if thread.ident not in self._known)
        names = sorted(thread.name for thread in new if not thread.name.startswith(OURS))
        if not names:
            return
        self._done = True
        text = (
            f"pytest-isolate forks a process that has threads ({', '.join(names)}): they do not live on in the tests' "
            "processes, and a lock held by one of them stays held. Start them in fixtures of function scope, or of "
            "the scope that --isolate-scope names, or in the hook pytest_isolate_child."
        )
        try:
            item.warn(IsolateWarning(text))
        except IsolateWarning:  # -W error: it is not the test that is at fault
            _record(item, text)


def _record(item: pytest.Item, text: str) -> None:
    path, lineno, _ = item.location
    message = warnings.WarningMessage(IsolateWarning(text), IsolateWarning, path, (lineno or 0) + 1)
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "when": "runtest", "nodeid": item.nodeid, "location": None}
    )
