"""Whether the mounts that this process sees are still those that a view was compiled for.

Owns: MountWatch and the one of this process: an open /proc/self/mountinfo, asked by poll(2). Source: proc_pid_mountinfo(5).
Refuses: to notice that the process itself went into another mount namespace; a forked child asks anew.
"""

from __future__ import annotations

import os
import select
import threading

_CHUNK_BYTES = 1 << 16


class MountWatch:
    """Counts the changes of the mount table, a microsecond a question. Keeps one descriptor, which no program inherits."""

    __slots__ = ("_fd", "_inode", "_lock", "_poll", "_table", "_version")

    def __init__(self) -> None:
        self._fd, self._version, self._table = -1, 0, b""
        self._inode = 0
        self._poll = select.poll()
        self._lock = threading.Lock()  # who asks between another's poll and count would hear of nothing

    def version(self) -> int:
        """A number that differs from an earlier answer if the table differs. Raises OSError where there is no /proc."""
        with self._lock:
            if not self._is_open():
                self._open()
            elif self._poll.poll(0):  # POLLERR and POLLPRI, told once
                self._read()
            return self._version

    def _is_open(self) -> bool:
        """Somebody may have closed it, and opened something else."""
        try:
            return os.fstat(self._fd).st_ino == self._inode
        except OSError:
            return False

    def _open(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._inode = os.fstat(self._fd).st_ino
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._read()

    def _read(self) -> None:
        """A mount that came and went changes nothing. Read after the poll: what changes meanwhile is told by the next."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        table = b"".join(iter(lambda: os.read(self._fd, _CHUNK_BYTES), b""))
        if table != self._table:
            self._table = table
            self._version += 1

    def forget(self) -> None:
        """Close it. In a forked child the table is its parent's and not for its eyes, and a change would be told to one of them only."""
        self._lock = threading.Lock()  # another thread may have held it
        if self._is_open():
            os.close(self._fd)
        self._fd = -1


#: That of this process.
MOUNTS = MountWatch()

os.register_at_fork(after_in_child=MOUNTS.forget)
