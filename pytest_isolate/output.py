"""What a program writes, kept until its outcome is made.

Owns: Files, memory files that nobody has to read while the program runs; Pipes, which somebody reads who waits for its end;
Output, which keeps nothing.
Refuses: to start or to wait for a program (running.py).
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios
import threading
import time
from typing import Any

#: More output than this per stream is cut, and the outcome says so; the program is not stopped.
MAX_OUTPUT_BYTES = 64 * 1024 * 1024
#: Most programs write less, and then one call reads it all.
_FIRST_READ_BYTES = 4096
_READ_BYTES = 65536  # what a pipe holds. Source: pipe(7)
_LONGEST_POLL_S = 1e6  # poll(2) takes an int of milliseconds
STDOUT, STDERR = 1, 2
_NAMES = {STDOUT: "standard output", STDERR: "standard error"}


class Output:
    """Nothing is kept: the program has this process's own. ``out_fd`` and ``err_fd`` of a subclass are for it; merged, they are one."""

    out_fd = err_fd = -1

    def __init__(self, *, text: bool, merge: bool) -> None:
        self._text = text
        self._merge = merge

    def started(self) -> None:
        """The program has its descriptors."""

    def wait(self, pidfd: int, timeout_s: float | None) -> float | None:
        """What is left of the time when the process has ended, the time has, or there is nothing to read meanwhile."""
        return timeout_s

    def raw(self, stream: int) -> bytes:
        """What was written so far."""
        return b""

    def is_cut(self, stream: int) -> bool:
        """True when more was written than is kept."""
        return False

    def close(self) -> None:
        """Close every descriptor. Idempotent."""

    def text(self, stream: int) -> Any:
        raw = self.raw(stream)
        return raw.decode("utf-8", "replace") if self._text else raw

    def cut(self) -> list[str]:
        """A line for each stream that was too long to keep."""
        return [
            f"OUTPUT: {name} is cut: what came after {MAX_OUTPUT_BYTES >> 20} MiB is not kept"
            for stream, name in _NAMES.items()
            if self.is_cut(stream)
        ]


class Files(Output):
    """Memory files of ours: a program whose output nobody reads for an hour goes on, and no grandchild holds anything open.

    They are regular files: what is written counts as the program's memory and towards RLIMIT_FSIZE, and who opens /dev/stdout
    anew begins at its start.
    """

    def __init__(self, *, text: bool, merge: bool) -> None:
        super().__init__(text=text, merge=merge)
        self.out_fd = os.memfd_create("stdout", os.MFD_CLOEXEC)
        self.err_fd = self.out_fd if merge else os.memfd_create("stderr", os.MFD_CLOEXEC)
        for fd in {self.out_fd, self.err_fd}:  # a kernel of its own (gVisor) has an offset for each who holds it
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)

    def raw(self, stream: int) -> bytes:
        fd = self._fd(stream)
        if fd < 0:
            return b""
        begin = os.pread(fd, _FIRST_READ_BYTES, 0)
        if len(begin) < _FIRST_READ_BYTES:
            return begin
        return os.pread(fd, min(os.fstat(fd).st_size, MAX_OUTPUT_BYTES), 0)

    def is_cut(self, stream: int) -> bool:
        fd = self._fd(stream)
        return fd >= 0 and os.fstat(fd).st_size > MAX_OUTPUT_BYTES

    def _fd(self, stream: int) -> int:
        return self.out_fd if stream == STDOUT else -1 if self._merge else self.err_fd

    def close(self) -> None:
        for fd in {self.out_fd, self.err_fd} - {-1}:
            os.close(fd)
        self.out_fd = self.err_fd = -1


class Pipes(Output):
    """Pipes, as subprocess.run has them, read by who waits. The program's end is theirs, whoever holds them open then."""

    def __init__(self, *, text: bool, merge: bool) -> None:
        super().__init__(text=text, merge=merge)
        self._streams: dict[int, int] = {}  # reading end -> stream
        self._kept = {STDOUT: bytearray(), STDERR: bytearray()}
        self._dropped: set[int] = set()
        self._lock = threading.Lock()  # one thread waits, another closes
        try:
            self.out_fd = self._open(STDOUT)
            self.err_fd = self.out_fd if merge else self._open(STDERR)
        except OSError:  # EMFILE
            self.close()
            raise

    def _open(self, stream: int) -> int:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        self._streams[reading] = stream
        return writing

    def started(self) -> None:
        for fd in {self.out_fd, self.err_fd} - {-1}:
            os.close(fd)
        self.out_fd = self.err_fd = -1

    def wait(self, pidfd: int, timeout_s: float | None) -> float | None:
        end = None if timeout_s is None else time.monotonic() + timeout_s
        poller = select.poll()
        for fd in (pidfd, *self._streams):
            poller.register(fd, select.POLLIN)
        while True:
            left_s = None if end is None else max(0.0, end - time.monotonic())
            ready = poller.poll(None if left_s is None else min(left_s, _LONGEST_POLL_S) * 1000)
            for fd, _ in ready:
                if fd != pidfd and not self._read(fd):
                    poller.unregister(fd)
            if not self._streams or left_s == 0.0 or any(fd == pidfd for fd, _ in ready):
                return None if end is None else max(0.0, end - time.monotonic())

    def _read(self, fd: int) -> bool:
        """Read what is there now, once; False at the end of the stream."""
        with self._lock:
            return fd in self._streams and self._read_one(fd)

    def _read_one(self, fd: int) -> bool:
        try:
            chunk = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return True
        if not chunk:
            del self._streams[fd]
            os.close(fd)
            return False
        kept = self._kept[stream := self._streams[fd]]
        room = MAX_OUTPUT_BYTES - len(kept)
        kept += chunk[:room] if len(chunk) > room else chunk
        if len(chunk) > room:
            self._dropped.add(stream)
        return True

    def _read_all(self) -> None:
        """What is in the pipes now, which is what was written before they were looked at, and no more."""
        for fd in list(self._streams):
            if fd not in self._streams:
                continue
            left = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
            while left > 0 and fd in self._streams:
                left -= _READ_BYTES
                self._read(fd)

    def raw(self, stream: int) -> bytes:
        self._read_all()
        return bytes(self._kept[stream])

    def is_cut(self, stream: int) -> bool:
        return stream in self._dropped

    def close(self) -> None:
        self.started()
        with self._lock:
            for fd in self._streams:
                os.close(fd)
            self._streams.clear()
