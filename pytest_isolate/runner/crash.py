"""Reports for what a test could not report itself: a crash, a time-out, an early exit, garbage on the channel.

Owns: the words of such a failure and the report that carries them.
Refuses: the makereport hook: wrappers of other plugins expect state that only the child had.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import Literal

import pytest

from pytest_isolate import wire
from pytest_isolate.outcome import Cause, ExitStatus
from pytest_isolate.runner import compat, reporter

_MAX_OUTPUT_BYTES = 2 * 1024 * 1024
When = Literal["setup", "call", "teardown"]


class IsolatedCrash(Exception):
    """Stands for the end of a test's process; xfail(raises=...) compares against it."""


@dataclass(slots=True)
class Outputs:
    """Files of the parent's that hold what the current phase has written. Owner of its descriptors.

    ``shared``: stacks are written to standard error, as a new interpreter does, which is given nothing else.
    """

    out_fd: int
    err_fd: int
    trace_fd: int
    shared: bool = False

    @classmethod
    def make(cls, *, shared: bool = False) -> Outputs:
        out_fd, err_fd, trace_fd = (os.memfd_create(f"isolate-{name}") for name in ("out", "err", "trace"))
        return cls(out_fd, err_fd, trace_fd, shared)

    def close(self) -> None:
        for fd in (self.out_fd, self.err_fd, self.trace_fd):
            os.close(fd)

    def sections(self, when: str) -> list[tuple[str, str]]:
        """What was written since the last report, as report sections; empty ones are left out."""
        err, stacks = _text(self.err_fd), _text(self.trace_fd)
        if self.shared and (begin := _STACKS.search(err)):
            err, stacks = err[: begin.start()], err[begin.end() :]
        texts = (
            (f"Captured stdout {when}", _text(self.out_fd)),
            (f"Captured stderr {when}", err),
            ("Python stacks at the end", without_runner_frames(stacks)),
        )
        return [(title, text) for title, text in texts if text]

    def show(self) -> None:
        """Copy them to our own standard output and error: all that a new interpreter has to write to, seen with ``-s``."""
        for number, fd in ((1, self.out_fd), (2, self.err_fd)):
            wire.write(number, os.pread(fd, os.fstat(fd).st_size, 0))

    def mistake(self) -> str:
        """The exception that ended the reporting in the test's process; empty where none did."""
        return _text(self.trace_fd).partition(reporter.ENDED_BY)[2].partition("\n")[0]


def _text(fd: int) -> str:
    size = os.fstat(fd).st_size
    head = os.pread(fd, min(size, _MAX_OUTPUT_BYTES), 0)
    text = reporter.cut(head.decode("utf-8", "replace"))
    return text if size <= _MAX_OUTPUT_BYTES else f"{text}\n[... {size - _MAX_OUTPUT_BYTES} more bytes not shown ...]"


#: How faulthandler begins.
_STACKS = re.compile(r"^(Timeout \(\d[\d:.]+\)!\n)?(?=Fatal Python error: |Thread 0x|Current thread 0x)", re.MULTILINE)
_RUNNER_FRAME = re.compile(
    r'^  File "[^"]*(/_pytest/|/pluggy/|/pytest/__main__|/pytest_isolate/runner/|<frozen runpy>)'
)


def without_runner_frames(text: str) -> str:
    """Leave pytest's own frames out of stacks and tracebacks, and say how many; the test's are what is looked for."""
    kept: list[str] = []
    hidden = 0
    for line in [*text.splitlines(), ""]:
        if _RUNNER_FRAME.match(line):
            hidden += 1
            continue
        if hidden and line.startswith("    "):  # its code, which a traceback shows
            continue
        if hidden:
            kept.append(f"  ({hidden} frames of pytest not shown)")
            hidden = 0
        kept.append(line)
    return "\n".join(kept).rstrip("\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why a test's process ended before it had reported everything."""

    text: str
    cause: Cause | None = None


def ended_early(status: ExitStatus, when: When, *, garbage: str, mistake: str, limited: str = "") -> Ending:
    """Words for a process that ended, or was ended, without having said so; ``mistake`` as of Outputs.

    ``limited``: the rlimits, in words, that could have kept it from reporting.
    """
    if garbage:
        return Ending(text=f"the test wrote to pytest-isolate's report channel during {when}: {garbage}")
    if status.code == reporter.EXIT_CHANNEL_GONE:
        return Ending(
            text=f"the test closed pytest-isolate's report channel during {when}: a descriptor it did not open"
        )
    if status.code == reporter.EXIT_OUR_FAULT and mistake:
        limits = f"{limited} may be too low for pytest itself. Or the" if limited else "The"
        return Ending(
            text=f"the test's process could not go on to report, during {when}: {mistake}\n{limits} test may have changed what pytest "
            "and pytest-isolate run on (a builtin, sys, a library); if it has not, please report this with the traceback below"
        )
    if status.signal is not None:
        core = ", core dumped" if status.core_dumped else ""
        return Ending(text=f"the test's process was {status} during {when}{core}")
    return Ending(text=f"the test's process {status} before reporting, during {when} (os._exit, or a C library's exit)")


def not_begun(status: ExitStatus) -> Ending | None:
    """Words for a new interpreter whose pytest left in its own words, which are on its outputs, before the test began."""
    if not status.code or status.code not in {*pytest.ExitCode}:
        return None
    why = pytest.ExitCode(status.code).name.lower().replace("_", " ")
    return Ending(text=f"pytest in the new interpreter ended before the test began, with status {status.code} ({why})")


def report(
    item: pytest.Item, when: When, ending: Ending, *, start: float, sections: list[tuple[str, str]]
) -> pytest.TestReport:
    """A failed report of phase ``when``; xfail marks of the item are honoured."""
    stop = time.time()
    found = _make(item, when, ending.text, start, stop)
    found.sections = sections
    if ending.cause is not None:
        found.isolate_cause = ending.cause.value  # type: ignore[attr-defined]
    if when != "teardown":
        _honour_xfail(item, found)
    return found


def _make(item: pytest.Item, when: When, text: str, start: float, stop: float) -> pytest.TestReport:
    def fail() -> None:
        raise IsolatedCrash(text)

    call = pytest.CallInfo.from_call(fail, when=when)
    call.start, call.stop, call.duration = start, stop, stop - start
    found = pytest.TestReport.from_item_and_call(item, call)
    found.outcome = "failed"
    found.longrepr = text
    return found


def passed(item: pytest.Item, when: When, *, sections: list[tuple[str, str]]) -> pytest.TestReport:
    """The report of a phase that found nothing to object."""
    found = pytest.TestReport.from_item_and_call(item, pytest.CallInfo.from_call(lambda: None, when=when))
    found.sections = sections
    return found


def _honour_xfail(item: pytest.Item, found: pytest.TestReport) -> None:
    expected = compat.evaluate_xfail_marks(item)
    if expected is None or item.config.option.runxfail:
        return
    raises = expected.raises
    if raises is None or (isinstance(raises, type | tuple) and issubclass(IsolatedCrash, raises)):
        found.outcome = "skipped"
        found.wasxfail = expected.reason
