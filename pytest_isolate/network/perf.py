"""`bin/perf-test`: the data plane under load, seen while it works. Loads, attaches, adds policies, prints, asserts.

Owns: a veth between two namespaces of its own (or an interface named by the user), a generator, the statistics of each
five seconds, the exit status: 0 when every frame was counted and none was lost.
Refuses: to touch an interface it did not make, unless told to with --interface.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from pytest_isolate.errors import IsolateError, PolicyError
from pytest_isolate.kernel.bpf import load
from pytest_isolate.kernel.bpf.objects import AttachType, ProgramSpec, ProgramType
from pytest_isolate.kernel.bpf.testrun import live_frames, test_run
from pytest_isolate.kernel.interfaces import Netns, loopback_up, private_network
from pytest_isolate.kernel.namespaces import inside_netns
from pytest_isolate.network.attached import AttachedPolicy
from pytest_isolate.network.engine import PolicyEngine
from pytest_isolate.network.rules import NetworkPolicy
from pytest_isolate.network.traffic import Stats

_GENERATOR = {"base_generate": ProgramSpec(ProgramType.XDP, AttachType.XDP)}
_BURST = 50_000
_SAMPLES = 2000


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; the exit status of bin/perf-test."""
    parser = argparse.ArgumentParser(
        prog="perf-test", description="loads the network policy and measures it under traffic"
    )
    parser.add_argument("--duration", type=_positive, default=30.0, help="seconds (30)")
    parser.add_argument("--interval", type=_positive, default=5.0, help="seconds between statistics (5)")
    parser.add_argument(
        "--interface", help="count on this interface of the host; default: a veth of our own, with a generator"
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="frames per second to generate; 0: as many as one core makes"
    )
    parser.add_argument("--policies", type=int, default=100, help="rules to add to the policy (100)")
    options = parser.parse_args(arguments)
    if os.geteuid():
        print(
            "perf-test: it must run as root: bpf(2), namespaces and tcx need CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN",
            file=sys.stderr,
        )
        return 2
    try:
        with contextlib.ExitStack() as stack:
            return _run(stack, options)
    except (IsolateError, OSError) as error:
        print(f"perf-test: {error}", file=sys.stderr)
        return 2


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.01 <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no time: write seconds, at least 0.01")


