"""The backend `landlock`: tests and programs under Landlock and seccomp, without privilege and without namespaces.

Owns: what it adds to every policy: no new privileges, the seccomp profile `default`, and a Landlock domain out of which no
signal and no abstract socket reaches. Refuses: what needs a namespace. Processes are started by the native backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pluggy

from pytest_isolate.backend import Backend, Kind, Process
from pytest_isolate.capability import WITHOUT_NAMESPACES, beyond
from pytest_isolate.hardening import Landlock
from pytest_isolate.policy import Hardening, Policy
from pytest_isolate.registry import backends

hookimpl = pluggy.HookimplMarker("pytest")
#: A domain that opens everything: what remains of it is the scope, and that no stranger is traced.
OPEN = Landlock(read=(), write=("/",))


@hookimpl
def pytest_isolate_backends() -> list[Backend]:
    return [LandlockBackend()]


class LandlockBackend:
    """See the module."""

    name = "landlock"
    quality = 30
    runs: frozenset[Kind] = frozenset({"programs", "tests", "fresh"})
    profile = "minimal"

    def __init__(self) -> None:
        (self._native,) = backends(("native",))
        self._confined: dict[
            int, tuple[Policy, Policy]
        ] = {}  # by id, with the policy: its id is its own while it lives

    def lacks(self, policy: Policy) -> list[str]:
        return beyond(policy, WITHOUT_NAMESPACES, self.name) or self._native.lacks(self.confined(policy))

    def adds(self, policy: Policy) -> str:
        """What holds besides the policy, for the header."""
        before, after = policy.hardening, self.confined(policy).hardening
        return ", ".join(_added(before, after))

    def confined(self, policy: Policy) -> Policy:
        """The policy with what this backend adds; scopes only where the kernel has them (Linux 6.12)."""
        if id(policy) not in self._confined:
            self._confined[id(policy)] = policy, self._confine(policy)
        return self._confined[id(policy)][1]

    def _confine(self, policy: Policy) -> Policy:
        asked = policy.hardening
        hardened = replace(
            policy,
            hardening=replace(
                asked,
                no_new_privs=True,
                seccomp="default" if asked.seccomp == "none" else asked.seccomp,
                landlock=asked.landlock or OPEN,
            ),
        )
        scoped = _scoped(hardened)
        return hardened if self._native.lacks(scoped) else scoped

    def fork(self, policy: Policy, joined: Any = None) -> Process | None:
        return self._native.fork(self.confined(policy), joined)

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
        return self._native.spawn(
            self.confined(policy),
            argv,
            env=env,
            cwd=cwd,
            joined=joined,
            stdin_fd=stdin_fd,
            stdout_fd=stdout_fd,
            stderr_fd=stderr_fd,
        )


def _scoped(policy: Policy) -> Policy:
    landlock = replace(policy.hardening.landlock or OPEN, scoped=True)
    return replace(policy, hardening=replace(policy.hardening, landlock=landlock))


def _added(before: Hardening, after: Hardening) -> Iterator[str]:
    if not before.no_new_privs:
        yield "no new privileges"
    if before.seccomp == "none":
        yield "seccomp default"
    if after.landlock is not None and after.landlock.scoped and not (before.landlock and before.landlock.scoped):
        yield "no signals and no abstract sockets out of the sandbox"
