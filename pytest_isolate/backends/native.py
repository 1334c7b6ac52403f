"""The backend `native`: the C library, every namespace, one clone per sandbox.

Owns: the translation of a policy into a plan, and the probe that tries it in a throw-away child.
Refuses: to weaken anything: what the kernel does not give is reported by ``lacks``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_isolate.backend import Kind
from pytest_isolate.backends.forked import end_of, give_up
from pytest_isolate.errors import BackendUnavailable, IsolateError, PolicyError
from pytest_isolate.hardening import scrubbed
from pytest_isolate.kernel import capabilities, filesystem, landlock, native, netns_pool, seccomp
from pytest_isolate.kernel.filesystem import Layers, MountPlan
from pytest_isolate.kernel.filesystem.changes import leave_held_in_child
from pytest_isolate.kernel.filesystem.mountwatch import MOUNTS
from pytest_isolate.kernel.plan import CLONE_FLAGS, IdMap, LandlockRuleset, Plan
from pytest_isolate.kernel.rlimits import check_room, compile_rlimits
from pytest_isolate.policy import Hardening, Namespace, Policy
from pytest_isolate.remembered import Remembered

_EVERY_ID = 2**32 - 1
_NET_AND_USER = CLONE_FLAGS[Namespace.NET] | CLONE_FLAGS[Namespace.USER]


class NativeBackend:
    """See the module. Plans are compiled once for a policy and a user: who gave up root needs a user namespace."""

    name = "native"
    quality = 100
    runs: frozenset[Kind] = frozenset({"programs", "tests", "fresh"})

    def __init__(self) -> None:
        self._compiled: Remembered[Compiled] = Remembered()
        self._viewed: tuple[int, Remembered[Compiled]] = (
            0,
            Remembered(),
        )  # version of the mount table, what was compiled on it
        self._placed: Remembered[Plan] = Remembered()
        self._lacks: Remembered[list[str]] = Remembered()

    def compiled(self, policy: Policy) -> Compiled:
        """The plan of ``policy`` on this host, and its mount table; compiled at the first call, and when the host's mounts change."""
        known = self._known_view() if policy.filesystem.needs_mounts else self._compiled
        return known.of(policy, lambda: compile_plan(policy), os.geteuid())

    def _known_view(self) -> Remembered[Compiled]:
        version = MOUNTS.version()
        if self._viewed[0] != version:
            self._viewed = version, Remembered()
        return self._viewed[1]

    def view(self, policy: Policy) -> MountPlan | None:
        """The mounts inside; None where no path means anything but what it means on the host."""
        return self.compiled(policy).mounts if policy.filesystem.needs_mounts else None

    def _plan(self, policy: Policy, cwd: str | None) -> tuple[Plan, Layers | None]:
        """The plan for one launch, with its working directory, and the way out for overlay layers."""
        compiled = self.compiled(policy)
        if cwd is None and compiled.mounts is not None and policy.filesystem.needs_mounts:
            cwd = _visible(compiled.mounts)
        plan = compiled.plan
        if cwd is not None:
            plan = self._placed.of(plan, lambda: replace(compiled.plan, cwd=cwd), cwd)
        if compiled.mounts is None or not compiled.mounts.per_launch:
            return plan, None
        layers = Layers(compiled.mounts).__enter__()
        return replace(plan, mounts=layers.ops), layers

    def lacks(self, policy: Policy) -> list[str]:
        version = MOUNTS.version() if policy.filesystem.needs_mounts else 0
        return self._lacks.of(policy, lambda: self._probe(policy), (os.geteuid(), version))

    def _probe(self, policy: Policy) -> list[str]:
        """Do it once, in a child that leaves at once: what a sysctl says and what the kernel does are two things.

        Raises:
            PolicyError: a view that has no meaning here. That is nobody's lack, and no other backend is to guess what was meant.
        """
        if lacking := _not_enforced(policy):
            return lacking
        try:
            self.compiled(policy)
        except BackendUnavailable as error:
            return [str(error).rstrip(".")]
        try:
            exited = end_of(self, policy)
        except PolicyError:
            raise
        except IsolateError as error:
            return [str(error).rstrip(".")]
        if exited is None or exited.status.code != 0:
            return [f"the probe's child {exited.status if exited else 'hung'}"]
        return []

    def fork(self, policy: Policy, joined: native.Joined | None = None) -> native.Child | None:
        plan, layers = self._plan(policy, None)
        inside = False

        def start() -> native.Child | None:
            nonlocal inside
            child = native.fork(plan, joined)
            inside = child is None
            return child

        try:
            with _Network(plan, joined) as joined:
                child = _kept(start, layers)
            if inside:
                leave_held_in_child()
            if inside and layers is not None:
                layers.leave_in_child()
            if inside and policy.hardening.environment == "scrub":
                _scrub_own_environment()
        except BaseException as error:
            if inside:
                give_up(error)
            raise
        return child

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
        if env is None and policy.hardening.environment == "scrub":
            env = scrubbed(os.environ)
        plan, layers = self._plan(policy, cwd)
        with _Network(plan, joined) as joined:
            child = _kept(
                lambda: native.spawn(
                    plan, argv, env, stdin_fd=stdin_fd, stdout_fd=stdout_fd, stderr_fd=stderr_fd, joined=joined
                ),
                layers,
            )
        assert child is not None
        return child


