"""A started child and how it ended.

Owns: the descriptors of one child, its wait, its kill, its leftovers. Refuses: to start one (native.py).
A child is untrusted: nothing here waits for the end of a stream that a grandchild may hold.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import threading
import time
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pytest_isolate.errors import CleanupError
from pytest_isolate.kernel import abi, forks, processes
from pytest_isolate.kernel.library import functions
from pytest_isolate.outcome import ExitStatus, Leftover

if TYPE_CHECKING:
    import resource


@dataclass(frozen=True, slots=True)
class Rusage:
    """getrusage(2) of the main process and the descendants it waited for, in bytes and seconds."""

    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0
    minor_faults: int = 0
    major_faults: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    blocks_in: int = 0
    blocks_out: int = 0

    @classmethod
    def of(cls, usage: resource.struct_rusage) -> Rusage:
        """From what os.wait4() gives; its maxrss is in KiB."""
        return cls(
            user_s=usage.ru_utime,
            system_s=usage.ru_stime,
            max_rss_bytes=usage.ru_maxrss * 1024,
            minor_faults=usage.ru_minflt,
            major_faults=usage.ru_majflt,
            voluntary_switches=usage.ru_nvcsw,
            involuntary_switches=usage.ru_nivcsw,
            blocks_in=usage.ru_inblock,
            blocks_out=usage.ru_oublock,
        )


@dataclass(frozen=True, slots=True)
class Exited:
    """How the main process ended. ``leftovers``: others remain in its PID namespace or its monitor's tree, else in its group.

    SIGKILL is also what is told when the init or the monitor was killed before it could say: the main process dies with it.
    """

    status: ExitStatus
    rusage: Rusage
    leftovers: bool


def _exit_status(status: int) -> ExitStatus:
    if os.WIFSIGNALED(status):
        return ExitStatus(signal=os.WTERMSIG(status), core_dumped=os.WCOREDUMP(status))
    return ExitStatus(code=os.WEXITSTATUS(status))


def _exited(record: abi.Exit) -> Exited:
    rusage = Rusage(
        user_s=record.user_usec / 1e6,
        system_s=record.system_usec / 1e6,
        max_rss_bytes=record.max_rss_bytes,
        minor_faults=record.minor_faults,
        major_faults=record.major_faults,
        voluntary_switches=record.voluntary_switches,
        involuntary_switches=record.involuntary_switches,
        blocks_in=record.blocks_in,
        blocks_out=record.blocks_out,
    )
    return Exited(_exit_status(record.status), rusage, bool(record.leftovers))


#: The init was killed before it could say anything: so was everything in its namespace. With a monitor: so was the main
#: process, by its PDEATHSIG, or by us where it gave that up by changing its user.
_KILLED = Exited(ExitStatus(signal=signal.SIGKILL), Rusage(), leftovers=False)


def _milliseconds(deadline: float | None) -> int:
    """For poll(2): what is left, rounded up; -1 for ever. At most a day: the caller asks again."""
    if deadline is None:
        return -1
    return min(math.ceil(max(0.0, deadline - time.monotonic()) * 1000), 86_400_000)


_MONITOR_S = 0.2  # a monitor ends a tree in milliseconds; then we look whether someone holds it
_KILL_S = 10.0


@dataclass(slots=True)
class Child:
    """A started child: the owner of its fds. A context manager; leaving it kills and collects what is left.

    Another process that was forked from the one that started it can look and signal. How it ended is said once, and to its owner:
    there the record is not read, and nothing is killed or collected.

    Attributes:
        pid: host pid of the main process (the test or the program).
        pidfd: pidfd of it; readable when it has ended.
        init_pid, init_pidfd: the init of its PID namespace, or its monitor; 0 and -1 without either.
        status_fd: the one record of init or monitor arrives here; -1 without either.
    """

    pid: int
    pidfd: int
    init_pid: int
    init_pidfd: int
    status_fd: int
    own_session: bool
    monitored: bool  # the init is a monitor: the tree lives in our PID namespace
    _raw: abi.Child
    _exited: Exited | None = None
    _collected: bool = False
    _killed: bool = False
    #: How it ended is said once: of several threads that wait, one hears it for all. A handler of signals may ask in between.
    _waiting: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    layers: Any = None  # kernel.filesystem.Layers of this launch, when its view has overlays; closed with it
    _owner: object = field(default_factory=lambda: forks.here, repr=False, compare=False)

    def __enter__(self) -> Child:  # noqa: PYI034 (typing.Self is newer than Python 3.10)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self.pidfd >= 0:
            try:
                self.kill()
                self.reap(block=True)
            finally:
                self.close()
        self.close()

    def poll(self) -> Exited | None:
        """How it ended, or None while it runs. Never blocks."""
        return self.wait(0)

    def wait(self, timeout_s: float | None = None) -> Exited | None:
        """Wait until the main process has ended; None when it still runs after ``timeout_s``.

        Raises:
            ChildProcessError: it has ended, and how is told to another: its owner, or who was faster with a wait() for any child.
        """
        if self._exited is not None:
            return self._exited
        if self._owner is not forks.here:
            self._watch(timeout_s)
            return None
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._waiting.acquire(
            timeout=-1 if timeout_s is None else min(max(0.0, timeout_s), threading.TIMEOUT_MAX)
        ):
            return self._exited
        try:
            return self._waited(deadline)
        finally:
            self._waiting.release()

    def _watch(self, timeout_s: float | None) -> None:
        """In another process than its owner's: a pidfd tells everybody of its end, and nobody how."""
        if processes.ended(self.pidfd, timeout_s):
            raise ChildProcessError(
                errno.ECHILD, f"pid {self.pid} has ended; how is told to the process that started it"
            )

    def _waited(self, deadline: float | None) -> Exited | None:
        if self._exited is not None:  # another thread has heard it meanwhile
            return self._exited
        record = abi.Exit()
        while (answer := functions().await_(self._raw, _milliseconds(deadline), record)) in (0, -errno.EINTR):
            if deadline is not None and time.monotonic() >= deadline:
                return None
        self._exited = self._ended(answer, record)
        return self._exited

    def _ended(self, answer: int, record: abi.Exit) -> Exited:
        if answer == -errno.EPIPE:
            if self.monitored:
                self._end_orphans()
            return _KILLED
        if self.init_pidfd < 0:
            self._collected = True
        if answer == -errno.ECHILD:  # someone's waitpid(-1) was faster: the status is gone
            raise ChildProcessError(errno.ECHILD, f"pid {self.pid} was collected by someone else's wait()")
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        exited = _exited(record)
        return replace(exited, leftovers=True) if self._group_lives() else exited

    def _group_lives(self) -> bool:
        """Without a PID namespace: True when its process group has members yet. Its number is theirs until they end."""
        if self.init_pidfd >= 0 or not self.own_session:
            return False
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return bool(leftovers(self))  # a zombie counts for killpg, and holds nothing

    def signal(self, signum: int) -> None:
        """Send a signal to the main process only; nothing happens when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signum)

    def leftovers(self) -> list[Leftover]:
        """What else of its tree still lives: see leftovers()."""
        return leftovers(self)

    def kill(self) -> None:
        """End the whole tree: the PID namespace with its init, what the monitor finds, else group and main process.

        A monitor works on by itself; reap(block=True) waits until it has done.
        """
        if self._owner is not forks.here:
            return
        self._killed = True
        if self.init_pidfd >= 0 and not self.monitored and self._exited is not None and not self._exited.leftovers:
            return  # its init has seen the last of them and leaves by itself
        if self.monitored:
            if not self._collected and functions().end_tree(self._raw) < 0 and self._monitor_left_some():
                self._end_orphans()
            return
        if self.init_pidfd < 0:
            self._kill_group()
            if not self._collected:
                self.signal(signal.SIGKILL)
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init_pidfd, signal.SIGKILL)
        self.signal(signal.SIGKILL)  # in a joined PID namespace the init is only a monitor

    def _kill_group(self) -> None:
        if not self.own_session or (self._collected and not (self._exited and self._exited.leftovers)):
            return  # a collected pid is someone else's by now, unless its group went on
        if not self._collected:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        for leftover in leftovers(self):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(leftover.pid, signal.SIGKILL)

    def reap(self, block: bool) -> bool:
        """Collect what ended. True when there is nothing left to collect; with ``block``, wait for that."""
        if self._collected or self._owner is not forks.here:
            return True
        if self.init_pidfd < 0:
            self.wait(None if block else 0)
            return self._collected
        if block and self._killed and self.monitored:
            self._await_monitor()
        if block and self._exited is None:
            self.wait(None)
        answer = functions().wait(self.init_pidfd, int(block), abi.Exit())
        while block and answer == -errno.EINTR:
            answer = functions().wait(self.init_pidfd, 1, abi.Exit())
        self._collected = answer in (1, -errno.ECHILD)
        return self._collected

    def _await_monitor(self) -> None:
        """The monitor leaves when its tree is gone. One that is held (stopped again, traced) is done without.

        Raises:
            CleanupError: processes that not even SIGKILL ends.
        """
        end = time.monotonic() + _KILL_S
        while not processes.ended(self.init_pidfd, _MONITOR_S):
            if processes.is_held(self.init_pid) or time.monotonic() >= end:
                self._end_without_monitor()

    def _end_without_monitor(self) -> None:
        """It stays the parent of all orphans until it is killed, so it is killed last."""
        if left := processes.kill_all(lambda: processes.descendants(self.init_pid), _KILL_S):
            remedy = "see /proc/PID/stack for what they wait for"
            raise CleanupError(f"the processes of sandbox {self.pid}", f"{left} do not end", remedy)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init_pidfd, signal.SIGKILL)

    def _monitor_left_some(self) -> bool:
        """A monitor leaves when all have ended; one that was killed may have said before that others remain."""
        exited = self.poll()
        return exited is not None and exited.leftovers

    def _end_orphans(self) -> None:
        """The monitor is gone. What is left of its tree is the main process, until it dies too, and its session.

        A daemon with a session of its own has become a stranger to us: only a cgroup or a PID namespace still holds it.
        """
        self.signal(signal.SIGKILL)
        if self.own_session and processes.ended(self.pidfd, _KILL_S):
            processes.kill_all(lambda: processes.orphans_of_session(self.pid, self.pidfd), _KILL_S)

    def close(self) -> None:
        """Give the fds back. The child is not touched."""
        if self._owner is forks.here:
            layers, self.layers = self.layers, None
            if layers is not None:
                layers.close()
        for name in ("pidfd", "init_pidfd", "status_fd"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


def leftovers(child: Child) -> list[Leftover]:
    """Processes still in the child's PID namespace or its monitor's tree, nested ones too; without either, those of its session.

    Init or monitor and main process are not counted, zombies neither. To be asked while the init lives, before kill().
    """
    if child.init_pid <= 0:
        return processes.leftovers_of_session(child.pid) if child.own_session else []
    found = []
    for pid in sorted(processes.descendants(child.init_pid) - {child.pid}):
        with contextlib.suppress(OSError):  # it ended while we looked
            if (leftover := processes.describe(pid)) is not None:
                found.append(leftover)
    return found
