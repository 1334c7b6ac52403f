"""Tables for people and for Markdown.

Owns: their layout. Refuses: to compute; what stands in a cell is text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_isolate.bench.measure import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """``notes`` are lines below it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def text(self) -> Iterator[str]:
        """For a terminal: columns as wide as they must be."""
        widths = [max(len(line[column]) for line in (self.head, *self.rows)) for column in range(len(self.head))]
        yield self.title
        for line in (self.head, *self.rows):
            first, *rest = line
            cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
            yield "  ".join((first.ljust(widths[0]), *cells)).rstrip()
        yield from self.notes

    def markdown(self) -> Iterator[str]:
        yield f"### {self.title}"
        yield ""
        for line in (self.head, ("---", *["--:"] * (len(self.head) - 1)), *self.rows):
            yield f"| {' | '.join(line)} |"
        for note in self.notes:
            yield ""
            yield note


def microseconds(ns: float) -> str:
    return "-" if ns != ns else f"{ns / 1000:.0f}" if ns >= 100_000 else f"{ns / 1000:.1f}"


def ratio(samples: Samples, floor: Samples) -> str:
    times = samples.over(floor)
    return "-" if times != times else f"{times:.2f}"


def cells(samples: Samples, floor: Samples) -> Sequence[str]:
    """median us, p99 us, operations per second, successes, errors, times the floor."""
    return (
        microseconds(samples.median_ns),
        microseconds(samples.p99_ns),
        f"{samples.per_second:.0f}",
        str(len(samples.times_ns)),
        str(samples.errors),
        ratio(samples, floor),
    )


HEAD = ("median us", "p99 us", "ops/s", "ok", "errors", "x floor")
