"""A child that tries cgroups out: whether a process of ours may join is only known when one has.

Owns: one short-lived forked child for all hierarchies, and which file a child joins by.
Refuses: to decide what a refusal means.
"""

from __future__ import annotations

import errno
import os
import socket
import warnings
from typing import TYPE_CHECKING

from pytest_isolate.kernel.cgroups import cgroupfs

if TYPE_CHECKING:
    from typing_extensions import Self

#: What a single-threaded child writes ``0`` to. v1's ``tasks`` moves the caller without the lock over all of the
#: machine's thread groups that cgroup.procs takes: 30 us against 4-12 ms, an RCU grace period, whenever the last
#: such write was more than some milliseconds ago. v2 has no such file; CLONE_INTO_CGROUP spares the lock there.
#: Source: kernel/cgroup/cgroup.c cgroup_procs_write_start, since Linux 5.4.
JOIN_FILE = {1: "tasks", 2: "cgroup.procs"}


class Volunteer:
    """A child that joins throw-away cgroups when told to; started when first asked. Context manager."""

    def __init__(self) -> None:
        self._pid = 0
        self._socket: socket.socket | None = None

    def join(self, directory: str, version: int) -> None:
        """Have the child write itself into the cgroup ``directory``, as the child of a sandbox will.

        Raises:
            SetupError: what the kernel answered it.
        """
        if self._socket is None:
            self._pid, self._socket = _start_joiner()
        self._socket.sendall(os.fsencode(f"{directory}/{JOIN_FILE[version]}"))
        code = (self._socket.recv(1) or b"\x05")[0]  # EIO: it died
        if code:
            raise cgroupfs.fault(JOIN_FILE[version], OSError(code, "join"), directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()  # the end of its input
            os.waitpid(self._pid, 0)


def _start_joiner() -> tuple[int, socket.socket]:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork in a process with threads
        pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _join_as_told(its)
        finally:
            os._exit(0)
    its.close()
    return pid, ours


def _join_as_told(channel: socket.socket) -> None:
    """In the child: open, write, answer the errno, until the other end closes. Nothing that could take a lock."""
    while path := channel.recv(4096):
        code = 0
        try:
            fd = os.open(path, os.O_WRONLY)
            os.write(fd, b"0")
            os.close(fd)
        except OSError as error:
            code = error.errno or errno.EIO
        channel.send(bytes([min(code, 255)]))