class _Network:
    """For one launch: what it joins, with a network namespace made ahead where its plan would make one and one is ready.

    Not where there is a user namespace: that must own it.
    """

    __slots__ = ("_fd", "_joined", "_plan")

    def __init__(self, plan: Plan, joined: native.Joined | None) -> None:
        self._plan, self._joined, self._fd = plan, joined, -1

    def __enter__(self) -> native.Joined | None:
        if self._plan.namespaces & _NET_AND_USER != CLONE_FLAGS[Namespace.NET]:
            return self._joined
        self._fd = netns_pool.POOL.take(loopback=self._plan.loopback_up)
        if self._fd < 0:
            return self._joined
        return replace(self._joined or native.Joined(), netns_fd=self._fd)

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:  # the child is in it, or there is none; a forked child has a copy, or with close_fds has not
            with contextlib.suppress(OSError):
                os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan and the mount table it was made from; None without a mount namespace."""

    plan: Plan
    mounts: MountPlan | None


def _visible(mounts: MountPlan) -> str:
    """The directory to enter anew, for the one we are in lies beneath what is mounted on it; ``/`` where no name leads to it."""
    try:
        cwd = os.getcwd()
    except FileNotFoundError:  # it was deleted
        return "/"
    return cwd if filesystem.exists(cwd, mounts) else "/"


def _kept(launch: Callable[[], native.Child | None], layers: Layers | None) -> native.Child | None:
    """Launch; the child takes the layers over, a failure closes them."""
    try:
        child = launch()
    except BaseException:
        if layers is not None:
            layers.close()
        raise
    if child is not None and layers is not None:
        layers.receive()
        child.layers = layers
    return child


def _not_enforced(policy: Policy) -> list[str]:
    """What a policy can say and nobody does: said here, lest it be left out silently.

    Rules and private networks are guards' (networks.py), entered before this backend starts anything.
    """
    hardening = policy.hardening
    lacking = [] if hardening.landlock is None else list(landlock.lacks(hardening.landlock))
    if policy.limits.memory_fallback == "rlimit":
        try:
            check_room(policy.limits)
        except PolicyError as error:
            lacking.append(str(error).rstrip("."))
    try:
        seccomp.compile_profile(hardening.seccomp)
    except BackendUnavailable as error:
        lacking.append(str(error))
    if policy.network.wired and Namespace.USER in _needed(policy):
        mode = policy.network.mode
        lacking.append(f"network {mode}: a user namespace cannot join what the host wired. Run as root without user")
    return lacking


def _needed(policy: Policy) -> frozenset[Namespace]:
    """The policy's namespaces, and a user namespace where only its owner may make them (user_namespaces(7))."""
    namespaces = policy.namespaces
    if namespaces and not capabilities.has("CAP_SYS_ADMIN"):
        namespaces = namespaces | {Namespace.USER}
    return namespaces


