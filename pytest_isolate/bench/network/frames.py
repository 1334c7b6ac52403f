"""Nanoseconds per frame by BPF_PROG_TEST_RUN: hooks over the floor, new flows, and what each technique is worth.

Owns: the frames, the interleaving, percentiles. Refuses: live traffic (live.py).
"""

from __future__ import annotations

import ipaddress
import shutil
import socket
import statistics
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pytest_isolate.bench.network.place import BASELINES, Figure, Place, table
from pytest_isolate.bench.table import Table
from pytest_isolate.kernel.bpf import layout as np
from pytest_isolate.kernel.bpf import load
from pytest_isolate.kernel.bpf.dataplane import OBJECTS, Dataplane, load_image
from pytest_isolate.kernel.bpf.objects import FLOW_PROGRAMS, PROGRAMS, AttachType, ProgramSpec, ProgramType
from pytest_isolate.kernel.bpf.testrun import test_run

#: Programs of bpf/baseline.bpf.c that do one thing: technique -> what it is.
TECHNIQUES = {
    "jiffies": "time: bpf_jiffies64, inlined",
    "ktime": "time: bpf_ktime_get_ns, a call",
    "direct": "header: read in place",
    "load_bytes": "header: two bpf_skb_load_bytes",
    "percpu_plain": "count: own per-CPU slot, two plain adds (loses when a softirq nests)",
    "percpu_packed": "count: own per-CPU slot, one atomic add of packets and bytes in a word",
    "percpu_atomic": "count: own per-CPU slot, two atomic adds",
    "shared_atomic": "count: a shared slot, two atomic adds (one CPU: nobody contends)",
    "hash": "flow: look-up in a hash",
    "lru": "flow: look-up in an LRU hash",
    "lpm": "rule: look-up in an LPM trie",
    "remember": "accepted socket: store in an array by the cookie's low bits",
    "remember_lru": "accepted socket: insert into an LRU hash",
}
_PROGRAMS = {
    **BASELINES,
    **{f"base_t_{name}": ProgramSpec(ProgramType.CGROUP_SKB, AttachType.CGROUP_INET_EGRESS) for name in TECHNIQUES},
}


def udp_frame(
    source: str = "127.0.0.1", target: str = "127.0.0.1", port: int = 7777, local: int = 4444, mac: bytes = bytes(6)
) -> bytes:
    """64 bytes of Ethernet, IPv4 and UDP."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 50, 0, 0, 64, 17, 0) + addresses
    return mac + bytes(6) + b"\x08\0" + ip + struct.pack("!HHHH", local, port, 30, 0) + bytes(22)


def udp6_frame() -> bytes:
    """The same with IPv6 from ::1 to ::1."""
    one = ipaddress.ip_address("::1").packed
    ip = struct.pack("!IHBB", 6 << 28, 30, 17, 64) + one + one
    return bytes(12) + b"\x86\xdd" + ip + struct.pack("!HHHH", 4444, 7777, 30, 0) + bytes(22)


def measure(place: Place) -> list[Table]:
    """Hooks, flows and techniques; medians over interleaved rounds of the kernel's own timing, the floor subtracted."""
    with load(_PROGRAMS, name="baseline") as base:
        tables = [_techniques(place, base)]
        if shutil.which("clang") is None:
            return [*tables, table("frames: the hooks themselves", [], ("clang is not installed: not measured.",))]
        with load_image(_valid_at_zero(place.work), {**PROGRAMS, **FLOW_PROGRAMS}, _SIZES) as ours:
            _allow_everything(ours)
            return [_hooks(place, ours, base), _flows(place, ours, base), *tables]


_SIZES = {"np_flows4": 100_000, "np_flows6": 1000}


def _valid_at_zero(work: Path) -> bytes:
    """Our programs, compiled so that zeroed storage, which a test run gives them, is a valid policy. Never shipped."""
    made = work / "zero.bpf.o"
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v2", "-DDEBUG_MODE=0", "-DNP_MAGIC=0"]
    command += [f"-I/usr/include/{machine}-linux-gnu", f"-I{OBJECTS / 'sources'}"]
    subprocess.run([*command, "-c", str(OBJECTS / "sources/netpolicy.bpf.c"), "-o", str(made)], check=True)
    return made.read_bytes()


