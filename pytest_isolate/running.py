"""One program that runs in a sandbox: waited for, frozen, limited anew, ended, and counted.

Owns: Running. Refuses: to start anything (sandbox.py), and to keep what it writes (output.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal as signals
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pytest_isolate.backend import Process
from pytest_isolate.errors import BackendUnavailable, PolicyError, SetupError
from pytest_isolate.groups import group_part
from pytest_isolate.kernel import forks
from pytest_isolate.kernel.native import Exited
from pytest_isolate.kernel.processes import ended
from pytest_isolate.live_limits import LiveLimits, changed
from pytest_isolate.outcome import Cause, ExitStatus, FilesChanged, Leftover, Outcome, Traffic, Usage
from pytest_isolate.policy import Policy
from pytest_isolate.units import format_seconds

if TYPE_CHECKING:
    from pytest_isolate.hooks import Life
    from pytest_isolate.kernel.cgroups import Cgroup
    from pytest_isolate.output import Output
    from pytest_isolate.sandbox_network import SandboxNetwork
from pytest_isolate.endings import (
    POLL_S,
    group_usage,
    in_pid_namespace,
    is_monitored,
    living,
    runaway,
    status_verdicts,
    strays,
    too_low_to_start,
    usage_of,
)


class ProgramFailed(subprocess.CalledProcessError):
    """``check=True`` and the program did not exit with 0, or the sandbox had something to object. Holds ``outcome``.

    In a process forked from the one that started it, nobody is told how it ended: there ``returncode``, and the status's code
    and signal, are None.
    """

    returncode: Any

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.returncode, list(outcome.args), outcome.stdout, outcome.stderr)
        self.outcome = outcome
        if outcome.status == ExitStatus():
            self.returncode = None

    def __str__(self) -> str:
        why = "; ".join(self.outcome.detail) or str(self.outcome.status)
        tail = str(self.outcome.stderr).strip().splitlines()[-5:]
        return "\n".join([f"{' '.join(self.outcome.args)}: {why}", *tail])


class Running:
    """A program that was started in a sandbox. A context manager: leaving it ends the program and all it started.

    A process that was forked from the one that started it can look (``running``, ``stdout``, ``wait_for_line``) and signal. How it
    ends is told to the one that started it, which alone ends it: in another, leaving it does nothing.
    """

    def __init__(
        self,
        args: Sequence[str],
        policy: Policy,
        process: Process,
        cgroup: Cgroup | None,
        output: Output,
        meanwhile: Callable[[], None],
        network: SandboxNetwork | None = None,
        life: Life | None = None,
    ) -> None:
        self.args = tuple(args)
        self.policy = policy
        self._process = process
        self._cgroup = cgroup
        self._network = network
        self._life = life  # the hooks around it, where a plugin has any
        self._output = output
        self._meanwhile = meanwhile  # what can be done while the program runs
        self._began = time.monotonic()
        self._outcome: Outcome | None = None
        self._concluding = threading.Lock()
        self._causes: list[tuple[Cause, str]] = []
        self._asked_to_end = False
        self._throttled = ""  # what its CPU quota has cost, in a line
        self._owner = forks.here

    @property
    def pid(self) -> int:
        """The host's number of the program."""
        return self._process.pid

    @property
    def stdout(self) -> Any:
        """What it has written to standard output so far."""
        return self._outcome.stdout if self._outcome is not None else self._output.text(1)

    @property
    def stderr(self) -> Any:
        """What it has written to standard error so far."""
        return self._outcome.stderr if self._outcome is not None else self._output.text(2)

    def running(self) -> bool:
        """True until the program has ended."""
        return self._outcome is None and not self._has_ended(0)

    def _has_ended(self, timeout_s: float) -> bool:
        """Wait for that; what tells how it ended is its owner's to read."""
        if self.is_ours:
            return self._process.wait(timeout_s) is not None
        return ended(self._process.pidfd, timeout_s)

    @property
    def is_ours(self) -> bool:
        """False in a process that was forked from the one that started it."""
        return self._owner is forks.here

    def signal(self, signum: int) -> None:
        """Send a signal to the program."""
        self._process.signal(signum)

    def signal_group(self, signum: int) -> None:
        """Send a signal to its process group where it leads one, as a terminal does, else to it alone; to nobody when it has ended."""
        if ended(self._process.pidfd, 0):  # from here on its number may be another's
            return
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signum)
                return
        self.signal(signum)

    @property
    def limits(self) -> LiveLimits:
        """The limits that hold now: read ``limits.memory_bytes``, change with ``limits.update(memory="128M")``."""
        return LiveLimits(self)

    def update(self, **words: Any) -> None:
        """Change group limits of the running program: ``update(memory="128M", pids=20)``; all of them, or on an error none.

        The value ``"unlimited"`` lifts a limit; None changes nothing. Without a memory limit there is none on swap.

        Raises:
            PolicyError: the program was started without a group limit, a word that cannot change while it runs, or a
                value without meaning. SetupError: the kernel refused (EBUSY: more is in use than the new limit).
            BackendUnavailable: a limit that nothing on this host can hold.
        """
        cgroup = self._living_cgroup("limits")
        policy = changed(self.policy, words)
        cgroup.update(group_part(policy.limits))
        self.policy = policy

    def freeze(self) -> None:
        """Stop every process of the program where it stands; its time-out goes on. ``thaw()`` lets them go on.

        Raises:
            PolicyError: the program was started without a group limit. BackendUnavailable: no freezer on this host.
        """
        if not self._living_cgroup("freeze").freeze():
            raise BackendUnavailable("freeze", "no cgroup hierarchy here has a freezer", "use signal(SIGSTOP)")

    def thaw(self) -> None:
        """Let frozen processes go on; fine when nothing is frozen."""
        self._living_cgroup("thaw").thaw()

    def _living_cgroup(self, what: str) -> Cgroup:
        self._check_ours(what)
        if self._cgroup is None:
            raise PolicyError(what, "the program has no cgroup", "start it with a group limit such as memory=")
        if self._outcome is not None:
            raise PolicyError(what, "the program has ended", "do so while it runs")
        return self._cgroup

    def wait_for_line(self, pattern: str, *, timeout: float = 10.0) -> str:
        """Wait until a line of its output matches the regular expression; return the line.

        Raises:
            TimeoutError: no such line in time. ProgramFailed: the program ended first.
        """
        expression = re.compile(pattern)

        def look() -> str | None:
            text = os.fsdecode(self._output.raw(1) + b"\n" + self._output.raw(2))
            return next((line for line in text.splitlines() if expression.search(line)), None)

        return str(self._wait_until(look, timeout, f"a line that matches {pattern!r}"))

    def wait_for_port(self, port: int, host: str = "127.0.0.1", *, timeout: float = 10.0) -> None:
        """Wait until something accepts TCP connections on ``port`` of this process's network.

        Raises:
            TimeoutError: nothing did in time. ProgramFailed: the program ended first.
        """

        def look() -> bool | None:
            try:
                socket.create_connection((host, port), timeout=1).close()
            except OSError:
                return None
            return True

        self._wait_until(look, timeout, f"{host}:{port} to accept connections")

    def _wait_until(self, look: Callable[[], Any], timeout: float, what: str) -> Any:
        end = time.monotonic() + timeout
        while (found := look()) is None:
            if not self.running():
                if (found := look()) is not None:
                    return found
                raise ProgramFailed(self.wait() if self.is_ours or self._outcome is not None else self._unknown())
            if time.monotonic() > end:
                output = os.fsdecode(self._output.raw(2) or self._output.raw(1))[-500:]
                raise TimeoutError(f"{self.args[0]}: waited {format_seconds(timeout)} for {what}; output: {output!r}")
            self._has_ended(POLL_S)
        return found

    def _unknown(self) -> Outcome:
        """What another process than its owner knows of a program that has ended."""
        said = (
            "it has ended, and how is told to the process that started it, not to this one, which was forked from that"
        )
        return Outcome(
            args=self.args,
            status=ExitStatus(),
            stdout=self.stdout,
            stderr=self.stderr,
            detail=(said, *self._output.cut()),
        )

    def _check_ours(self, what: str) -> None:
        if not self.is_ours:
            why = f"{self.args[0]} was started by another process, from which this one was forked: how it ends is told there"
            raise PolicyError(what, why, "call it there; here, running(), wait_for_line() and signal() are of use")

    def wait(self) -> Outcome:
        """Wait for its end, at most the policy's time-out, and return the outcome.

        Raises:
            PolicyError: another process started it.
        """
        if self._outcome is None:
            self._check_ours("wait")
            self._meanwhile()
            try:
                exited = self._wait(self._left_s()) or self._time_out()
            except OSError:  # EBADF, where another thread has ended it meanwhile
                with self._concluding:
                    if self._outcome is None:
                        raise
            else:
                self._conclude(exited)
        assert self._outcome is not None
        return self._outcome

    def _left_s(self) -> float | None:
        timeout_s = self.policy.timeout_s
        return None if timeout_s is None else max(0.0, self._began + timeout_s - time.monotonic())

    def _time_out(self) -> Exited | None:
        assert self.policy.timeout_s is not None
        text = f"TIMEOUT: still running after {format_seconds(self.policy.timeout_s)}"
        self._causes.append((Cause.TIMEOUT, text))
        return self._terminate(signals.SIGTERM)

    def _terminate(self, signum: int) -> Exited | None:
        """Ask, wait for the policy's grace, then kill the tree. What is frozen hears nothing: it is thawed first."""
        self._asked_to_end = True
        if self._cgroup is not None:
            self._cgroup.thaw()
        self._process.signal(signum)
        exited = self._wait(self.policy.grace_s)
        if exited is None:
            self._process.kill()
            exited = self._wait(10.0)
        return exited

    def _wait(self, timeout_s: float | None) -> Exited | None:
        """For its end, while what it writes is read; None where it still runs after the time.

        Raises:
            SetupError: of a tool that has not run the program, with the last it said.
        """
        left_s = self._output.wait(self._process.pidfd, timeout_s)
        try:
            return self._process.wait(left_s)
        except SetupError as error:
            said = os.fsdecode(self._output.raw(2)).strip().rpartition("\n")[2].strip()
            if not said or said in error.why or not error.is_of_tool:
                raise
            raise SetupError.of_tool(error.step, f"{error.why} ({said})", error.remedy) from None

    def terminate(self, signum: int = signals.SIGTERM) -> Outcome:
        """Ask it to end, kill it after the policy's grace, and return the outcome; no cause is noted for that.

        Raises:
            PolicyError: another process started it.
        """
        if self._outcome is None:
            self._check_ours("terminate")
            self._conclude(self._terminate(signum))
        assert self._outcome is not None
        return self._outcome

    def _conclude(self, exited: Exited | None) -> None:
        """Once: the first of several threads that have waited does it for all."""
        with self._concluding:
            if self._outcome is None:
                self._end_all(exited)

    def _end_all(self, exited: Exited | None) -> None:
        """Look at what is left, end it, count the cost, and give everything back."""
        # Whom a monitor knows it tells; its cgroup is asked when it is gone, by one counter instead of every list.
        asked = None if is_monitored(self._process) else self._cgroup
        others = exited is not None and (exited.leftovers or asked is not None)
        leftovers = living(self._process, asked, exited.leftovers) if exited is not None and others else []
        self._process.kill()
        self._process.reap(block=True)
        leftovers += self._end_strays()
        traffic, refusals = self._traffic()
        usage, verdicts = self._cost(exited)
        causes = [*self._causes, *verdicts, *refusals]
        if leftovers:
            causes.append((Cause.LEAK, f"LEAK: {len(leftovers)} left running: {'; '.join(map(str, leftovers))}"))
        low = [] if causes or self._asked_to_end else too_low_to_start(exited, self.policy.limits, usage.wall_s)
        self._outcome = Outcome(
            args=self.args,
            status=exited.status if exited is not None else ExitStatus(signal=signals.SIGKILL),
            stdout=self._output.text(1),
            stderr=self._output.text(2),
            causes=tuple(cause for cause, _ in causes),
            detail=(*(text for _, text in causes), *low, *self._why_late(), *self._output.cut()),
            usage=usage,
            leftovers=tuple(leftovers),
            files_changed=self._files_changed(),
            traffic=traffic,
        )
        self._process.close()
        self._output.close()
        if self._life is not None:
            self._life.finished(self._outcome)

    def _why_late(self) -> list[str]:
        """To a program whose time was over, what its CPU quota took of it."""
        late = any(cause is Cause.TIMEOUT for cause, _ in self._causes)
        return [self._throttled] if late and self._throttled else []

    def _end_strays(self) -> list[Leftover]:
        """Name and end what is in the cgroup yet, so that from here on it is empty."""
        cgroup = self._cgroup
        if cgroup is None or in_pid_namespace(self._process) or cgroup.nobody():
            return []
        try:
            found = strays(cgroup)
            cgroup.kill()
        except BaseException:
            cgroup.close(later=True)
            raise
        return found

    @property
    def network(self) -> SandboxNetwork | None:
        """Its network, where rules, counts or wiring are in force: ``network.subnet``, ``network.traffic()``."""
        return self._network

    def _traffic(self) -> tuple[Traffic | None, list[tuple[Cause, str]]]:
        """All is dead by now: the last counts, and nothing more to police."""
        if self._network is None:
            return None, []
        traffic = self._network.traffic()
        self._network.close()
        return traffic, [(Cause.NETDENIED, line) for line in (traffic.refused if traffic else ())]

    def _files_changed(self) -> FilesChanged:
        layers = getattr(self._process, "layers", None)
        return FilesChanged() if layers is None else layers.changed()

    def _cost(self, exited: Exited | None) -> tuple[Usage, list[tuple[Cause, str]]]:
        wall_s = time.monotonic() - self._began
        usage = usage_of(exited, wall_s)
        verdicts = status_verdicts(exited, self.policy.limits)
        if self._cgroup is None:
            return usage, verdicts
        cgroup = self._cgroup
        try:
            counted = cgroup.usage(current=False, pressure=cgroup.accounts)
            self._throttled = cgroup.throttling(counted)
            found = [
                *runaway(usage.user_s + usage.system_s, counted, self.policy.limits),
                *cgroup.verdicts(usage=counted),
            ]
        finally:
            cgroup.close(later=True)
        return replace(usage, **group_usage(counted)), [*found, *verdicts]

    def __enter__(self) -> Running:  # noqa: PYI034 (typing.Self is newer than Python 3.10)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self.is_ours:
            self.terminate()
