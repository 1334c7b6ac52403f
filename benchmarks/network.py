"""`python benchmarks/network.py`: what the network policy costs, against the targets it was given and against its peers.

Owns: the configurations, the order (interleaved: each round runs every configuration, back and forth), medians, tables.
Everything runs in cgroups and network namespaces made here. Ratios to the floor (a program that returns 1) repeat; absolute
nanoseconds belong to the machine named in the heading.
Refuses: to hide: a target that is missed is printed as missed. No test asserts these figures.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import ipaddress
import json
import os
import platform
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pytest_isolate.kernel.bpf import Links, load  # noqa: E402
from pytest_isolate.kernel.bpf import layout as np  # noqa: E402
from pytest_isolate.kernel.bpf.dataplane import Dataplane, load_image  # noqa: E402
from pytest_isolate.kernel.bpf.layout import AttachType, ProgramSpec, ProgramType  # noqa: E402
from pytest_isolate.kernel.bpf.testrun import live_frames, test_run  # noqa: E402
from pytest_isolate.kernel.interfaces import Netns, index_of, inside, loopback_up, private_network  # noqa: E402
from pytest_isolate.kernel.namespaces import CLONE_NEWNET, inside_netns, setns  # noqa: E402
from pytest_isolate.network import COUNT_ONLY, NetworkPolicy, PolicyEngine, Rule, Verdict  # noqa: E402

_SKB = ProgramType.CGROUP_SKB
_OUT, _IN = AttachType.CGROUP_INET_EGRESS, AttachType.CGROUP_INET_INGRESS
BASELINES = {
    **{f"base_{n}_out": ProgramSpec(_SKB, _OUT) for n in ("floor", "session", "systemd")},
    **{f"base_{n}_in": ProgramSpec(_SKB, _IN) for n in ("floor", "session", "systemd")},
    "base_floor_link": ProgramSpec(ProgramType.SCHED_CLS, AttachType.TCX_INGRESS),
    "base_generate": ProgramSpec(ProgramType.XDP, AttachType.XDP),
}


@dataclass(slots=True)
class Figure:
    """One measured number, and the target it is held against (None: for comparison only)."""

    section: str
    name: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "reached" if (self.value >= self.target if self.at_least else self.value <= self.target) else "MISSED"


@dataclass(slots=True)
class Bench:
    """Where things are, and what was found."""

    home: Path
    work: Path
    traffic: Path
    quick: bool
    figures: list[Figure] = field(default_factory=list)

    def add(self, section: str, name: str, value: float, unit: str, **more: float | bool | str | None) -> None:
        figure = Figure(section, name, value, unit, **more)  # type: ignore[arg-type]
        self.figures.append(figure)
        goal = "" if figure.target is None else f"  target {'>=' if figure.at_least else '<='} {figure.target:g}"
        print(f"{name:<58} {value:>12.2f} {unit:<8}{goal} {figure.verdict} {figure.note}", flush=True)


# -- frames --------------------------------------------------------------------------------------------------------


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


# -- nanoseconds per packet, by test run -----------------------------------------------------------------------------


def bench_test_run(b: Bench) -> None:
    """Hooks on a packet, floor subtracted: medians over interleaved rounds of the kernel's own timing."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "bpf"), f"OUT={b.work}", "bench"], check=True)
    image = (b.work / "netpolicy-zero.bpf.o").read_bytes()
    specs = {**np.PROGRAMS, **np.FLOW_PROGRAMS}
    with (
        load_image(image, specs, {"np_flows4": 100_000, "np_flows6": 1000}) as ours,
        load(BASELINES, name="baseline") as base,
    ):
        allow_everything(ours)
        v4, v6 = udp_frame(), udp6_frame()
        rows: dict[str, tuple[int, bytes]] = {"floor": (base.programs["base_floor_out"], v4)}
        for name in ("np_egress", "np_ingress", "np_flow_egress", "np_flow_ingress"):
            rows[f"{name} IPv4"] = (ours.programs[name], v4)
            rows[f"{name} IPv6"] = (ours.programs[name], v6)
        rows["specification taken literally"] = (base.programs["base_session_out"], v4)
        rows["systemd's scheme"] = (base.programs["base_systemd_out"], v4)
        over = over_floor(rows, rounds=11 if b.quick else 31, repeat=100_000)
        for name, value in over.items():
            target = None if "np_" not in name else 40.0 if "flow" in name else 15.0
            b.add("test run", f"{name}: over the floor", value, "ns", target=target)
        distribution(b, ours, base)


