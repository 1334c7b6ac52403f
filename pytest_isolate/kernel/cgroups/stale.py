"""The name of a run's directory, and clearing away those of runs that died without cleaning up.

Owns: the name ``pytest-isolate-<run>-<pid>-<start>-<pidns>``, what it says about life, and the sweep.
Refuses: to touch a run it cannot judge: a pid means nothing outside its PID namespace.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel.cgroups import cgroupfs, processes
from pytest_isolate.kernel.cgroups.processes import Place

_PREFIX = "pytest-isolate-"
_NAME = re.compile(rf"{_PREFIX}(?P<run>.+)-(?P<pid>\d+)-(?P<start>\d+)-(?P<pidns>\d+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.]+")
#: include/linux/proc_ns.h PROC_PID_INIT_INO: the initial PID namespace, which sees every process.
_FIRST_PIDNS = 0xEFFFFFFC
_KILL_S = 2.0


@dataclass(frozen=True, slots=True)
class Owner:
    """The process a run directory belongs to: pid, start time in clock ticks, and the namespace of both."""

    pid: int
    start: int
    pidns: int


def safe(text: str, length: int) -> str:
    """``text`` as part of a directory name: letters, digits, ``_`` and ``.``; at most ``length`` long."""
    return _UNSAFE.sub("_", text).strip("._")[:length] or "x"


def run_name(run_id: str) -> str:
    """The directory name of the run of this process."""
    pid = os.getpid()
    return f"{_PREFIX}{safe(run_id, 40)}-{pid}-{_start(pid)}-{_pidns('self')}"


def owner(name: str) -> Owner | None:
    """Whose run directory this is; None for a name that is not ours."""
    match = _NAME.fullmatch(name)
    return Owner(int(match["pid"]), int(match["start"]), int(match["pidns"])) if match else None


def is_dead(whose: Owner) -> bool:
    """True only when that process is known to be gone."""
    here = _pidns("self")
    if whose.pidns == here:
        return not _exists(whose.pid) or _start(whose.pid) not in (None, whose.start)
    if here != _FIRST_PIDNS:
        return False
    return whose.pidns not in {_pidns(entry) for entry in os.listdir("/proc") if entry.isdigit()}


def sweep(parent: str, version: int, controllers: frozenset[str]) -> list[str]:
    """Kill and remove what dead runs left in ``parent``. Returns the paths that could not be removed."""
    try:
        dir_fd = cgroupfs.open_directory(parent)
    except OSError:
        return []  # not ours to read: whoever makes a directory there next is told why
    try:
        dead = [name for name in os.listdir(dir_fd) if (whose := owner(name)) is not None and is_dead(whose)]
        return [f"{parent}/{name}" for name in dead if not _clear(Place(dir_fd, name, version, controllers))]
    finally:
        os.close(dir_fd)


def _clear(place: Place) -> bool:
    """Another run may be sweeping at the same time: whatever is gone is fine."""
    with contextlib.suppress(SetupError):
        processes.thaw([place])
        processes.kill([place], _KILL_S)
        for _ in range(50):
            if cgroupfs.remove(place.dir_fd, place.name):
                return True
            time.sleep(0.01)
    return False


def _exists(pid: int) -> bool:
    """Asks the kernel, not /proc, which may hide other users' processes (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _start(pid: int) -> int | None:
    """Start time in clock ticks after boot, 0 for a zombie; None when /proc does not say. Source: proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    state, threads, start = fields[0], int(fields[17]), int(fields[19])
    # A zombie will not clean up any more; a leader whose other threads live on is shown as one too, but counts them.
    return 0 if state in (b"Z", b"X") and threads == 0 else start


def _pidns(pid: str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0
