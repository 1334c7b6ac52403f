"""What a test pays for its policy: attaching, many rules, memory, a denied connect.

Owns: medians of whole operations, in CPU time but for loading and a denied connect. Refuses: packets (frames.py, live.py).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from pytest_isolate.bench.network.live import many_rules
from pytest_isolate.bench.network.place import Figure, Place, competitor, in_child, table
from pytest_isolate.bench.table import Table
from pytest_isolate.kernel.bpf import load, objects
from pytest_isolate.kernel.bpf.dataplane import Dataplane
from pytest_isolate.network import COUNT_ONLY, AttachedPolicy, NetworkPolicy, PolicyEngine, Verdict

EVERYTHING = (
    NetworkPolicy(bind=Verdict.DENY)
    .allow("127.0.0.0/8")
    .allow_bind(tcp=True)
    .redirect("203.0.113.1:80", to=("127.0.0.1", 80))
)


def measure(place: Place) -> list[Table]:
    """Time of each test and each run, and the memory of the maps."""
    loaded = _loading(place)
    begin = time.perf_counter()
    with PolicyEngine(place.home, flows=4096) as engine:
        up = Figure(what="engine up, once per run: loaded, one attachment made", value=_ms_since(begin), unit="ms")
        with competitor(place, "each") as (_, _, fd):
            return _each(place, engine, fd, [loaded, up])


def _each(place: Place, engine: PolicyEngine, fd: int, before: list[Figure]) -> list[Table]:
    figures = [*before, *_attaching(place, engine, fd), *_rules(engine, fd), *_changing(place, engine, fd)]
    figures += _denied_connect(engine, fd)
    return [table("per test: CPU time; loading and a denied connect by the clock", figures), _memory(engine, fd)]


def _loading(place: Place) -> Figure:
    """By the clock: the kernel's verifier is most of it."""
    took = []
    for _ in range(place.times(5)):
        begin = time.perf_counter()
        with load({**objects.PROGRAMS, **objects.FLOW_PROGRAMS}, sizes={"np_flows4": 4096, "np_flows6": 4096}):
            took.append(_ms_since(begin))
    return Figure(what="programs and maps loaded by libbpf", value=statistics.median(took), unit="ms", target=2)


def _ms_since(begin: float) -> float:
    return (time.perf_counter() - begin) * 1e3


def _attaching(place: Place, engine: PolicyEngine, fd: int) -> list[Figure]:
    rounds = place.times(400, 20)
    return [
        Figure(
            what=f"attach and detach, {name}",
            value=_median_us(functools.partial(_once, engine, fd, policy), rounds),
            unit="us",
            target=200,
        )
        for name, policy in (("counting only", COUNT_ONLY), ("every hook on", EVERYTHING))
    ]


def _rules(engine: PolicyEngine, fd: int) -> list[Figure]:
    fresh = iter([NetworkPolicy(rules=many_rules(1000)) for _ in range(20)])
    known = NetworkPolicy(rules=many_rules(1000))
    new = _median_us(lambda: _once(engine, fd, next(fresh)), 20) / 1e3
    _once(engine, fd, known)
    again = _median_us(lambda: _once(engine, fd, known), 20) / 1e3
    return [
        Figure(what="1000 rules never seen before, attach and detach", value=new, unit="ms", target=2),
        Figure(what="1000 rules of another test too", value=again, unit="ms", target=2),
    ]


def _changing(place: Place, engine: PolicyEngine, fd: int) -> list[Figure]:
    rounds = place.times(200, 20)
    with engine.attach(fd, EVERYTHING) as attached:
        other = EVERYTHING.allow("10.0.0.0/8")
        attached.update(other)

        def twice() -> None:
            attached.update(EVERYTHING)
            attached.update(other)

        return [
            Figure(what="read of all counters", value=_median_us(lambda: attached.stats, rounds), unit="us"),
            Figure(what="change of policy, in force", value=_median_us(twice, rounds) / 2, unit="us"),
        ]


def _denied_connect(engine: PolicyEngine, fd: int) -> list[Figure]:
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
            os.write(writing, json.dumps([took[1000], took[1980]]).encode())

        in_child(work)
    middle, high = json.loads(os.read(reading, 4096))
    os.close(reading)
    os.close(writing)
    return [
        Figure(what="denied connect(2), median of 2000", value=middle, unit="us", target=1000),
        Figure(what="denied connect(2), 99 %", value=high, unit="us", target=1000),
    ]


def _memory(engine: PolicyEngine, fd: int) -> Table:
    plane = engine.plane
    rows = sorted(((name, plane.memory_of(name)) for name in plane.maps), key=lambda row: -row[1])
    shown = [Figure(what=f"of it {name}", value=size / 1024, unit="KiB") for name, size in rows if size >= 64 * 1024]
    each = _each_costs(engine, plane, fd)
    total = Figure(what="all maps of a run, memlock", value=plane.memory_bytes() / 1e6, unit="MB", target=7.1)
    return table("per test: memory", [total, *shown, each])


def _each_costs(engine: PolicyEngine, plane: Dataplane, fd: int) -> Figure:
    """What one attachment adds to what the kernel charges the maps with; and its storage, which no map is charged with."""
    before = plane.memory_bytes()
    with engine.attach(fd, EVERYTHING.allow("192.0.2.7")):
        added = plane.memory_bytes() - before
    storage = plane.maps["np_policies"].spec.value_bytes
    storage += plane.maps["np_counts"].spec.value_bytes * (os.cpu_count() or 1)
    return Figure(
        what="one policy: rules, and storage in its cgroup", value=(added + storage) / 1024, unit="KiB", target=64
    )


def _once(engine: PolicyEngine, fd: int, policy: NetworkPolicy) -> None:
    attached: AttachedPolicy = engine.attach(fd, policy)
    attached.close()


def _median_us(work: Callable[[], object], rounds: int) -> float:
    """CPU time, the kernel's included: what other programs take meanwhile is not the policy's. None of these waits."""
    took = []
    for _ in range(rounds):
        begin = time.thread_time()
        work()
        took.append((time.thread_time() - begin) * 1e6)
    return statistics.median(took)
