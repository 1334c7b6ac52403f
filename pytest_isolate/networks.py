"""The networks of this process's sandboxes: a policy on each one's cgroup, and a private network where one is asked for.

Owns: the one PolicyEngine of a run, opened at the first need; and the guard of one sandbox, SandboxNetwork.
Refuses: to let a rule go unenforced: where eBPF or cgroup v2 is not to be had, ``settle`` answers a policy whose other
parts hold the rules as they are (network/tiers.py), or raises. What nobody counts is "not available".
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_isolate import groups, private
from pytest_isolate.errors import BackendUnavailable, IsolateError, SetupError
from pytest_isolate.kernel import netns_pool
from pytest_isolate.outcome import Traffic
from pytest_isolate.policy import Network, Policy
from pytest_isolate.private import PrivateNetwork
from pytest_isolate.profile import truth

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import Cgroup
    from pytest_isolate.kernel.interfaces import Subnet
    from pytest_isolate.network import AttachedPolicy, Event, FlowRecord, NetworkPolicy, PolicyEngine, Stats
    from pytest_isolate.network.places import Wires
    from pytest_isolate.network.programs import UserProgram
    from pytest_isolate.network.tiers import Tier

#: Conversations that all sandboxes with rules can hold at once; more are counted, and not named.
FLOWS = 4096
FRONT_ENDS = ("libbpf", "bcc")
#: Set to yes, the programs are compiled by bcc with DEBUG_MODE: what they decide stands in the kernel's trace_pipe.
DEBUG = "PYTEST_ISOLATE_BPF_DEBUG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Where the counts stood: what came before belongs to another test of the same sandbox."""

    stats: Stats | None = None
    events: int = 0
    redirects: int = 0
    flows: dict[tuple[object, ...], FlowRecord] = field(default_factory=dict)


class SandboxNetwork:
    """One sandbox's network, in force until ``close``. ``reason`` says why nothing is counted; empty when it is.

    ``netns_fd``: the namespace its processes must join, -1 for none; ``subnet`` its addresses on a private network.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.attached: AttachedPolicy | None = None
        self.reason = ""
        self.programs: list[UserProgram] = []
        self._cgroup_fd = -1
        self.netns_fd = -1
        self.subnet: Subnet | None = None
        self.ifindex = 0
        self.undo = contextlib.ExitStack()

    def leave_in_child(self) -> None:
        """In a forked child: it is the parent's, which counts and detaches."""
        for program in self.programs:
            program.close_in_child()
        self.programs.clear()
        self.undo.pop_all()
        if self.attached is not None:
            self.attached, self.reason = None, "it is counted in the process that started it"

    def close(self) -> None:
        """Detach; the counts stay readable. Idempotent."""
        self.drop_programs()
        self.undo.close()
        self.netns_fd = -1

    def attach_program(self, text: str, hook: str, function: str = "") -> int:
        """Compile a user's own program with bcc and attach it beside the policy; its place in ``programs``.

        Raises:
            PolicyError: it does not compile, or there is no such hook. SetupError: the verifier refuses it.
            BackendUnavailable: no bcc here, or nothing to attach to.
        """
        if self._cgroup_fd < 0:
            raise BackendUnavailable("eBPF program", "the sandbox has no cgroup v2", "use --isolate-cgroup=auto")
        from pytest_isolate.network.programs import UserProgram

        self.programs.append(UserProgram(self._cgroup_fd, text, hook, function))
        return len(self.programs) - 1

    def drop_programs(self) -> None:
        """Detach the users' programs; the policy stays."""
        while self.programs:
            self.programs.pop().close()

    def mark(self) -> Mark:
        """Here and now, for ``traffic(since)``."""
        if self.attached is None:
            return Mark()
        events = len(self.attached.events())  # first: those there is no room for are counted when they come
        mark = Mark(
            stats=self.attached.stats,
            events=events,
            redirects=len(self.attached.redirects),
            flows=self._flows(),
        )
        self.attached.make_room()
        return mark

    def traffic(self, since: Mark | None = None) -> Traffic | None:
        """What passed and what was refused since then, or since the beginning; None where nothing counts."""
        if self.attached is None:
            return None
        begin = since or Mark()
        events, stats = self.told(begin)
        return Traffic(
            packets_out=stats.packets_out,
            l3_bytes_out=stats.l3_bytes_out,
            packets_in=stats.packets_in,
            l3_bytes_in=stats.l3_bytes_in,
            connections_out=stats.connections_out,
            connections_in=stats.connections_in,
            denied=stats.denied,
            events_lost=stats.events_lost,
            flows_lost=stats.flows_lost,
            contacted=self._contacted(begin),
            logged=_merged(event for event in events if event.verdict.name == "LOG"),
            refused=_merged(event for event in events if event.verdict.name == "DENY"),
        )

    def told(self, since: Mark | None = None) -> tuple[list[Event], Stats]:
        """Events and counts since then, where something counts (``attached``)."""
        assert self.attached is not None
        begin = since or Mark()
        return self.attached.told(begin.events, begin.stats)

    def _contacted(self, since: Mark) -> tuple[str, ...]:
        assert self.attached is not None
        opened = (flow for flow in self.flows(since) if flow.packets_out and not flow.opened_by_peer)
        names = {self.attached.asked_for(flow, since.redirects) for flow in opened}
        return tuple(sorted(names - {""}))

    def flows(self, since: Mark | None = None) -> list[FlowRecord]:
        """Conversations in which something passed since then; [] where no rules hold."""
        before = since.flows if since is not None else {}
        found = [flow.since(before.get(key)) for key, flow in self._flows().items()]
        return [flow for flow in found if flow.packets_out or flow.packets_in]

    def _flows(self) -> dict[tuple[object, ...], FlowRecord]:
        if self.attached is None or not self.network.ruled:
            return {}
        return {flow.conversation: flow for flow in self.attached.flows()}


def _merged(events: Iterable[Event]) -> tuple[str, ...]:
    """One line for what was tried again and again."""
    counts = Counter(map(str, events))
    return tuple(line if count == 1 else f"{line} ({count} times)" for line, count in counts.items())


class Networks:
    """See the module. ``front_end`` as ``--isolate-bpf``."""

    def __init__(self, of: groups.Groups, *, front_end: str = "libbpf") -> None:
        self._groups = of
        self.front_end = front_end
        self._engine: PolicyEngine | None = None
        self._settled: set[Network] = set()
        self._made: weakref.WeakSet[SandboxNetwork] = weakref.WeakSet()
        self._let_go: Callable[[], None] | None = None
        self._opening = threading.Lock()
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
        self._opening = threading.Lock()
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
_owner = 0


def of_this_process() -> Networks:
    """The Networks that sandboxes use when nothing else is said; a forked child gets one of its own."""
    global _process, _owner
    if _process is None or _owner != os.getpid():
        _process, _owner = Networks(groups.of_this_process()), os.getpid()
    return _process


def close_those_of_this_process() -> None:
    """Close the Networks that sandboxes of this process used, if there were any, and then their groups."""
    if _process is not None and _owner == os.getpid():
        _process.close()
    groups.close_those_of_this_process()


def leave_in_child() -> None:
    """In a forked child, before anything else runs there: no Networks of the parent's is a way to the parent's policies."""
    for each in tuple(_all):
        each.leave_in_child()
