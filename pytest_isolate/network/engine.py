"""The policy engine: one per run. Loads the data plane once, attaches a policy to each test's cgroup.

Owns: the data plane, the ring, the resident attachment, the numbers of attachments.
Refuses: to make or remove the tests' cgroups (the caller's), to wire interfaces (kernel/interfaces.py), pytest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from pytest_isolate.errors import BackendUnavailable, PolicyError
from pytest_isolate.kernel.bpf import Dataplane, Links, Ring, layout, load
from pytest_isolate.kernel.bpf.layout import BUDGETS, MAGIC, RING_BYTES, Flag, Verdict
from pytest_isolate.network.compile import Compiled
from pytest_isolate.network.resolver import Resolver
from pytest_isolate.network.rules import COUNT_ONLY, HostRule, NetworkPolicy, Rule
from pytest_isolate.network.rulesets import Ruleset, Rulesets
from pytest_isolate.network.traffic import Event, FlowRecord, Stats

#: Loads programs and answers a Dataplane: `kernel.bpf.load`, or `kernel.bcc.load`.
Loader = Callable[..., Dataplane]

_COUNTING = ("np_sockops", "np_egress", "np_ingress")
_COUNTING_FLOWS = ("np_sockops", "np_flow_egress", "np_flow_ingress")
_CALLS = ("np_connect4", "np_connect6", "np_sendmsg4", "np_sendmsg6", "np_sock_create")
_BINDS = ("np_bind4", "np_bind6")
_RESTORE = ("np_recvmsg4", "np_recvmsg6", "np_getpeername4", "np_getpeername6")
_RESIDENT = "pytest-isolate-resident"


class PolicyEngine:
    """Enter once per run; then ``attach`` per test.

    Args:
        home: a directory of the cgroup2 hierarchy the engine may make one empty cgroup in. A program of each type
            stays attached there, because the first attachment in the system patches kernel text (41 us, then 5).
        loader: the front end, libbpf by default.
        flows: size of the flow table; 0 for none (a policy with ``flows=True`` is then an error).
    """

    def __init__(self, home: str | os.PathLike[str], *, loader: Loader = load, flows: int = 0) -> None:
        self._home = Path(home)
        self._loader = loader
        self._flows = flows
        self._stack = contextlib.ExitStack()
        self._lock = threading.RLock()  # resolvers learn in threads of their own
        self._attached: dict[int, AttachedPolicy] = {}
        self._ids = itertools.count(1)
        self._budgets = list(range(BUDGETS - 1, 0, -1))
        self.plane: Dataplane
        self.rulesets: Rulesets

    def __enter__(self) -> PolicyEngine:
        with contextlib.ExitStack() as stack:
            self.plane = stack.enter_context(self._load())
            self._ring = Ring(self.plane.maps["np_events"].fd, RING_BYTES)
            stack.callback(self._ring.close)
            self.rulesets = Rulesets(self.plane)
            stack.enter_context(self._resident())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for attached in tuple(self._attached.values()):
            attached.close()
        self._stack.close()

    def _load(self) -> Dataplane:
        if not self._flows:
            return self._loader(layout.PROGRAMS)
        sizes = {"np_flows4": self._flows, "np_flows6": self._flows}
        return self._loader({**layout.PROGRAMS, **layout.FLOW_PROGRAMS}, sizes=sizes)

    @contextlib.contextmanager
    def _resident(self) -> Iterator[None]:
        path = self._home / f"{_RESIDENT}-{os.getpid()}"
        path.mkdir(exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with Links(self.plane, fd) as links:
                links.attach(_COUNTING + _CALLS + _BINDS + _RESTORE)
                self._links = links
                yield
        finally:
            os.close(fd)
            path.rmdir()

    # -- for the runner --------------------------------------------------------------------------------------------

    @property
    def front_end(self) -> str:
        """``libbpf`` or ``bcc``: for the header line."""
        return self.plane.front_end

    def attach(self, cgroup_fd: int, policy: NetworkPolicy = COUNT_ONLY, *, netns_fd: int = -1) -> AttachedPolicy:
        """Put ``policy`` on the cgroup2 directory ``cgroup_fd`` (borrowed until close).

        ``netns_fd``: the network namespace of the test, where a resolver for host names must listen (-1: ours).

        Raises:
            PolicyError: it does not fit the maps, or asks for flows this engine has no table for.
            OSError: the kernel refused the attachment.
        """
        if policy.flows and not self._flows:
            raise PolicyError("flows", "this engine was made without a flow table", "make it with PolicyEngine(..., flows=4096)")
        if policy.errno != 1 and not self.plane.can_set_errno:
            raise BackendUnavailable("network policy errno", "this kernel can only answer EPERM", "leave errno at EPERM, or use Linux 5.18")
        attached = AttachedPolicy(self, cgroup_fd, next(self._ids), netns_fd)
        self._attached[attached.id] = attached
        try:
            attached._start(policy)
        except BaseException:
            attached.close()
            raise
        return attached

    def fileno(self) -> int:
        """Readable when there are events: for the run's poll loop, which then calls ``drain``."""
        return self._ring.fd

    def drain(self) -> None:
        """Take what is in the ring to the attachments it belongs to. Cheap when there is nothing."""
        for record in self._ring.drain():
            raw = layout.Event.from_buffer_copy(record)
            attached = self._attached.get(raw.id)
            if attached is not None:
                attached._take(raw)

    def memory_bytes(self) -> int:
        """True memory of the maps (memlock)."""
        return self.plane.memory_bytes()

    def fds(self) -> list[int]:
        """Every descriptor of ours: a child that keeps one could change its own policy."""
        fds = self.plane.fds() + self._links.fds()
        for attached in self._attached.values():
            fds += attached._links.fds() + attached._resolver_fds()
        return fds

    def close_in_child(self) -> None:
        """Call in a forked child before anything untrusted: gives up every descriptor without detaching anything."""
        for fd in self.fds():
            with contextlib.suppress(OSError):
                os.close(fd)

    def _take_budget(self) -> int:
        if not self._budgets:
            raise PolicyError("network limits", f"more than {BUDGETS - 1} sandboxes with limits at once", "run fewer at once")
        return self._budgets.pop()


