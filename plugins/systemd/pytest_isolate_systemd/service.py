"""A transient service as a process under a policy: started, waited for, signalled and ended through the manager.

Owns: Service, the unit it made, and its way to the manager. Refuses: to be its parent: systemd is, so how it ended is asked, and
not waited for.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Sequence
from typing import Any

from pytest_isolate.errors import SetupError
from pytest_isolate.outcome import ExitStatus, Leftover
from pytest_isolate.tool import Exited, Rusage, forks

from .manager import Manager, Property

#: What systemd may take to notice an end that we have seen, and to stop a unit whose processes were killed.
_NOTICE_S = 5.0
#: Statuses from here on are systemd's own: the program was not executed. Source: systemd.exec(5), Process Exit Codes.
_FIRST_OWN_STATUS = 200
_EXITED, _DUMPED = 1, 3  # CLD_EXITED, CLD_DUMPED


class Service:
    """See the module. ``pid`` is the host's number, 0 for a program that had ended before we could ask."""

    def __init__(self, manager: Manager, unit: str, properties: Sequence[Property]) -> None:
        """Start it.

        Raises:
            SetupError: systemd could not make the sandbox, or execute the program; with the status it gives for the reason.
        """
        self._manager = manager
        self._unit = unit
        self._owner = forks.here
        self._exited: Exited | None = None
        self.pidfd = -1
        try:
            result = manager.start(unit, properties)
            found = manager.service(unit)
            status = int(found["ExecMainStatus"])
            if result != "done" and not (found["ExecMainCode"] and status < _FIRST_OWN_STATUS):
                raise SetupError.of_tool("systemd", f"its job {result}, status {status} (see systemd.exec(5))")
        except BaseException:
            self.close()
            raise
        self.pid = int(found["MainPID"])
        try:
            self.pidfd = os.pidfd_open(self.pid) if self.pid else os.eventfd(1)
        except ProcessLookupError:
            self.pidfd = os.eventfd(1)

    def wait(self, timeout_s: float | None = None) -> Exited | None:
        if self._exited is None:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            if not poller.poll(None if timeout_s is None else timeout_s * 1000):
                return None
            self._exited = self._end()
        return self._exited

    def _end(self) -> Exited:
        end = time.monotonic() + _NOTICE_S
        found = self._manager.service(self._unit)
        while not found["ExecMainCode"] and time.monotonic() < end:
            time.sleep(0.005)
            found = self._manager.service(self._unit)
        spent_s = _seconds(found.get("CPUUsageNSec", 0))
        return Exited(status=_status(found), rusage=Rusage(user_s=spent_s), leftovers=bool(self.leftovers()))

    def signal(self, signum: int) -> None:
        """To the program alone."""
        if self._exited is None and self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.pidfd, signum)

    def kill(self) -> None:
        with contextlib.suppress(SetupError):  # nothing is left of it
            self._manager.call("KillUnit", "ssi", self._unit, "all", int(signal.SIGKILL))

    def leftovers(self) -> list[Leftover]:
        try:
            (found,) = self._manager.call("GetUnitProcesses", "s", self._unit)
        except SetupError:
            return []
        return [Leftover(pid=pid, command=command, age_s=_age_s(pid)) for _, pid, command in found if pid != self.pid]

    def reap(self, block: bool) -> bool:
        if self.wait(None if block else 0) is None:
            return False
        end = time.monotonic() + _NOTICE_S
        while block and self.leftovers() and time.monotonic() < end:
            time.sleep(0.005)
        return True

    def close(self) -> None:
        """Forget the unit; what still runs in it is ended, but by a copy of this in a forked child, which only leaves the bus."""
        if self._unit and self._owner is not forks.here:
            self._unit = ""
            self._manager.leave_in_child()
        if self._unit:
            self.kill()
            for method, signature, more in (("StopUnit", "ss", ("replace",)), ("ResetFailedUnit", "s", ())):
                with contextlib.suppress(SetupError):  # it is not loaded any more, or has not failed
                    self._manager.call(method, signature, self._unit, *more)
            self._unit = ""
            self._manager.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _status(found: dict[str, Any]) -> ExitStatus:
    code, status = int(found["ExecMainCode"]), int(found["ExecMainStatus"])
    if code == _EXITED:
        return ExitStatus(code=status)
    return ExitStatus(signal=status or signal.SIGKILL, core_dumped=code == _DUMPED)


def _seconds(nanoseconds: int) -> float:
    """0 where nobody counts: UINT64_MAX."""
    return 0.0 if nanoseconds >= 2**64 - 1 else nanoseconds / 1e9


def _age_s(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            ticks = int(stat.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
