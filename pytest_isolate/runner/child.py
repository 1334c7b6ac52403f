"""Child side: this code runs in the test's own process, after the fork. It reports over the channel, then leaves.

Owns: what a forked pytest must forget (finalizers, reporters, capture offsets), and how an item is run in it.
Refuses: to return: the child leaves by os._exit, so that nothing of the parent's (atexit, locks, trackers) runs here.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest

from pytest_isolate import wire
from pytest_isolate.policy import Limits
from pytest_isolate.runner import compat

#: Leaves no doubt in the parent about who ended the process.
EXIT_OUR_FAULT = 70
EXIT_CHANNEL_GONE = 71
#: Asks the child for the Python stacks of all its threads; a real-time signal, so that no test's own is taken.
DUMP_SIGNAL = signal.SIGRTMAX - 3
#: A captured section longer than this is cut in the middle.
MAX_SECTION_CHARS = 2 * 1024 * 1024
_REPORTING_HOOKS = (
    "pytest_runtest_logreport",
    "pytest_runtest_logstart",
    "pytest_runtest_logfinish",
    "pytest_warning_recorded",
)


@dataclass(slots=True)
class Link:
    """What the child was given. Descriptors: where to report, where orders come from, and output files of the parent's.

    ``gated``: forked ahead of its turn; it waits for an order, and runs the protocol with all of its wrappers.
    """

    channel_fd: int
    command_fd: int
    out_fd: int
    err_fd: int
    trace_fd: int
    gated: bool = False
    dump_stacks: bool = False
    in_pid_namespace: bool = False
    limits: Limits = field(default_factory=Limits)
    atfork: tuple[Callable[[pytest.Item], object], ...] = ()


class Reporter:
    """The child's only reporter: what pytest would tell its reporters goes to the parent as frames."""

    def __init__(self, config: pytest.Config, link: Link) -> None:
        self._config = config
        self.link = link

    def send(self, kind: str, data: Any = None) -> None:
        try:
            wire.send(self.link.channel_fd, kind, data)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.EPIPE, errno.ENOTCONN, errno.ECONNRESET, errno.ENOTSOCK):
                os._exit(EXIT_CHANNEL_GONE)
            raise

    def report(self, report: pytest.TestReport) -> None:
        report.sections = [(title, cut(text)) for title, text in report.sections]
        self.send("report", self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

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


def cut(text: str) -> str:
    """Keep both ends of what is too long to show, and say what is gone."""
    if len(text) <= MAX_SECTION_CHARS:
        return text
    half = MAX_SECTION_CHARS // 2
    gone = len(text) - 2 * half
    return f"{text[:half]}\n[... {gone} characters not shown: pytest-isolate keeps {MAX_SECTION_CHARS} ...]\n{text[-half:]}"


def serve(item: pytest.Item, nextitem: pytest.Item | None, reporter: Reporter, ours: object) -> NoReturn:
    """Run ``item``, then whatever the parent names, then leave. Never returns, whatever happens."""
    status = EXIT_OUR_FAULT
    try:
        _become_child(item, reporter, ours)
        _work(item, nextitem, reporter, ours)
        status = 0
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(reporter.link.trace_fd, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _become_child(item: pytest.Item, reporter: Reporter, ours: object) -> None:
    """Forget what is the parent's."""
    config, link = item.config, reporter.link
    compat.redirect_capture(config, link.out_fd, link.err_fd)
    fault_fd = compat.faulthandler_fd(config)
    if fault_fd >= 0:
        os.dup2(link.trace_fd, fault_fd)
    if link.dump_stacks:
        dump_stacks_on_signal(link.trace_fd)
    compat.forget_finalizers(item.session)
    compat.keep_only(config, ours, _REPORTING_HOOKS)
    for call in link.atfork:
        call(item)


def dump_stacks_on_signal(trace_fd: int) -> None:
    """Let DUMP_SIGNAL write the stacks of all threads; it works while C code holds the interpreter lock, too."""
    faulthandler.register(DUMP_SIGNAL, file=trace_fd, all_threads=True, chain=False)


def _work(item: pytest.Item, nextitem: pytest.Item | None, reporter: Reporter, ours: object) -> None:
    commands = CommandReader(reporter.link.command_fd)
    run = _run_inside if not reporter.link.gated else _run_whole
    if reporter.link.gated and commands.read() is None:
        return
    while True:
        ending = _run_one(item, nextitem, run, ours)
        last = nextitem is None or ending["control"] is not None
        if last:
            break
        reporter.send("done", {**ending, "last": False})
        command = commands.read()
        if command is None:
            ending = _end_group(item, reporter)
            break
        item, nextitem = _named(item.session, command)
        run = _run_whole
    _leave_tidily(reporter)
    reporter.send("done", {**ending, "last": True, **_evidence(reporter.link)})


def _named(session: pytest.Session, command: dict[str, Any]) -> tuple[pytest.Item, pytest.Item | None]:
    following = command["next"]
    return session.items[command["item"]], None if following is None else session.items[following]


def _end_group(item: pytest.Item, reporter: Reporter) -> dict[str, Any]:
    """Tear down what was kept for items that will not come; an error is the last item's."""
    call = pytest.CallInfo.from_call(lambda: compat.teardown(item.session, None), when="teardown")
    if call.excinfo is not None:
        reporter.report(pytest.TestReport.from_item_and_call(item, call))
    return {"control": None}


_Run = Callable[[pytest.Item, "pytest.Item | None", object], None]


def _run_one(item: pytest.Item, nextitem: pytest.Item | None, run: _Run, ours: object) -> dict[str, Any]:
    """Run one item by whoever owns the protocol; report how the run is to go on."""
    control = None
    session = item.session
    try:
        run(item, nextitem, ours)
    except pytest.exit.Exception as error:
        control = {"kind": "exit", "text": error.msg, "returncode": error.returncode}
    except KeyboardInterrupt:
        control = {"kind": "interrupt", "text": traceback.format_exc()}
    if control is not None:
        with contextlib.suppress(BaseException):  # the run ends; the first reason is the one to tell
            compat.teardown(session, None)
    return {
        "control": control,
        "shouldstop": session.shouldstop,
        "shouldfail": session.shouldfail,
        "execution_count": getattr(item, "execution_count", None),
    }


def _run_whole(item: pytest.Item, nextitem: pytest.Item | None, _ours: object) -> None:
    """The protocol with its wrappers: for an item whose turn had not come when this process was forked."""
    item.ihook.pytest_runtest_protocol(item=item, nextitem=nextitem)


def _run_inside(item: pytest.Item, nextitem: pytest.Item | None, ours: object) -> None:
    """The protocol without its wrappers: this process was forked inside them, their filters and hooks are in force."""
    known = {"item": item, "nextitem": nextitem}
    with compat.caught_warnings(item):
        for owner in compat.protocol_owners(item, ours):
            if owner.function(*(known[name] for name in owner.argnames)) is not None:
                return


def _evidence(link: Link) -> dict[str, Any]:
    """What this process knows of its cost and of its company. A hint only: the parent checks when it matters."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "alone": link.in_pid_namespace and _alone(),
        "user_s": own.ru_utime + children.ru_utime,
        "system_s": own.ru_stime + children.ru_stime,
        "max_rss_bytes": max(own.ru_maxrss, children.ru_maxrss) * 1024,
    }


def _alone() -> bool:
    """True when the PID namespace holds no other process than its init and this one. Source: kill(2), pid -1."""
    try:
        os.kill(-1, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _leave_tidily(reporter: Reporter) -> None:
    """What an ordinary exit would have written out, and os._exit does not."""
    if (coverage := sys.modules.get("coverage")) is not None:
        _save_coverage(coverage)
    if (logging := sys.modules.get("logging")) is not None:
        for reference in list(logging._handlerList):
            if (handler := reference()) is not None:
                with contextlib.suppress(OSError, ValueError):
                    handler.flush()
    compat.flush(reporter._config)


def _save_coverage(coverage: Any) -> None:
    current = coverage.Coverage.current() if hasattr(coverage, "Coverage") else None
    if current is not None:
        current.stop()
        current.save()


class CommandReader:
    """The parent's words to a child that runs more than one item. Blocking."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._frames: list[tuple[str, Any]] = []
        self._reader = wire.Reader(fd)

    def read(self) -> dict[str, Any] | None:
        """The next command; None when the parent wants no more, or is gone."""
        while not self._frames:
            if self._reader.eof:
                return None
            self._frames += self._reader.frames()
        kind, data = self._frames.pop(0)
        return data if kind == "run" else None
