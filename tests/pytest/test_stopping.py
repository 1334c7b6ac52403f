"""What ends a run: pytest.exit, -x, --maxfail, Ctrl-C. Trap 8."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from .conftest import HANGS_S, Run


def test_pytest_exit_in_a_test_stops_the_run_with_its_reason_and_code(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import pathlib, pytest

        @pytest.fixture(scope="session")
        def wide():
            yield
            pathlib.Path("session torn down").touch()

        @pytest.fixture
        def narrow():
            yield
            pathlib.Path("function torn down").touch()

        def test_one(wide, narrow):
            pytest.exit("enough for today", returncode=42)

        def test_two():
            pathlib.Path("second ran").touch()
        """
    )
    result = isolated()
    assert result.ret == 42
    result.stdout.fnmatch_lines(["*_pytest.outcomes.Exit: enough for today*"])
    assert (pytester.path / "session torn down").exists()
    assert (pytester.path / "function torn down").exists()
    assert not (pytester.path / "second ran").exists()


@pytest.mark.parametrize("where", ["setup", "teardown", "session"])
def test_pytest_exit_in_a_fixture_stops_the_run(pytester: pytest.Pytester, isolated: Run, where: str) -> None:
    pytester.makepyfile(
        test_it=f"""
        import pathlib, pytest

        def leave(here):
            if here == {where!r}:
                pytest.exit("enough", returncode=42)

        @pytest.fixture(scope="session", autouse=True)
        def wide():
            leave("session")

        @pytest.fixture
        def narrow():
            leave("setup")
            yield
            leave("teardown")

        def test_one(narrow): pass
        def test_two(): pathlib.Path("second ran").touch()
        """
    )
    result = isolated()
    assert result.ret == 42
    assert not (pytester.path / "second ran").exists()


@pytest.mark.parametrize(("option", "failed"), [("-x", 1), ("--maxfail=2", 2)])
@pytest.mark.parametrize("how", ["assert False", "os.abort()"])
def test_the_run_stops_after_so_many_failures_and_tears_down(
    pytester: pytest.Pytester, isolated: Run, option: str, failed: int, how: str
) -> None:
    pytester.makepyfile(
        test_it=f"""
        import os, pathlib, pytest

        @pytest.fixture(scope="module")
        def wide():
            yield
            pathlib.Path("torn down").touch()

        def test_1(wide): {how}
        def test_2(wide): {how}
        def test_3(wide): {how}
        def test_4(wide): pass
        """
    )
    result = isolated(option)
    result.assert_outcomes(failed=failed)
    result.stdout.fnmatch_lines([f"*stopping after {failed} failures*"])
    assert (pytester.path / "torn down").exists()


def test_a_test_may_ask_the_session_to_stop(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        def test_1(request):
            request.session.shouldstop = "asked by a test"
        def test_2(): pass
        """
    )
    result = isolated()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*asked by a test*"])


def test_a_keyboard_interrupt_in_a_test_ends_the_run_and_says_where(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        def test_1(): pass
        def test_2():
            raise KeyboardInterrupt
        def test_3(): pass
        """
    )
    result = isolated()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["*KeyboardInterrupt: in the test's process, at *test_it.py:3 in test_2*", "*1 passed*"]
    )


def start(pytester: pytest.Pytester, *args: str) -> subprocess.Popen[str]:
    """pytest in a session of its own, as a terminal starts it."""
    command = [sys.executable, "-m", "pytest", "-p", "pytest_isolate.runner.plugin", "--isolate", *args]
    return subprocess.Popen(
        command, cwd=pytester.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(path: pathlib.Path) -> None:
    end = time.monotonic() + HANGS_S
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.02)


def test_ctrl_c_tears_down_the_fixtures_of_the_running_test_and_ends_what_it_started(
    pytester: pytest.Pytester, plain: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import pathlib, subprocess, time, pytest

        @pytest.fixture(scope="session")
        def wide():
            yield
            pathlib.Path("session torn down").touch()

        @pytest.fixture
        def narrow():
            yield
            pathlib.Path("function torn down").touch()

        def test_one(wide, narrow):
            subprocess.Popen(["setsid", "sleep", "9871"])
            pathlib.Path("running").touch()
            time.sleep(60)

        def test_two():
            pathlib.Path("second ran").touch()
        """
    )
    process = start(pytester)
    wait_for(pytester.path / "running")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in output
    assert (pytester.path / "function torn down").exists()
    assert (pytester.path / "session torn down").exists()
    assert not (pytester.path / "second ran").exists()
    assert not living(b"sleep\x009871")


def test_a_second_ctrl_c_kills_a_test_that_does_not_stop(pytester: pytest.Pytester, plain: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import pathlib, signal, time

        def test_one():
            def caught(*_):
                pathlib.Path("caught").touch()
            signal.signal(signal.SIGINT, caught)
            pathlib.Path("running").touch()
            while True:
                time.sleep(60)
        """
    )
    process = start(pytester)
    wait_for(pytester.path / "running")
    process.send_signal(signal.SIGINT)
    wait_for(pytester.path / "caught")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert time.monotonic() - began < 4, "it waited for the grace of the first Ctrl-C"


def test_a_test_that_ignores_ctrl_c_is_killed_after_a_while(pytester: pytest.Pytester, plain: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import pathlib, signal, time

        def test_one():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            pathlib.Path("running").touch()
            time.sleep(60)
        """
    )
    process = start(pytester)
    wait_for(pytester.path / "running")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED


def living(command: bytes) -> list[int]:
    """Processes with ``command`` (words separated by NUL) on their command line."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if command in pathlib.Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found
