"""Every case of the network policy, on the kernel: what is allowed passes first, then what is denied does not.

Everything a test contacts is in the namespace of the run. Counts are compared with what was sent, exactly.
"""

from __future__ import annotations

import os
import socket
import struct
import time

import pytest

from pytest_isolate.kernel.namespaces import CLONE_NEWNET, unshare
from pytest_isolate.network import NetworkPolicy, Verdict
from tests.kernel.network.conftest import attempt, tcp, udp
from tests.kernel.network.uring import connect_by_uring

V4, V6 = "203.0.113.7", "2001:db8::7"


def _mapped(address):
    return (f"::ffff:{address[0]}", address[1])


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [V4, V6, "127.0.0.1", "::1"])
def test_a_denied_connect_answers_eperm_at_once(box, listen, host):
    """No later than an allowed one does: it is refused, and not left to a time-out."""
    server = listen(host).getsockname()[:2]
    closed = listen(host).getsockname()[:2]
    with box.attach(NetworkPolicy().allow(host, tcp=[server[1]])) as net:
        allowed, denied = box.run(
            lambda: [[attempt(lambda to=to: tcp(to)) for _ in range(5)] for to in (server, closed)]
        )
        assert [answer for answer, _ in allowed] == ["ok"] * 5
        assert [answer for answer, _ in denied] == ["EPERM"] * 5
        assert min(ms for _, ms in denied) < 3 * min(ms for _, ms in allowed)
        assert net.stats.connections_out == 5
        assert net.stats.denied_out == 5
        assert [e.port for e in net.denied] == [closed[1]] * 5
        assert str(net.denied[0]).startswith(
            f"NETDENIED {'[' + host + ']' if ':' in host else host}:{closed[1]}/tcp by "
        )
        assert "rule: default deny; allow with allow(" in str(net.denied[0])


@pytest.mark.parametrize("name", ["ECONNREFUSED", "ENETUNREACH", "EACCES"])
def test_the_errno_asked_for_is_what_the_denied_call_answers(box, listen, name):
    import errno

    server = listen().getsockname()
    policy = NetworkPolicy(errno=getattr(errno, name))
    with box.attach(policy.allow(V4)):
        assert box.run(lambda: attempt(lambda: tcp(server))[0]) == "ok"
    with box.attach(policy):
        assert box.run(lambda: [attempt(lambda: tcp(server))[0], attempt(lambda: udp(server))[0]]) == [name, name]


@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize("connected", [False, True])
def test_a_denied_datagram_is_refused_at_the_call(box, listen, host, connected):
    server = listen(host, kind=socket.SOCK_DGRAM)
    address = server.getsockname()[:2]
    with box.attach(NetworkPolicy().allow(host, udp=[address[1]])) as net:
        assert box.run(lambda: attempt(lambda: udp(address, connected=connected))[0]) == "ok"
        assert server.recv(100) == b"x" * 32
        net.update(NetworkPolicy().allow(host, tcp=True))
        assert box.run(lambda: attempt(lambda: udp(address, connected=connected))[0]) == "EPERM"
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(100)


def test_a_v4_mapped_address_is_the_ipv4_address_it_is(box, listen):
    """TCP and UDP connect fire connect6, UDP sendto fires sendmsg4: all three are judged by the IPv4 rule."""
    stream, datagram = listen().getsockname(), listen(kind=socket.SOCK_DGRAM).getsockname()

    def work():
        return [
            attempt(lambda: tcp(_mapped(stream)))[0],
            attempt(lambda: udp(_mapped(datagram)))[0],
            attempt(lambda: udp(_mapped(datagram), connected=True))[0],
        ]

    with box.attach(NetworkPolicy().allow(V4)):
        assert box.run(work) == ["ok"] * 3
    with box.attach(NetworkPolicy(default=Verdict.ALLOW).deny(V4)) as net:
        assert box.run(work) == ["EPERM"] * 3
        assert {str(e.address) for e in net.denied} == {V4}
    with box.attach(NetworkPolicy(default=Verdict.ALLOW).deny("::ffff:203.0.113.0/120")):
        assert box.run(work) == ["EPERM"] * 3


