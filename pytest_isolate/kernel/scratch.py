"""Directories for a moment, which not even a kill -9 of their maker leaves behind for good.

Owns: Scratch, whose directory is locked while its maker lives, and the sweep of those that nobody holds any more.
Refuses: what others made in the temporary directory, and what other users own.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "pytest-isolate-scratch-"
#: A directory is locked an instant after it is made: one so young is left alone.
_YOUNG_S = 10.0


class Scratch(contextlib.AbstractContextManager["Scratch"]):
    """A new directory, removed by ``close`` or at the end of a ``with``.

    The lock is one of flock(2), on an open file description: it holds across PID namespaces, where pids say nothing, and
    is gone with the last process that has it.

    Raises:
        OSError: the temporary directory is full or read-only.
    """

    def __init__(self, kind: str) -> None:
        sweep()
        self.path = tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-")
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove it with all it holds. Idempotent."""
        if self._fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1

    def __exit__(self, *_: object) -> None:
        self.close()


@functools.cache
def sweep() -> None:
    """Remove what runs that were killed have left; once in the life of a process."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            _remove_if_left(path)


def _remove_if_left(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _YOUNG_S:
            return
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(fd)
