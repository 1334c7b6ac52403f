"""What every test of this repository has: pytester in a subprocess, honest skips, and a host left as it was found.

Owns: the check at the end of a run (host_state.py) that fails it when something of ours remains.
Refuses: fixtures of any one part; those live beside its tests.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Generator

import pytest

from pytest_isolate.kernel.filesystem.mountwatch import MOUNTS
from pytest_isolate.testing import require
from tests import host_state

__all__ = ["require"]  # of pytest_isolate.testing: plugins' tests have it, too
_BEFORE = pytest.StashKey[host_state.HostState]()
_REMAINS = pytest.StashKey[list[str]]()


@pytest.fixture(name="require", scope="session")
def require_fixture() -> Callable[[str, bool, str], None]:
    """``require(feature, available, reason)``, for tests that find out at run time."""
    return require


@functools.cache
def lacks_front_end(name: str) -> str:
    """Why that front end of the network policy cannot load here, empty when it can. Found out once: bcc compiles for seconds."""
    from pytest_isolate.errors import BackendUnavailable
    from pytest_isolate.kernel import bcc, bpf

    try:
        (bcc.load if name == "bcc" else bpf.load)({}).close()
    except BackendUnavailable as error:
        return str(error)
    return ""


def require_front_end(name: str) -> None:
    """Skip, naming the feature, where that front end cannot load; what keeps both from it is no fault of bcc."""
    reason = lacks_front_end(name)
    of_bcc = name == "bcc" and reason != lacks_front_end("libbpf")
    require("bcc" if of_bcc else "bpf", not reason, reason)


def require_policy_engine() -> None:
    """Skip, naming the feature, where no network policy can be held by eBPF here; found out by the real sequence."""
    from pytest_isolate.errors import IsolateError
    from pytest_isolate.groups import Groups
    from pytest_isolate.networks import Networks

    groups = Groups(run_id="probe")
    networks = Networks(groups)
    try:
        networks.engine()
    except IsolateError as error:
        require("bpf", False, str(error))
    finally:
        networks.close()
        groups.close()


def pytest_configure(config: pytest.Config) -> None:
    # In-process pytester runs would share our fork state (design, trap 22); `--runpytest` is pytester's own option.
    config.option.runpytest = "subprocess"
    # Whoever runs the suite in the background of a shell, or with nohup(1), has these ignored, and so would every program that
    # tests signal. One with a handler starts what it executes with the default, and goes on being deaf to SIGHUP itself.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_sessionstart(session: pytest.Session) -> None:
    if not _is_worker(session.config):
        session.config.stash[_BEFORE] = host_state.observe()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    before = session.config.stash.get(_BEFORE, None)
    if before is None:
        return
    MOUNTS.forget()  # as our plugin does, which a guest of tests/vm has not installed
    remains = host_state.remains(before)
    session.config.stash[_REMAINS] = remains
    if remains and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(hookwrapper=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, None, None]:
    remains = config.stash.get(_REMAINS, [])
    if remains:
        terminalreporter.section("the host is not as it was before", red=True, bold=True)
        for line in remains:
            terminalreporter.line(line)
    yield
