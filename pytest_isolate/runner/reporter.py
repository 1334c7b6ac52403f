"""What a test's process tells its parent: reports, warnings and its last words, as frames over the channel.

Owns: Link (the descriptors it was given), Reporter, and Listener, the plugin hooks that feed it.
Refuses: to run anything; a channel that is gone ends the process.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pytest

from pytest_isolate import wire
from pytest_isolate.kernel import forks
from pytest_isolate.policy import NO_LIMITS, Limits
from pytest_isolate.runner import junit
from pytest_isolate.runner.brief import Brief

#: Leaves no doubt in the parent about who ended the process.
EXIT_OUR_FAULT = 70
EXIT_CHANNEL_GONE = 71
#: How what it says of the former begins; then comes what was raised, in a line.
ENDED_BY = "The reporting was ended by "
#: Asks the child for the Python stacks of all its threads; a real-time signal, so that no test's own is taken.
DUMP_SIGNAL = signal.SIGRTMAX - 3
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
#: Children of any exit signal count. Source: wait(2), __WALL.
_WALL = 0x40000000
#: A captured section longer than this is cut in the middle.
MAX_SECTION_CHARS = 2 * 1024 * 1024
#: What a serial test gives the runner to do what it was told.
_PATIENCE_S = 1.0
#: In a child, only we listen to these: the other listeners are the parent's.
REPORTING_HOOKS = (
    "pytest_runtest_logreport",
    "pytest_runtest_logstart",
    "pytest_runtest_logfinish",
    "pytest_warning_recorded",
)


@dataclass(slots=True)
class Link:
    """What the child was given. Descriptors: where to report, where orders come from, and output files of the parent's.

    ``gated``: forked ahead of its turn; it waits for an order, and runs the protocol with all of its wrappers.
    ``failure``: what the parent's set-up for an item raised, where pytest itself would not raise it again.
    ``runner_pid``: of a serial test, whose call waits until that process sleeps; else 0, as where it cannot be seen.
    """

    channel_fd: int
    command_fd: int
    out_fd: int
    err_fd: int
    trace_fd: int
    gated: bool = False
    tries: int = 0
    dump_stacks: bool = False
    in_pid_namespace: bool = False
    limits: Limits = NO_LIMITS
    runner_pid: int = 0
    failure: tuple[pytest.Item, BaseException] | None = None


class Reporter:
    """The child's only reporter: what pytest would tell its reporters goes to the parent as frames."""

    def __init__(self, config: pytest.Config, link: Link) -> None:
        self._config = config
        self._process = forks.here  # in which the phase began: another plugin may have forked one for the item
        self.link = link
        #: For an owner of the protocol that repeats tests: it logs the reports of a try when all of them are known.
        self.tells_phases = False
        self.refusal: BaseException | None = None  # of a pytest_isolate_child hook; raised in the item's setup
        self._junit = junit.Additions(config)
        self._brief = Brief(config)
        self.item: pytest.Item | None = None
        self.tries = 0
        self.finished = False
        self.failed = False
        self._kept = b""
        #: What the test changed outside of its process, and takes back when its last fixture is gone.
        self.undo: Callable[[], None] | None = None

    def leave_copy(self, error: BaseException | None) -> None:
        """A process that a test forked comes back out of the test: end it, as Python would by ``error``. The test is its parent's."""
        if self._process is forks.here:
            return
        code, text = 0, ""
        if isinstance(error, SystemExit):
            if isinstance(error.code, int):
                code = error.code & 0xFF
            elif error.code is not None:
                code, text = 1, f"{error.code}\n"
        elif error is not None:
            code, text = 1, "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):  # among what the test has written, where that is captured
            os.write(2 if self._config.option.capture == "no" else self.link.err_fd, text.encode(errors="replace"))
        os._exit(code)

    def send(self, kind: str, data: Any = None) -> None:
        if self._process is not forks.here:  # what a process says that the test has forked is not the test's
            return
        frames, self._kept = self._kept + wire.pack(kind, data), b""
        try:
            wire.write(self.link.channel_fd, frames)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.EPIPE, errno.ENOTCONN, errno.ECONNRESET, errno.ENOTSOCK):
                os._exit(EXIT_CHANNEL_GONE)
            raise

    def begins(self, item: pytest.Item) -> None:
        """Another item: it has not been tried yet."""
        self.item = item
        self.tries, self.finished, self.failed = 0, False, False
        self._brief.begins()

    def starts(self) -> None:
        """A try starts. The parent knows of an item's first; a later one comes from an owner that repeats the item."""
        self.tries += 1
        if self.tries > 1:
            self.send("again", {"finished": self.finished})
            self.finished = False

    def ends(self) -> None:
        """Every fixture of this try is gone, but for those that the group's next item uses, too."""
        undo, self.undo = self.undo, None
        if undo is not None:
            undo()

    def phase(self, when: str) -> None:
        """A phase begins, in this process."""
        self._process = forks.here
        if self.tells_phases:
            self.send("phase", when)

    def fail_setup(self, item: pytest.Item) -> None:
        """Raise what is to be told as the failure of the item's set-up, if anything is."""
        __tracebackhide__ = True
        if self.refusal is not None:
            raise self.refusal
        if self.link.failure is not None and self.link.failure[0] is item:
            _, error = self.link.failure
            self.link.failure = None  # whoever repeats the item sets up anew
            raise error.with_traceback(_beyond_us(error))

    def report(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed
        if report.when == "teardown" and self.item is not None and (added := self._junit.take(self.item)) is not None:
            self.send("junit", added)
        kind, data = "passed", self._brief.told(report)
        if data is None:
            report.sections = [(title, cut(text)) for title, text in report.sections]
            kind, data = "report", self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        if report.when == "teardown" and report.passed and not report.sections:
            self._kept += wire.pack(kind, data)  # it says nothing new, and another word follows: one write for both
        else:
            self.send(kind, data)

    def warning(self, message: warnings.WarningMessage, when: str, nodeid: str, location: Any) -> None:
        category = message.category
        self.send(
            "warning",
            {
                "text": str(message.message),
                "category": [category.__module__, category.__qualname__],
                "filename": message.filename,
                "lineno": message.lineno,
                "line": message.line,
                "when": when,
                "nodeid": nodeid,
                "location": location,
            },
        )


def _beyond_us(error: BaseException) -> TracebackType | None:
    """Its traceback without our frames at the start, which say how the set-up was called."""
    found = error.__traceback__
    while found is not None and found.tb_next is not None and found.tb_frame.f_code.co_filename.startswith(_OURS):
        found = found.tb_next
    return found


def cut(text: str) -> str:
    """Keep both ends of what is too long to show, and say what is gone."""
    if len(text) <= MAX_SECTION_CHARS:
        return text
    half = MAX_SECTION_CHARS // 2
    gone = len(text) - 2 * half
    return f"{text[:half]}\n[... {gone} characters not shown: pytest-isolate keeps {MAX_SECTION_CHARS} ...]\n{text[-half:]}"


class Listener:
    """The hooks of a plugin object that reports to a parent; without a ``reporter`` it is the parent's own."""

    reporter: Reporter | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.reporter is not None:
            self.reporter.report(report)

    def pytest_runtest_logstart(self) -> None:
        if self.reporter is not None:
            self.reporter.starts()

    def pytest_runtest_logfinish(self) -> None:
        if self.reporter is not None:
            self.reporter.finished = True

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        if self.reporter is not None:
            self.reporter.warning(warning_message, when, nodeid, location)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        __tracebackhide__ = True
        if self.reporter is not None:
            self.reporter.phase("setup")
            self.reporter.fail_setup(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        if self.reporter is not None:
            self.reporter.phase("call")
            if self.reporter.link.runner_pid:
                _await_sleep(self.reporter.link.runner_pid)

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Iterator[None]:
        if self.reporter is not None:
            self.reporter.phase("teardown")
        yield
        if self.reporter is not None:
            self.reporter.ends()

    def pytest_enter_pdb(self) -> None:
        if self.reporter is not None:
            self.reporter.send("debugger")


def _await_sleep(pid: int) -> None:
    """Wait until that process has nothing to do: it was just told of a set-up."""
    end = time.monotonic() + _PATIENCE_S
    with contextlib.suppress(OSError, IndexError):
        while _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[0] != b"S" and time.monotonic() < end:
            time.sleep(0.0002)


def dump_stacks_on_signal(trace_fd: int) -> None:
    """Let DUMP_SIGNAL write the stacks of all threads; it works while C code holds the interpreter lock, too."""
    faulthandler.register(DUMP_SIGNAL, file=trace_fd, all_threads=True, chain=False)


def control_of(error: BaseException) -> dict[str, Any]:
    """How the parent is to end the run: as pytest.exit() or Ctrl-C would have ended it there."""
    if isinstance(error, pytest.exit.Exception):
        return {"kind": "exit", "text": error.msg, "returncode": error.returncode}
    return {"kind": "interrupt", "text": _place_of(error)}


def _place_of(error: BaseException) -> str:
    """Where it was raised, as `FILE:LINE in FUNCTION`."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def evidence(link: Link) -> dict[str, Any]:
    """What this process knows of its cost and of its company. A hint only: the parent checks when it matters."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "alone": _alone_in_namespace() if link.in_pid_namespace else _alone_below_monitor(),
        "user_s": own.ru_utime + children.ru_utime,
        "system_s": own.ru_stime + children.ru_stime,
        "max_rss_bytes": max(own.ru_maxrss, children.ru_maxrss) * 1024,
    }


def _alone_below_monitor() -> bool:
    """True when we have no child, and our parent is a monitor that has no other: orphans of ours are its children."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)
    except ChildProcessError:
        parent = os.getppid()
    else:
        return False
    try:
        is_monitor = _read(f"/proc/{parent}/cmdline").startswith(b"isolate-init\0")
        return is_monitor and _read(f"/proc/{parent}/task/{parent}/children").split() == [b"%d" % os.getpid()]
    except OSError:
        return False


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _alone_in_namespace() -> bool:
    """True when the PID namespace holds no other process than its init and this one. Source: kill(2), pid -1."""
    try:
        os.kill(-1, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
