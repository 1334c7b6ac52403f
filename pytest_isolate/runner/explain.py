"""A plugin for `pytest-isolate doctor --explain`: after the collection says what each test would run under, and why.

Owns: the explanation, printed instead of pytest's list of tests. Refuses: to run anything.
Loaded by name (`-p pytest_isolate.runner.explain --collect-only`), never by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_isolate.errors import IsolateError
from pytest_isolate.groups import Groups
from pytest_isolate.hooks import of_this_process
from pytest_isolate.networks import Networks
from pytest_isolate.registry import candidates, verdicts
from pytest_isolate.runner import report
from pytest_isolate.runner.host import kind_of
from pytest_isolate.runner.options import OPTIONS, asks_for_network
from pytest_isolate.runner.settings import Resolver

if TYPE_CHECKING:
    from pytest_isolate.runner.settings import Settings


_key: pytest.StashKey[list[str]] = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Explain, then leave nothing to the hooks after this one: they might refuse what is to be explained."""
    resolver = Resolver(config)
    lines: list[str] = []
    for item in items:
        lines += explained(item, resolver)
    session.stash[_key] = lines
    items.clear()


def pytest_collection_finish(session: pytest.Session) -> None:
    if _key in session.stash:
        lines = session.stash[_key]
        print("\n".join(lines))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tests were found: clearing the list is no reason for pytest's status 5."""
    if _key in session.stash and session.stash[_key] and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


def explained(item: pytest.Item, resolver: Resolver) -> Iterator[str]:
    """The settings of one test, where each came from, and the verdict on each backend."""
    settings = resolver.item(item)
    yield item.nodeid
    yield f"  isolated   {_when(item, settings)}"
    yield f"  profile    {settings.profile}: {report.describe(settings.policy)}"
    yield f"  mode       {settings.mode}, one sandbox per {settings.scope}, leaks {settings.leaks}, missing {settings.missing}"
    for mark in item.iter_markers(name="isolate"):
        yield f"  marker     isolate({', '.join(_words(mark))})"
    for mark in item.iter_markers(name="netpolicy"):
        yield f"  marker     netpolicy({', '.join(_words(mark))})"
    for option in OPTIONS:
        if (value := item.config.getoption(option.dest)) is not None:
            yield f"  option     {option.flag}={value}"
    yield from (f"  backend    {line}" for line in _verdicts(item, settings))


def _when(item: pytest.Item, settings: Settings) -> str:
    if settings.mode == "inprocess":
        return "never: mode inprocess"
    if item.get_closest_marker("isolate"):
        return "always: it has the marker" if settings.enabled else "never: its marker exempts it"
    return "always: it has a network policy" if asks_for_network(item) and settings.enabled else "with --isolate"


def _words(mark: pytest.Mark) -> list[str]:
    return [*map(repr, mark.args), *(f"{name}={value!r}" for name, value in mark.kwargs.items())]


def _verdicts(item: pytest.Item, settings: Settings) -> Iterator[str]:
    with contextlib.closing(Groups()) as groups, contextlib.closing(Networks(groups)) as networks:
        try:
            policy = groups.settle(settings.policy)
            tier = networks.settle(policy, lambda other: candidates(other, settings.backends, kind=kind_of(settings)))
            policy = policy if tier is None else tier.policy
        except IsolateError as error:
            yield f"none: {error}"
            return
    hooks = of_this_process()
    found = list(verdicts(policy, settings.backends, kind=kind_of(settings), hooks=hooks))
    able = [verdict.backend for verdict in found if verdict]
    if able:
        taken = hooks.select(item, policy, able)
        how = "by a plugin's choice" if taken is not able[0] else "the first that enforces all of it"
        yield f"{taken.name}: taken, {how}"
        yield from (
            f"{backend.name}: could enforce it, and {taken.name} comes first"
            for backend in able
            if backend is not taken
        )
    yield from (
        f"{verdict.backend.name}: not taken, it lacks {'; '.join(verdict.lacking)}" for verdict in found if not verdict
    )
    if not able:
        yield f"none: --isolate-missing={settings.missing} decides"