def allow_everything(plane: Dataplane) -> None:
    """Rule set 0 (that of zeroed storage): allow UDP everywhere."""
    entry = np.Entry(port_lo=0, port_hi=65535, protocols=np.Protocol.ANY, where_verdict=15 << 4 | np.Verdict.ALLOW)
    listed = np.List(count=1)
    listed.entries[0] = entry
    plane.maps["np_epoch"].update(bytes(4), (1).to_bytes(4, "little"))
    plane.maps["np_lists"].update(struct.pack("=I", 1), listed)
    plane.maps["np_rules4"].update(bytes(np.Key4(prefixlen=32)), np.Rule(list=1))
    plane.maps["np_rules6"].update(bytes(np.Key6(prefixlen=32)), np.Rule(list=1))


def over_floor(rows: dict[str, tuple[int, bytes]], *, rounds: int, repeat: int) -> dict[str, float]:
    """Median over rounds of (row - floor of the same round)."""
    seen: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 2):
        order = list(rows) if number & 1 else list(reversed(rows))
        took = {name: float(test_run(rows[name][0], rows[name][1], repeat).duration_ns) for name in order}
        if number >= 2:
            for name, value in took.items():
                seen[name].append(value - took["floor"])
    return {name: statistics.median(values) for name, values in seen.items() if name != "floor"}


def distribution(b: Bench, ours: Dataplane, base: Dataplane) -> None:
    """One run at a time, each timed alone: hits, and new flows (every frame another port), 99th and 99.9th percentile."""
    count = 20_000 if b.quick else 60_000
    floor = single_runs(base.programs["base_floor_out"], [udp_frame()] * count)
    middle = floor[count // 2]
    hit = single_runs(ours.programs["np_flow_egress"], [udp_frame()] * count)
    frames = [udp_frame(target=f"127.0.{i // 30_000}.9", local=1024 + i % 30_000) for i in range(count)]
    new = single_runs(ours.programs["np_flow_egress"], frames)
    old = single_runs(base.programs["base_session_out"], frames)
    b.add("test run", "floor alone, p99 - median (noise of one run)", floor[int(count * 0.99)] - middle, "ns")
    b.add("test run", "flow hit: p99 over the floor", hit[int(count * 0.99)] - middle, "ns", target=200)
    b.add(
        "test run", "new flow: mean over the floor", statistics.fmean(new) - statistics.fmean(floor), "ns", target=700
    )
    b.add("test run", "new flow: p99 over the floor", new[int(count * 0.99)] - middle, "ns")
    b.add("test run", "new flow: p99.9 over the floor", new[int(count * 0.999)] - middle, "ns", target=3000)
    b.add("test run", "floor alone, p99.9 - median", floor[int(count * 0.999)] - middle, "ns")
    b.add(
        "test run", "new flow of the specification (LRU): mean", statistics.fmean(old) - statistics.fmean(floor), "ns"
    )
    b.add("test run", "new flow of the specification (LRU): p99.9", old[int(count * 0.999)] - middle, "ns")


def single_runs(program: int, frames: Sequence[bytes]) -> list[int]:
    """Sorted durations of one run each."""
    for frame in frames[:200]:
        test_run(program, frame)
    return sorted(test_run(program, frame).duration_ns for frame in frames)


# -- live --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def configuration(b: Bench, name: str) -> Iterator[tuple[Path, Netns, int]]:
    """A cgroup and a namespace of its own."""
    path = b.home / name
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    try:
        with Netns() as namespace:
            loopback_up(namespace.fd)
            yield path, namespace, fd
    finally:
        os.close(fd)
        for _ in range(100):
            with contextlib.suppress(OSError):
                path.rmdir()
                break
            time.sleep(0.02)


Setup = Callable[[contextlib.ExitStack, PolicyEngine, Dataplane, int, Netns], object]


def _ours(policy: NetworkPolicy) -> Setup:
    return lambda stack, engine, base, fd, netns: stack.enter_context(engine.attach(fd, policy))


def _base(name: str) -> Setup:
    def setup(stack: contextlib.ExitStack, engine: PolicyEngine, base: Dataplane, fd: int, netns: Netns) -> None:
        stack.enter_context(Links(base, fd)).attach((f"base_{name}_out", f"base_{name}_in"))

    return setup


def _calls_only(stack: contextlib.ExitStack, engine: PolicyEngine, base: Dataplane, fd: int, netns: Netns) -> None:
    """connect, sendmsg, bind and socket hooks and sockops, no packet hooks."""
    attached = stack.enter_context(engine.attach(fd, NetworkPolicy().allow("127.0.0.0/8")))
    attached._place._links.detach(("np_egress", "np_ingress"))  # type: ignore[attr-defined]


def _nft(rules: str) -> Setup:
    def setup(stack: contextlib.ExitStack, engine: PolicyEngine, base: Dataplane, fd: int, netns: Netns) -> None:
        def work() -> None:
            setns(netns.fd, CLONE_NEWNET)
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)

        in_child(work)

    return setup


