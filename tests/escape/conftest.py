"""Prints the table: what was tried, by whom, how its control ended, what stopped it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import require

_ROWS = pytest.StashKey[list[tuple[str, str, str, str]]]()


@pytest.fixture(autouse=True)
def _may_be_who_it_is_by(request: pytest.FixtureRequest) -> None:
    """Root may become anyone; a plain user tries what is by plain users."""
    by_user = hasattr(request.node, "callspec") and request.node.callspec.params.get("who") == "user"
    require("root", by_user or os.geteuid() == 0, "it is by root")


@pytest.fixture
def table(request: pytest.FixtureRequest) -> list[tuple[str, str, str, str]]:
    """Rows of (attack, by whom, control, attack's end)."""
    return request.config.stash.setdefault(_ROWS, [])


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.section("attacks")
        for line in _lines(rows):
            terminalreporter.line(line)


def _lines(rows: list[tuple[str, str, str, str]]) -> Iterator[str]:
    for attack, who, control, end in [("attack", "by", "control", "in the sandbox"), *rows]:
        yield f"{attack:<71} {who:<5} {control:<9} {end}"
