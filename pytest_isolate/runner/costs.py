"""What tests cost, over the whole run: the heaviest by each resource, and a file of peaks to size limits by.

Owns: --isolate-durations and --isolate-record, gathered from the reports' properties, so that it works with xdist.
Refuses: to measure; conversation.py puts the figures on each test's last report.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_isolate.endings import group_usage
from pytest_isolate.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import CgroupUsage

_PREFIX = "isolate_"
_VERSION = 1
_BAD = ("failed", "error")
_NOT_A_GROUP = " *"
Figures = dict[str, Any]


class Resource(NamedTuple):
    """One table. ``of``: what a test took, from its figures, or None; ``of_process``: the same where no cgroup counted."""

    title: str
    of: Callable[[Figures], float | None]
    of_process: Callable[[Figures], float | None]
    shown: Callable[[float], str]


def _io(figures: Figures) -> float | None:
    known = [figures[name] for name in ("io_read_bytes", "io_write_bytes") if name in figures]
    return sum(known) if known else None


def _cpu_s(figures: Figures) -> float | None:
    usec = figures.get("cgroup_cpu_usec")
    return None if usec is None else usec / 1e6


RESOURCES = (
    Resource(
        "memory",
        lambda f: f.get("cgroup_memory_peak_bytes"),
        lambda f: f.get("max_rss_bytes"),
        lambda value: format_bytes(int(value)),
    ),
    Resource("CPU time", _cpu_s, lambda f: f["user_s"] + f["system_s"] if "user_s" in f else None, format_seconds),
    Resource("processes and threads", lambda f: f.get("pids_peak"), lambda _: None, lambda value: f"{value:.0f}"),
    Resource("I/O", _io, lambda _: None, lambda value: format_bytes(int(value))),
)


class Costs:
    """The plugin object; registered where a person reads the run: not in xdist's workers."""

    def __init__(self, config: pytest.Config, count: str | None, file: str | None) -> None:
        self._config = config
        self._count = None if count is None else _checked_count(count)
        self._file = None if file is None else _checked_file(config, file)
        self._tests: dict[str, Figures] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = {
            name.removeprefix(_PREFIX): value for name, value in report.user_properties if name.startswith(_PREFIX)
        }
        test = self._tests.setdefault(report.nodeid, {})
        test.setdefault("outcome", "")
        category = self._config.hook.pytest_report_teststatus(report=report, config=self._config)[0]
        if category and test["outcome"] not in _BAD:
            test["outcome"] = category
        for name, value in found.items():  # of a test that was run again: its highest figures
            test[name] = max(test.get(name, value), value) if isinstance(value, int | float) else value

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        if self._file is None:
            return
        tests = {nodeid: test for nodeid, test in sorted(self._tests.items()) if "wall_s" in test}
        scratch = f"{self._file}.{os.getpid()}"
        with open(scratch, "w", encoding="utf-8") as file:
            json.dump({"version": _VERSION, "tests": tests}, file, indent=1)
            file.write("\n")
        os.replace(scratch, self._file)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._count is None:
            return
        terminalreporter.section("heaviest tests")
        for line in self._lines(self._count):
            terminalreporter.line(line)

    def _lines(self, count: int) -> Iterator[str]:
        starred = False
        for resource in RESOURCES:
            rows = _heaviest(resource, self._tests)
            yield f"by {resource.title}:" if rows else f"by {resource.title}: nothing was counted"
            for value, nodeid, star in rows[: count or None]:
                starred = starred or bool(star)
                yield f"  {resource.shown(value) + star:>10} {nodeid}"
        if starred:
            yield "* of its largest process, or of its own processes' waiting: no cgroup counted this test"


def _heaviest(resource: Resource, tests: dict[str, Figures]) -> list[tuple[float, str, str]]:
    rows = []
    for nodeid, test in tests.items():
        value, star = resource.of(test), ""
        if value is None:
            value, star = resource.of_process(test), _NOT_A_GROUP
        if value:
            rows.append((value, nodeid, star))
    return sorted(rows, key=lambda row: (-row[0], row[1]))


def _checked_count(value: str) -> int:
    if not str(value).isdigit():
        raise pytest.UsageError(
            f"--isolate-durations: {value!r} is not a number. Write how many tests to list; 0: all."
        )
    return int(value)


def _checked_file(config: pytest.Config, value: str) -> str:
    path = os.path.join(config.invocation_params.dir, value)
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        raise pytest.UsageError(f"--isolate-record: {value!r} is no file in a directory that exists. Make it first.")
    return path


def of_group(counted: CgroupUsage | None, before: CgroupUsage | None) -> list[tuple[str, Any]]:
    """The cgroup's figures as properties of a report; of one that ran other tests ``before``, what was added since.

    A peak stays that of all of them.
    """
    if counted is None:
        return []
    had = group_usage(before) if before is not None else {}
    return [
        (f"isolate_{name}", value if "peak" in name else value - (had.get(name) or 0))
        for name, value in group_usage(counted).items()
        if value is not None
    ]
