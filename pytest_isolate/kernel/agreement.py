"""A number that processes agree on: this one and those forked from it.

Owns: a memory file that forks inherit, and locks on it that they do not: each process has its own, and its end is theirs.
Source: fcntl(2), advisory record locking.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

_NUMBER = struct.Struct("=q")
_TRIES, _PAUSE_S = 20, 0.002  # another process may hold it for a moment, to look


class Agreement:
    """Held by one process at a time, or by several to the same number. Its threads take turns by a lock of the caller's."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("pytest-isolate-agreement")

    def enter(self, number: int, *, alone: bool) -> bool:
        """Hold to ``number`` until ``leave``; False where another process holds to another one, or one of both must be ``alone``."""
        for _ in range(_TRIES):
            if self._lock(fcntl.LOCK_EX):
                os.pwrite(self._fd, _NUMBER.pack(number), 0)
                return alone or self._lock(fcntl.LOCK_SH)
            if not alone and self._lock(fcntl.LOCK_SH):
                if os.pread(self._fd, _NUMBER.size, 0) == _NUMBER.pack(number):
                    return True
                self.leave()
            time.sleep(_PAUSE_S)
        return False

    def leave(self) -> None:
        """This process holds to nothing. Idempotent."""
        if self._fd >= 0:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave, for good."""
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.lockf(self._fd, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True
