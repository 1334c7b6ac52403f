"""What this host knows of a name (hosts file, DNS, whatever nsswitch.conf names), asked by a process for each question.

Owns: those processes, and how long one may take.
Refuses: getaddrinfo in pytest's own process: it takes locks of the C library, and a test forked meanwhile would have them held
for ever; and it cannot be cut short.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_isolate.network.rules import Address

#: Less than the 5 s after which a client asks again. Source: resolv.conf(5), option timeout.
LOOKUP_S = 4.0
#: Processes at once, of one test; what is asked beyond them fails for now.
MAX_LOOKUPS = 16
_MOST_BYTES = 65536
_SCRIPT = """
import os, signal, socket, sys
signal.alarm(30)
try:
    rows = socket.getaddrinfo(sys.argv[1], None, 0, socket.SOCK_STREAM)
    lines = list(dict.fromkeys(row[4][0] for row in rows))
except socket.gaierror as error:
    lines = [f"!{error.errno} {error.strerror}"]
except UnicodeError as error:
    lines = [f"!{socket.EAI_NONAME} {error}"]
os.write(1, "\\n".join([*lines, "."]).encode())
os._exit(0)
"""
#: The name follows. It prints an address a line, or ``!number words`` of getaddrinfo's error; a dot ends it.
COMMAND: tuple[str, ...] = (sys.executable, "-I", "-S", "-c", _SCRIPT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Addresses of a name; or why there are none, in words, and whether that may be otherwise the next time."""

    addresses: tuple[Address, ...] = ()
    why: str = ""
    temporary: bool = False


@dataclass(slots=True)
class _Asked:
    pid: int
    pidfd: int  # the number may be a stranger's by then: whoever waits for any child reaps this one too
    fd: int
    end: float
    text: bytes = field(default=b"")


class Lookups:
    """Those under way. ``done(name, found)`` is called by ``heard`` and ``keep_time``. All in one thread."""

    def __init__(self, done: Callable[[str, Found], None]) -> None:
        self._done = done
        self._asked: dict[str, _Asked] = {}

    def ask(self, name: str) -> None:
        """Look ``name`` up, unless that is under way. Raises OSError where there can be no further process."""
        if name in self._asked:
            return
        if len(self._asked) >= MAX_LOOKUPS:
            raise BlockingIOError(f"{MAX_LOOKUPS} names are being looked up already")
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            pid, pidfd = _spawn([*COMMAND, name], writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._asked[name] = _Asked(pid, pidfd, reading, time.monotonic() + LOOKUP_S)

    def fds(self) -> list[int]:
        """Readable when ``heard`` has something to hear."""
        return [asked.fd for asked in tuple(self._asked.values())]

    def pidfds(self) -> list[int]:
        """Descriptors of the processes, to kill them by."""
        return [asked.pidfd for asked in tuple(self._asked.values())]

    def next_at(self) -> float | None:
        """When ``keep_time`` is next due, by time.monotonic()."""
        return min((asked.end for asked in self._asked.values()), default=None)

    def heard(self, fd: int) -> None:
        """A process has said something, or has ended."""
        name = next((name for name, asked in self._asked.items() if asked.fd == fd), None)
        if name is None:
            return
        asked = self._asked[name]
        more = os.read(fd, _MOST_BYTES)
        asked.text += more
        if not more or asked.text.endswith(b"\n.") or len(asked.text) > _MOST_BYTES:
            self._over(name, _parsed(asked.text))

    def keep_time(self) -> None:
        """End those that take too long."""
        now = time.monotonic()
        for name in [name for name, asked in self._asked.items() if asked.end <= now]:
            self._over(name, Found(why=f"no answer in {LOOKUP_S:g} s", temporary=True))

    def close(self) -> None:
        """End all, and tell nobody. Idempotent."""
        for asked in tuple(self._asked.values()):
            _end(asked)
        self._asked.clear()

    def _over(self, name: str, found: Found) -> None:
        _end(self._asked.pop(name))
        self._done(name, found)


def _spawn(argv: list[str], stdout_fd: int) -> tuple[int, int]:
    """Pid and pidfd of a leader of a process group, so that Ctrl-C is not its business."""
    pid = os.posix_spawn(
        argv[0],
        argv,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, stdout_fd, 1),
        ],
        setpgroup=0,
        setsigmask=[],
        setsigdef=[signal.SIGALRM, signal.SIGPIPE],
    )
    try:
        return pid, os.pidfd_open(pid)
    except OSError:  # no descriptor free, or reaped: it has an alarm
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        raise


def _end(asked: _Asked) -> None:
    os.close(asked.fd)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(asked.pidfd, signal.SIGKILL)  # it has said all, or is too late
    with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored, or somebody else waited
        os.waitid(os.P_PIDFD, asked.pidfd, os.WEXITED)
    os.close(asked.pidfd)


def _parsed(text: bytes) -> Found:
    lines = text.decode(errors="replace").splitlines()
    if not lines or lines[-1] != ".":
        return Found(why="the process that looks names up ended early", temporary=True)
    if lines[0].startswith("!"):
        number, _, words = lines[0][1:].partition(" ")
        lasting = number in (str(int(socket.EAI_NONAME)), str(int(socket.EAI_NODATA)))
        return Found(why=words, temporary=not lasting)
    return Found(addresses=tuple(ipaddress.ip_address(line.partition("%")[0]) for line in lines[:-1]))
