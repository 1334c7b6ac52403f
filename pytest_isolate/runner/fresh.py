"""The mode `fresh`: an item in a new interpreter, in a sandbox, for tests that need a clean one.

Owns: the command line of that interpreter, the channel from it, and the plugin object that reports from inside it.
Refuses: to share anything with the parent but options, configuration and environment: every fixture is made anew; and
descriptors other than the standard three, for the tools of some backends pass no others.
"""

from __future__ import annotations

import faulthandler
import os
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pytest_isolate.endings import after_grace
from pytest_isolate.kernel import processes
from pytest_isolate.outcome import Leftover
from pytest_isolate.runner import compat, reporter, verdict

#: Tells the plugin inside its descriptors, for reports, for output and for errors and stacks, and its test:
#: ``REPORT:OUT:ERR:ITEM``.
CHANNEL = "PYTEST_ISOLATE_CHANNEL"
#: Set where nobody outside sees the processes inside: the time in s that the test has, or nothing.
HIDDEN = "PYTEST_ISOLATE_HIDDEN"
#: The stacks are written so long before the test's time is over.
_BEFORE_S = 0.1
_MAX_LEFTOVERS = 100
#: Be `python -m pytest`, but first put the channel, which is standard input or output, out of the way of pytest and the
#: test. Stacks go to the file that standard error is now, and not to pytest's capture of it. Imports nothing of ours: pytest
#: wants to rewrite the assertions of plugins, and warns of those that are there before it.
_AS_PYTEST = f"""\
import os, runpy, sys
channel, item = int(sys.argv.pop(1)), sys.argv.pop(1)
report_fd = os.dup(channel)
if channel == 1:
    os.dup2(2, 1)
os.environ["{CHANNEL}"] = f"{{report_fd}}:{{os.dup(1)}}:{{os.dup(2)}}:{{item}}"
nothing = os.open(os.devnull, os.O_RDONLY)
os.dup2(nothing, 0)
os.close(nothing)
sys.path[0] = os.getcwd()
runpy.run_module("pytest", run_name="__main__", alter_sys=True)
"""
#: What is for the run as a whole, and would select, reorder, split or report once more inside: (flag, takes a value).
_OF_THE_RUN = {
    "--lf": False,
    "--last-failed": False,
    "--ff": False,
    "--failed-first": False,
    "--cache-clear": False,
    "--nf": False,
    "--new-first": False,
    "--sw": False,
    "--stepwise": False,
    "--sw-skip": False,
    "--stepwise-skip": False,
    "-x": False,
    "--exitfirst": False,
    "--isolate": False,
    "--maxfail": True,
    "--junitxml": True,
    "--junit-xml": True,
    "-n": True,
    "--numprocesses": True,
    "--dist": True,
    "--tx": True,
    "-k": True,
    "-m": True,
    "--basetemp": True,
    "--durations": True,
}


def command(item: pytest.Item, channel: int) -> list[str]:
    """The command that runs ``item`` alone, with the run's own options, configuration file and root directory.

    ``channel``: the standard descriptor that it is given as the channel for its reports. It is 0, so that both outputs stay
    what they are; 1 where a backend relays the streams, which it does for input in one direction only: what the interpreter
    writes to its standard output is then with its standard error.
    """
    config = item.config
    path, _, name = item.nodeid.partition("::")
    where = str(getattr(item, "path", config.rootpath / path)) + ("::" + name if name else "")
    args = without_run_options([*config.getini("addopts"), *config.invocation_params.args])
    words = [f"--rootdir={config.rootpath}", *(["-c", str(config.inipath)] if config.inipath else []), "-oaddopts="]
    if compat.junit_log(config) is not None:
        words.append(f"--junitxml={os.devnull}")  # what a test adds to the file is told
    if hasattr(config.option, "log_file_mode"):
        words.append("--log-file-mode=a")
    return [sys.executable, "-c", _AS_PYTEST, str(channel), where, *args, *words, "-q", "--no-header", "--no-summary"]


def without_run_options(args: Sequence[str]) -> Iterator[str]:
    """The arguments without those of _OF_THE_RUN and without our own, which do not hold inside."""
    waiting = iter(args)
    for arg in waiting:
        name, equals, _ = str(arg).partition("=")
        if name.startswith("--isolate-"):
            if not equals:
                next(waiting, None)
        elif name in _OF_THE_RUN:
            if _OF_THE_RUN[name] and not equals:
                next(waiting, None)
        elif not (arg[:2] == "-n" and arg[2:].isalnum()):
            yield str(arg)


