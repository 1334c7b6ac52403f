"""Ctrl-C at the wrong moment: between the start of a test's process and the first word of it, it is held back.

Owns: the Python handler of SIGINT for that moment. Raised there, KeyboardInterrupt would leave a running test that
nobody listens to; held back, it reaches the conversation, which lets the test tear its fixtures down.
In a test's process, which only the parent interrupts, it is heard also where a shell's background job ignores it.
Refuses: to touch a handler of another kind (ignored, default) in the parent, or another thread than the main one.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

try:
    # Twice per test: signal.signal() makes an enum of each handler, which costs more than the system call.
    from _signal import getsignal as _handler_of  # type: ignore[import-not-found]
    from _signal import signal as _handle
except ImportError:  # no CPython
    from signal import getsignal as _handler_of
    from signal import signal as _handle

_SIGINT = int(signal.SIGINT)


def heard() -> None:
    """In a test's process: SIGINT tears its fixtures down, whoever made pytest ignore it (``nohup``, ``pytest &``)."""
    if _handler_of(_SIGINT) == signal.SIG_IGN:
        _handle(_SIGINT, signal.default_int_handler)


class Hold:
    """SIGINT only remembered from ``hold`` to ``release``, each of which may be said once more than needed."""

    __slots__ = ("_came", "_handler")

    def __init__(self) -> None:
        self._came: tuple[Any, ...] = ()
        self._handler: Any = None

    def hold(self) -> None:
        handler = _handler_of(_SIGINT)
        if self._handler is None and callable(handler) and threading.current_thread() is threading.main_thread():
            self._came, self._handler = (), handler
            _handle(_SIGINT, self._remember)

    def _remember(self, *came: Any) -> None:
        self._came = came

    def restore(self) -> None:
        """Give the handler back; what came is forgotten: the parent passes it on to a child."""
        handler, self._handler = self._handler, None
        if handler is not None:
            _handle(_SIGINT, handler)

    def release(self) -> None:
        """Give the handler back, and let it act on what came meanwhile.

        Raises:
            KeyboardInterrupt: that is what pytest's handler does.
        """
        handler, came = self._handler, self._came
        self.restore()
        if came and handler is not None:
            handler(*came)
