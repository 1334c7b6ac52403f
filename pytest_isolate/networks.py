"""The networks of this process's sandboxes: a policy on each one's cgroup, and a private network where one is asked for.

Owns: the one PolicyEngine of a run, opened at the first need, and the way of a network into force (sandbox_network.py).
Refuses: to let a rule go unenforced: where eBPF or cgroup v2 is not to be had, ``settle`` answers a policy whose other
parts hold the rules as they are (network/tiers.py), or raises. What nobody counts is "not available".
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pytest_isolate import groups, private
from pytest_isolate.errors import BackendUnavailable, IsolateError, SetupError
from pytest_isolate.kernel import forks, netns_pool
from pytest_isolate.policy import Network, Policy
from pytest_isolate.private import PrivateNetwork
from pytest_isolate.profile import truth
from pytest_isolate.sandbox_network import SandboxNetwork

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import Cgroup
    from pytest_isolate.network import NetworkPolicy, PolicyEngine
    from pytest_isolate.network.places import Wires
    from pytest_isolate.network.tiers import Tier

#: Conversations that all sandboxes with rules can hold at once; more are counted, and not named.
FLOWS = 4096
FRONT_ENDS = ("libbpf", "bcc")
#: Set to yes, the programs are compiled by bcc with DEBUG_MODE: what they decide stands in the kernel's trace_pipe.
DEBUG = "PYTEST_ISOLATE_BPF_DEBUG"


class Networks:
    """See the module. ``front_end`` as ``--isolate-bpf``."""

    def __init__(self, of: groups.Groups, *, front_end: str = "libbpf") -> None:
        self._groups = of
        self.front_end = front_end
        self._engine: PolicyEngine | None = None
        self._settled: set[Network] = set()
        self._made: weakref.WeakSet[SandboxNetwork] = weakref.WeakSet()
        self._let_go: Callable[[], None] | None = None
        self._opening = forks.own_lock(self, "_opening")
        _all.add(self)

    def make_ready(self) -> None:
        """For idle moments of a run: make a network namespace that a start will ask for; kept until ``close``."""
        if self._let_go is None:
            self._let_go = netns_pool.POOL.hold()
        netns_pool.POOL.fill()

    def engine(self) -> PolicyEngine:
        """The run's engine; loaded at the first call.

        Raises:
            BackendUnavailable: no cgroup v2 of ours, no eBPF for this user, or not this front end; each with a remedy.
            SetupError: the kernel refused the programs.
        """
        with self._opening:
            if self._engine is None:
                self._engine = self._open()
                atexit.register(self.close)
            return self._engine

    def _open(self) -> PolicyEngine:
        home = self._groups.v2_directory()
        if home is None:
            why = "there is no cgroup v2 hierarchy that we may use"
            raise BackendUnavailable("network policy", why, "run `pytest-isolate doctor` for what would make one")
        from pytest_isolate.network import PolicyEngine

        return PolicyEngine(home, loader=_loader(self.front_end), flows=FLOWS).__enter__()

    def fileno(self) -> int:
        """Readable when something was refused or logged: whoever listens to tests calls ``drain``; -1 where nothing is."""
        return -1 if self._engine is None else self._engine.fileno()

    def drain(self) -> None:
        """Take what is told from the kernel, so that one test's flood leaves room for what others have to tell."""
        if self._engine is not None:
            self._engine.drain()

    @property
    def in_use(self) -> str:
        """The front end of the engine in words; empty as long as no test has asked for one."""
        if self._engine is None:
            return ""
        return self._engine.front_end + (f" ({DEBUG})" if _debugs() else "")

    def settle(self, policy: Policy, fits: Callable[[Policy], object], *, less: bool = False) -> Tier | None:
        """None where eBPF holds the network of ``policy``; else what holds its rules, with the policy that does so.

        ``fits(policy)`` raises BackendUnavailable where no backend enforces the rest. ``less``: the tier may also be
        stricter than the rules, or hold less of them; it says what.

        Raises:
            BackendUnavailable, SetupError: this host cannot. PolicyError: a rule that has no meaning.
        """
        try:
            self._try(policy)
        except BackendUnavailable as error:
            return _by_other_means(policy, fits, error, less=less)
        return None

    def _try(self, policy: Policy) -> None:
        """The whole sequence once, in a throw-away group: what the kernel refuses shows now."""
        network = policy.network
        if network in self._settled or not (network.counted or network.wired):
            return
        if network.ruled:
            policy_of(network)
        cgroup = self._groups.bare("probe") if network.counted else None
        with cgroup or contextlib.nullcontext():
            made = self.enter(policy, cgroup)
            if made is not None:
                made.close()
        self._settled.add(network)

    def enter(
        self, policy: Policy, cgroup: Cgroup | None, shared: PrivateNetwork | None = None
    ) -> SandboxNetwork | None:
        """Put the policy on the sandbox's group and make its network; None when neither is asked for.

        ``shared``: a network that is there already, for a policy that asks for a private one.

        Raises:
            BackendUnavailable, SetupError, PolicyError: it could not be; nothing is left.
        """
        network = policy.network
        if not (network.counted or network.wired or network.tier):
            return None
        made = SandboxNetwork(network)
        self._made.add(made)
        if network.tier:
            made.reason = f"the network is held by {network.tier}"
        try:
            if network.mode != "private":
                shared = None
            if shared is not None:
                made.netns_fd, made.subnet = shared.netns_fd, shared.subnet
            elif network.wired:
                _wire(made)
            if network.counted:
                self._attach(made, cgroup, shared)
        except BaseException:
            made.close()
            raise
        return made

    def _attach(self, made: SandboxNetwork, cgroup: Cgroup | None, shared: PrivateNetwork | None) -> None:
        optional = made.network.mode == "private" and not made.network.ruled
        try:
            engine = self.engine()
            if cgroup is None or cgroup.dir_fd < 0:
                raise BackendUnavailable("network policy", "the sandbox has no cgroup v2", "use --isolate-cgroup=auto")
            policy = policy_of(made.network)
            with _wires(made, shared, engine, policy) as wires:
                made.attached = engine.attach(cgroup.dir_fd, policy, netns_fd=made.netns_fd, wires=wires)
            made._cgroup_fd = cgroup.dir_fd
        except IsolateError as error:
            if not optional:
                raise
            made.reason = str(error)
            return
        except OSError as error:
            raise SetupError("network policy", error.errno or 0, detail=str(error)) from error
        made.undo.callback(made.attached.close)

    def leave_in_child(self) -> None:
        """In a forked child: give every descriptor up, detach nothing; sandboxes that start here get an engine of their own."""
        engine, self._engine = self._engine, None
        if engine is not None:
            atexit.unregister(self.close)
            engine.close_in_child()
        for made in tuple(self._made):
            made.leave_in_child()

    def close(self) -> None:
        """Detach what is attached and unload. Before the groups are closed. Idempotent."""
        engine, self._engine = self._engine, None
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go()
        if engine is not None:
            atexit.unregister(self.close)
            engine.__exit__(None, None, None)


