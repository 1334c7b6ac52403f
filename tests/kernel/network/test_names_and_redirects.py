"""Redirects and host names: the program sees what it asked for, the packets go where the test says."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from pytest_isolate.network import NetworkPolicy
from pytest_isolate.network.resolver import parse_question
from tests.kernel.network.conftest import attempt, tcp, udp

V4 = "203.0.113.7"


def test_a_redirected_connection_looks_like_the_one_asked_for(box, listen):
    real = listen("127.0.0.1")

    def work():
        with tcp(("203.0.113.99", 443)) as made:  # nobody has this address
            made.sendall(b"hello")
            return [*made.getpeername(), made.recv(10).decode()]

    def answer():
        peer, _ = real.accept()
        with peer:
            peer.sendall(peer.recv(10).upper())

    policy = NetworkPolicy().redirect("203.0.113.99:443", to=real.getsockname())
    with box.attach(policy) as net:
        thread = threading.Thread(target=answer)
        thread.start()
        assert box.run(work) == ["203.0.113.99", 443, "HELLO"]
        thread.join()
        assert (net.stats.redirected, net.stats.connections_out, net.denied) == (1, 1, [])
        # What it leads to is not thereby open by its own name.
        assert box.run(lambda: attempt(lambda: tcp(real.getsockname()))[0]) == "EPERM"


@pytest.mark.parametrize("connected", [False, True])
def test_a_redirected_datagram_comes_back_from_the_address_asked_for(box, listen, connected):
    real = listen("127.0.0.1", kind=socket.SOCK_DGRAM)

    def work():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(2)
            if connected:
                made.connect(("203.0.113.99", 53))
                made.send(b"q")
                return [made.recv(10).decode(), *made.getpeername()]
            made.sendto(b"q", ("203.0.113.99", 53))
            data, source = made.recvfrom(10)
            return [data.decode(), *source]

    def answer():
        data, peer = real.recvfrom(10)
        real.sendto(data.upper(), peer)

    with box.attach(NetworkPolicy().redirect("203.0.113.99:53", to=real.getsockname())):
        thread = threading.Thread(target=answer)
        thread.start()
        assert box.run(work) == ["Q", "203.0.113.99", 53]
        thread.join()


def test_an_ipv6_destination_can_be_redirected_to_ipv4_and_a_mapped_one_too(box, listen):
    real = listen("127.0.0.1")
    policy = (
        NetworkPolicy()
        .redirect("[2001:db8::99]:443", to=real.getsockname())
        .redirect("203.0.113.99:443", to=real.getsockname())
    )

    def work():
        with tcp(("2001:db8::99", 443)) as one, tcp(("::ffff:203.0.113.99", 443)) as two:
            return [one.getpeername()[0], two.getpeername()[0]]

    with box.attach(policy):
        assert box.run(work) == ["2001:db8::99", "::ffff:203.0.113.99"]


def query(name: str, kind: int = 1) -> bytes:
    """A DNS question as any client asks it."""
    labels = b"".join(bytes([len(x)]) + x.encode() for x in name.split("."))
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def _ask_udp(name, server=("203.0.113.53", 53)):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(2)
        made.sendto(query(name), server)
        answer, source = made.recvfrom(512)
    return [answer[3] & 15, struct.unpack_from("!H", answer, 6)[0], *source, socket.inet_ntoa(answer[-4:])]


def _ask_tcp(name, server=("203.0.113.53", 53)):
    with tcp(server) as made:
        text = query(name)
        made.sendall(struct.pack("!H", len(text)) + text)
        answer = made.recv(1024)[2:]
    return [answer[3] & 15, struct.unpack_from("!H", answer, 6)[0], socket.inet_ntoa(answer[-4:])]


def test_an_allowed_host_resolves_over_udp_and_tcp_and_is_then_allowed(box, listen, hosts):
    server = listen(V4)
    port = server.getsockname()[1]
    with box.attach(NetworkPolicy().allow_host("db.test", tcp=[port])) as net:
        assert box.run(lambda: attempt(lambda: tcp((V4, port)))[0]) == "EPERM"  # not asked for by name yet
        assert box.run(lambda: _ask_udp("db.test")) == [0, 1, "203.0.113.53", 53, V4]
        assert box.run(lambda: attempt(lambda: tcp((V4, port)))[0]) == "ok"
        assert box.run(lambda: attempt(lambda: tcp((V4, 1)))[0]) == "EPERM"
        assert box.run(lambda: _ask_tcp("db.test")) == [0, 1, V4]
        assert net.stats.redirected == 2


def test_any_other_name_does_not_exist_at_once(box, hosts):
    with box.attach(NetworkPolicy().allow_host("db.test", tcp=True)):
        assert box.run(lambda: _ask_udp("web.test"))[:2] == [3, 0]
        assert box.run(lambda: attempt(lambda: socket.getaddrinfo("web.test", 80)))[1] < 1000


def test_the_c_library_resolves_through_it(box, listen, hosts):
    port = listen(V4).getsockname()[1]
    with box.attach(NetworkPolicy().allow_host("db.test", tcp=[port])):
        assert box.run(
            lambda: sorted({a[4][0] for a in socket.getaddrinfo("db.test", port, type=socket.SOCK_STREAM)})
        ) == [V4]
        assert box.run(lambda: attempt(lambda: tcp((V4, port)))[0]) == "ok"


def test_what_was_learned_of_a_host_goes_with_its_rule(box, listen, hosts):
    port = listen(V4).getsockname()[1]
    with box.attach(NetworkPolicy().allow_host("db.test", tcp=[port])) as net:
        box.run(lambda: _ask_udp("db.test"))
        net.update(net.policy.allow_host("other.test", tcp=[port]))
        assert box.run(lambda: attempt(lambda: tcp((V4, port)))[0]) == "ok"
        for other in (NetworkPolicy().allow_host("other.test", tcp=[port]), NetworkPolicy()):
            net.update(other)
            assert box.run(lambda: attempt(lambda: tcp((V4, port)))[0]) == "EPERM"
        net.update(NetworkPolicy().allow_host("db.test", tcp=[port]))
        assert box.run(lambda: attempt(lambda: tcp((V4, port)))[0]) == "EPERM"  # nobody has asked for it since
        box.run(lambda: _ask_udp("db.test"))
        assert box.run(lambda: attempt(lambda: tcp((V4, port)))[0]) == "ok"


def test_a_name_can_be_redirected(box, listen, hosts):
    real = listen("127.0.0.1")
    with box.attach(NetworkPolicy().redirect("api.example.com:443", to=real.getsockname())) as net:

        def work():
            address = socket.getaddrinfo("api.example.com", 443, type=socket.SOCK_STREAM)[0][4]
            with tcp(address) as made:
                return list(made.getpeername()) == list(address)

        assert box.run(work) is True
        assert net.stats.connections_out == 1


def test_a_host_that_does_not_resolve_has_no_address(box, hosts):
    with box.attach(NetworkPolicy().allow_host("gone.test", tcp=True)):
        assert box.run(lambda: _ask_udp("gone.test"))[:2] == [0, 0]


@pytest.mark.parametrize(
    "junk", [b"", b"x", b"\0" * 12, b"\0" * 17, query("a.test")[:-5], b"\0\0\x28" + query("a.test")[3:], b"\xff" * 600]
)
def test_junk_is_refused_and_never_stops_the_resolver(box, hosts, junk):
    with box.attach(NetworkPolicy().allow_host("db.test", tcp=True)):
        box.run(lambda: udp(("203.0.113.53", 53), junk))
        assert box.run(lambda: _ask_udp("db.test"))[:2] == [0, 1]


def test_a_question_is_read_in_lower_case():
    assert parse_question(query("Db.TEST"))[0] == "db.test"
