"""Who lives where: processes of a session, a PID namespace or a tree, with command line and age, out of /proc.

Owns: reading /proc/PID, and ending what was found there. Refuses: to decide whose processes are to end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator

from pytest_isolate.outcome import Leftover

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_QUIET_LOOKS = 5
_LONGEST_POLL_MS = 2**31 - 1  # poll(2) takes an int


def pids() -> Iterator[int]:
    """Every process number this /proc shows."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def leftovers_of_session(leader: int) -> list[Leftover]:
    """The living processes of the session that ``leader`` made, the leader not counted."""
    return described(pids(), lambda pid: pid != leader and _session(pid) == leader)


def descendants(root: int) -> set[int]:
    """All below ``root``, which is not counted. Orphans of a PID namespace or of a subreaper are children of that."""
    parents, found, before = _parents(), {root}, 0
    while len(found) > before:
        before = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found - {root}


def parent_of(pid: int) -> int:
    """0 for the first process, and for one whose parent is outside of this PID namespace."""
    return int(_stat(pid)[1])


def _parents() -> dict[int, int]:
    """pid -> parent of all processes this /proc shows. Source: proc(5), stat field 4."""
    found = {}
    for pid in pids():
        with contextlib.suppress(OSError):
            found[pid] = int(_stat(pid)[1])
    return found


def orphans_of_session(leader: int, pidfd: int) -> set[int]:
    """The members of a session whose leader, behind ``pidfd``, has ended.

    None when another process has its number by now. While there are members and the leader is a zombie or gone, its
    number is given to nobody.
    """
    members = set()
    for pid in pids():
        with contextlib.suppress(OSError):
            if _session(pid) == leader:
                members.add(pid)
    return set() if leader in members and _number_of(pidfd) != leader else members - {leader}


def _number_of(pidfd: int) -> int:
    """The process behind ``pidfd``, zombies too; -1 when it was collected. Source: pidfd_open(2), /proc/PID/fdinfo."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as fdinfo:
        (number,) = (int(line.split()[1]) for line in fdinfo if line.startswith("Pid:"))
    return number


def ended(pidfd: int, timeout_s: float | None) -> bool:
    """Wait until the process behind ``pidfd`` has ended; False when it has not after ``timeout_s`` (None: for ever).

    Raises:
        OSError: EBADF, there is no such descriptor, as in a child whose descriptors were closed.
    """
    watched = select.poll()
    watched.register(pidfd, select.POLLIN)
    found = watched.poll(None if timeout_s is None else min(timeout_s * 1000, _LONGEST_POLL_MS))
    if found and found[0][1] & select.POLLNVAL:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return bool(found)


def kill_all(listed: Callable[[], set[int]], timeout_s: float) -> list[int]:
    """SIGKILL what ``listed`` gives until it gives only zombies; those that still live after ``timeout_s``.

    A process that forks and leaves while /proc is read can be missed, so it has to be nobody several times in a row.
    """
    end, quiet = time.monotonic() + timeout_s, 0
    alive: list[int] = []
    while quiet < _QUIET_LOOKS and time.monotonic() < end:
        alive = sorted(filter(_alive, listed()))
        quiet = 0 if alive else quiet + 1
        for pid in alive:
            _kill(pid)
        time.sleep(0.005)
    return alive


def is_held(pid: int) -> bool:
    """True when it is stopped, by a signal or a tracer."""
    with contextlib.suppress(OSError):
        return _stat(pid)[0] in "Tt"
    return False


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _stat(pid)[0] not in "ZX"
    return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def described(candidates: Iterable[int], belongs: Callable[[int], bool] = lambda _: True) -> list[Leftover]:
    """Those of ``candidates`` that live and ``belongs`` holds for."""
    found = []
    for pid in candidates:
        with contextlib.suppress(OSError):  # it ended while we looked
            if belongs(pid) and (leftover := describe(pid)) is not None:
                found.append(leftover)
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command name: [0] state, [3] session, [19] start time in ticks."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        return stat.read().rpartition(")")[2].split()


def _session(pid: int) -> int:
    return int(_stat(pid)[3])


def describe(pid: int) -> Leftover | None:
    """A process by command line and age in seconds; None for a zombie, which holds nothing any more."""
    fields = _stat(pid)
    if fields[0] in "ZX":
        return None
    with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
        words = cmdline.read(4096).rstrip(b"\0").split(b"\0")
    command = b" ".join(words).decode(errors="replace") or _comm(pid)
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS_PER_S
    return Leftover(pid=pid, command=command, age_s=max(age_s, 0.0))


def _comm(pid: int) -> str:
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
        return f"[{comm.read().strip()}]"
