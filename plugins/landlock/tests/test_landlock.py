"""What is Landlock's own: what it adds, what it leaves to others. What it enforces is held by pytest_isolate.testing."""

from __future__ import annotations

import errno
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_isolate_landlock
from pytest_isolate_landlock import LandlockBackend

from pytest_isolate import MINIMAL, STANDARD, Sandbox, hooks, vary
from pytest_isolate.testing import require


@pytest.fixture
def landlock() -> Iterator[Sandbox]:
    lacking = LandlockBackend().lacks(MINIMAL)
    require("landlock", not lacking, "; ".join(lacking))
    manager = hooks.plugin_manager()
    manager.register(pytest_isolate_landlock)
    with Sandbox(MINIMAL, hooks=hooks.Hooks(manager), backends=["landlock"]) as made:
        yield made


@pytest.fixture
def scoped(landlock: Sandbox) -> Sandbox:
    version = tuple(int(part) for part in platform.release().split(".")[:2])
    require("landlock-scopes", version >= (6, 12), f"Linux {platform.release()}")
    return landlock


def signalled(pid: int) -> str:
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "sent"


def connected(name: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        return errno.errorcode.get(client.connect_ex(name), "connected")


@pytest.mark.parametrize("inside", [False, True], ids=["control", "landlock"])
def test_a_function_reaches_no_process_outside(scoped: Sandbox, inside: bool) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        said = scoped.python(signalled, stranger.pid) if inside else signalled(stranger.pid)
        assert said == ("EPERM" if inside else "sent")
        stranger.kill()
        assert stranger.wait() == (-signal.SIGKILL if inside else -signal.SIGTERM)


@pytest.mark.parametrize("inside", [False, True], ids=["control", "landlock"])
def test_a_function_reaches_no_abstract_socket_outside(scoped: Sandbox, inside: bool) -> None:
    name = f"\0pytest-isolate-landlock-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        assert (scoped.python(connected, name) if inside else connected(name)) == ("EPERM" if inside else "connected")


def test_a_program_signals_what_it_started_and_nothing_else(scoped: Sandbox) -> None:
    outcome = scoped.run(["sh", "-c", f"sleep 60 & kill $! && echo own; kill -0 {os.getpid()} || echo stranger"])
    assert outcome.stdout == "own\nstranger\n"


def test_files_are_what_the_policy_says(landlock: Sandbox, tmp_path: Path) -> None:
    script = f"echo x > {tmp_path}/new && cat {tmp_path}/new"
    assert landlock.run(["sh", "-c", script]).stdout == "x\n"
    refused = landlock.run(["sh", "-c", script], landlock_write="/dev")
    assert "Permission denied" in refused.stderr


def test_what_needs_a_namespace_is_lacking_in_one_line() -> None:
    assert LandlockBackend().lacks(STANDARD) == [
        "namespace_uts, namespace_ipc, namespace_mnt: landlock does not enforce them"
    ]


def test_the_header_names_what_is_added_and_not_what_was_asked_for() -> None:
    backend = LandlockBackend()
    require("landlock", not backend.lacks(MINIMAL), "; ".join(backend.lacks(MINIMAL)))
    assert backend.adds(MINIMAL).startswith("no new privileges, seccomp default")
    assert "seccomp" not in backend.adds(vary(MINIMAL, seccomp="default"))


SUITE = """
import ctypes, os
def test_forked(): assert "NoNewPrivs:\\t1" in open("/proc/self/status").read()
def test_crash(): ctypes.string_at(0)
def test_program(sandbox): assert sandbox.run(["true"]).ok
"""


@pytest.mark.parametrize("words", [(), ("--isolate-profile=minimal",)], ids=["no profile chosen", "minimal"])
def test_a_run_is_isolated_without_a_profile_being_chosen(
    landlock: Sandbox, pytester: pytest.Pytester, words: tuple[str, ...]
) -> None:
    pytester.makepyfile(SUITE)
    result = run(pytester, *words)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["isolate: profile minimal *, backend landlock (adds: no new privileges, *)"])


def test_a_profile_that_is_chosen_is_not_replaced(landlock: Sandbox, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = run(pytester, "--isolate-profile=standard")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*landlock lacks namespace_uts, *does not enforce them*"])


def test_where_less_is_accepted_the_named_backend_does_what_is_left(
    landlock: Sandbox, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(SUITE)
    result = run(pytester, "--isolate-profile=standard", "--isolate-missing=warn")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["isolate: *, backend landlock (adds: *", "isolate: DEGRADED standard -> minimal*"])


def run(pytester: pytest.Pytester, *words: str) -> pytest.RunResult:
    plugins = ("-p", "pytest_isolate_landlock", "-p", "no:cacheprovider")
    return pytester.run(sys.executable, "-m", "pytest", *plugins, "--isolate-backend=landlock", *words, timeout=60)