@pytest.mark.parametrize(
    ("wildcard", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::ffff:0.0.0.0", "127.0.0.1")]
)
def test_the_wildcard_address_is_judged_as_the_loopback_it_reaches(box, listen, wildcard, reached):
    port = listen(reached).getsockname()[1]
    with box.attach(NetworkPolicy().allow(reached)):
        assert box.run(lambda: attempt(lambda: tcp((wildcard, port)))[0]) == "ok"
    with box.attach(NetworkPolicy(default=Verdict.ALLOW).deny(reached)):
        assert box.run(lambda: attempt(lambda: tcp((wildcard, port)))[0]) == "EPERM"


def _fast_open(address):
    with socket.socket() as made:
        made.sendto(b"x", 0x20000000, address)  # MSG_FASTOPEN


def test_fast_open_is_caught(box, listen):
    address = listen().getsockname()
    with box.attach(NetworkPolicy().allow(V4)):
        assert box.run(lambda: attempt(lambda: _fast_open(address))[0]) == "ok"
    with box.attach(NetworkPolicy()):
        assert box.run(lambda: attempt(lambda: _fast_open(address))[0]) == "EPERM"


@pytest.mark.parametrize("sqpoll", [False, True])
def test_io_uring_is_caught_with_a_kernel_thread_too(box, listen, sqpoll):
    address = listen().getsockname()
    with box.attach(NetworkPolicy().allow(V4)):
        assert box.run(lambda: connect_by_uring(address, sqpoll)) == "ok"
    with box.attach(NetworkPolicy()) as net:
        assert box.run(lambda: connect_by_uring(address, sqpoll)) == "EPERM"
        assert [e.port for e in net.denied] == [address[1]]


def test_a_network_namespace_of_its_own_does_not_lead_out(box):
    """Control: without a policy the new namespace answers ENETUNREACH, for it is empty."""

    def work():
        unshare(CLONE_NEWNET)
        return attempt(lambda: tcp((V4, 80)))[0]

    with box.attach(NetworkPolicy(default=Verdict.ALLOW)):
        assert box.run(work) == "ENETUNREACH"
    with box.attach(NetworkPolicy()):
        assert box.run(work) == "EPERM"


def test_a_socket_made_outside_keeps_its_makers_cgroup(box, listen):
    """Neither blocked nor counted, inherited or passed: why sandboxes close descriptors, and strict has its own netns."""
    address = listen(kind=socket.SOCK_DGRAM).getsockname()

    def passed(made):
        one, two = socket.socketpair()
        socket.send_fds(one, [b"x"], [made.fileno()])
        _, fds, _, _ = socket.recv_fds(two, 1, 1)
        return attempt(lambda: socket.socket(fileno=fds[0]).sendto(b"x", address))[0]

    with box.attach(NetworkPolicy()) as net:
        assert box.run(lambda: attempt(lambda: udp(address))[0]) == "EPERM"
        before = net.stats
        before_call = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # noqa: E731
        # The call is judged by the caller's cgroup for connect and sendmsg? No: by the socket's.
        assert box.run(lambda made: attempt(lambda: made.sendto(b"x", address))[0], before=before_call) == "ok"
        assert box.run(passed, before=before_call) == "ok"
        assert net.stats == before


def test_a_plain_user_cannot_leave_the_cgroup_and_root_can(box, hive, listen):
    """Root with cgroupfs in sight leaves: sandboxes hide it and drop capabilities. Here: what the policy alone is worth."""
    address = listen().getsockname()

    def leave():
        left = attempt(lambda: (hive.parent / "cgroup.procs").write_text("0"))[0]
        return [left, attempt(lambda: tcp(address))[0]]

    with box.attach(NetworkPolicy()):
        assert box.run(leave) == ["ok", "ok"]
        assert box.run(leave, uid=65534) == ["EACCES", "EPERM"]


def test_raw_sockets_are_denied_unless_asked_for(box):
    def work():
        return [
            attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))[0],
            attempt(lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6))[0],
            attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))[0],
        ]

    with box.attach(NetworkPolicy(raw=True)):
        assert box.run(work) == ["ok"] * 3
    with box.attach(NetworkPolicy()) as net:
        assert box.run(work) == ["EPERM"] * 3
        assert net.stats.denied_out == 3
        assert "raw=True" in str(net.denied[0])


