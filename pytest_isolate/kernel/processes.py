"""Who lives where: processes of a session or of a PID namespace, with command line and age, out of /proc.

Owns: reading /proc/PID. Refuses: to signal anything.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator

from pytest_isolate.outcome import Leftover

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def pids() -> Iterator[int]:
    """Every process number this /proc shows."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def leftovers_of_session(leader: int) -> list[Leftover]:
    """The living processes of the session that ``leader`` made, the leader not counted."""
    return _matching(lambda pid: pid != leader and _session(pid) == leader)


def leftovers_of_namespace(init: int, *but_not: int) -> list[Leftover]:
    """The living processes whose PID namespace is that of ``init``; neither ``init`` nor ``but_not`` are counted."""
    namespace = os.readlink(f"/proc/{init}/ns/pid")
    ours = {init, *but_not}
    return _matching(lambda pid: pid not in ours and os.readlink(f"/proc/{pid}/ns/pid") == namespace)


def _matching(belongs: Callable[[int], bool]) -> list[Leftover]:
    return described(pids(), belongs)


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
