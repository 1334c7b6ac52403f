"""One sandbox's network while it is in force: its namespace, its addresses, and what has passed and was refused so far.

Owns: SandboxNetwork, and Mark, from which on it counts for one of several tests in it.
Refuses: to put it in force (networks.py).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel import forks
from pytest_isolate.kernel.keeping import keep
from pytest_isolate.outcome import Traffic
from pytest_isolate.policy import Network

if TYPE_CHECKING:
    from pytest_isolate.kernel.interfaces import Subnet
    from pytest_isolate.network import AttachedPolicy, Event, FlowRecord, Stats
    from pytest_isolate.network.programs import UserProgram


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
        self._owner = forks.here

    def leave_in_child(self) -> None:
        """In a forked child: it is the parent's, which counts and detaches."""
        for program in self.programs:
            program.close_in_child()
        self.programs.clear()
        keep(self.undo.pop_all())
        if self.attached is not None:
            self.attached, self.reason = None, "it is counted in the process that started it"

    def close(self) -> None:
        """Detach; the counts stay readable. Idempotent; a forked child leaves it, and has no counts any more."""
        if self._owner is not forks.here:
            self.leave_in_child()
            return
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
