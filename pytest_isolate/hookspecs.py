"""The hooks of pytest-isolate, as prose contracts. In a conftest they are functions of these names, undecorated.

Owns: what each hook promises to its implementer and expects back. Refuses: to implement any.
"""

from __future__ import annotations

from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("pytest")


@hookspec
def pytest_isolate_child(item: Any) -> None:
    """Called inside, in the test's own process, after the fork and before the first fixture of the item.

    For what a fork must not share: open a database connection or a gRPC channel of a wide fixture again, reseed
    numpy's generator. An exception becomes the item's setup ERROR. Not called with ``--isolate-mode=fresh``, where
    nothing is shared, and once per process with ``--isolate-scope=class|module``.

    Args:
        item: the pytest.Item about to be run; its wide fixtures are made, ``item.session`` is the parent's copy.
    """


@hookspec
def pytest_isolate_report(item: Any, report: Any, cause: str) -> None:
    """Called in the parent for each report of an isolated test that has a cause (TIMEOUT, OOM, LEAK, ...).

    ``report`` may be added to (``report.sections.append((title, text))``); its outcome is not yours to change.
    """
