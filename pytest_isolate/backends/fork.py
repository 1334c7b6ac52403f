"""The backend `fork`: os.fork, a session of its own, rlimits. For hosts where nothing more is possible.

Owns: the enforcement of session and rlimits for forked tests with the standard library alone.
Refuses: namespaces and file-system views: ``lacks`` says so. A process that starts a session of its own
leaves our sight; what is left in the test's session is found and killed.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import select
import signal
from collections.abc import Mapping, Sequence

from pytest_isolate.backend import Kind
from pytest_isolate.backends.forked import give_up
from pytest_isolate.errors import BackendUnavailable, SetupError
from pytest_isolate.kernel.native import Exited, Joined, Rusage
from pytest_isolate.kernel.processes import leftovers_of_session
from pytest_isolate.outcome import ExitStatus, Leftover
from pytest_isolate.policy import Hardening, Policy


class ForkedProcess:
    """A child of os.fork, leader of a session of its own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._exited: Exited | None = None

    def wait(self, timeout_s: float | None = None) -> Exited | None:
        if self._exited is None and self._ends_within(timeout_s):
            _, status, usage = os.wait4(self.pid, 0)
            self._exited = Exited(status=_status(status), rusage=Rusage.of(usage), leftovers=bool(self.leftovers()))
        return self._exited

    def _ends_within(self, timeout_s: float | None) -> bool:
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(None if timeout_s is None else math.ceil(timeout_s * 1000)))

    def signal(self, signum: int) -> None:
        if self._exited is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signum)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        for leftover in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(leftover.pid, signal.SIGKILL)

    def leftovers(self) -> list[Leftover]:
        return leftovers_of_session(self.pid)

    def reap(self, block: bool) -> bool:
        return self.wait(None if block else 0) is not None

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _status(raw: int) -> ExitStatus:
    if os.WIFSIGNALED(raw):
        return ExitStatus(signal=os.WTERMSIG(raw), core_dumped=os.WCOREDUMP(raw))
    return ExitStatus(code=os.WEXITSTATUS(raw))


class ForkBackend:
    """See the module."""

    name = "fork"
    quality = 10
    runs: frozenset[Kind] = frozenset({"tests"})

    def lacks(self, policy: Policy) -> list[str]:
        found = []
        if policy.namespaces:
            names = ", ".join(sorted(namespace.value for namespace in policy.namespaces))
            found.append(f"namespaces {names}: the fork backend has none. Use --isolate-profile=minimal")
        if policy.hardening != Hardening():
            found.append("hardening: the fork backend changes no privileges. Use the native backend")
        if policy.network.counted:
            found.append(f"network {policy.network.mode}: the fork backend joins no cgroup v2. Use the native backend")
        return found

    def fork(self, policy: Policy, joined: Joined | None = None) -> ForkedProcess | None:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return ForkedProcess(pid)
        try:
            if joined is not None:
                _join(joined)
            _enter(policy, parent)
        except BaseException as error:
            give_up(error)
        return None

    def spawn(
        self,
        policy: Policy,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        joined: Joined | None = None,
        stdin_fd: int = -1,
        stdout_fd: int = -1,
        stderr_fd: int = -1,
    ) -> ForkedProcess:
        raise BackendUnavailable("backend fork", "it starts tests, not programs", "use the native backend")


def _join(joined: Joined) -> None:
    """In the child: enter the group in every hierarchy; ``0`` is the writer."""
    if joined.dir_fd >= 0:
        with open(
            os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=joined.dir_fd), "wb", buffering=0
        ) as procs:
            procs.write(b"0")
    for fd in joined.procs_fds:
        os.write(fd, b"0")


def _enter(policy: Policy, parent: int) -> None:
    """In the child: die with the parent, lead a session, take the limits on."""
    from pytest_isolate.kernel.rlimits import compile_rlimits

    if policy.session:
        os.setsid()
    for number, soft, hard in compile_rlimits(policy.limits):
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError) as error:
            raise SetupError("rlimits", getattr(error, "errno", None) or 22, number, str(error)) from error
    if os.getppid() != parent:
        os._exit(1)
