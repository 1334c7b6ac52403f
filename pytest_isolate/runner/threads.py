"""Threads of the pytest process do not exist in the processes forked from it: who has some is told, once.

Owns: the warning. Python's own, of os.fork() since 3.12, does not appear for a clone of ours.
Refuses: to look at threads that Python did not start (execnet's reader in an xdist worker is one).
"""

from __future__ import annotations

import threading
import warnings

import pytest

from pytest_isolate.runner import compat


def tell(item: pytest.Item) -> bool:
    """Announce the threads that ``item`` will miss, as a warning of the run; True when there was something to tell."""
    names = [thread.name for thread in threading.enumerate() if _matters(thread)]
    if not names:
        return False
    text = (
        f"pytest-isolate: {len(names)} thread(s) of the pytest process do not exist in the isolated tests: "
        f"{', '.join(sorted(names))}. Start them in a fixture of function scope or in the hook "
        "pytest_isolate_child, or use --isolate-mode=fresh"
    )
    message = warnings.WarningMessage(pytest.PytestWarning(text), pytest.PytestWarning, str(item.path), 0)
    # Announced, not raised: -W error is about the tests' warnings, this one is about the run.
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "when": "runtest", "nodeid": item.nodeid, "location": None}
    )
    return True


def _matters(thread: threading.Thread) -> bool:
    """False for the main thread, for those Python did not start, and for what a known plugin keeps for itself."""
    if thread is threading.main_thread() or isinstance(thread, threading._DummyThread):
        return False
    target = getattr(thread, "_target", None)
    return compat.module_root(target) not in compat.KNOWN_PLUGINS