def _index_of(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        there = ", ".join(name for _, name in socket.if_nameindex())
        raise PolicyError(f"--interface {interface}", "there is none of that name", f"name one of {there}") from None


def _run(stack: contextlib.ExitStack, options: argparse.Namespace) -> int:
    index = _index_of(options.interface) if options.interface else 0
    home = _home(stack)
    begin = time.perf_counter()
    engine = stack.enter_context(PolicyEngine(home))
    loaded = len(engine.plane.programs) + len(
        engine.interfaces.programs
    )  # the interfaces' are loaded when first asked for
    print(
        f"loaded {loaded} programs with {engine.front_end} in {(time.perf_counter() - begin) * 1e3:.0f} ms, "
        f"maps {engine.memory_bytes() / 1e6:.1f} MB"
    )
    if index:
        link = stack.enter_context(engine.attach_interface(-1, index))
        return _watch(engine, link, options, index, udp_frame("198.51.100.1", "198.51.100.2"), None)
    generator, frame, index, host, peer = _own_network(stack)
    policy = NetworkPolicy().allow(peer)
    for number in range(options.policies):
        policy = policy.deny(f"198.18.{number // 256}.{number % 256}")
    begin = time.perf_counter()
    link = stack.enter_context(engine.attach_interface(host.fd, index, policy))
    print(
        f"attached with {options.policies + 1} rules in {(time.perf_counter() - begin) * 1e6:.0f} us, generator on one core"
    )
    made = Generator(generator, frame, index, host, options.rate)
    return _watch(engine, link, options, index, frame, made)


def _home(stack: contextlib.ExitStack) -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            home = Path(left.split()[4]) / f"pytest-isolate-perf-{os.getpid()}"
            home.mkdir()
            stack.callback(home.rmdir)
            return home
    raise SystemExit("perf-test: no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


def _own_network(stack: contextlib.ExitStack) -> tuple[int, bytes, int, Netns, str]:
    plane = stack.enter_context(load(_GENERATOR, name="baseline"))
    host, test = stack.enter_context(Netns()), stack.enter_context(Netns())
    loopback_up(host.fd)
    subnet, index = private_network(stack, test.fd, host.fd)
    source, target = (a[0].partition("/")[0] for a in (subnet.test, subnet.host))
    return plane.programs["base_generate"], udp_frame(source, target), index, host, target


def udp_frame(source: str, target: str) -> bytes:
    """64 bytes of Ethernet, IPv4 and UDP, to a hardware address nobody has: the stack drops it after the policy."""
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 50, 0, 0, 64, 17, 0) + socket.inet_aton(source) + socket.inet_aton(target)
    return b"\2\0\0\0\0\x63" + bytes(6) + b"\x08\0" + ip + struct.pack("!HHHH", 4444, 7777, 30, 0) + bytes(22)


class Generator(threading.Thread):
    """Frames in bursts, from a thread: BPF_PROG_RUN lets go of the interpreter."""

    def __init__(self, program: int, frame: bytes, index: int, host: Netns, rate: float) -> None:
        super().__init__(name="perf-generator", daemon=True)
        self.made = 0
        self.busy_s = 0.0
        self._arguments = (program, frame, index)
        self._host, self._rate = host, rate
        self._enough = threading.Event()

    def run(self) -> None:
        program, frame, index = self._arguments
        burst = min(_BURST, max(64, int(self._rate / 20))) if self._rate else _BURST
        with inside_netns(self._host.fd):
            begin = time.perf_counter()
            while not self._enough.is_set():
                start = time.thread_time()
                live_frames(program, frame, index, burst)
                self.busy_s += time.thread_time() - start
                self.made += burst
                if self._rate:
                    time.sleep(max(0.0, begin + self.made / self._rate - time.perf_counter()))

    def stop(self) -> None:
        """Finish the burst under way."""
        self._enough.set()
        self.join()


def _watch(
    engine: PolicyEngine,
    link: AttachedPolicy,
    options: argparse.Namespace,
    index: int,
    frame: bytes,
    made: Generator | None,
) -> int:
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    begin = last = time.monotonic()
    before = link.stats
    if made:
        made.start()
    while not stopped.is_set() and time.monotonic() - begin < options.duration:
        stopped.wait(min(options.interval, max(0.01, begin + options.duration - time.monotonic())))
        now, stats = time.monotonic(), link.stats
        _print(now - begin, now - last, stats, stats - before, latencies(engine, index, frame))
        last, before = now, stats
    if made is None:
        return 0
    made.stop()
    return _judge(made, link.stats, time.monotonic() - begin)


def _print(at_s: float, for_s: float, stats: Stats, since: Stats, latency: tuple[int, int, int]) -> None:
    packets, size = since.packets_out + since.packets_in, since.l3_bytes_out + since.l3_bytes_in
    middle, high, highest = latency
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"[{at_s:6.1f} s] {packets / for_s / 1e3:9.1f} Kpackets/s {size * 8 / for_s / 1e6:9.1f} Mbit/s"
        f"  total {stats.packets_out + stats.packets_in}"
        f"  denied {stats.denied}  events lost {stats.events_lost}"
        f"  policy on a frame p50 {middle} ns p99 {high} ns p99.9 {highest} ns  CPU {used.ru_utime + used.ru_stime:.1f} s",
        flush=True,
    )


def latencies(engine: PolicyEngine, index: int, frame: bytes) -> tuple[int, int, int]:
    """p50, p99 and p99.9 of the policy on a frame, each run timed alone.

    A test run's interface is lo, number 1: it gets the policy and counters of ``index`` for the moment (nothing is attached there).
    """
    maps, lo = engine.plane.maps, struct.pack("=I", 1)
    for name in ("np_links", "np_link_counts"):
        maps[name].update(lo, maps[name].lookup(struct.pack("=I", index)) or b"")
    try:
        took = sorted(test_run(engine.interfaces.programs["np_link_out"], frame).duration_ns for _ in range(_SAMPLES))
    finally:
        for name in ("np_links", "np_link_counts"):
            maps[name].delete(lo)
    return took[_SAMPLES // 2], took[_SAMPLES * 99 // 100], took[_SAMPLES * 999 // 1000]


def _judge(made: Generator, stats: Stats, for_s: float) -> int:
    lost = made.made - stats.packets_out
    print(f"\ngenerated {made.made} frames, counted {stats.packets_out}, not counted {lost}, denied {stats.denied}")
    per_core = made.made / max(made.busy_s, 1e-9) / 1e6
    print(
        f"{stats.packets_out / for_s / 1e3:.0f} Kpackets/s over {for_s:.1f} s; {per_core:.2f} M packets per second of one core's time"
    )
    if lost or not made.made:
        print("FAILED: frames were not counted" if lost else "FAILED: no traffic")
        return 1
    print("ok: every frame was counted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
