"""The mode `fresh`: an item in a new interpreter, in a sandbox, for tests that need a clean one.

Owns: the command line of that interpreter, and the plugin object that reports from inside it.
Refuses: to share anything with the parent but options, configuration and environment: every fixture is made anew.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pytest_isolate.runner import compat, reporter

#: Names the descriptors for reports and for stacks, to the plugin inside: ``REPORT:TRACE``.
CHANNEL = "PYTEST_ISOLATE_CHANNEL"
#: What is for the run as a whole, and would select, reorder, split or report once more inside: (flag, takes a value).
_OF_THE_RUN = {
    "--lf": False,
    "--last-failed": False,
    "--ff": False,
    "--failed-first": False,
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


def command(item: pytest.Item) -> list[str]:
    """The command that runs ``item`` alone, with the run's own options, configuration file and root directory."""
    config = item.config
    chosen = set(map(str, config.args)) | {str(item.session.startpath / arg) for arg in config.args}
    args = [arg for arg in without_run_options(config.invocation_params.args) if arg not in chosen]
    path, _, name = item.nodeid.partition("::")
    where = str(getattr(item, "path", config.rootpath / path)) + ("::" + name if name else "")
    place = [f"--rootdir={config.rootpath}", *(["-c", str(config.inipath)] if config.inipath else [])]
    return [sys.executable, "-m", "pytest", *args, *place, "-q", "--no-header", "--no-summary", where]


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


def environment(report_fd: int, trace_fd: int) -> dict[str, str]:
    """The environment inside: the channel by name, and PYTEST_ADDOPTS without what is for the whole run."""
    inside = dict(os.environ)
    inside[CHANNEL] = f"{report_fd}:{trace_fd}"
    if "PYTEST_ADDOPTS" in inside:
        inside["PYTEST_ADDOPTS"] = shlex.join(without_run_options(shlex.split(inside["PYTEST_ADDOPTS"])))
    for name in [name for name in inside if name.startswith("PYTEST_XDIST")]:
        del inside[name]
    return inside


class Fresh(reporter.Listener):
    """Inside: reports to the parent instead of to a person."""

    def __init__(self, config: pytest.Config, channel: str) -> None:
        report_fd, trace_fd = (int(part) for part in channel.split(":"))
        for fd in (report_fd, trace_fd):
            os.set_inheritable(fd, False)
        link = reporter.Link(channel_fd=report_fd, command_fd=-1, out_fd=1, err_fd=2, trace_fd=trace_fd)
        self.reporter = reporter.Reporter(config, link)
        self._control: dict[str, Any] | None = None
        reporter.dump_stacks_on_signal(trace_fd)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        compat.keep_only(session.config, self, reporter.REPORTING_HOOKS)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
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
            self.reporter.send("done", {**ending, "last": True, **reporter.evidence(self.reporter.link)})