def in_child(work: Callable[[], object]) -> None:
    """Run in a forked child; its failure is ours."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a child failed")


COUNTER = "table inet t { chain o { type filter hook output priority 0; counter accept; }; chain i { type filter hook input priority 0; counter accept; }; }"
TRACK = COUNTER.replace("counter accept", "ct state established counter accept; counter accept")


def live_rows() -> dict[str, Setup | None]:
    loopback = NetworkPolicy().allow("127.0.0.0/8", udp=[7777], tcp=[7777])
    rows: dict[str, Setup | None] = {
        "nothing": None,
        "floor": _base("floor"),
        "calls": _calls_only,
        "counting": _ours(COUNT_ONLY),
        "policy": _ours(loopback),
        "policy-flows": _ours(NetworkPolicy(flows=True).allow("127.0.0.0/8", udp=[7777], tcp=[7777])),
        "policy-1000": _ours(NetworkPolicy(rules=(*many_rules(1000), *loopback.rules))),
        "per-packet": _ours(NetworkPolicy(per_packet=True).allow("127.0.0.0/8")),
        "spec-literal": _base("session"),
        "systemd": _base("systemd"),
    }
    if shutil.which("nft"):
        rows["nft-counter"], rows["nft-conntrack"] = _nft(COUNTER), _nft(TRACK)
    return rows


def many_rules(count: int) -> tuple[Rule, ...]:
    return tuple(Rule(Verdict.ALLOW, ipaddress.ip_network((0x0A000000 + (i << 8), 24))) for i in range(count))


def interleaved(b: Bench, mode: list[str], rows: dict[str, Setup | None]) -> dict[str, list[float]]:
    """Nanoseconds per operation of each round, by configuration."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(PolicyEngine(b.home, flows=4096))
        base = stack.enter_context(load(BASELINES, name="baseline"))
        specs = []
        for name, setup in rows.items():
            path, netns, fd = stack.enter_context(configuration(b, name))
            if setup is not None:
                setup(stack, engine, base, fd, netns)
            specs.append(f"{name},{path},/proc/{os.getpid()}/fd/{netns.fd}")
        done = subprocess.run([b.traffic, *mode, *specs], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {line.split()[0]: [float(x) for x in line.split()[1:]] for line in done.stdout.splitlines()}


def report_live(
    b: Bench, section: str, found: dict[str, list[float]], *, base: str, targets: dict[str, float], percent: bool
) -> None:
    for name, values in found.items():
        differences = [v - w for v, w in zip(values, found[base], strict=True)]
        middle, reference = statistics.median(differences), statistics.median(found[base])
        value = 100 * middle / reference if percent else middle
        low, high = sorted(differences)[len(differences) // 4], sorted(differences)[3 * len(differences) // 4]
        note = f"(quartiles {low:+.0f} {high:+.0f} ns; {100 * middle / reference:+.2f} % of {reference:.0f} ns)"
        b.add(section, f"{name} - {base}", value, "%" if percent else "ns", target=targets.get(name), note=note)


def bench_live(b: Bench) -> None:
    """UDP over loopback, send and receive, both hooks: per datagram."""
    rounds = "60" if b.quick else "200"
    found = interleaved(b, ["slice", "1", rounds, "2048", "64"], live_rows())
    report_live(b, "live, over nothing", found, base="nothing", targets={}, percent=False)
    targets = {"counting": 30.0, "policy": 30.0, "policy-1000": 30.0}
    without = {k: v for k, v in found.items() if k not in ("nothing", "calls")}
    report_live(b, "live, over the floor", without, base="floor", targets=targets, percent=False)
    calls = {k: found[k] for k in ("nothing", "calls")}
    report_live(b, "connect hooks only", calls, base="nothing", targets={"calls": 1.0}, percent=True)


def bench_connect(b: Bench) -> None:
    """TCP connect, accept, close over loopback."""
    rows = {
        k: v
        for k, v in live_rows().items()
        if k in ("nothing", "floor", "counting", "policy", "policy-flows", "nft-conntrack")
    }
    found = interleaved(b, ["connect", "1", "60" if b.quick else "200", "100"], rows)
    report_live(
        b, "TCP connect+accept+close", found, base="nothing", targets={"policy": 4.0, "counting": 4.0}, percent=True
    )


# -- packets per second, exactness ---------------------------------------------------------------------------------------


def bench_packets(b: Bench) -> None:
    """Frames a second on one core through tcx at the host end of a veth, every one counted; against nothing attached."""
    count = 1_000_000 if b.quick else 4_000_000
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(load(BASELINES, name="baseline"))
        engine = stack.enter_context(PolicyEngine(b.home))
        host, test = stack.enter_context(Netns()), stack.enter_context(Netns())
        loopback_up(host.fd)
        subnet, index = stack.enter_context(private_network(test.fd, host.fd))
        inside(test.fd, lambda route: index_of(route, "eth0"))
        frame = udp_frame(subnet.test[0].partition("/")[0], subnet.host[0].partition("/")[0], mac=b"\2\0\0\0\0\x63")
        bare = rate(host, base, frame, index, count)
        b.add("packets", "nothing attached", bare, "M/s/core")
        with engine.attach_interface(host.fd, index) as link:
            speed = rate(host, base, frame, index, count)
            b.add("packets", "tcx, counting", speed, "M/s/core", target=1.2, at_least=True)
            b.add(
                "packets",
                "tcx, counting: frames lost of those made",
                link.stats.packets_out - count,
                "frames",
                target=0,
            )
        policy = NetworkPolicy().allow(subnet.host[0].partition("/")[0])
        with engine.attach_interface(host.fd, index, policy) as link:
            speed = rate(host, base, frame, index, count)
            b.add("packets", "tcx, policy on every frame", speed, "M/s/core", target=1.2, at_least=True)
            b.add(
                "packets", "tcx, policy: frames lost of those made", link.stats.packets_out - count, "frames", target=0
            )
        with engine.attach_interface(host.fd, index, NetworkPolicy()) as link:
            speed = rate(host, base, frame, index, count)
            b.add("packets", "tcx, every frame denied", speed, "M/s/core")
            b.add("packets", "tcx, denied: frames not counted", link.stats.denied_out - count, "frames", target=0)


def rate(host: Netns, base: Dataplane, frame: bytes, index: int, count: int) -> float:
    """Millions of frames per second of one core's time, generated and taken through the interface's ingress."""
    with inside_netns(host.fd):
        live_frames(base.programs["base_generate"], frame, index, 10_000)
        begin = time.thread_time()
        live_frames(base.programs["base_generate"], frame, index, count - 10_000)
        return (count - 10_000) / (time.thread_time() - begin) / 1e6


def bench_exact(b: Bench) -> None:
    """Senders on both CPUs, several flows, into one cgroup's counters: sent as sendmmsg says, counted as the policy says."""
    each, senders = (500_000, 4) if b.quick else (2_500_000, 4)
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(PolicyEngine(b.home, flows=4096))
        for flows in (False, True):
            path, netns, fd = stack.enter_context(configuration(b, f"exact{int(flows)}"))
            net = stack.enter_context(engine.attach(fd, NetworkPolicy(flows=flows).allow("127.0.0.0/8")))
            sent = send_from_all(b, path, netns, each, senders)
            stats = net.stats
            name = "with flows" if flows else "counters"
            b.add("exact", f"{name}: packets sent by {senders} processes on {os.cpu_count()} CPUs", sent, "packets")
            b.add("exact", f"{name}: out, counted - sent", abs(stats.packets_out - sent), "packets", target=0)
            b.add("exact", f"{name}: bytes out, counted - sent", abs(stats.l3_bytes_out - sent * 60), "bytes", target=0)
            if flows:
                table = sum(f.packets_out for f in net.flows())
                b.add("exact", "flow table: out, counted - sent", abs(table - sent), "packets", target=0)


def send_from_all(b: Bench, path: Path, netns: Netns, each: int, senders: int) -> int:
    """Datagrams sent by ``senders`` processes over the CPUs."""

    def enter() -> None:
        (path / "cgroup.procs").write_text("0")
        setns(netns.fd, CLONE_NEWNET)

    jobs = [
        subprocess.Popen(
            [b.traffic, "udp", str(i % (os.cpu_count() or 1)), str(each), "32", "127.0.0.1", str(9000 + i)],
            stdout=subprocess.PIPE, text=True, preexec_fn=enter,
        )
        for i in range(senders)
    ]  # fmt: skip
    return sum(int(job.communicate()[0]) for job in jobs)


# -- per test ------------------------------------------------------------------------------------------------------------


def bench_per_test(b: Bench) -> None:
    """What each test pays."""
    rounds = 100 if b.quick else 400
    everything = (
        NetworkPolicy(bind=Verdict.DENY)
        .allow("127.0.0.0/8")
        .allow_bind(tcp=True)
        .redirect("203.0.113.1:80", to=("127.0.0.1", 80))
    )
    begin = time.perf_counter()
    with PolicyEngine(b.home) as engine, configuration(b, "each") as (_, _, fd):
        b.add("per run", "engine up (libbpf, load, resident)", (time.perf_counter() - begin) * 1e3, "ms")
        b.add("per run", "true memory of all maps (memlock)", engine.memory_bytes() / 1e6, "MB", target=7.1)
        for name, policy, target in (("counting only", COUNT_ONLY, 200.0), ("every hook on", everything, 200.0)):
            b.add(
                "per test",
                f"attach + detach, {name}",
                median_us(functools.partial(_attach_and_detach, engine, fd, policy), rounds),
                "us",
                target=target,
            )
        large = NetworkPolicy(rules=many_rules(1000))
        fresh = [NetworkPolicy(rules=large.rules) for _ in range(20)]
        took = []
        for policy in fresh:
            start = time.perf_counter()
            engine.attach(fd, policy).close()
            took.append((time.perf_counter() - start) * 1e3)
        b.add("per test", "1000 rules, never seen before: attach + detach", statistics.median(took), "ms", target=2.0)
        engine.attach(fd, large).close()
        b.add(
            "per test",
            "1000 rules, seen before",
            median_us(lambda: engine.attach(fd, large).close(), 50) / 1e3,
            "ms",
            target=2.0,
        )
        before = engine.memory_bytes()
        attached = engine.attach(fd, everything)
        b.add("per test", "memory of a policy in the maps", (engine.memory_bytes() - before) / 1024, "KiB", target=64)
        b.add("per test", "read of all counters", median_us(lambda: attached.stats, rounds), "us")
        other = everything.allow("10.0.0.0/8")
        attached.update(other)
        b.add(
            "per test",
            "change of policy, in force",
            median_us(functools.partial(_change_twice, attached, everything, other), 50) / 2,
            "us",
        )
        attached.close()
        denied_connect(b, engine, fd)


def denied_connect(b: Bench, engine: PolicyEngine, fd: int) -> None:
    """How long a refused connect(2) takes, in a child in the cgroup."""
    reading, writing = os.pipe()
    with engine.attach(fd, NetworkPolicy()):

        def work() -> None:
            Path(f"/proc/self/fd/{fd}").resolve().joinpath("cgroup.procs").write_text("0")
            took = []
            for _ in range(2000):
                with socket.socket() as made:
                    start = time.perf_counter()
                    with contextlib.suppress(OSError):
                        made.connect(("127.0.0.1", 9))
                    took.append((time.perf_counter() - start) * 1e6)
            took.sort()
            os.write(writing, json.dumps([took[1000], took[-2], took[-1]]).encode())

        in_child(work)
    middle, high, worst = json.loads(os.read(reading, 4096))
    os.close(reading)
    os.close(writing)
    b.add("per test", "denied connect, median", middle, "us", target=1000)
    b.add("per test", "denied connect, slowest but one of 2000", high, "us", target=1000, note=f"(slowest {worst:.0f})")


def _change_twice(attached: Any, one: NetworkPolicy, other: NetworkPolicy) -> None:
    attached.update(one)
    attached.update(other)


def _attach_and_detach(engine: PolicyEngine, fd: int, policy: NetworkPolicy) -> None:
    engine.attach(fd, policy).close()


def median_us(work: Callable[[], object], rounds: int) -> float:
    took = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        took.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(took)


SECTIONS = {
    "testrun": bench_test_run,
    "live": bench_live,
    "connect": bench_connect,
    "packets": bench_packets,
    "exact": bench_exact,
    "pertest": bench_per_test,
}


def unified() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    raise SystemExit("network benchmark: no cgroup2 is mounted")


def machine() -> str:
    model = next(
        (
            x.partition(":")[2].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if x.startswith("model name")
        ),
        "",
    )
    load_average = os.getloadavg()[0]
    return f"{os.cpu_count()} CPUs {model}, Linux {platform.release()}, Python {platform.python_version()}, load {load_average:.1f} at start"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    print(machine())
    home = unified() / f"pytest-isolate-bench-network-{os.getpid()}"
    home.mkdir()
    try:
        with tempfile.TemporaryDirectory(prefix="isolate-bench-") as work:
            traffic = Path(work) / "net_traffic"
            subprocess.run(["cc", "-O2", str(ROOT / "benchmarks/net_traffic.c"), "-o", str(traffic)], check=True)
            b = Bench(home, Path(work), traffic, options.quick)
            for name in options.sections or SECTIONS:
                print(f"\n## {name}: {(SECTIONS[name].__doc__ or '').strip()}")
                SECTIONS[name](b)
    finally:
        home.rmdir()
    if options.json:
        options.json.write_text(
            json.dumps(
                {"machine": machine(), "figures": [{**asdict(f), "verdict": f.verdict} for f in b.figures]}, indent=1
            )
        )
    missed = [f.name for f in b.figures if f.verdict == "MISSED"]
    print(
        f"\n{len([f for f in b.figures if f.verdict == 'reached'])} targets reached, {len(missed)} missed: {', '.join(missed)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
