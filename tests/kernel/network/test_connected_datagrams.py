"""connect(2) of UDP sends nothing, and name look-ups do it to sort addresses for TCP: where that may go it passes, and what is
sent is judged. Elsewhere it is refused at once."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from pytest_isolate.network import NetworkPolicy
from tests.kernel.network.conftest import attempt, tcp, udp

V4, V6 = "203.0.113.7", "2001:db8::7"


def _connects(*addresses):
    """For a job: the answers to connect(2) alone."""
    answers = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as made:
            answers.append(attempt(lambda made=made, address=address: made.connect(address))[0])
    return answers


@pytest.mark.parametrize("flows", [False, True])
def test_a_connect_alone_is_neither_refused_nor_told(box, flows):
    with box.attach(NetworkPolicy(flows=flows).allow(V4, tcp=[80]).allow(V6, tcp=[80])) as net:
        places = (V4, 80), (V6, 80), (f"::ffff:{V4}", 80), (V4, 0), (V6, 0), ("203.0.113.8", 0)
        assert box.run(lambda: _connects(*places)) == ["ok"] * 6
        assert (net.stats.denied, net.events()) == (0, [])


def test_where_nothing_may_go_it_is_refused_at_once(box):
    """A client of DNS that hears of it only when it sends waits for its time-out."""
    policy = NetworkPolicy(errno=errno.ECONNREFUSED).allow(V4, tcp=[80])
    with box.attach(policy) as net:
        assert box.run(lambda: _connects((V4, 53), (V6, 80))) == ["ECONNREFUSED"] * 2
        assert [(e.port, e.protocol) for e in net.denied] == [(53, "udp"), (80, "udp")]


def test_a_name_look_up_for_an_allowed_port_leaves_no_denial(box, listen):
    port = listen("127.0.0.1").getsockname()[1]

    def work():
        socket.getaddrinfo(None, port, type=socket.SOCK_STREAM)
        return attempt(lambda: tcp(("127.0.0.1", port)))[0]

    with box.attach(NetworkPolicy().allow("localhost", tcp=[port])) as net:
        assert box.run(work) == "ok"
        assert (net.stats.denied, net.denied) == (0, [])


@pytest.mark.parametrize("flows", [False, True])
@pytest.mark.parametrize("host", [V4, V6])
def test_what_it_then_sends_is_refused_and_told_with_its_process(box, listen, flows, host):
    server = listen(host, kind=socket.SOCK_DGRAM)
    address = server.getsockname()[:2]

    def work():
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.connect(address)
            return [os.getpid(), *(attempt(lambda: made.send(b"x"))[0] for _ in range(3))]

    with box.attach(NetworkPolicy(flows=flows).allow(host, tcp=[address[1]])) as net:
        pid, *answers = box.run(work)
        assert answers == ["EPERM"] * 3
        assert net.stats.denied_out == 3
        assert [(e.port, e.protocol, e.pid) for e in net.denied] == [(address[1], "udp", pid)]
        assert f"pid {pid} (rule: default deny" in str(net.denied[0])
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(10)


@pytest.mark.parametrize("flows", [False, True])
@pytest.mark.parametrize("host", [V4, V6])
def test_where_a_redirect_leads_it_is_refused_for_who_was_not_redirected(box, listen, flows, host):
    """Packets to there pass, and nothing tells whose they are."""
    server, there = listen(host, kind=socket.SOCK_DGRAM), "203.0.113.8" if host == V4 else "2001:db8::8"
    address = server.getsockname()[:2]
    policy = NetworkPolicy(flows=flows).allow(host, tcp=[address[1]])
    with box.attach(policy.redirect(there, to=(host, address[1]))) as net:
        direct, redirected = (lambda to=to, **how: attempt(lambda: udp(to, **how))[0] for to in (address, (there, 443)))
        assert [box.run(lambda c=c: redirected(connected=c)) for c in (False, True)] == ["ok", "ok"]
        assert [len(server.recv(64)) for _ in range(2)] == [32, 32]
        assert [box.run(lambda c=c: direct(connected=c)) for c in (False, True)] == ["EPERM", "EPERM"]
        assert [(e.port, e.protocol) for e in net.denied] == [(address[1], "udp")] * 2
        assert box.run(lambda: _connects((host, 0))) == ["ok"]
        assert net.stats.denied == 2
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(10)


def test_it_is_refused_also_where_datagrams_pass_without_a_look_at_the_rules(box, listen):
    """Each CPU remembers that UDP passes; the first connect against the policy takes that back, on all of them."""
    allowed, refused = listen(kind=socket.SOCK_DGRAM), listen(kind=socket.SOCK_DGRAM)

    def work():
        answers = []
        for cpu in os.sched_getaffinity(0):
            os.sched_setaffinity(0, {cpu})
            udp(allowed.getsockname(), times=5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.connect(refused.getsockname())
            for cpu in range(os.cpu_count() or 1):
                attempt(lambda cpu=cpu: os.sched_setaffinity(0, {cpu}))
                answers.append(attempt(lambda: made.send(b"x"))[0])
        return answers

    rules = NetworkPolicy().allow(V4, udp=[allowed.getsockname()[1]]).allow(V4, tcp=[refused.getsockname()[1]])
    with box.attach(rules):
        assert set(box.run(work)) == {"EPERM"}
        assert box.run(lambda: attempt(lambda: udp(allowed.getsockname(), connected=True))[0]) == "ok"


@pytest.mark.parametrize("flows", [False, True])
def test_who_was_spoken_to_by_a_peer_may_not_for_that_connect_and_answer(box, listen, flows):
    peer = listen(kind=socket.SOCK_DGRAM)

    def work():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(2)
            made.bind((V4, 9393))
            _, source = made.recvfrom(10)
            made.connect(source)
            return attempt(lambda: made.send(b"x"))[0]

    with box.attach(NetworkPolicy(flows=flows).allow(V4, tcp=[peer.getsockname()[1]])):
        job = box.start(work)
        for _ in range(20):
            attempt(lambda: peer.sendto(b"x", (V4, 9393)))
            peer.settimeout(0.05)
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                peer.recv(10)
        assert job.result() == "EPERM"


def test_datagram_sockets_use_up_no_limit_of_connections(box, listen):
    server = listen(V4)
    with box.attach(NetworkPolicy().allow(V4).limit(connections=1)) as net:
        assert box.run(lambda: _connects((V4, 9), (V4, 10))) == ["ok", "ok"]
        assert box.run(lambda: attempt(lambda: tcp(server.getsockname()))[0]) == "ok"
        assert box.run(lambda: attempt(lambda: tcp(server.getsockname()))[0]) == "EPERM"
        assert net.stats.connections_out == 1


def test_equal_policies_have_each_their_own_events(box):
    """Raw sockets and frames: what was told of one sandbox is not thereby told of the next with the same rules."""

    def raw():
        return attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))[0]

    policy = NetworkPolicy().allow("127.0.0.1")
    for _ in range(3):
        with box.attach(policy) as net:
            assert box.run(raw) == "EPERM"
            assert (net.stats.denied, len(net.denied)) == (1, 1)
            assert box.run(raw) == "EPERM"
            assert (net.stats.denied, len(net.denied)) == (2, 2)
