"""A policy that changes while its test runs, tests beside each other, and cgroups that are used again.

Everything a test contacts is in the namespace of the run. Counts are compared with what was sent, exactly.
"""

from __future__ import annotations

import os
import socket

import pytest

from pytest_isolate.network import NetworkPolicy
from tests.kernel.network.conftest import attempt, sends, tcp, udp

V4 = "203.0.113.7"


def _talk(address, steps):
    """Send a byte per step over one TCP connection; ``steps`` tells when. Returns what came back each time."""
    answers = []
    with tcp(address, 0.3) as made:
        for _ in range(3):
            os.read(steps[0], 1)
            made.settimeout(0.3)
            answers.append(attempt(lambda: (made.send(b"x"), made.recv(1)))[0])
            os.write(steps[3], b"x")
    return answers


def test_a_change_of_policy_reaches_live_connections(box, listen, steps):
    server = listen()
    _, go_w, done_r, _ = steps
    policy = NetworkPolicy().allow(V4)
    with box.attach(policy) as net:
        job = box.start(lambda: _talk(server.getsockname(), steps))
        peer, _ = server.accept()
        peer.settimeout(1)
        with peer:
            os.write(go_w, b"x")
            peer.sendall(peer.recv(1))
            os.read(done_r, 1)
            net.update(NetworkPolicy().deny(V4))
            os.write(go_w, b"x")
            os.read(done_r, 1)
            assert net.stats.denied_out > 0
            net.update(policy)
            os.write(go_w, b"x")
            peer.sendall(b"y" * len(peer.recv(10)))
            os.read(done_r, 1)
        assert job.result() == ["ok", "TIMEOUT", "ok"]


def test_a_change_of_policy_reaches_a_connected_datagram_socket(box, listen, steps):
    server = listen(kind=socket.SOCK_DGRAM)
    _, go_w, done_r, _ = steps

    with box.attach(NetworkPolicy().allow(V4)) as net:
        job = box.start(lambda: sends(server.getsockname(), steps, 2))
        os.write(go_w, b"x")
        os.read(done_r, 1)
        net.update(NetworkPolicy())
        os.write(go_w, b"x")
        assert job.result() == ["ok", "EPERM"]


def _half_closed(address, steps):
    """A connection closed for sending and kept; the number of bytes the peer could send on it since."""
    with tcp(address, 1) as made:
        made.shutdown(socket.SHUT_WR)
        os.write(steps[3], b"x")
        os.read(steps[0], 1)
        made.settimeout(0.3)
        try:
            return len(made.recv(100))
        except TimeoutError:
            return -1


@pytest.mark.parametrize(("last_word", "received"), [(b"", 0), (b"data", -1)], ids=["no data", "data"])
@pytest.mark.parametrize("flows", [False, True])
def test_the_end_of_a_connection_is_no_refusal_and_what_it_could_carry_is(
    box, listen, steps, flows, last_word, received
):
    """A group's next test is not blamed for the last segments of the one before; data stays out."""
    server = listen()
    policy = NetworkPolicy(flows=flows)
    with box.attach(policy.allow(V4)) as net:
        job = box.start(lambda: _half_closed(server.getsockname(), steps))
        peer, _ = server.accept()
        os.read(steps[2], 1)
        net.update(policy)
        before = net.stats
        if last_word:
            peer.sendall(last_word)
        peer.close()
        os.write(steps[1], b"x")
        assert job.result() == received
        now = net.stats
        if last_word:
            assert now.denied_in > 0
            assert [e.reason.name for e in net.denied] == ["PACKET_IN"]
        else:
            assert (now.denied, net.denied) == (0, [])
            assert now.packets_in > before.packets_in
            assert now.packets_out - before.packets_out == 1  # the ACK of the peer's FIN


def test_two_tests_in_parallel_never_see_each_others_counts(box, other_box, listen):
    one, two = listen(kind=socket.SOCK_DGRAM).getsockname(), listen(kind=socket.SOCK_DGRAM).getsockname()
    with (
        box.attach(NetworkPolicy().allow(V4, udp=[one[1]])) as first,
        other_box.attach(NetworkPolicy().allow(V4, udp=[two[1]])) as second,
    ):
        jobs = [
            b.start(
                lambda mine=mine, theirs=theirs: [
                    attempt(lambda: udp(mine, times=20000))[0],
                    attempt(lambda: udp(theirs))[0],
                ]
            )
            for b, mine, theirs in ((box, one, two), (other_box, two, one))
        ]
        assert [j.result() for j in jobs] == [["ok", "EPERM"]] * 2
        assert [n.stats.packets_out for n in (first, second)] == [20000, 20000]
        assert [n.stats.denied for n in (first, second)] == [1, 1]
        assert [[e.port for e in n.denied] for n in (first, second)] == [[two[1]], [one[1]]]


def test_a_cgroup_made_by_the_test_counts_to_the_test(box, listen):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()

    def work():
        below = box.cgroup / "below"
        below.mkdir()
        (below / "cgroup.procs").write_text("0")
        udp(address, times=5)
        answer = attempt(lambda: udp((V4, 1)))[0]
        (box.cgroup / "cgroup.procs").write_text("0")
        below.rmdir()
        return answer

    with box.attach(NetworkPolicy().allow(V4, udp=[address[1]])) as net:
        assert box.run(work) == "EPERM"
        assert (net.stats.packets_out, net.stats.denied_out) == (5, 1)


def test_counts_start_at_zero_when_a_cgroup_is_used_again(box, listen):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()
    for times in (3, 4):
        with box.attach(NetworkPolicy().allow(V4)) as net:
            box.run(lambda times=times: udp(address, times=times))
        assert net.stats.packets_out == times
