"""Signals to `pytest-isolate run` are its program's, and job control holds for both."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_isolate.cli.forward import FORWARDED
from tests.unit.test_cli_run import _sandboxes  # noqa: F401 - a fixture

RUN = (sys.executable, "-m", "pytest_isolate.cli", "run")
#: Goes on whatever it hears, until it has heard $2 signals.
COUNTS = "n=0; trap 'echo heard; n=$((n+1))' $1; echo $$; while [ $n -lt $2 ]; do sleep 0.05 & wait; done; wait; exit 5"


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([*RUN, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """Its next line; none within half a minute is a failure, and no hang."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0], "nothing was said"
    return process.stdout.readline().strip()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(pids: list[int], states: str) -> bool:
    end = time.monotonic() + 20
    while not all(state(pid) in states for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    return all(state(pid) in states for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1])
def test_a_program_that_handles_a_signal_goes_on_and_hears_the_next_one(number: int) -> None:
    with started("--", "sh", "-c", COUNTS, "sh", str(int(number)), "2") as process:
        said(process)
        for _ in range(2):
            process.send_signal(number)
            assert said(process) == "heard"
            time.sleep(1.2)  # longer than the grace
        assert process.wait(30) == 5


def test_the_time_out_holds_after_a_signal() -> None:
    with started("--timeout", "1.5", "--", "sh", "-c", COUNTS, "sh", "HUP", "9") as process:
        said(process)
        process.send_signal(signal.SIGHUP)
        assert said(process) == "heard"
        assert process.wait(30) == 124


@pytest.mark.parametrize("number", sorted(FORWARDED - {signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH}), ids=str)
def test_every_signal_that_would_end_the_command_ends_the_program_instead(number: int) -> None:
    with started("--", "sh", "-c", "echo ready; exec sleep 6179") as process:
        said(process)
        process.send_signal(number)
        assert process.wait(30) == 128 + number


def test_none_that_would_end_a_program_is_left_out() -> None:
    asked = {"SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO"}
    assert {getattr(signal, name) for name in asked} | {signal.SIGRTMIN, signal.SIGRTMAX} <= FORWARDED


def test_what_is_ignored_stays_ignored() -> None:
    script = 'trap "" HUP; exec "$@"'
    words = ["sh", "-c", script, "sh", *RUN, "--", "sh", "-c", "echo ready; read line; exit 5"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        said(process)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        process.communicate("on\n", timeout=30)
    assert process.returncode == 5


def test_children_of_the_program_hear_what_a_terminal_sends() -> None:
    """bash waits for what it runs: a sleep that heard nothing would go on."""
    with started("--", "bash", "-c", "echo ready; sleep 6180; exit 5") as process:
        said(process)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT


def test_a_stop_holds_for_the_program_and_going_on_too() -> None:
    with started("--", "sh", "-c", COUNTS, "sh", "USR1", "1") as process:
        both = [process.pid, int(said(process))]
        process.send_signal(signal.SIGTSTP)
        assert until(both, "T")
        process.send_signal(signal.SIGCONT)
        assert until(both, "SR")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 5


def test_a_prompt_survives_a_ctrl_c() -> None:
    """On a terminal, as timeout --foreground has it."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(RUN[0], [*RUN, "--", sys.executable, "-q"])
    heard = b""

    def heard_of(word: bytes, seconds: float) -> bool:
        nonlocal heard
        end = time.monotonic() + seconds
        while word not in heard and time.monotonic() < end:
            if select.select([fd], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # EIO: all have closed it
                    heard += os.read(fd, 4096)
        return word in heard

    def hear(word: bytes) -> None:
        assert heard_of(word, 20), heard

    try:
        hear(b">>> ")
        for _ in range(10):  # python loses a signal that comes between its prompt and its select(2)
            os.write(fd, b"\x03")
            if heard_of(b"KeyboardInterrupt", 2):
                break
        hear(b"KeyboardInterrupt")
        time.sleep(1.2)  # longer than the grace
        os.write(fd, b"print(6*7)\n")
        hear(b"42")
        os.write(fd, b"raise SystemExit(5)\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    finally:
        os.close(fd)


def test_a_ctrl_c_before_there_is_a_program_ends_the_command_without_a_word() -> None:
    """Sent by an import of the command's, which takes most of the time until then."""
    script = """
import os, signal, sys
from pytest_isolate.cli import main
class Interrupts:
    def find_spec(name, path=None, target=None):
        if name == "pytest_isolate.sandbox":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts)
main(["run", "--", "true"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
