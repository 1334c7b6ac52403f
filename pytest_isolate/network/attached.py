"""A policy in force on one place: what the fixture, the report and the tests see of it.

Owns: the life of one attachment: its rule set, its resolver, its events and counts.
Refuses: maps' layouts (places.py, rulesets.py) and the ring (engine.py).
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.bpf import layout
from pytest_isolate.kernel.bpf.layout import MAGIC, Flag, Verdict
from pytest_isolate.network.places import Place
from pytest_isolate.network.resolver import Resolver, check_fit
from pytest_isolate.network.rules import COUNT_ONLY, HostRule, NetworkPolicy, Rule
from pytest_isolate.network.rulesets import Ruleset
from pytest_isolate.network.traffic import Event, FlowRecord, Stats, untold

if TYPE_CHECKING:
    from typing_extensions import Self

    from pytest_isolate.network.engine import PolicyEngine


#: Events kept for one test; more are counted as lost, or a flood would fill the memory of the process that keeps them.
MAX_EVENTS = 10_000


class AttachedPolicy:
    """A policy in force on one cgroup. A context manager; leaving it detaches.

    A forked child reads what has passed; events are those up to the fork, the rest is taken by its parent.
    """

    def __init__(self, engine: PolicyEngine, place: Place, number: int, netns_fd: int) -> None:
        self.id = number
        self.policy = COUNT_ONLY
        self._engine = engine
        self._place = place
        self._netns_fd = netns_fd
        self._ruleset: Ruleset | None = None
        self._history: dict[int, NetworkPolicy] = {}
        self._events: list[Event | tuple[layout.Event, NetworkPolicy | None]] = []
        self._worded = 0
        self._room = MAX_EVENTS
        self._not_kept = 0
        self._learned: tuple[Rule, ...] = ()
        self.redirects: list[tuple[Rule, str]] = []  # in the order they came into force, and what each is asked for by
        self._resolver: Resolver | None = None
        self._budget = 0
        self._live = Flag(0)
        self._started = False
        self._base = Stats()
        self._last: Stats | None = None
        self._last_flows: list[FlowRecord] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- for tests and their reports -------------------------------------------------------------------------------

    def update(self, policy: NetworkPolicy) -> None:
        """Put another policy in force at once: one store in the kernel, for new and for open sockets.

        Open connections the new policy denies get no further packet through in either direction, but the segments without
        data that end one whose socket is closed for sending.

        Raises:
            PolicyError: it cannot be put in force, or belongs to the process this one was forked off.
        """
        self._engine.check_ours()
        if policy.flows and not self.policy.flows:
            raise PolicyError(
                "flows", "they cannot be switched on under a running test", "ask for flows from the start"
            )
        if not _only_adds(self.policy, policy):
            self._live = Flag.PER_PACKET
        self._apply(policy)

    def asked_for(self, flow: FlowRecord, since: int = 0) -> str:
        """Where a flow went, and what redirected it there; ``""`` for the resolver of the policy itself.

        ``since``: of ``redirects``, those before it belong to another test.
        """
        if self._resolver is not None and self._resolver.serves(flow.peer, flow.peer_port):
            return ""
        came = dict.fromkeys(name for rule, name in self.redirects[since:] if flow.comes_of(rule))
        return f"{flow.destination} (redirected from {' or '.join(came)})" if came else flow.destination

    def renew_limits(self) -> None:
        """What limits allow, they allow once more: nothing of it is used up."""
        self._engine.check_ours()
        if self._budget:
            self._engine.plane.maps["np_budgets"].update(struct.pack("=I", self._budget), layout.Budget())

    @property
    def stats(self) -> Stats:
        """Counts since the attachment."""
        stats = self._last if self._last is not None else self._read() - self._base
        return dataclasses.replace(stats, events_lost=stats.events_lost + self._not_kept)

    def events(self) -> list[Event]:
        """Every denied and logged flow so far, oldest first."""
        with self._engine.lock:
            if self._last is None:
                self._engine.drain()
            while self._worded < len(self._events):
                if isinstance(told := self._events[self._worded], tuple):
                    self._events[self._worded] = Event.of(*told)
                self._worded += 1
            return [event for event in self._events if isinstance(event, Event)]

    def told(self, events: int = 0, stats: Stats | None = None) -> tuple[list[Event], Stats]:
        """Events and counts without the first ``events`` and what ``stats`` had counted; where something was refused and no
        event says so, one that stands for it."""
        found = self.events()[events:]  # first: those there is no room for are counted when they come
        counted = self.stats if stats is None else self.stats - stats
        return found + untold(counted, found), counted

    @property
    def denied(self) -> list[Event]:
        """Denied flows so far; ``[]`` when nothing was refused, and only then."""
        return [event for event in self.told()[0] if event.verdict is Verdict.DENY]

    def make_room(self) -> None:
        """From now on another test runs here: what the one before left room for is no measure."""
        self._room = len(self._events) + MAX_EVENTS

    def flows(self) -> list[FlowRecord]:
        """Conversations, with a policy that has ``flows=True``."""
        if self._last_flows is not None:
            return self._last_flows
        found: list[FlowRecord] = []
        for name, kind in (("np_flows4", layout.Flow4), ("np_flows6", layout.Flow6)):
            found += [FlowRecord.of(k, v) for k, v in self._flow_entries(name, kind)]
        return found

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self, policy: NetworkPolicy) -> None:
        """Put the first policy in force (PolicyEngine.attach does)."""
        self._place.start()
        self._started = True
        self._base = self._read()  # a cgroup used before keeps its counters
        self._apply(policy)

    def fds(self) -> list[int]:
        """Descriptors a child must not keep."""
        return self._place.fds() + (self._resolver.fds() if self._resolver is not None else [])

    def _apply(self, policy: NetworkPolicy) -> None:
        with self._engine.lock:
            self._replace(policy, self._learned)

    def _replace(self, policy: NetworkPolicy, learned: tuple[Rule, ...]) -> None:
        """Put ``policy`` in force with what was learned of its hosts, or leave all as it is."""
        learned = _still_asked_for(learned, policy.hosts)
        effective = self._effective(policy, learned)
        ruleset = self._engine.rulesets.acquire(effective)
        try:
            if _limits(policy) and not self._budget:
                self._budget = self._engine.take_budget()
                self.renew_limits()
            self._place.store(self._value(policy, ruleset))
            self._place.hook(ruleset.compiled, self._live)
        except BaseException:
            self._engine.rulesets.release(ruleset)
            raise
        self._history[ruleset.number] = effective  # whoever takes its events waits for the lock
        self._note_redirects(ruleset)
        self._now_resolves(policy.hosts, learned)
        old, self._ruleset, self.policy = self._ruleset, ruleset, policy
        if old is not None:
            self._engine.rulesets.release(old)

    def _note_redirects(self, ruleset: Ruleset) -> None:
        if not ruleset.compiled.redirects:
            return
        before = self._ruleset.policy.rules if self._ruleset is not None else ()
        for rule in ruleset.policy.rules:
            if rule.to is not None and rule.verdict is Verdict.REDIRECT and rule not in before:
                name = self._resolver.name_of(rule.network.network_address) if self._resolver is not None else ""
                self.redirects.append((rule, rule.asked_by(name)))

    def _effective(self, policy: NetworkPolicy, learned: tuple[Rule, ...]) -> NetworkPolicy:
        if not policy.hosts:
            return policy
        if self._resolver is None:
            self._resolver = Resolver(self._netns_fd, self._resolved, self._keep)
        own = self._resolver.rules(policy)
        check_fit(policy, own)
        return dataclasses.replace(policy, rules=(*policy.rules, *own, *learned))

    def _now_resolves(self, hosts: tuple[HostRule, ...], learned: tuple[Rule, ...]) -> None:
        if self._resolver is not None:
            self._resolver.hosts = hosts
            if len(learned) < len(self._learned):
                self._resolver.forget()
        self._learned = learned

    def _resolved(self, rules: tuple[Rule, ...]) -> None:
        """The resolver is about to answer with addresses: allow them first."""
        with self._engine.lock:
            known = {(rule, rule.text) for rule in self._learned}
            new = tuple(rule for rule in rules if (rule, rule.text) not in known)
            if new and self._last is None:
                self._replace(self.policy, (*self._learned, *new))

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
        """The counters, and with flows on what the flows hold: a packet is in one of the two."""
        counters = self._place.counters()
        if self.policy.flows:
            for flow in self.flows():
                counters["packets_out"] += flow.packets_out
                counters["bytes_out"] += flow.l3_bytes_out
                counters["packets_in"] += flow.packets_in
                counters["bytes_in"] += flow.l3_bytes_in
        return Stats.of(counters)

    def take(self, raw: layout.Event) -> None:
        """An event of ours came out of the ring."""
        self._keep((raw, self._history.get(raw.ruleset)))

    def _keep(self, event: Event | tuple[layout.Event, NetworkPolicy | None]) -> None:
        with self._engine.lock:
            if len(self._events) < self._room:
                self._events.append(event)
            else:
                self._not_kept += 1

    def _flow_entries(
        self, name: str, kind: type[layout.Flow4 | layout.Flow6]
    ) -> Iterator[tuple[layout.Flow4 | layout.Flow6, layout.Flow]]:
        for key, value in self._engine.plane.maps[name].items():
            flow = kind.from_buffer_copy(key)
            if flow.scope == self.id:
                yield flow, layout.Flow.from_buffer_copy(value)

    def close(self) -> None:
        """Detach; stats and events stay readable. Idempotent; nothing in a forked child."""
        if self._last is not None or not self._engine.ours:
            return
        self._engine.drain()
        self._last = Stats()
        try:
            if self._started:
                self._last = self._read() - self._base
                self._last_flows = self.flows() if self.policy.flows else []
        finally:
            self._place.close()
            self._give_back()

    def _give_back(self) -> None:
        if self._resolver is not None:
            self._resolver.close()
        with self._engine.lock:
            self._free()

    def _free(self) -> None:
        self._engine.forget(self, self._budget)
        self._engine.plane.maps["np_strays"].delete(struct.pack("=I", self.id))
        if self.policy.flows:
            for name, kind in (("np_flows4", layout.Flow4), ("np_flows6", layout.Flow6)):
                self._engine.plane.maps[name].delete_batch(
                    b"".join(bytes(k) for k, _ in self._flow_entries(name, kind))
                )
        if self._ruleset is not None:
            self._engine.rulesets.release(self._ruleset)


def _limits(policy: NetworkPolicy) -> bool:
    return bool(policy.limit_pps or policy.limit_bytes or policy.limit_connections)


def _still_asked_for(learned: tuple[Rule, ...], hosts: tuple[HostRule, ...]) -> tuple[Rule, ...]:
    """What was learned of other hosts holds no more."""
    asked = {(host.text, host.protocols, host.ports) for host in hosts}
    return tuple(rule for rule in learned if (rule.text, rule.protocols, rule.ports) in asked)


def _only_adds(old: NetworkPolicy, new: NetworkPolicy) -> bool:
    """True when everything ``old`` allowed, ``new`` allows."""
    same = dataclasses.replace(new, rules=old.rules, hosts=old.hosts, errno=old.errno) == old
    added = new.rules[len(old.rules) :]
    return same and new.rules[: len(old.rules)] == old.rules and all(r.verdict is Verdict.ALLOW for r in added)
