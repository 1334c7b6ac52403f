"""What a test did on the network: counters, events, flows. Values and their words.

Owns: Stats, Event, FlowRecord and the NETDENIED line. Refuses: maps and rings; engine.py fills these in.
"""

from __future__ import annotations

import ipaddress
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from pytest_isolate.kernel.bpf import layout
from pytest_isolate.kernel.bpf.layout import Protocol, Reason, Verdict, Where
from pytest_isolate.network.compile import address_of
from pytest_isolate.network.rules import Address, NetworkPolicy, Rule, endpoint

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite", 262: "mptcp", 2: "igmp"}
_BITS = {1: Protocol.ICMP, 58: Protocol.ICMP, 6: Protocol.TCP, 17: Protocol.UDP}
_WHY = {
    Reason.LIMIT_CONNECTIONS: "limit of connections",
    Reason.LIMIT_BYTES: "limit of bytes",
    Reason.LIMIT_PPS: "limit of packets per second",
    Reason.MALFORMED: "unreadable packet or policy",
    Reason.SOCKET: "raw sockets are denied; allow with raw=True",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Exact counts. Bytes are L3 (IP header included). A packet is one skb; ``wire_packets`` counts what the device
    makes of it (GSO). ``denied`` counts refused calls and packets; they are in no other counter."""

    packets_out: int = 0
    l3_bytes_out: int = 0
    wire_packets_out: int = 0
    wire_l3_bytes_out: int = 0
    packets_in: int = 0
    l3_bytes_in: int = 0
    wire_packets_in: int = 0
    wire_l3_bytes_in: int = 0
    denied_out: int = 0
    denied_in: int = 0
    connections_out: int = 0
    connections_in: int = 0
    logged: int = 0
    redirected: int = 0
    events_lost: int = 0
    flows_lost: int = 0

    @property
    def denied(self) -> int:
        """Refused calls and packets, both ways."""
        return self.denied_out + self.denied_in

    @classmethod
    def of(cls, counters: dict[str, int]) -> Stats:
        """From struct np_counters by name, summed over CPUs."""
        c = counters
        return cls(
            packets_out=c["packets_out"],
            l3_bytes_out=c["bytes_out"],
            wire_packets_out=c["packets_out"] + c["gso_packets_out"],
            wire_l3_bytes_out=c["bytes_out"] + c["gso_bytes_out"],
            packets_in=c["packets_in"],
            l3_bytes_in=c["bytes_in"],
            wire_packets_in=c["packets_in"] + c["gso_packets_in"],
            wire_l3_bytes_in=c["bytes_in"] + c["gso_bytes_in"],
            **{f.name: c[f.name] for f in fields(cls) if f.name in c and "packets" not in f.name},
        )

    def __sub__(self, other: Stats) -> Stats:
        return Stats(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def __add__(self, other: Stats) -> Stats:
        return Stats(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One newly denied or logged flow. ``pid`` is the host's number, 0 for a packet without a process to name.

    ``port`` is the peer's (0 for none), for an inbound packet ``local_port`` is what it came for. ``rule``: in words.
    Of Reason.NAME it is about the host ``name``, which has no address here; of Reason.UNTOLD nothing but ``rule`` is known.
    """

    time_s: float
    verdict: Verdict
    reason: Reason
    address: Address
    port: int
    local_port: int
    protocol: str
    pid: int
    comm: str
    rule: str
    name: str = ""

    @property
    def destination(self) -> str:
        """``203.0.113.7:443/tcp``."""
        if self.reason in (Reason.NAME, Reason.UNTOLD):
            return self.name or "a destination unknown"
        if self.reason is Reason.SOCKET:
            return f"raw socket/{self.protocol}"
        inbound = self.reason is Reason.PACKET_IN
        return f"{endpoint(self.address, self.port)}/{self.protocol}" + (
            f" to port {self.local_port}" if inbound else ""
        )

    def __str__(self) -> str:
        word = "NETDENIED" if self.verdict is Verdict.DENY else "UNRESOLVED" if self.name else "NETLOGGED"
        process = f" by {self.comm} pid {self.pid}" if self.pid else ""
        return f"{word} {self.destination}{process} ({self.rule})"

    @classmethod
    def without_peer(cls, reason: Reason, rule: str, *, verdict: Verdict, name: str = "") -> Event:
        """One that the kernel did not write."""
        return cls(
            time_s=time.monotonic(), verdict=verdict, reason=reason, address=ipaddress.IPv4Address(0), port=0,
            local_port=0, protocol="", pid=0, comm="", rule=rule, name=name,
        )  # fmt: skip

    @classmethod
    def of(cls, raw: layout.Event, policy: NetworkPolicy | None) -> Event:
        """From the record; ``policy`` is the one that was in force, for naming the rule."""
        address, reason = address_of(bytes(raw.address)), Reason(raw.reason)
        return cls(
            time_s=raw.time_ns / 1e9,
            verdict=Verdict(raw.verdict),
            reason=reason,
            address=address,
            port=raw.port,
            local_port=raw.local_port,
            protocol=_PROTOCOLS.get(raw.protocol, f"ip{raw.protocol}"),
            pid=raw.pid,
            comm=raw.comm.decode(errors="replace"),
            rule=_WHY.get(reason) or _explain(policy, address, raw, reason),
        )


def untold(stats: Stats, events: Iterable[Event]) -> list[Event]:
    """An event that stands for those that are missing, where something was refused and none says so; else nothing."""
    if not stats.denied or any(event.verdict is Verdict.DENY for event in events):
        return []
    lost = f"events lost: {stats.events_lost}, there were too many at once"
    before = "of a flow that was told of before, in an earlier test of the same sandbox"
    text = f"{stats.denied} refused: {lost if stats.events_lost else before}"
    return [Event.without_peer(Reason.UNTOLD, text, verdict=Verdict.DENY)]


def _explain(policy: NetworkPolicy | None, address: Address, raw: layout.Event, reason: Reason) -> str:
    where = {Reason.BIND: Where.BIND, Reason.PACKET_IN: Where.IN}.get(reason, Where.OUT)
    protocol = _BITS.get(raw.protocol, Protocol.OTHER)
    port = raw.local_port if where is Where.IN else raw.port
    rule = policy.rule_for(address, port, protocol, where) if policy else None
    if rule is not None:
        return f"rule: {rule}"
    verb = {Where.IN: "allow_inbound", Where.BIND: "allow_bind"}.get(where, "allow")
    name = protocol.name.lower() if protocol.name and protocol in (Protocol.TCP, Protocol.UDP) else ""
    ports = f", {name}=[{port}]" if name else ", icmp=True" if protocol is Protocol.ICMP else ""
    return f'rule: default deny; allow with {verb}("{address}"{ports})'


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRecord:
    """One conversation of the flow table. ``opened_by_peer``: its first packet came in."""

    peer: Address
    peer_port: int
    local: Address
    local_port: int
    protocol: str
    packets_out: int
    l3_bytes_out: int
    packets_in: int
    l3_bytes_in: int
    opened_by_peer: bool
    verdict: Verdict

    @property
    def destination(self) -> str:
        """``203.0.113.7:443/tcp``."""
        return f"{endpoint(self.peer, self.peer_port)}/{self.protocol}"

    def comes_of(self, rule: Rule) -> bool:
        """True when this redirect leads where the flow went."""
        to = rule.to
        if to is None or to.address != self.peer or self.protocol not in ("tcp", "udp", "mptcp"):
            return False
        low, high = (to.port, to.port) if to.port else rule.ports
        return low <= self.peer_port <= high

    @property
    def conversation(self) -> tuple[object, ...]:
        """What tells it from others: both ends and the protocol."""
        return self.peer, self.peer_port, self.local, self.local_port, self.protocol

    def since(self, earlier: FlowRecord | None) -> FlowRecord:
        """The same without what was counted before."""
        if earlier is None:
            return self
        names = ("packets_out", "l3_bytes_out", "packets_in", "l3_bytes_in")
        return replace(self, **{name: getattr(self, name) - getattr(earlier, name) for name in names})

    @classmethod
    def of(cls, key: layout.Flow4 | layout.Flow6, value: layout.Flow) -> FlowRecord:
        """From key and value of np_flows4 or np_flows6."""
        out, inward = layout.unpack(value.packed_out), layout.unpack(value.packed_in)
        return cls(
            peer=_flow_address(key.peer),
            peer_port=key.peer_port,
            local=_flow_address(key.local),
            local_port=key.local_port,
            protocol=_PROTOCOLS.get(key.protocol, f"ip{key.protocol}"),
            packets_out=value.packets_out + out[0],
            l3_bytes_out=value.bytes_out + out[1],
            packets_in=value.packets_in + inward[0],
            l3_bytes_in=value.bytes_in + inward[1],
            opened_by_peer=value.opener == Where.IN,
            verdict=Verdict(value.verdict),
        )


def _flow_address(words: int | object) -> Address:
    packed = struct.pack("=I", words) if isinstance(words, int) else bytes(words)  # type: ignore[call-overload]
    return address_of(b"\0" * 10 + b"\xff\xff" + packed) if len(packed) == 4 else address_of(packed)
