"""Packets per second and per CPU, each counted: frames made by BPF_F_TEST_XDP_LIVE_FRAMES through the host's end of a veth,
and datagrams of senders on every CPU.

Owns: what was made against what was counted. Refuses: a rate without its count.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

from pytest_isolate.bench.network.frames import udp_frame
from pytest_isolate.bench.network.place import GENERATOR, Figure, Place, competitor, table
from pytest_isolate.bench.table import Table
from pytest_isolate.kernel.bpf import load
from pytest_isolate.kernel.bpf.testrun import live_frames
from pytest_isolate.kernel.interfaces import Netns, loopback_up, private_network
from pytest_isolate.kernel.namespaces import CLONE_NEWNET, inside_netns, setns
from pytest_isolate.network import COUNT_ONLY, NetworkPolicy, PolicyEngine

_SLICE_S = 0.01


class Wire:
    """A veth between two namespaces of ours, and a generator at its host's end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._program = stack.enter_context(load(GENERATOR, name="baseline")).programs["base_generate"]
        self.host, test = stack.enter_context(Netns()), stack.enter_context(Netns())
        loopback_up(self.host.fd)
        subnet, self.index = stack.enter_context(private_network(test.fd, self.host.fd))
        self.target = subnet.host[0].partition("/")[0]
        self._frame = udp_frame(subnet.test[0].partition("/")[0], self.target, mac=b"\2\0\0\0\0\x63")

    def rate(self, count: int) -> float:
        """Millions of frames per second of one core's time, made and taken by the interface."""
        with inside_netns(self.host.fd):
            begin = time.thread_time()
            live_frames(self._program, self._frame, self.index, count)
            return count / (time.thread_time() - begin) / 1e6

    def busy(self, per_second: int, for_s: float) -> tuple[float, int]:
        """(percent of one core that frames at this pace take, by the CPU time of those made; their number)."""
        each, made = int(per_second * _SLICE_S), 0
        with inside_netns(self.host.fd):
            begin, used = time.perf_counter(), time.thread_time()
            while (now := time.perf_counter() - begin) < for_s:
                live_frames(self._program, self._frame, self.index, each)
                made += each
                time.sleep(max(0.0, made / per_second - now))
            return (time.thread_time() - used) / made * per_second * 100, made


def measure(place: Place) -> list[Table]:
    """Throughput, CPU, exactness."""
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
            _exact(place, engine),
        ]


def _throughput(place: Place, engine: PolicyEngine, wire: Wire, policies: dict[str, NetworkPolicy]) -> Table:
    count = place.times(4_000_000, 200_000)
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
        text = f"{per_second // 1000} K/s"
        share, _ = wire.busy(per_second, place.times(3, 1))
        figures.append(
            Figure(what=f"{text}: making and dropping them, nothing attached", value=share, unit="% of a core")
        )
        for name in ("counting", "policy on every frame"):
            with engine.attach_interface(wire.host.fd, wire.index, policies[name]) as link:
                share, made = wire.busy(per_second, place.times(3, 1))
                lost = made - link.stats.packets_out
            note = f"{made} made, {lost} not counted"
            figures.append(Figure(what=f"{text}: {name}", value=share, unit="% of a core", note=note))
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
