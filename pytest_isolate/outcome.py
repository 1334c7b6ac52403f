"""What happened in a sandbox, and what it cost: plain values.

Owns: Cause, ExitStatus, Usage, Leftover, Outcome.
Refuses: to decide; whoever saw the evidence fills them in.
"""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass, field
from typing import Any


class Cause(str, enum.Enum):
    """Why a sandbox ended other than by its program's own will."""

    TIMEOUT = "TIMEOUT"
    OOM = "OOM"
    PIDS = "PIDS"
    CPU = "CPU"
    FSIZE = "FSIZE"
    NOFILE = "NOFILE"
    NETDENIED = "NETDENIED"
    LEAK = "LEAK"
    SETUP = "SETUP"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a process ended: ``code`` (exit status) or ``signal``, never both. Source: waitid(2)."""

    code: int | None = None
    signal: int | None = None
    core_dumped: bool = False

    @property
    def returncode(self) -> int:
        """As subprocess has it: the exit status, or minus the signal number."""
        return self.code if self.code is not None else -(self.signal or 0)

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {signal_name(self.signal)}"
        return f"exited with status {self.code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What it cost. Process level: rusage of the program and the descendants that were waited for (getrusage(2)).

    ``max_rss_bytes`` of a program is at least what its caller held: the kernel keeps that figure over exec(2).

    Group level (``cgroup_*``, ``pids_peak``, ``io_*``): the cgroup's own counters; None where there was no cgroup.
    ``cgroup_*_pressure_usec``: microseconds in which some process of it waited for that resource, where costs are asked for
    (``Groups(account=True)``), in cgroup v2 of a kernel with PSI; None elsewhere. Source: Documentation/accounting/psi.rst.
    """

    wall_s: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0
    minor_faults: int = 0
    major_faults: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    cgroup_cpu_usec: int | None = None
    cgroup_user_usec: int | None = None
    cgroup_system_usec: int | None = None
    cgroup_throttled_usec: int | None = None
    cgroup_memory_peak_bytes: int | None = None
    cgroup_swap_peak_bytes: int | None = None
    cgroup_cpu_pressure_usec: int | None = None
    cgroup_memory_pressure_usec: int | None = None
    cgroup_io_pressure_usec: int | None = None
    pids_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    io_read_ops: int | None = None
    io_write_ops: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A process that was still there when its sandbox ended, and was killed.

    ``pid`` is the host's number; the one inside, where a backend shows no process of the sandbox to the host.
    """

    pid: int
    command: str
    age_s: float

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.age_s:.1f} s old): {self.command}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What passed and what was refused, exactly; bytes are L3. ``contacted``: destinations it opened to, under rules.

    ``flows_lost``: packets for which the flow table had no room, so that their destinations may be missing there.
    ``refused`` and ``logged``: one line for each flow, in the words of the rule that decided.
    """

    packets_out: int = 0
    l3_bytes_out: int = 0
    packets_in: int = 0
    l3_bytes_in: int = 0
    connections_out: int = 0
    connections_in: int = 0
    denied: int = 0
    events_lost: int = 0
    flows_lost: int = 0
    contacted: tuple[str, ...] = ()
    logged: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesChanged:
    """Absolute paths, sorted. A directory that is new is listed and so is all in it; one that is gone stands for its content.

    ``incomplete``: there was more than the limits let us read.
    """

    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    incomplete: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.modified or self.deleted or self.incomplete)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one run in a sandbox; familiar to users of subprocess.CompletedProcess.

    ``stdout`` and ``stderr`` are text, or bytes when asked for; empty when they were not captured.
    ``traffic`` is None where nothing counted it. ``causes`` is empty for a program that ended by itself; ``detail``
    holds a line of evidence for each, and after them, with TIMEOUT, what a CPU quota took.
    """

    args: tuple[str, ...] = ()
    status: ExitStatus = field(default_factory=lambda: ExitStatus(code=0))
    stdout: Any = ""
    stderr: Any = ""
    causes: tuple[Cause, ...] = ()
    detail: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    leftovers: tuple[Leftover, ...] = ()
    files_changed: FilesChanged = field(default_factory=FilesChanged)
    traffic: Traffic | None = None

    @property
    def returncode(self) -> int:
        """As subprocess has it: the exit status, or minus the signal number."""
        return self.status.returncode

    @property
    def ok(self) -> bool:
        """True when the program exited with status 0 and the sandbox had nothing to object."""
        return self.status.code == 0 and not self.causes


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11; ``signal 64`` for one without a name (real-time signals)."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
