"""A Python function called in a sandbox: what its process does, and how the result comes back.

Owns: both ends of that channel. Refuses: to start the process (sandbox.py), and pickle: what comes back is data (wire.py).
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from pytest_isolate import networks, wire
from pytest_isolate.errors import IsolateError
from pytest_isolate.output import Files
from pytest_isolate.running import Running

_EXIT_FAILED_CALL = 71
_LONGEST_POLL_MS = 2**31 - 1  # poll(2) takes an int


class CallFailed(IsolateError, RuntimeError):
    """The function of ``Sandbox.python`` raised, or its process ended before it returned; the text says which."""


def call_and_leave(
    function: Callable[..., Any], args: Any, kwargs: Any, write_fd: int, files: Files, give_up: Callable[[], object]
) -> NoReturn:
    """In the child: give up what is the parent's, call, send the result, leave without running anything of the parent's.

    What the function's own sandboxes were held by is removed, with what still runs in them: that ends with this process anyway.
    """
    code = _EXIT_FAILED_CALL
    try:
        give_up()
        os.dup2(files.out_fd, 1)
        os.dup2(files.err_fd, 2)
        _reopen_streams()
        if faulthandler.is_enabled():
            faulthandler.enable(files.err_fd)
        try:
            frame = wire.pack("value", function(*args, **kwargs))
        except BaseException:
            frame = wire.pack("raised", traceback.format_exc())
        view = memoryview(frame)
        while view:
            view = view[os.write(write_fd, view) :]
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        with contextlib.suppress(Exception):  # the result is sent; what does not go now is swept by the next run
            networks.close_those_of_this_process()
        code = 0
    finally:
        os._exit(code)


def _reopen_streams() -> None:
    """Where close_fds took what Python's streams write to, as pytest's capture has them, they are 1 and 2 again."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(getattr(sys, name).fileno())
        except OSError as error:
            if error.errno == errno.EBADF:
                setattr(sys, name, open(fd, "w", buffering=1, closefd=False, errors="backslashreplace"))  # noqa: SIM115
        except (AttributeError, ValueError):  # None, or in memory
            pass


def result(running: Running, reader: wire.Reader) -> Any:
    """Read until the value, the exception or the end; whoever holds the pipe open does not delay us."""
    poller = select.poll()
    poller.register(reader._fd, select.POLLIN)
    pidfd = running._process.pidfd  # -1: another thread has closed the sandbox
    if pidfd >= 0:
        poller.register(pidfd, select.POLLIN)
    found: tuple[str, Any] | None = None
    while pidfd >= 0 and found is None and not reader.eof:
        left = running._left_s()
        ready = dict(poller.poll(None if left is None else min(left * 1000 + 1, _LONGEST_POLL_MS)))
        if reader._fd in ready:
            found = next(iter(reader.frames()), None)
        elif pidfd in ready or running._left_s() == 0:
            break
    outcome = running.wait()
    if found is not None and found[0] == "value" and not outcome.causes:
        return found[1]
    if found is not None and found[0] == "raised":
        raise CallFailed(f"{running.args[0]} in a sandbox", f"it raised\n{found[1]}")
    why = "; ".join(outcome.detail) or str(outcome.status)
    raise CallFailed(f"{running.args[0]} in a sandbox", f"{why} {outcome.stderr}".strip())
