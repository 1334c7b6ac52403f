"""The backend `systemd`: programs as transient services, with systemd's own sandboxing, over D-Bus.

Owns: what it can do on this host, found by trying. Refuses: test functions of a warm fork, which no service is; group limits
and network rules, for systemd starts a service in a cgroup of its own, where our counters do not see it.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

from pytest_isolate.backend import Backend, Kind, Process
from pytest_isolate.capability import beyond
from pytest_isolate.errors import BackendUnavailable, IsolateError, PolicyError
from pytest_isolate.hardening import scrubbed
from pytest_isolate.policy import Policy
from pytest_isolate.tool import directory

from .manager import Manager, bus_address
from .properties import ENFORCES, of_policy, of_program
from .service import Service

hookimpl = pluggy.HookimplMarker("pytest")
#: PrivateIPC.
OLDEST = 248
_TRIAL_S = 8.0


@hookimpl
def pytest_isolate_backends() -> list[Backend]:
    return [Systemd()]


class Systemd:
    """See the module."""

    name = "systemd"
    quality = 45
    runs: frozenset[Kind] = frozenset({"programs", "fresh"})

    def lacks(self, policy: Policy) -> list[str]:
        """By the table, then by the manager's version, then by doing it once with a program that leaves at once."""
        if lacking := beyond(policy, ENFORCES, self.name):
            return lacking
        if not policy.session:
            return ["no session of its own: a service always has one. Leave out session=no"]
        if any(bind.recursive is False for bind in policy.filesystem.binds):
            return ["binds without the mounts below them: systemd makes them private. Leave out recursive=False"]
        try:
            with contextlib.closing(Manager()) as manager:
                version = manager.version()
        except (OSError, EOFError, IsolateError) as error:
            return [f"systemd: no answer at {bus_address()} ({error}). It needs systemd as PID 1, and D-Bus"]
        if version < OLDEST:
            return [f"systemd {OLDEST}: this is {version}. Install a newer one"]
        return self._tried(policy)

    def _tried(self, policy: Policy) -> list[str]:
        try:
            process = self.spawn(policy, ["true"], cwd="/")
            try:
                exited = process.wait(_TRIAL_S)
            finally:
                process.close()
        except PolicyError:
            raise
        except (OSError, IsolateError) as error:
            return [str(error).rstrip(".")]
        if exited is None:
            return [f"systemd: a program that leaves at once was not done after {_TRIAL_S:g} s"]
        return [] if exited.status.code == 0 else [f"systemd: true {exited.status}"]

    def fork(self, policy: Policy, joined: Any = None) -> Process | None:
        raise BackendUnavailable(f"backend {self.name}", "it starts programs, not test functions", "use native")

    def spawn(
        self,
        policy: Policy,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        joined: Any = None,
        stdin_fd: int = -1,
        stdout_fd: int = -1,
        stderr_fd: int = -1,
    ) -> Process:
        if env is None:
            env = os.environ if policy.hardening.environment == "keep" else scrubbed(os.environ)
        stdio = [given if given >= 0 else number for number, given in enumerate((stdin_fd, stdout_fd, stderr_fd))]
        unit = f"pytest-isolate-{uuid.uuid4().hex}.service"
        return Service(Manager(), unit, [*of_program(argv, env, directory(policy, cwd), stdio), *of_policy(policy)])