def compile_plan(policy: Policy) -> Compiled:
    """Translate ``policy`` for this host and this user.

    A plain user gets a user namespace along with any other: only its owner may make them (user_namespaces(7)).

    Raises:
        PolicyError: a view that has no meaning here. BackendUnavailable: one that the kernel does not allow this user.
    """
    namespaces = _needed(policy)
    made = namespaces - {Namespace.NET} if policy.network.wired else namespaces
    flags = 0
    for namespace in made:
        flags |= CLONE_FLAGS[namespace]
    uid_map, gid_map = _id_maps() if Namespace.USER in namespaces else ((), ())
    hardening = policy.hardening
    table = mounts(policy) if Namespace.MOUNT in policy.namespaces else None
    plan = Plan(
        namespaces=flags,
        uid_map=uid_map,
        gid_map=gid_map,
        hostname=policy.hostname or "",
        loopback_up=policy.network.mode == "loopback",
        mounts=table.ops if table is not None else (),
        rlimits=compile_rlimits(policy.limits),
        capabilities=None if hardening.capabilities is None else capabilities.mask(hardening.capabilities),
        securebits=capabilities.LOCKED_SECUREBITS if hardening.securebits else 0,
        no_new_privs=_gives_up_privileges(hardening),
        landlock=_ruleset(hardening),
        seccomp=seccomp.compile_profile(hardening.seccomp),
        umask=-1 if hardening.umask is None else hardening.umask,
        new_session=policy.session,
        close_fds=hardening.close_fds,
        monitor=policy.session and Namespace.PID not in policy.namespaces,
    )
    return Compiled(plan, table)


def _ruleset(hardening: Hardening) -> LandlockRuleset | None:
    """None also where the rules govern nothing, as those of ``landlock_write=/``: the kernel refuses such a ruleset (ENOMSG)."""
    if hardening.landlock is None:
        return None
    ruleset = landlock.compile_ruleset(hardening.landlock)
    return ruleset if ruleset.fs or ruleset.net or ruleset.scoped else None


def _scrub_own_environment() -> None:
    kept = scrubbed(os.environ)
    for name in [name for name in os.environ if name not in kept]:
        del os.environ[name]


def _gives_up_privileges(hardening: Hardening) -> bool:
    """The kernel asks it of whoever installs a filter or a ruleset without CAP_SYS_ADMIN: a setuid program would run under it."""
    return hardening.no_new_privs or hardening.seccomp != "none" or hardening.landlock is not None


def _id_maps() -> tuple[tuple[IdMap, ...], tuple[IdMap, ...]]:
    """Root keeps every id; a plain user may map only its own, and keeps its number."""
    if capabilities.has("CAP_SETUID") and capabilities.has("CAP_SETGID"):
        every = (IdMap(inside=0, outside=0, count=_EVERY_ID),)
        return every, every
    uid, gid = os.geteuid(), os.getegid()
    return (IdMap(inside=uid, outside=uid, count=1),), (IdMap(inside=gid, outside=gid, count=1),)


def mounts(policy: Policy) -> MountPlan:
    """The mount table of the policy's file-system view, on the mounts this host has now."""
    context = filesystem.Context.of_this_host(
        user_namespace=Namespace.USER in policy.namespaces or not capabilities.has("CAP_SYS_ADMIN"),
        pid_namespace=Namespace.PID in policy.namespaces,
    )
    return filesystem.compile(policy.filesystem, context=context)