def environment(*, hidden: bool, timeout_s: float | None) -> dict[str, str]:
    """The environment inside: PYTEST_ADDOPTS without what is for the whole run, and what is looked after inside.

    ``hidden``: from outside nobody sees the processes inside: what the test leaves running is named, and at its time-out
    the stacks are written, by the interpreter itself.
    """
    inside = dict(os.environ)
    if hidden:
        inside[HIDDEN] = str(timeout_s or "")
    if "PYTEST_ADDOPTS" in inside:
        inside["PYTEST_ADDOPTS"] = shlex.join(without_run_options(shlex.split(inside["PYTEST_ADDOPTS"])))
    for name in [name for name in inside if name.startswith("PYTEST_XDIST")]:
        del inside[name]
    return inside


class Fresh(reporter.Listener):
    """Inside: reports to the parent instead of to a person."""

    def __init__(self, config: pytest.Config, channel: str) -> None:
        *fds, where = channel.split(":", 3)
        report_fd, self._out_fd, trace_fd = map(int, fds)
        config.args = [where]  # the conftest files of what was given on the command line have been loaded
        hidden = os.environ.pop(HIDDEN, None)
        link = reporter.Link(
            channel_fd=report_fd,
            command_fd=-1,
            out_fd=1,
            err_fd=2,
            trace_fd=trace_fd,
            in_pid_namespace=hidden is not None,
        )
        self._config = config
        self.reporter = reporter.Reporter(config, link)
        self._control: dict[str, Any] | None = None
        self._timeout_s = float(hidden or 0)
        reporter.dump_stacks_on_signal(trace_fd)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        compat.keep_only(session.config, self, reporter.REPORTING_HOOKS)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self.reporter is not None and session.items:
            self.reporter.item = session.items[0]

    def pytest_runtest_logstart(self) -> None:
        assert self.reporter is not None
        if self.reporter.tries == 0:
            self._keep_outputs()
            self.reporter.send("begun")
            if self._timeout_s:
                after_s = max(self._timeout_s - _BEFORE_S, self._timeout_s / 2)
                faulthandler.dump_traceback_later(after_s, file=self.reporter.link.trace_fd)
        super().pytest_runtest_logstart()

    def _keep_outputs(self) -> None:
        """Capture into the parent's files, which outlive a crash; where we have them, and not pipes to them.

        What this pytest said of itself until now is not the test's.
        """
        assert self.reporter is not None
        fds = (self._out_fd, self.reporter.link.trace_fd)
        if all(stat.S_ISREG(os.fstat(fd).st_mode) for fd in fds):
            for fd in fds:
                os.ftruncate(fd, 0)
                os.lseek(fd, 0, os.SEEK_SET)
            compat.redirect_capture(self._config, *fds)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Iterator[None]:
        assert self.reporter is not None
        self.reporter.leave_copy(call.excinfo.value if call.excinfo is not None else None)
        outcome: Any = yield
        if call.excinfo is not None and (report := outcome.get_result()).failed:
            verdict.say_fitting(call.excinfo.value, report)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        assert self.reporter is not None
        self.reporter.leave_copy(excinfo.value)
        self._control = reporter.control_of(excinfo.value)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        assert self.reporter is not None
        ending: dict[str, Any] = {
            "control": self._control,
            "shouldstop": False,
            "shouldfail": False,
            "execution_count": None,
        }
        if session.testscollected:
            evidence = reporter.evidence(self.reporter.link)
            if self.reporter.link.in_pid_namespace and not evidence["alone"]:
                evidence["leftovers"] = [
                    (left.pid, left.command, left.age_s) for left in after_grace(_others)[:_MAX_LEFTOVERS]
                ]
            for stream in (sys.stdout, sys.stderr):  # with -s the parent shows at our last word what is in its files
                stream.flush()
            self.reporter.send("done", {**ending, "last": True, **evidence})


def _others() -> list[Leftover]:
    """The living processes that this /proc shows, but for us and those we come from."""
    ours, pid = set(), os.getpid()
    while pid and pid not in ours:
        ours.add(pid)
        pid = processes.parent_of(pid)
    return processes.described(other for other in processes.pids() if other not in ours)