def _allow_everything(plane: Dataplane) -> None:
    """Rule set 0 (that of zeroed storage): allow everywhere."""
    entry = np.Entry(port_lo=0, port_hi=65535, protocols=np.Protocol.ANY, where_verdict=15 << 4 | np.Verdict.ALLOW)
    listed = np.List(count=1)
    listed.entries[0] = entry
    plane.maps["np_epoch"].update(bytes(4), (1).to_bytes(4, "little"))
    plane.maps["np_lists"].update(struct.pack("=I", 1), listed)
    plane.maps["np_rules4"].update(bytes(np.Key4(prefixlen=32)), np.Rule(list=1))
    plane.maps["np_rules6"].update(bytes(np.Key6(prefixlen=32)), np.Rule(list=1))


def _hooks(place: Place, ours: Dataplane, base: Dataplane) -> Table:
    v4, v6 = udp_frame(), udp6_frame()
    rows: dict[str, tuple[int, bytes]] = {}
    for name in ("np_egress", "np_ingress", "np_flow_egress", "np_flow_ingress"):
        rows[f"{name}, IPv4"] = ours.programs[name], v4
        rows[f"{name}, IPv6"] = ours.programs[name], v6
    rows["the specification taken literally (LRU sessions)"] = base.programs["base_session_out"], v4
    rows["systemd's scheme (two LPM look-ups)"] = base.programs["base_systemd_out"], v4
    found = _over_floor(place, rows, base.programs["base_floor_out"])
    targets = {name: 40.0 if "flow" in name else 15.0 for name in rows if name.startswith("np_")}
    figures = [Figure(what=n, value=v, unit="ns", target=targets.get(n)) for n, v in found.items()]
    return table("frames: a packet of an existing flow, over a program that returns 1", figures)


def _techniques(place: Place, base: Dataplane) -> Table:
    rows = {text: (base.programs[f"base_t_{name}"], udp_frame()) for name, text in TECHNIQUES.items()}
    found = _over_floor(place, rows, base.programs["base_floor_out"])
    figures = [Figure(what=n, value=v, unit="ns") for n, v in found.items()]
    return table("frames: what each technique costs, over a program that returns 1", figures)


def _over_floor(place: Place, rows: dict[str, tuple[int, bytes]], floor: int) -> dict[str, float]:
    """Median over rounds of (row - floor of the same round); who goes first changes."""
    seen: dict[str, list[float]] = {name: [] for name in rows}
    frame, repeat = udp_frame(), 100_000
    for number in range(place.times(31, 5)):
        under = test_run(floor, frame, repeat).duration_ns
        for name in rows if number & 1 else reversed(rows):
            seen[name].append(float(test_run(rows[name][0], rows[name][1], repeat).duration_ns - under))
    return {name: statistics.median(values) for name, values in seen.items()}


def _flows(place: Place, ours: Dataplane, base: Dataplane) -> Table:
    """One run at a time, each timed alone: hits, and new flows, every frame another address and port."""
    count = place.times(60_000, 5_000)
    frames = [udp_frame(target=f"127.0.{i // 30_000}.9", local=1024 + i % 30_000) for i in range(count)]
    floor = _single(base.programs["base_floor_out"], [udp_frame()] * count)
    hit = _single(ours.programs["np_flow_egress"], [udp_frame()] * count)
    new = _single(ours.programs["np_flow_egress"], frames)
    spread = _single(ours.programs["np_flow_egress"], frames)
    literal = _single(base.programs["base_session_out"], frames)
    middle = floor[count // 2]

    def over(name: str, values: list[int], share: float, target: float | None = None) -> Figure:
        return Figure(what=name, value=values[int(count * share)] - middle, unit="ns", target=target)

    def mean(name: str, values: list[int], target: float | None = None) -> Figure:
        value = statistics.fmean(values) - statistics.fmean(floor)
        return Figure(what=name, value=value, unit="ns", target=target)

    figures = [
        over("floor, 99 %: what one run alone is off by", floor, 0.99),
        over("floor, 99.9 %", floor, 0.999),
        over("hit, 99 %", hit, 0.99, 200.0),
        mean("new flow, mean", new, 700.0),
        over("new flow, 99 %", new, 0.99),
        over("new flow, 99.9 %", new, 0.999, 3000.0),
        over("no flow is new, each packet another one's: 99.9 % (cold memory alone)", spread, 0.999),
        mean("the specification (LRU), new flow, mean", literal),
        over("the specification (LRU), new flow, 99.9 %", literal, 0.999),
    ]
    return table(f"frames: flow table of 100 000, {count} flows, over the floor's median", figures)


def _single(program: int, frames: Sequence[bytes]) -> list[int]:
    """Sorted durations of one run each."""
    for frame in frames[:200]:
        test_run(program, frame)
    return sorted(test_run(program, frame).duration_ns for frame in frames)