@pytest.mark.parametrize("flags", [0x02, 0x10], ids=["SYN", "ACK"])
def test_a_raw_packet_is_judged_as_a_packet(box, listen, flags):
    """TCP written by hand, where raw sockets are allowed: the connect hook never sees it, the packet hook does."""
    address = listen().getsockname()

    def work():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            segment = struct.pack("!HHIIBBHHH", 4444, address[1], 1, 0, 0x50, flags, 1024, 0, 0)
            return attempt(lambda: raw.sendto(segment, (V4, 0)))[0]

    with box.attach(NetworkPolicy(raw=True).allow(V4, tcp=[address[1]])):
        assert box.run(work) == "ok"
    with box.attach(NetworkPolicy(raw=True).allow(V4, tcp=[1])) as net:
        assert box.run(work) == "EPERM"
        assert net.stats.denied_out == 1


# -- packets -----------------------------------------------------------------------------------------------------------


def test_bytes_are_l3_and_both_directions_are_counted(box):
    def work():
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
        ):
            two.bind((V4, 0))
            for _ in range(10):
                one.sendto(b"x" * 32, two.getsockname())
            return sum(len(two.recv(100)) for _ in range(10))

    with box.attach(NetworkPolicy().allow(V4)) as net:
        assert box.run(work) == 320
        stats = net.stats
    assert (stats.packets_out, stats.l3_bytes_out) == (10, 600)
    assert (stats.packets_in, stats.l3_bytes_in) == (10, 600)


def test_a_test_without_a_policy_is_counted_and_free(box, listen):
    from pytest_isolate.network import COUNT_ONLY

    server = listen(kind=socket.SOCK_DGRAM).getsockname()
    with box.attach(COUNT_ONLY) as net:
        assert box.run(lambda: attempt(lambda: udp(server, times=7))[0]) == "ok"
        assert (net.stats.packets_out, net.stats.denied, net.events()) == (7, 0, [])


def test_segmentation_offload_is_counted_as_the_wire_sees_it(box, listen):
    """UDP_SEGMENT: 10 datagrams of 100 bytes handed down as one skb."""
    server = listen(kind=socket.SOCK_DGRAM)
    address = server.getsockname()

    def work():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.IPPROTO_UDP, 103, 100)
            made.sendto(b"x" * 1000, address)

    with box.attach(NetworkPolicy().allow(V4)) as net:
        box.run(work)
        stats = net.stats
    assert (stats.packets_out, stats.l3_bytes_out) == (1, 1028)
    assert (stats.wire_packets_out, stats.wire_l3_bytes_out) == (10, 10 * 128)


def test_a_datagram_larger_than_the_mtu_is_one_packet_and_judged_whole(box, listen):
    server = listen(kind=socket.SOCK_DGRAM)
    address = server.getsockname()
    with box.attach(NetworkPolicy().allow(V4)) as net:
        box.run(lambda: udp(address, b"x" * 60000))
        assert len(server.recv(65536)) == 60000
        assert net.stats.l3_bytes_out == 60028
        net.update(NetworkPolicy())
        assert box.run(lambda: attempt(lambda: udp(address, b"x" * 60000))[0]) == "EPERM"


def _with_ip_options(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x07\x07\x04\0\0\0\0\0")  # record route
        made.sendto(b"x", address)


def _with_hop_by_hop(address):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, b"\x11\0\x01\x04\0\0\0\0")
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, b"\x11\0\x01\x04\0\0\0\0")
        made.sendto(b"x", address)


@pytest.mark.parametrize(
    ("host", "send", "l3_bytes"), [(V4, _with_ip_options, 20 + 8 + 8 + 1), (V6, _with_hop_by_hop, 40 + 16 + 8 + 1)]
)
def test_options_and_extension_headers_hide_nothing(box, listen, host, send, l3_bytes):
    """per_packet: the hook itself has to find the port behind them."""
    server = listen(host, kind=socket.SOCK_DGRAM)
    address = server.getsockname()[:2]
    with box.attach(NetworkPolicy(per_packet=True).allow(host, udp=[address[1]])) as net:
        assert box.run(lambda: attempt(lambda: send(address))[0]) == "ok"
        assert server.recv(10) == b"x"
        assert net.stats.l3_bytes_out == l3_bytes
    with box.attach(NetworkPolicy(per_packet=True).allow(host, udp=[1])):
        assert box.run(lambda: attempt(lambda: send(address))[0]) == "EPERM"