class AttachedPolicy:
    """A policy in force on one cgroup. A context manager; leaving it detaches."""

    def __init__(self, engine: PolicyEngine, cgroup_fd: int, number: int, netns_fd: int) -> None:
        self.id = number
        self.policy = COUNT_ONLY
        self._engine = engine
        self._key = struct.pack("=Q", os.fstat(cgroup_fd).st_ino)
        self._netns_fd = netns_fd
        self._links = Links(engine.plane, cgroup_fd)
        self._ruleset: Ruleset | None = None
        self._history: dict[int, NetworkPolicy] = {}
        self._events: list[Event] = []
        self._learned: tuple[Rule, ...] = ()
        self._resolver: Resolver | None = None
        self._budget = 0
        self._live = Flag(0)
        self._base = Stats()
        self._last: Stats | None = None

    def __enter__(self) -> AttachedPolicy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- for tests and their reports -------------------------------------------------------------------------------

    def update(self, policy: NetworkPolicy) -> None:
        """Put another policy in force at once: one store in the kernel, for new and for open sockets.

        Open connections the new policy denies get no further packet through in either direction.
        """
        if policy.flows and not self.policy.flows:
            raise PolicyError("flows", "they cannot be switched on under a running test", "ask for flows from the start")
        if not _only_adds(self.policy, policy):
            self._live = Flag.PER_PACKET
        self._apply(policy)

    @property
    def stats(self) -> Stats:
        """Counts since the attachment."""
        return self._last if self._last is not None else self._read() - self._base

    def events(self) -> list[Event]:
        """Every denied and logged flow so far, oldest first."""
        if self._last is None:
            self._engine.drain()
        return list(self._events)

    @property
    def denied(self) -> list[Event]:
        """Denied flows so far; ``[]`` when nothing was refused."""
        return [e for e in self.events() if e.verdict is Verdict.DENY]

    def flows(self) -> list[FlowRecord]:
        """Conversations, with a policy that has ``flows=True``."""
        found: list[FlowRecord] = []
        for name, kind in (("np_flows4", layout.Flow4), ("np_flows6", layout.Flow6)):
            found += [FlowRecord.of(k, v) for k, v in self._flow_entries(name, kind)]
        return found

    # -- life ------------------------------------------------------------------------------------------------------

    def _start(self, policy: NetworkPolicy) -> None:
        self._links.attach(("np_sockops",))  # makes the storage, refuses nothing
        self._base = self._read()
        self._apply(policy)

    def _apply(self, policy: NetworkPolicy) -> None:
        with self._engine._lock:
            self._replace(policy)

    def _replace(self, policy: NetworkPolicy) -> None:
        effective = self._effective(policy)
        ruleset = self._engine.rulesets.acquire(effective)
        try:
            if _limits(policy) and not self._budget:
                self._budget = self._engine._take_budget()
                self._engine.plane.maps["np_budgets"].update(struct.pack("=I", self._budget), layout.Budget())
            self._history[ruleset.number] = effective
            self._engine.plane.maps["np_policies"].update(self._key, self._value(policy, ruleset))
            self._links.attach(_hooks(ruleset.compiled, self._live))
        except BaseException:
            self._engine.rulesets.release(ruleset)
            raise
        old, self._ruleset, self.policy = self._ruleset, ruleset, policy
        if old is not None:
            self._engine.rulesets.release(old)

    def _effective(self, policy: NetworkPolicy) -> NetworkPolicy:
        if not policy.hosts:
            return policy
        if self._resolver is None:
            self._resolver = Resolver(self._netns_fd, self._resolved)
        self._resolver.hosts = policy.hosts
        extra = (*self._resolver.rules(policy), *self._learned)
        return dataclasses.replace(policy, rules=(*policy.rules, *extra))

    def _resolved(self, rules: tuple[Rule, ...]) -> None:
        """The resolver is about to answer with addresses: allow them first."""
        new = tuple(r for r in rules if r not in self._learned)
        if new and self._last is None:
            self._learned += new
            self._apply(self.policy)

    def _value(self, policy: NetworkPolicy, ruleset: Ruleset) -> layout.Policy:
        flags = ruleset.compiled.flags | self._live
        if self._live:
            flags &= ~Flag.COUNT_ONLY
        return layout.Policy(
            magic=MAGIC, id=self.id, ruleset=ruleset.number, flags=flags,
            default_out=policy.default, default_in=policy.inbound, default_bind=policy.bind,
            error=policy.errno, budget=self._budget, limit_connections=policy.limit_connections,
            limit_bytes=policy.limit_bytes, limit_pps=policy.limit_pps,
        )  # fmt: skip

    def _read(self) -> Stats:
        return Stats.of(self._engine.plane.maps["np_counts"].lookup_sum(self._key))

    def _take(self, raw: layout.Event) -> None:
        self._events.append(Event.of(raw, self._history.get(raw.ruleset)))

    def _flow_entries(
        self, name: str, kind: type[layout.Flow4] | type[layout.Flow6]
    ) -> Iterator[tuple[layout.Flow4 | layout.Flow6, layout.Flow]]:
        for key, value in self._engine.plane.maps[name].items():
            flow = kind.from_buffer_copy(key)
            if flow.scope == self.id:
                yield flow, layout.Flow.from_buffer_copy(value)

    def _resolver_fds(self) -> list[int]:
        return self._resolver.fds() if self._resolver is not None else []

    def close(self) -> None:
        """Detach; stats and events stay readable. Idempotent."""
        if self._last is not None:
            return
        self._engine.drain()
        try:
            self._last = self._read() - self._base if self._links.names else Stats()
        finally:
            self._last = self._last or Stats()
            self._links.close()
            self._give_back()

    def _give_back(self) -> None:
        if self._resolver is not None:
            self._resolver.close()
        with self._engine._lock:
            self._free()

    def _free(self) -> None:
        self._engine._attached.pop(self.id, None)
        if self.policy.flows:
            for name, kind in (("np_flows4", layout.Flow4), ("np_flows6", layout.Flow6)):
                self._engine.plane.maps[name].delete_batch(b"".join(bytes(k) for k, _ in self._flow_entries(name, kind)))
        if self._budget:
            self._engine._budgets.append(self._budget)
        if self._ruleset is not None:
            self._engine.rulesets.release(self._ruleset)


def _limits(policy: NetworkPolicy) -> bool:
    return bool(policy.limit_pps or policy.limit_bytes or policy.limit_connections)


def _only_adds(old: NetworkPolicy, new: NetworkPolicy) -> bool:
    """True when everything ``old`` allowed, ``new`` allows."""
    same = dataclasses.replace(new, rules=old.rules, hosts=old.hosts, errno=old.errno) == old
    added = new.rules[len(old.rules) :]
    return same and new.rules[: len(old.rules)] == old.rules and all(r.verdict is Verdict.ALLOW for r in added)


def _hooks(compiled: Compiled, live: Flag) -> tuple[str, ...]:
    names = _COUNTING_FLOWS if compiled.flags & Flag.FLOWS else _COUNTING
    if compiled.flags & Flag.COUNT_ONLY and not live:
        return names
    return names + _CALLS + (_BINDS if compiled.binds else ()) + (_RESTORE if compiled.redirects else ())


__all__ = ["AttachedPolicy", "HostRule", "PolicyEngine"]
