"""Packets per second and per CPU, each counted: frames made by BPF_F_TEST_XDP_LIVE_FRAMES through the host's end of a veth,
and datagrams of senders on every CPU.

Owns: what was made against what was counted. Refuses: a rate without its count.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from dataclasses import dataclass

from pytest_isolate.bench.network.frames import udp_frame
from pytest_isolate.bench.network.place import GENERATOR, Figure, Place, competitor, table
from pytest_isolate.bench.table import Table
from pytest_isolate.kernel.bpf import load
from pytest_isolate.kernel.bpf.testrun import live_frames
from pytest_isolate.kernel.interfaces import Netns, loopback_up, private_network
from pytest_isolate.kernel.namespaces import CLONE_NEWNET, inside_netns, setns
from pytest_isolate.network import COUNT_ONLY, NetworkPolicy, PolicyEngine

#: Each slice waits for the kernel for some 30 ms, whatever is made in it.
_SLICE_S = 0.1
#: A pace this near to the one asked for is that one.
_NEAR = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """What frames at a pace took of one core. ``asked``: frames per second."""

    used_s: float
    took_s: float
    made: int
    asked: int

    @property
    def percent(self) -> float:
        """Of a core, at the pace asked for: by the CPU time of each frame that was made."""
        return self.used_s / self.made * self.asked * 100

    @property
    def words(self) -> str:
        """The pace; and the one it is scaled up from, where the machine did not come to it."""
        reached, asked = self.made / self.took_s, f"{self.asked // 1000} K/s"
        return asked if reached >= _NEAR * self.asked else f"{asked}, extrapolated from {reached / 1000:.0f} K/s"


class Wire:
    """A veth between two namespaces of ours, and a generator at its host's end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._program = stack.enter_context(load(GENERATOR, name="baseline")).programs["base_generate"]
        self.host, test = stack.enter_context(Netns()), stack.enter_context(Netns())
        loopback_up(self.host.fd)
        subnet, self.index = private_network(stack, test.fd, self.host.fd)
        self.target = subnet.host[0].partition("/")[0]
        self._frame = udp_frame(subnet.test[0].partition("/")[0], self.target, mac=b"\2\0\0\0\0\x63")

    def rate(self, count: int) -> float:
        """Millions of frames per second of one core's time, made and taken by the interface."""
        with inside_netns(self.host.fd):
            begin = time.thread_time()
            live_frames(self._program, self._frame, self.index, count)
            return count / (time.thread_time() - begin) / 1e6

    def busy(self, per_second: int, for_s: float) -> Busy:
        """Frames at this pace, or as near as the machine comes to it."""
        each, made = int(per_second * _SLICE_S), 0
        with inside_netns(self.host.fd):
            begin, used = time.perf_counter(), time.thread_time()
            while time.perf_counter() - begin < for_s:
                live_frames(self._program, self._frame, self.index, each)
                made += each
                time.sleep(max(0.0, begin + made / per_second - time.perf_counter()))
            took = time.perf_counter() - begin
            return Busy(used_s=time.thread_time() - used, took_s=took, made=made, asked=per_second)


def exactness(place: Place) -> list[Table]:
    """10 M datagrams with the full effort, each counted."""
    with PolicyEngine(place.home, flows=4096) as engine:
        return [_exact(place, engine)]


def measure(place: Place) -> list[Table]:
    """Throughput and CPU."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(PolicyEngine(place.home, flows=4096))
        wire = Wire(stack)
        policies = {
            "counting": COUNT_ONLY,
            "policy on every frame": NetworkPolicy().allow(wire.target),
            "every frame denied": NetworkPolicy(),
        }
        return [
            _throughput(place, engine, wire, policies),
            _cpu(place, engine, wire, policies),
        ]


def _throughput(place: Place, engine: PolicyEngine, wire: Wire, policies: dict[str, NetworkPolicy]) -> Table:
    count = place.times(10_000_000, 200_000)
    figures = [Figure(what="nothing attached", value=wire.rate(count), unit="M/s/core")]
    for name, policy in policies.items():
        with engine.attach_interface(wire.host.fd, wire.index, policy) as link:
            speed = wire.rate(count)
            seen = link.stats.denied_out if "denied" in name else link.stats.packets_out
        figures.append(Figure(what=name, value=speed, unit="M/s/core", target=1.2, at_least=True))
        figures.append(Figure(what=f"{name}: frames made less counted", value=count - seen, unit="frames", target=0))
    return table(f"packets: {count} frames of 64 bytes at the host's end of a veth", figures)


def _cpu(place: Place, engine: PolicyEngine, wire: Wire, policies: dict[str, NetworkPolicy]) -> Table:
    figures = []
    for per_second in (100_000, 1_000_000):
        busy = wire.busy(per_second, place.times(3, 1))
        what = f"{busy.words}: making and dropping them, nothing attached"
        figures.append(Figure(what=what, value=busy.percent, unit="% of a core"))
        for name in ("counting", "policy on every frame"):
            with engine.attach_interface(wire.host.fd, wire.index, policies[name]) as link:
                busy = wire.busy(per_second, place.times(3, 1))
                lost = busy.made - link.stats.packets_out
            note = f"{busy.made} made, {lost} not counted"
            figures.append(Figure(what=f"{busy.words}: {name}", value=busy.percent, unit="% of a core", note=note))
    return table("packets: CPU at a pace", figures)


def _exact(place: Place, engine: PolicyEngine) -> Table:
    """Senders on every CPU into one cgroup's counters: sent as sendmmsg(2) says, counted as the policy says."""
    each, senders = place.times(2_500_000, 50_000), 4
    figures = []
    with contextlib.ExitStack() as stack:
        for flows in (False, True):
            path, netns, fd = stack.enter_context(competitor(place, f"exact{int(flows)}"))
            net = stack.enter_context(engine.attach(fd, NetworkPolicy(flows=flows).allow("127.0.0.0/8")))
            sent = _send(place, str(path), netns, each, senders)
            name, stats = "with flows" if flows else "counters", net.stats
            found = {"packets": stats.packets_out - sent, "bytes": stats.l3_bytes_out - sent * 60}
            if flows:
                found["packets of the flow table"] = sum(flow.packets_out for flow in net.flows()) - sent
            figures += [
                Figure(what=f"{name}: {what}, counted less sent", value=abs(off), unit=what.split()[0], target=0)
                for what, off in found.items()
            ]
    title = f"packets: exactness, {each * senders} datagrams of {senders} processes on {os.cpu_count()} CPUs"
    return table(title, figures)


def _send(place: Place, path: str, netns: Netns, each: int, senders: int) -> int:
    def enter() -> None:
        with open(f"{path}/cgroup.procs", "w", encoding="ascii") as procs:
            procs.write("0")
        setns(netns.fd, CLONE_NEWNET)

    cpus = os.cpu_count() or 1
    jobs = [
        subprocess.Popen(
            [place.traffic, "udp", str(i % cpus), str(each), "32", "127.0.0.1", str(9000 + i)],
            stdout=subprocess.PIPE, text=True, preexec_fn=enter,  # noqa: PLW1509 - no other thread runs here
        )
        for i in range(senders)
    ]  # fmt: skip
    return sum(int(job.communicate()[0]) for job in jobs)
