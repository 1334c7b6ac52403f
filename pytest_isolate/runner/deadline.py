"""A deadline for what runs in pytest's own process on behalf of a test: fixtures wider than it, and their finalizers.

Owns: the interval timer while it is armed. It ends Python code, and system calls that a signal interrupts; code that
stays in C is not ended, because that would end pytest.
Refuses: to take the timer from someone else, or to work in another thread than the main one.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from pytest_isolate.units import format_seconds


@contextlib.contextmanager
def at_most(timeout_s: float | None, what: str) -> Iterator[None]:
    """Fail what still runs after ``timeout_s`` with "TIMEOUT: ``what`` ...". None: no deadline."""
    if timeout_s is None or not _is_free():
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        del signum, frame
        pytest.fail(f"TIMEOUT: {what} was still running after {format_seconds(timeout_s)}")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _is_free() -> bool:
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN)
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    )
