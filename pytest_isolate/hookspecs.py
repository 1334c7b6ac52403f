"""The hooks of pytest-isolate, as prose contracts. In a conftest they are functions of these names, undecorated.

Owns: what each hook promises to its implementer and expects back. Refuses: to implement or to call any (hooks.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pytest_isolate.backend import Backend, Launch, Process
    from pytest_isolate.outcome import Outcome
    from pytest_isolate.policy import Policy

hookspec = pluggy.HookspecMarker("pytest")


@hookspec
def pytest_isolate_backends(config: Any) -> Iterable[Backend]:  # type: ignore[empty-body]
    """Offer backends: return a list of objects that do what ``pytest_isolate.backend.Backend`` says.

    Called when the first sandbox is chosen for, once more after the collection (conftests of directories offer then,
    too), and never in a run that isolates nothing. Say what a backend cannot do, on this host too, in its ``lacks``; do not
    leave it out of the list, or nobody learns why it was not taken. A name that another plugin offers too is an error that
    names both.

    Args:
        config: the pytest.Config; None without pytest.
    """


@hookspec(firstresult=True)
def pytest_isolate_select(item: Any, policy: Policy, candidates: Sequence[Backend]) -> Backend | None:
    """Choose among backends that enforce all of ``policy``; None leaves it to the others, at last to the first of them.

    With this hook every backend is asked for every policy, not only the first that can.

    Args:
        item: the pytest.Item; None for a program that no test is known to have started.
        candidates: best first, never empty; only one of these may be returned.
    """


@hookspec
def pytest_isolate_guards(policy: Policy) -> Iterable[AbstractContextManager[Any]]:  # type: ignore[empty-body]
    """Return context managers to be entered around one sandbox's life, in the parent: a mount, a proxy, a licence.

    Entered before anything is started, left in reverse after all of it has ended, also when the start failed. With
    ``--isolate-jobs=N`` several sandboxes live at once, and each has its own.
    """


@hookspec
def pytest_isolate_prepare(sandbox: Launch, policy: Policy) -> None:
    """Called in the parent before each start, the guards entered. An exception keeps the sandbox from being started."""


@hookspec
def pytest_isolate_spawned(sandbox: Launch, process: Process) -> None:
    """Called in the parent when the process runs: ``process.pid`` is the host's number. An exception ends it."""


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
def pytest_isolate_finished(sandbox: Launch, outcome: Outcome) -> None:
    """Called in the parent when all of the sandbox has ended, before the guards are left.

    For a test function ``outcome.args`` is its node id, and the output is in pytest's report, not here. An exception is
    the test's teardown ERROR, or for a program raised by ``run`` or ``wait``.
    """


@hookspec
def pytest_isolate_report(item: Any, report: Any, cause: str, outcome: Outcome) -> None:
    """Called in the parent for each report of an isolated test that has a cause (TIMEOUT, OOM, LEAK, ...).

    ``report`` may be added to (``report.sections.append((title, text))``); its outcome is not yours to change.
    ``outcome`` has the cause, and in ``detail`` a line of evidence for it.
    """