def _ping(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as made:
        made.settimeout(2)
        made.sendto(b"\x08\0\0\0\0\1\0\1" + b"x" * 8, (host, 0))
        made.recv(100)


def test_icmp_is_allowed_and_denied_by_its_own_word(box):
    with box.attach(NetworkPolicy().allow(V4, icmp=True)) as net:
        assert box.run(lambda: attempt(lambda: _ping(V4))[0]) == "ok"
        assert (net.stats.packets_out, net.stats.l3_bytes_out, net.stats.packets_in) == (1, 36, 1)
    with box.attach(NetworkPolicy().allow(V4, tcp=True, udp=True)) as net:
        assert box.run(lambda: attempt(lambda: _ping(V4)))[0] == "EPERM"
        assert "icmp=True" in str(net.denied[0])


def test_multicast_is_a_destination_like_any_other(box):
    def work():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            return attempt(lambda: made.sendto(b"x", ("239.1.1.1", 5000)))[0]

    with box.attach(NetworkPolicy().allow("239.0.0.0/8")) as net:
        assert box.run(work) == "ok"
        assert net.stats.packets_out == 1
    with box.attach(NetworkPolicy().allow("203.0.113.0/24")):
        assert box.run(work) == "EPERM"


# -- inbound, bind, limits -----------------------------------------------------------------------------------------------


def _serve_once(host, port, ready):
    with socket.create_server((host, port)) as server:
        server.settimeout(1)
        os.write(ready, b"x")
        return attempt(lambda: server.accept()[0])[0]


def test_inbound_connections_are_counted_and_can_be_denied(box, netns):
    from pytest_isolate.kernel.namespaces import inside_netns

    def visit(policy):
        reading, writing = os.pipe()
        with box.attach(policy) as net:
            job = box.start(lambda: _serve_once(V4, 8080, writing))
            os.read(reading, 1)
            with inside_netns(netns.fd):
                answer = attempt(lambda: tcp((V4, 8080), 0.3))[0]
            job.result()
        os.close(reading)
        os.close(writing)
        return answer, net

    answer, net = visit(NetworkPolicy())
    assert (answer, net.stats.connections_in, net.denied) == ("ok", 1, [])
    answer, net = visit(NetworkPolicy(inbound=Verdict.DENY).allow_inbound(V4, tcp=[8080]))
    assert (answer, net.stats.connections_in) == ("ok", 1)
    answer, net = visit(NetworkPolicy(inbound=Verdict.DENY).allow_inbound(V4, tcp=[8081]))
    assert (answer, net.stats.connections_in) == ("TIMEOUT", 0)
    assert net.stats.denied_in >= 1
    assert "to port 8080" in str(net.denied[0])
    assert "allow_inbound" in str(net.denied[0])


def test_a_udp_server_may_answer_from_the_port_it_offers(box, netns, listen):
    client = listen("203.0.113.1", kind=socket.SOCK_DGRAM)

    def serve(ready):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((V4, 5353))
            server.settimeout(2)
            os.write(ready, b"x")
            data, peer = server.recvfrom(100)
            return attempt(lambda: server.sendto(data, peer))[0]

    def visit(policy):
        reading, writing = os.pipe()
        with box.attach(policy):
            job = box.start(lambda: serve(writing))
            os.read(reading, 1)
            client.sendto(b"hello", (V4, 5353))
            answer = job.result()
        os.close(reading)
        os.close(writing)
        return answer

    assert visit(NetworkPolicy().allow_inbound(udp=[5353])) == "ok"
    assert client.recv(100) == b"hello"
    assert visit(NetworkPolicy()) == "EPERM"


def test_bind_to_a_denied_port_is_refused(box):
    def work(port):
        with socket.socket() as made:
            return attempt(lambda: made.bind(("127.0.0.1", port)))[0]

    with box.attach(NetworkPolicy(bind=Verdict.DENY).allow_bind("127.0.0.1", tcp=["8000-8010"])) as net:
        assert box.run(lambda: [work(8005), work(0), work(8011)]) == ["ok", "ok", "EPERM"]
        assert "allow_bind" in str(net.denied[0])


def test_a_limit_of_connections_is_never_passed(box, listen):
    address = listen().getsockname()
    with box.attach(NetworkPolicy().allow(V4).limit(connections=3)) as net:
        assert box.run(lambda: [attempt(lambda: tcp(address))[0] for _ in range(5)]) == ["ok"] * 3 + ["EPERM"] * 2
        assert net.stats.connections_out == 3
        assert "limit of connections" in str(net.denied[0])


def test_a_limit_of_bytes_is_exact(box, listen):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()
    with box.attach(NetworkPolicy().allow(V4).limit(bytes=600)) as net:
        assert box.run(lambda: [attempt(lambda: udp(address))[0] for _ in range(12)]) == ["ok"] * 10 + ["EPERM"] * 2
        assert (net.stats.l3_bytes_out, net.stats.denied_out) == (600, 2)
        assert "limit of bytes" in str(net.denied[0])


def test_a_limit_of_packets_per_second_holds(box, listen):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()

    def work():
        time.sleep(1 - time.monotonic() % 1)  # the kernel counts in seconds of CLOCK_MONOTONIC
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            return [attempt(lambda: made.sendto(b"x", address))[0] for _ in range(30)]

    with box.attach(NetworkPolicy().allow(V4).limit(pps=20)):
        assert box.run(work) == ["ok"] * 20 + ["EPERM"] * 10


# -- events --------------------------------------------------------------------------------------------------------------


def test_one_event_per_denied_flow_none_for_allowed_ones(box, listen):
    allowed, refused = listen(kind=socket.SOCK_DGRAM).getsockname(), listen(kind=socket.SOCK_DGRAM).getsockname()

    def work():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            for _ in range(50):
                made.sendto(b"x", allowed)
                attempt(lambda: made.sendto(b"x", refused))

    with box.attach(NetworkPolicy().allow(V4, udp=[allowed[1]])) as net:
        box.run(work)
        box.run(work)
        assert net.stats.denied_out == 100
        assert [e.port for e in net.events()] == [refused[1]] * 2
        assert net.stats.events_lost == 0


def test_a_logged_flow_passes_and_is_reported_once(box, listen):
    address = listen().getsockname()
    with box.attach(NetworkPolicy().log(V4)) as net:
        assert box.run(lambda: attempt(lambda: tcp(address))[0]) == "ok"
        assert [(e.verdict, e.port) for e in net.events()] == [(Verdict.LOG, address[1])]
        assert (net.denied, net.stats.logged) == ([], 1)


def test_events_that_do_not_fit_are_counted(box):
    """256 KB hold about 2700 events; every attempt here is a flow of its own."""
    with box.attach(NetworkPolicy()) as net:

        def work():
            for port in range(1, 5001):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                    attempt(lambda made=made, port=port: made.sendto(b"x", (V4, port)))

        box.run(work)
        assert net.stats.denied_out == 5000
        assert len(net.events()) + net.stats.events_lost == 5000
        assert net.stats.events_lost > 0


def _flood():
    for port in range(1, 5001):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            attempt(lambda made=made, port=port: made.sendto(b"x", (V4, port)))


def test_a_refusal_whose_event_was_lost_still_stands_among_the_denied(box, other_box, listen):
    address = listen().getsockname()
    with other_box.attach(NetworkPolicy()), box.attach(NetworkPolicy()) as net:
        other_box.run(_flood)  # nobody drains meanwhile
        assert box.run(lambda: attempt(lambda: tcp(address))[0]) == "EPERM"
        (denied,) = net.denied
        assert (net.stats.denied, net.stats.events_lost, net.events()) == (1, 1, [])
        assert str(denied) == (
            "NETDENIED a destination unknown (1 refused: events lost: 1, there were too many at once)"
        )


def test_no_more_events_are_kept_than_there_is_room_for(box, monkeypatch):
    monkeypatch.setattr("pytest_isolate.network.attached.MAX_EVENTS", 100)
    with box.attach(NetworkPolicy()) as net:
        box.run(_flood)
        assert len(net.events()) == 100
        assert net.stats.events_lost == 4900
