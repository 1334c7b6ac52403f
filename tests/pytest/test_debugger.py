"""--pdb, --trace and breakpoint(): the terminal works, no deadline, no hang. Trap 17. On a terminal of our own (pty)."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time

import pytest

from .conftest import HANGS_S, Run


class Terminal:
    """pytest on the other end of a pseudo-terminal, as a person has it. Owner of both."""

    def __init__(self, *args: str) -> None:
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(
                sys.executable,
                [sys.executable, "-m", "pytest", "-p", "pytest_isolate.runner.plugin", "--isolate", *args],
            )

    def until(self, text: str) -> None:
        """Read until ``text`` appears after what was read before."""
        end = time.monotonic() + HANGS_S
        fresh = ""
        while text not in fresh:
            assert time.monotonic() < end, f"no {text!r} in:\n{self.seen}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    piece = os.read(self.fd, 4096).decode(errors="replace")
                except OSError:
                    piece = ""
                assert piece, f"the end came before {text!r}:\n{self.seen}"
                fresh += piece
                self.seen += piece

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def status(self) -> int:
        """Wait for the end; the exit status."""
        end = time.monotonic() + HANGS_S
        while (found := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < end, f"it does not end:\n{self.seen}"
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:
                    time.sleep(0.05)
        self.pid = 0
        return os.waitstatus_to_exitcode(found[1])

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal(pytester: pytest.Pytester, plain: Run, request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    def open_terminal(*args: str) -> Terminal:
        found = Terminal(*args)
        request.addfinalizer(found.close)
        return found

    return open_terminal


def test_pdb_after_a_failure_reads_from_the_terminal_and_has_no_deadline(pytester: pytest.Pytester, terminal) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(
        test_it="""
        def test_fails():
            x = 41
            assert x == 42
        def test_after(): pass
        """
    )
    session = terminal("--pdb", "--isolate-timeout=0.5")
    session.until("deadlines and leak checks are off")
    session.until("(Pdb)")
    time.sleep(1)
    session.type("p x + 1\n")
    session.until("42\r\n")
    session.type("c\n")
    session.until("1 failed, 1 passed")
    assert session.status() == 1


@pytest.mark.parametrize("args", [(), ("-s",)], ids=["captured", "-s"])
def test_breakpoint_in_a_test_stops_its_clock(pytester: pytest.Pytester, terminal, args: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(
        test_it="""
        def test_it():
            x = 1
            breakpoint()
            assert x == 7
        """
    )
    session = terminal("--isolate-timeout=0.7", *args)
    session.until("(Pdb)")
    time.sleep(1.2)
    session.type("x = 7\n")
    session.until("(Pdb)")
    session.type("c\n")
    session.until("1 passed")
    assert session.status() == 0


def test_quitting_the_debugger_ends_the_run(pytester: pytest.Pytester, terminal) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(test_it="def test_1(): breakpoint()\ndef test_2(): print('second ran')")
    session = terminal()
    session.until("(Pdb)")
    session.type("q\n")
    session.until("Exit: Quitting debugger")
    assert session.status() == 2
    assert "2 passed" not in session.seen


def test_trace_stops_at_the_start_of_each_test(pytester: pytest.Pytester, terminal) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(test_it="def test_1():\n    x = 5\ndef test_2():\n    pass")
    session = terminal("--trace", "--isolate-timeout=0.5")
    for _ in range(2):
        session.until("(Pdb)")
        time.sleep(0.8)
        session.type("c\n")
    session.until("2 passed")
    assert session.status() == 0


def test_ctrl_c_on_the_terminal_ends_the_run_and_tears_down(pytester: pytest.Pytester, terminal) -> None:  # type: ignore[no-untyped-def]
    pytester.makepyfile(
        test_it="""
        import pathlib, time, pytest
        @pytest.fixture
        def narrow():
            yield
            pathlib.Path("torn down").touch()
        def test_it(narrow):
            print("running")
            time.sleep(60)
        """
    )
    session = terminal("-s")
    session.until("running")
    session.type("\x03")
    session.until("KeyboardInterrupt")
    assert session.status() == 2
    assert (pytester.path / "torn down").exists()


def test_a_breakpoint_without_a_terminal_does_not_hang(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(test_it="def test_1(): breakpoint()\ndef test_2(): pass")
    result = isolated("--isolate-timeout=20")
    assert result.ret != 0
