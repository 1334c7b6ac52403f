"""Live traffic on loopback in slices that take turns: datagrams, and TCP connections, under each competitor.

Owns: the competitors and the differences round by round. Refuses: to make traffic (bpf/bench/net_traffic.c does).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pytest_isolate.bench.network.place import BASELINES, Figure, Place, competitor, has_nft, nft, table
from pytest_isolate.bench.table import Table
from pytest_isolate.kernel.bpf import Links, load
from pytest_isolate.kernel.bpf.dataplane import Dataplane
from pytest_isolate.kernel.interfaces import Netns
from pytest_isolate.network import COUNT_ONLY, NetworkPolicy, PolicyEngine, Rule, Verdict


@dataclass(frozen=True, slots=True)
class Ground:
    """What a competitor is set up on: its cgroup and namespace, and what all of them share."""

    stack: contextlib.ExitStack
    engine: PolicyEngine
    base: Dataplane
    cgroup_fd: int
    netns: Netns


Setup = Callable[[Ground], object]
LOOPBACK = NetworkPolicy().allow("127.0.0.0/8", udp=[7777], tcp=[7777])
_COUNTER = (
    "table inet t { chain o { type filter hook output priority 0; counter accept; }; "
    "chain i { type filter hook input priority 0; counter accept; }; }"
)
_TRACK = _COUNTER.replace("counter accept", "ct state established counter accept; counter accept")
_SET = (
    "table inet t { set s { type ipv4_addr; flags interval; elements = { %s } }; "
    "chain o { type filter hook output priority 0; ip daddr @s counter accept; counter accept; }; "
    "chain i { type filter hook input priority 0; ip saddr @s counter accept; counter accept; }; }"
)


def many_rules(count: int) -> tuple[Rule, ...]:
    """That many prefixes of 10.0.0.0/8."""
    return tuple(Rule(Verdict.ALLOW, ipaddress.ip_network((0x0A000000 + (i << 8), 24))) for i in range(count))


def competitors() -> dict[str, Setup | None]:
    """By name; ``nothing`` and ``floor`` are what the others are compared with."""
    rows: dict[str, Setup | None] = {
        "nothing": None,
        "floor": _base("floor"),
        "calls": _calls_only,
        "counting": _ours(COUNT_ONLY),
        "policy": _ours(LOOPBACK),
        "policy, 1000 rules": _ours(NetworkPolicy(rules=(*many_rules(1000), *LOOPBACK.rules))),
        "policy, flows": _ours(NetworkPolicy(flows=True, rules=LOOPBACK.rules)),
        "policy, every packet judged": _ours(NetworkPolicy(per_packet=True).allow("127.0.0.0/8")),
        "unoptimised: the specification literally": _base("session"),
        "LPM in systemd's manner": _base("systemd"),
    }
    if has_nft():
        prefixes = ", ".join(str(rule.network) for rule in many_rules(1000))
        rows["nftables, a counter"] = _nft(_COUNTER)
        rows["nftables, conntrack"] = _nft(_TRACK)
        rows["nftables, a set of 1000 prefixes"] = _nft(_SET % prefixes)
    return rows


def _ours(policy: NetworkPolicy) -> Setup:
    return lambda on: on.stack.enter_context(on.engine.attach(on.cgroup_fd, policy))


def _base(name: str) -> Setup:
    names = (f"base_{name}_out", f"base_{name}_in")
    return lambda on: on.stack.enter_context(Links(on.base, on.cgroup_fd)).attach(names)


def _calls_only(on: Ground) -> None:
    """connect, sendmsg and socket hooks, and no packet hooks."""
    attached = on.stack.enter_context(on.engine.attach(on.cgroup_fd, NetworkPolicy().allow("127.0.0.0/8")))
    attached._place._links.detach(("np_egress", "np_ingress"))  # type: ignore[attr-defined]


def _nft(rules: str) -> Setup:
    return lambda on: nft(rules, on.netns)


def measure(place: Place) -> list[Table]:
    """Datagrams, connect hooks alone, and TCP connections."""
    note = () if has_nft() else ("nftables is not installed: not measured.",)
    rounds = place.times(200, 12)
    rows = competitors()
    udp = _interleaved(place, ["slice", "1", str(rounds), "2048", "64"], rows)
    targets = {"counting": 30.0, "policy": 30.0, "policy, 1000 rules": 30.0}
    over_floor = [
        _figure(udp, name, "floor", targets.get(name)) for name in udp if name not in ("nothing", "floor", "calls")
    ]
    over_nothing = [_figure(udp, name, "nothing") for name in udp if name not in ("nothing", "calls")]
    calls = _figure(udp, "calls", "nothing", 1.0, percent=True)
    tcp_rows = {
        n: rows[n] for n in rows if n in ("nothing", "floor", "counting", "policy", "policy, flows") or "conn" in n
    }
    tcp = _interleaved(place, ["connect", "1", str(rounds), "100"], tcp_rows)
    goals = {"counting": 4.0, "policy": 4.0}
    per_connection = [_figure(tcp, n, "nothing", goals.get(n), percent=True) for n in tcp if n != "nothing"]
    bare = {name: statistics.median(found["nothing"]) for name, found in (("udp", udp), ("tcp", tcp))}
    return [
        table(f"live: a datagram sent and received, over the floor ({bare['udp']:.0f} ns bare)", over_floor, note),
        table("live: the same, over nothing attached", over_nothing),
        table("live: connect, sendmsg and socket hooks alone, over nothing", [calls]),
        table(f"live: TCP connect, accept, close, over nothing ({bare['tcp']:.0f} ns)", per_connection),
    ]


def _interleaved(place: Place, mode: list[str], rows: Mapping[str, Setup | None]) -> dict[str, list[float]]:
    """Nanoseconds of CPU time per operation in each round, by competitor."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(PolicyEngine(place.home, flows=4096))
        base = stack.enter_context(load(BASELINES, name="baseline"))
        specs = []
        for number, (_, setup) in enumerate(rows.items()):
            path, netns, fd = stack.enter_context(competitor(place, f"c{number}"))
            if setup is not None:
                setup(Ground(stack, engine, base, fd, netns))
            specs.append(f"c{number},{path},/proc/{os.getpid()}/fd/{netns.fd}")
        done = subprocess.run([place.traffic, *mode, *specs], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    lines = [line.split()[1:] for line in done.stdout.splitlines()]
    return {name: [float(value) for value in line] for name, line in zip(rows, lines, strict=True)}


def _figure(
    found: Mapping[str, list[float]], name: str, under: str, target: float | None = None, *, percent: bool = False
) -> Figure:
    """The median of the differences, round by round; with its quartiles."""
    differences = sorted(v - w for v, w in zip(found[name], found[under], strict=True))
    reference = statistics.median(found[under]) / 100 if percent else 1.0
    middle = statistics.median(differences) / reference
    low, high = (differences[len(differences) * quarter // 4] / reference for quarter in (1, 3))
    digits = 2 if percent else 0
    note = f"{low:+.{digits}f} to {high:+.{digits}f}"
    return Figure(what=name, value=round(middle, 2), unit="%" if percent else "ns", target=target, note=note)
