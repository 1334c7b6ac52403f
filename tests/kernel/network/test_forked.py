"""A forked child has a copy of what holds policies in force: it can look, and whatever it does is nothing to its parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback

import pytest

from pytest_isolate import Cause, Sandbox
from pytest_isolate.errors import PolicyError
from pytest_isolate.network import NetworkPolicy
from tests.kernel.network.conftest import attempt, tcp
from tests.kernel.network.test_names_and_redirects import _ask_udp

CHILD_S = 20
DIAL = "import socket; print('up', flush=True); input(); socket.create_connection(('192.0.2.1', 9), 5)"


def in_child(work):
    """What ``work`` returns in a forked child (by JSON). It dies of nothing, and in time."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            signal.alarm(CHILD_S)
            with contextlib.suppress(BaseException):
                try:
                    answer = {"value": work()}
                except BaseException:
                    answer = {"error": traceback.format_exc()}
                os.write(writing, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"wait status {status}"
    answer = json.loads(text)
    assert "error" not in answer, answer["error"]
    return answer["value"]


def refused(work):
    try:
        work()
    except PolicyError as error:
        return str(error)
    return "done"


def test_a_child_reads_what_has_passed_and_changes_no_rule(box, other_box, engine, listen):
    open_to, closed_to = listen().getsockname(), listen().getsockname()
    policy = NetworkPolicy(flows=True, limit_connections=100).allow("203.0.113.7", tcp=[open_to[1]])

    def tries():
        dialled = [attempt(lambda a=a: tcp(a))[0] for a in (open_to, closed_to)]
        return [*dialled, _ask_udp("other.test")[0]]  # 3: NXDOMAIN, of the resolver

    with box.attach(policy.allow_host("db.test", tcp=[80])) as net:
        before = box.run(tries)

        def child():
            counted = [net.stats.denied_out, net.stats.connections_out, len(net.flows()), len(net.events())]
            engine.drain()
            changes = [
                refused(lambda: net.update(NetworkPolicy())),
                refused(net.renew_limits),
                refused(lambda: engine.attach(other_box.fd)),
            ]
            net.close()
            net.__exit__(None, None, None)
            return counted, changes, net.stats.denied_out

        flows = len(net.flows())
        counted, changes, still = in_child(child)
        after = box.run(tries)
        told = [event.port for event in net.denied]
    assert before == after == ["ok", "EPERM", 3]
    assert flows >= 2
    assert (counted, still) == ([1, net.stats.connections_out // 2, flows, 0], 1)  # its parent has taken no event yet
    assert [change.partition(": ")[2] for change in changes] == [
        "it belongs to the process this one was forked off. Change it there."
    ] * 3
    assert told == [closed_to[1]] * 2


def test_a_child_that_was_forked_while_a_thread_was_at_the_events_reads_them(box, engine):
    with box.attach(NetworkPolicy()) as net, engine.lock:

        def child():
            found = []
            reader = threading.Thread(target=lambda: found.append(len(net.events())))
            reader.start()
            reader.join(CHILD_S / 2)
            return found

        assert in_child(child) == [0]


@pytest.mark.usefixtures("by_libbpf")
@pytest.mark.parametrize("mode", ["policy", "private"])
def test_a_child_leaves_its_copy_of_a_sandbox_s_network(mode):
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as go, Sandbox() as sandbox:
        running = sandbox.spawn([sys.executable, "-c", DIAL], net=mode, net_allow=["203.0.113.7"], stdin=reading)
        running.wait_for_line("up")
        network = running.network
        assert network is not None

        def child():
            seen = network.traffic() is not None
            network.close()
            return seen, network.traffic(), network.reason

        assert in_child(child) == [True, None, "it is counted in the process that started it"]
        if network.subnet is not None:
            assert os.path.exists(f"/sys/class/net/iso{network.subnet.number:x}")
        print(file=go, flush=True)
        outcome = running.wait()
    assert outcome.causes == (Cause.NETDENIED,)
    assert outcome.traffic is not None
    assert outcome.traffic.denied == 1
