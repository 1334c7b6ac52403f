"""Threads of one process that read counts, take events and start programs at once. Counts are compared exactly."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from pathlib import Path

import pytest

from pytest_isolate.groups import of_this_process as groups_of_this_process
from pytest_isolate.network import NetworkPolicy
from pytest_isolate.networks import Networks
from tests.conftest import require_front_end
from tests.kernel.network.conftest import attempt, udp

V4 = "203.0.113.7"


@pytest.fixture(autouse=True)
def _often():
    """They take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def _at_once(*works):
    """What each answered, in threads of their own."""
    answers, gate = [None] * len(works), threading.Barrier(len(works))

    def run(number):
        gate.wait()
        answers[number] = works[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_each_reads_the_counts_it_asked_for(box, other_box, listen):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()
    with box.attach(NetworkPolicy().allow(V4)) as one, other_box.attach(NetworkPolicy().allow(V4)) as other:
        box.run(lambda: udp(address, times=3))
        other_box.run(lambda: udp(address, times=5))
        read = _at_once(*(lambda n=net: {n.stats.packets_out for _ in range(8000)} for net in (one, other)))
        assert read == [{3}, {5}]


def test_each_event_is_taken_once(box):
    def flood():
        for port in range(1, 3201):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                attempt(lambda made=made, port=port: made.sendto(b"x", (V4, port)))

    with box.attach(NetworkPolicy()) as net:
        job, over = box.start(flood), threading.Event()

        def take():
            while not over.is_set():
                net.events()

        _at_once(take, take, lambda: (job.result(), over.set()))
        events, stats = net.told()
        assert stats.denied == 3200
        assert len(events) + stats.events_lost == 3200
        assert len({event.port for event in events}) == len(events)


def test_the_first_that_needs_an_engine_loads_it_for_all():
    require_front_end("libbpf")
    groups = groups_of_this_process()
    with contextlib.closing(groups), contextlib.closing(Networks(groups)) as networks:
        _at_once(*[networks.engine] * 4)
        home = groups.v2_directory()
        assert home is not None
        assert len(list(Path(home).glob("pytest-isolate-resident-*"))) == 1
