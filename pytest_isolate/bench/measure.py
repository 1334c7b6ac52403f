"""Runs competitors in turns and keeps every sample.

Owns: the turns (A B A B: what the machine does meanwhile hits all alike), medians and percentiles, the call of isolate-bench.
Refuses: to know what is measured. All times are nanoseconds; a sample below zero is the -errno of an operation that failed.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_isolate.kernel.library import find

Batch = Callable[[int], Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure: ``rounds`` turns of ``batch`` operations each; ``only``: the rows that are asked for.

    ``seconds``: of what runs by the clock.
    """

    rounds: int = 10
    batch: int = 20
    only: frozenset[str] = frozenset()
    seconds: float = 60.0

    def wants(self, row: str) -> bool:
        return not self.only or row in self.only


@dataclass(slots=True)
class Samples:
    """What one competitor did."""

    times_ns: list[int] = field(default_factory=list)
    errors: int = 0
    rounds_ns: list[float] = field(default_factory=list)  # the median of each round; nan where nothing succeeded
    fastest_ns: list[float] = field(default_factory=list)  # and the fastest of each

    def add(self, batch: Sequence[int]) -> None:
        """One round's samples."""
        succeeded = [sample for sample in batch if sample >= 0]
        self.times_ns += succeeded
        self.errors += len(batch) - len(succeeded)
        self.rounds_ns.append(statistics.median(succeeded) if succeeded else math.nan)
        self.fastest_ns.append(min(succeeded, default=math.nan))

    def over(self, floor: Samples) -> float:
        """How many times as long as ``floor``: the median of the rounds' ratios, for within a round the machine is the same."""
        return _ratio(self.rounds_ns, floor.rounds_ns)

    def fastest_over(self, floor: Samples) -> float:
        """The same of each round's fastest: for what only computes, which neighbours disturb and nothing hastens."""
        return _ratio(self.fastest_ns, floor.fastest_ns)

    @property
    def fastest_median_ns(self) -> float:
        """Of the rounds' fastest."""
        found = [one for one in self.fastest_ns if one > 0]
        return statistics.median(found) if found else math.nan

    @property
    def median_ns(self) -> float:
        return statistics.median(self.times_ns) if self.times_ns else math.nan

    @property
    def p99_ns(self) -> float:
        return sorted(self.times_ns)[max(0, math.ceil(len(self.times_ns) * 0.99) - 1)] if self.times_ns else math.nan

    @property
    def per_second(self) -> float:
        """Operations one after the other: by the mean, which pays for every slow one."""
        return 1e9 / statistics.fmean(self.times_ns) if self.times_ns else 0.0


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios, where both succeeded; nan in comparisons is false."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True) if one > 0 and other > 0]
    return statistics.median(ratios) if ratios else math.nan


def in_turns(competitors: Mapping[str, Batch], effort: Effort) -> dict[str, Samples]:
    """Every competitor once in each round. Who goes first changes from round to round."""
    found = {name: Samples() for name in competitors}
    names = list(competitors)
    for turn in range(effort.rounds):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            found[name].add(competitors[name](effort.batch))
    return found


def at_once(batch: Batch, workers: int) -> Batch:
    """The same batch in so many forks of this process at the same time; their samples, one after the other."""

    def together(count: int) -> list[int]:
        running = [_in_fork(batch, count) for _ in range(workers)]
        samples: list[int] = []
        for pid, read_fd in running:
            with open(read_fd, encoding="ascii") as lines:
                samples += map(int, lines)
            os.waitpid(pid, 0)
        return samples

    return together


def _in_fork(batch: Batch, count: int) -> tuple[int, int]:
    """(pid, descriptor to read its samples from)."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_fd)
            text = "".join(f"{sample}\n" for sample in batch(count))
            with open(write_fd, "w", encoding="ascii") as answers:
                answers.write(text)
        finally:
            os._exit(0)
    os.close(write_fd)
    return pid, read_fd


def lines_of(command: Sequence[str], *, cwd: str | None = None) -> list[int]:
    """The samples that a program prints; one failure where it fails itself. Its input is a pipe: runsc gives what it gets to nobody."""
    done = subprocess.run(command, input="", capture_output=True, text=True, cwd=cwd)
    return [int(line) for line in done.stdout.split()] if done.returncode == 0 else [-1]


def bench(*words: str | int | Path) -> list[str]:
    """The command line of isolate-bench."""
    return [str(find("isolate-bench")), *map(str, words)]
