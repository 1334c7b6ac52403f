"""The backend `native`: the C library, every namespace, one clone per sandbox.

Owns: the translation of a policy into a plan, and the probe that tries it in a throw-away child.
Refuses: to weaken anything: what the kernel does not give is reported by ``lacks``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_isolate.errors import IsolateError
from pytest_isolate.kernel import capabilities, filesystem, native
from pytest_isolate.kernel.plan import IdMap, Plan
from pytest_isolate.kernel.rlimits import check_room, compile_rlimits
from pytest_isolate.policy import Namespace, Policy

#: CLONE_NEW* by namespace. Source: linux/sched.h.
CLONE_FLAGS = {
    Namespace.TIME: 0x00000080,
    Namespace.MOUNT: 0x00020000,
    Namespace.CGROUP: 0x02000000,
    Namespace.UTS: 0x04000000,
    Namespace.IPC: 0x08000000,
    Namespace.USER: 0x10000000,
    Namespace.PID: 0x20000000,
    Namespace.NET: 0x40000000,
}
_EVERY_ID = 2**32 - 1
_PROBE_S = 10.0


class NativeBackend:
    """See the module. Plans are compiled once per policy value."""

    name = "native"

    def __init__(self) -> None:
        self._plans: dict[int, tuple[Policy, Plan]] = {}
        self._lacks: dict[int, list[str]] = {}

    def plan(self, policy: Policy) -> Plan:
        """The plan of ``policy`` on this host; compiled at the first call."""
        known = self._plans.get(id(policy))
        if known is None:
            known = self._plans[id(policy)] = (policy, compile_plan(policy))
        return known[1]

    def lacks(self, policy: Policy) -> list[str]:
        if id(policy) not in self._lacks:
            self._lacks[id(policy)] = self._probe(policy)
        return self._lacks[id(policy)]

    def _probe(self, policy: Policy) -> list[str]:
        """Do it once, in a child that leaves at once: what a sysctl says and what the kernel does are two things."""
        if lacking := _not_enforced(policy):
            return lacking
        try:
            child = self.fork(policy)
            if child is None:
                os._exit(0)
            with child:
                exited = child.wait(_PROBE_S)
                child.kill()
                child.reap(block=True)
        except IsolateError as error:
            return [str(error).rstrip(".")]
        if exited is None or exited.status.code != 0:
            return [f"the probe's child {exited.status if exited else 'hung'}"]
        return []

    def fork(self, policy: Policy, joined: native.Joined | None = None) -> native.Child | None:
        return native.fork(self.plan(policy), joined)

    def spawn(
        self,
        policy: Policy,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        joined: native.Joined | None = None,
        stdin_fd: int = -1,
        stdout_fd: int = -1,
        stderr_fd: int = -1,
    ) -> native.Child:
        plan = self.plan(policy)
        if cwd is not None:
            plan = replace(plan, cwd=cwd)
        return native.spawn(plan, argv, env, stdin_fd=stdin_fd, stdout_fd=stdout_fd, stderr_fd=stderr_fd, joined=joined)


def _not_enforced(policy: Policy) -> list[str]:
    """What a policy can say and this backend does not do: said here, lest it be left out silently."""
    asked = {
        f"network {policy.network.mode}": policy.network.mode in ("private", "shared", "policy"),
        f"seccomp {policy.hardening.seccomp}": policy.hardening.seccomp != "none",
        "landlock": policy.hardening.landlock,
    }
    return [
        f"{what}: this version's native backend does not enforce it. Leave it out" for what, on in asked.items() if on
    ]


def compile_plan(policy: Policy) -> Plan:
    """Translate ``policy`` for this host and this user.

    A plain user gets a user namespace along with any other: only its owner may make them (user_namespaces(7)).

    Raises:
        PolicyError: the policy cannot work in this very process (a memory limit below what it holds).
    """
    if policy.limits.memory_fallback == "rlimit":
        check_room(policy.limits)
    namespaces = policy.namespaces
    if namespaces and not capabilities.has("CAP_SYS_ADMIN"):
        namespaces = namespaces | {Namespace.USER}
    flags = 0
    for namespace in namespaces:
        flags |= CLONE_FLAGS[namespace]
    uid_map, gid_map = _id_maps() if Namespace.USER in namespaces else ((), ())
    hardening = policy.hardening
    return Plan(
        namespaces=flags,
        uid_map=uid_map,
        gid_map=gid_map,
        hostname=policy.hostname or "",
        loopback_up=policy.network.mode == "loopback",
        mounts=mounts(policy).ops if Namespace.MOUNT in policy.namespaces else (),
        rlimits=compile_rlimits(policy.limits),
        capabilities=None if hardening.capabilities is None else capabilities.mask(hardening.capabilities),
        no_new_privs=hardening.no_new_privs,
        new_session=policy.session,
        close_fds=hardening.close_fds,
    )


def _id_maps() -> tuple[tuple[IdMap, ...], tuple[IdMap, ...]]:
    """Root keeps every id; a plain user may map only its own, and keeps its number."""
    if capabilities.has("CAP_SETUID") and capabilities.has("CAP_SETGID"):
        every = (IdMap(inside=0, outside=0, count=_EVERY_ID),)
        return every, every
    uid, gid = os.geteuid(), os.getegid()
    return (IdMap(inside=uid, outside=uid, count=1),), (IdMap(inside=gid, outside=gid, count=1),)


def mounts(policy: Policy) -> filesystem.MountPlan:
    """The mount table of the policy's file-system view, on the mounts this host has now."""
    context = filesystem.Context.of_this_host(
        user_namespace=Namespace.USER in policy.namespaces or not capabilities.has("CAP_SYS_ADMIN"),
        pid_namespace=Namespace.PID in policy.namespaces,
    )
    return filesystem.compile(policy.filesystem, context=context)