def _by_other_means(policy: Policy, fits: Callable[[Policy], object], error: BackendUnavailable, *, less: bool) -> Tier:
    """The first tier that works here, or ``error`` with what a weaker one would do."""
    from pytest_isolate.network.tiers import tiers

    weaker = ""
    for tier in tiers(policy):
        if not (tier.whole or less):
            weaker = weaker or str(tier)
        else:
            with contextlib.suppress(BackendUnavailable):
                fits(tier.policy)
                return tier
    if not weaker:
        raise error
    raise BackendUnavailable(
        error.what, error.why, f"{error.remedy}; or take with --isolate-missing=warn: {weaker}"
    ) from error


def _wire(made: SandboxNetwork) -> None:
    """A namespace of its own, ``lo`` up; for ``private`` a veth to the host on a subnet nobody else has."""
    if made.network.mode == "private":
        made.netns_fd, made.subnet, made.ifindex = private.wired(made.undo)
    else:
        made.netns_fd = private.namespace(made.undo)


@contextlib.contextmanager
def _wires(
    made: SandboxNetwork, shared: PrivateNetwork | None, engine: PolicyEngine, policy: NetworkPolicy
) -> Iterator[Wires | None]:
    """Where the frames of a network with rules are judged; None where no frame leaves but by a socket of the cgroup."""
    if not made.network.ruled:
        yield None
    elif shared is not None:
        with shared.judged(engine, policy) as wires:
            yield wires
    else:
        yield engine.wires([(-1, made.ifindex)]) if made.ifindex else None


def _debugs() -> bool:
    return truth(os.environ.get(DEBUG, "no"), what=DEBUG)


def _loader(front_end: str) -> Any:
    if front_end == "bcc" or _debugs():
        from pytest_isolate.kernel import bcc

        return functools.partial(bcc.load, debug=_debugs())
    from pytest_isolate.kernel.bpf import load

    return load


def policy_of(network: Network) -> NetworkPolicy:
    """The policy in the engine's words. Raises PolicyError."""
    from pytest_isolate.network.written import policy_of as parsed

    return parsed(network)


#: Of this process, and of the one it was forked from.
_all: weakref.WeakSet[Networks] = weakref.WeakSet()
_process: Networks | None = None
_owner: object = None


def of_this_process() -> Networks:
    """The Networks that sandboxes use when nothing else is said; a forked child gets one of its own."""
    global _process, _owner
    if _process is None or _owner is not forks.here:
        _process, _owner = Networks(groups.of_this_process()), forks.here
    return _process


def close_those_of_this_process() -> None:
    """Close the Networks that sandboxes of this process used, if there were any, and then their groups."""
    if _process is not None and _owner is forks.here:
        _process.close()
    groups.close_those_of_this_process()


def leave_in_child() -> None:
    """In a forked child, before anything else runs there: no Networks of the parent's is a way to the parent's policies."""
    for each in tuple(_all):
        each.leave_in_child()
