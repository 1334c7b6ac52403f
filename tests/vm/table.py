"""Cells from the guest's lines, judged against the row, and printed.

Owns: Cell, what counts as failed, the table and the list of evidence.
Refuses: an empty cell: a limit no line was printed for is ``untested``, and untested is failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .rows import LAYERS, Row

_NOISE_LINES = 12

#: (layer, check) -> the line the guest printed for it.
Answers = Mapping[tuple[str, str], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one limit did in one row, and what the row expects. ``evidence`` is the guest's own words.

    ``layer``: ``kernel``, proved with raw files, or ``ours``, through the product.
    """

    layer: str
    limit: str
    state: str
    expected: str
    evidence: str

    @property
    def ok(self) -> bool:
        return self.state == self.expected

    def __str__(self) -> str:
        return self.state if self.ok else self.state.upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """One row after its boot. ``machine`` describes it in the guest's words; ``error`` says why there is none."""

    row: Row
    cells: tuple[Cell, ...]
    machine: str = ""
    error: str = ""
    boot_s: float = 0.0
    wall_s: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.error and all(cell.ok for cell in self.cells)

    def cell(self, layer: str, limit: str) -> Cell:
        return next(cell for cell in self.cells if (cell.layer, cell.limit) == (layer, limit))

    def as_json(self) -> dict[str, Any]:
        cells = [{**asdict(cell), "ok": cell.ok} for cell in self.cells]
        told = {"machine": self.machine, "error": self.error, "boot_s": self.boot_s, "wall_s": self.wall_s}
        return {"row": self.row.name, "why": self.row.why, "ok": self.ok, **told, "cells": cells}


def answers(output: str) -> Answers:
    """(layer, check) -> its line, out of whatever else the command printed; a line cut short is no answer."""
    found: dict[tuple[str, str], Mapping[str, str]] = {}
    for line in output.splitlines():
        if line.startswith('{"layer": ') and line.endswith("}"):
            told = json.loads(line)
            found[told["layer"], told["check"]] = told
    return found


def judge(row: Row, found: Answers) -> tuple[Cell, ...]:
    """A cell for every limit of every layer, also for those the guest did not answer."""
    return tuple(_cell(row, layer, limit, found) for layer, limits in LAYERS.items() for limit in limits)


def _cell(row: Row, layer: str, limit: str, found: Answers) -> Cell:
    told = found.get((layer, limit), {"state": "untested", "evidence": "the guest printed no line for it"})
    expected = row.expected(layer, limit)
    return Cell(layer=layer, limit=limit, state=told["state"], expected=expected, evidence=told["evidence"])


def besides(output: str) -> str:
    """The last lines of ``output`` that answer nothing: where a check that never came about says why."""
    noise = [line for line in output.splitlines() if line.strip() and not line.startswith('{"layer": ')]
    return "\n".join(noise[-_NOISE_LINES:])


def render(tested: Sequence[Tested]) -> str:
    """Limits down, rows across; what is not as the row expects stands in capitals."""
    lines = [["", *(done.row.name for done in tested)]]
    for layer, limits in LAYERS.items():
        lines += [[""] * (len(tested) + 1), [f"[{layer}]", *[""] * len(tested)]]
        lines += [[limit, *(str(done.cell(layer, limit)) for done in tested)] for limit in limits]
    lines.append([""] * (len(tested) + 1))
    lines.append(["boot, s", *(f"{done.boot_s:.1f}" for done in tested)])
    lines.append(["whole run, s", *(f"{done.wall_s:.0f}" for done in tested)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def evidence(done: Tested) -> str:
    """One line per cell of a row: the state and the guest's words; what was expected where it differs."""
    lines = [f"{done.row.name}: {done.row.why}", *(f"  {said}" for said in (done.machine, done.error) if said)]
    for cell in done.cells:
        if cell.limit == LAYERS[cell.layer][0]:
            lines.append(f"  [{cell.layer}]")
        wanted = "" if cell.ok else f" (expected {cell.expected})"
        lines.append(f"  {cell.limit:<12} {cell}{wanted}: {cell.evidence.strip()}")
    return "\n".join(lines)


def summary(tested: Iterable[Tested]) -> str:
    """The last line: how many cells, how many not as expected."""
    done = list(tested)
    cells = [cell for row in done for cell in row.cells]
    bad = sum(not cell.ok for cell in cells)
    untested = sum(cell.state == "untested" for cell in cells)
    return f"{len(done)} rows, {len(cells)} cells: {untested} untested, {bad - untested} not as the row says"
