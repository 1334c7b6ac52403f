"""The table of backends and capabilities at the end of a run of the suite.

Owns: the words of a cell: yes, not claimed (``-``), LIES. Refuses: to judge; test_conformance.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pytest_isolate.capability import Capability

Cells = dict[tuple[str, str], str]
_cells: Cells = {}  # (column, capability) -> the word of the cell


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    found = getattr(item, "callspec", None)
    if found is None or "case" not in found.params or "column" not in found.params:
        return
    report, key = outcome.get_result(), (found.id.split("-")[0], found.params["case"].capability.value)
    if report.failed:
        _cells[key] = "LIES"
    elif report.when == "call" and report.passed:
        _cells.setdefault(key, "yes")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _cells:
        terminalreporter.section("what each backend enforces here")
        for line in table(_cells):
            terminalreporter.line(line)


def table(cells: Cells) -> Iterator[str]:
    """Markdown: a row for each capability, a column for each backend and what it starts; ``-`` is not claimed."""
    columns = sorted({column for column, _ in cells})
    yield "| capability | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for capability in Capability:
        yield f"| {capability} | " + " | ".join(cells.get((column, capability.value), "-") for column in columns) + " |"
