"""Signals to the command are for its program, as timeout(1) has it: each is passed on, and the waiting goes on.

Owns: which signals, whom they reach, and job control. Refuses: to end a program that handles a signal: only the time-out does,
and with a grace that was asked for, SIGTERM (timeout -k).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from pytest_isolate.running import Running

#: What cannot be caught, is no request by default, or tells this command of a fault or a limit of its own.
_NOT_OURS = frozenset(
    {
        *(
            signal.SIGKILL,
            signal.SIGSTOP,
            signal.SIGTTIN,
            signal.SIGTTOU,
            signal.SIGCHLD,
            signal.SIGURG,
            signal.SIGPIPE,
        ),
        *(signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS),
        *(signal.SIGXCPU, signal.SIGXFSZ),
    }
)
#: What a terminal sends to a whole group, and what timeout(1) does; the others are for the program alone.
_FOR_ALL = frozenset(
    {
        *(signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGKILL),
        *(signal.SIGSTOP, signal.SIGCONT, signal.SIGWINCH),
    }
)
FORWARDED = frozenset(signal.valid_signals()) - _NOT_OURS
_END = 0  # no signal has this number
_MOST = 512


class Forwarding:
    """A context manager: inside, signals are heard; from ``to(running)`` on they are the program's, those from before as well.

    The program is in a session of its own, where the terminal's Ctrl-C does not reach it: its process group gets what a terminal
    would send. What was ignored at the start stays so. A thread passes signals on: the handler of a signal that arrives
    just before the main thread waits would run when the program has ended. ``kill_after_s``: SIGKILL this long after a SIGTERM.
    """

    def __init__(self, kill_after_s: float | None = None) -> None:
        self._kill_after_s = kill_after_s
        self._kill_at: float | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        heard = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, lambda *_: None) for number in heard}
        return self

    def to(self, running: Running) -> None:
        """There is a program now, which can be told."""
        self._running = running
        self._thread = threading.Thread(target=self._pass_on, name="pytest-isolate-signals", daemon=True)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            with contextlib.suppress(BlockingIOError):  # the thread reads it empty, and sees that it is over
                os.write(self._writing, bytes([_END]))
            self._thread.join(1.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        if self._thread is None or not self._thread.is_alive():
            os.close(self._reading)
            os.close(self._writing)

    def _pass_on(self) -> None:
        watched = select.poll()
        watched.register(self._reading, select.POLLIN)
        while True:
            left = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic()) * 1000 + 1
            if not watched.poll(left):
                self._kill_at = None
                self._send(signal.SIGKILL)
                continue
            for number in os.read(self._reading, _MOST):
                if number == _END:
                    return
                self._heard(number)

    def _heard(self, number: int) -> None:
        if number not in self._before:
            return
        if number == signal.SIGTSTP:  # it has no effect on a session of its own, which nobody could continue
            self._send(signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        self._send(number)
        if number == signal.SIGTERM and self._kill_after_s is not None and self._kill_at is None:
            self._kill_at = time.monotonic() + self._kill_after_s

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # it was waited for meanwhile, and its pidfd is closed
            (self._running.signal_group if number in _FOR_ALL else self._running.signal)(number)
