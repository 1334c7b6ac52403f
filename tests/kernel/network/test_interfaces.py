"""A veth of the test's own: what the cgroup's hooks cannot see is judged and counted at the host's end."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess

import pytest

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel import bpf, interfaces
from pytest_isolate.kernel.bpf import objects
from pytest_isolate.kernel.interfaces import End, InterfacePrograms, Netns, inside, loopback_up, private_network
from pytest_isolate.kernel.namespaces import inside_netns
from pytest_isolate.network import NetworkPolicy, Verdict
from tests.kernel.network.conftest import Box, attempt, tcp

ETH_P_IP = 0x0800


@pytest.fixture
def pair(hive, engine):
    """(box in a namespace of its own, subnet, host namespace, host ifindex)."""
    path = hive / "isolate-veth"
    path.mkdir()
    with Netns() as host, Netns() as test, contextlib.ExitStack() as undo:
        loopback_up(host.fd)
        loopback_up(test.fd)
        subnet, index = private_network(undo, test.fd, host.fd)
        box = Box(path, test, engine)
        yield box, subnet, host, index
        box.close()
    path.rmdir()


@pytest.fixture(params=["tcx", "clsact"])
def kind(request, monkeypatch, require):
    """How the programs hang on the interface: by tcx links where the kernel has them (6.6), else by clsact filters."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if request.param == "tcx":
        require("tcx", release >= (6, 6), f"Linux {os.uname().release}, tcx is of 6.6")
    elif release >= (6, 6):  # as an older kernel answers

        def unknown(program_fd, ifindex, place):
            raise OSError(errno.EINVAL, "no such attach type")

        monkeypatch.setattr(interfaces, "link_create_tcx", unknown)
    return request.param


def _host(subnet, family=4):
    return subnet.host[0 if family == 4 else 1].partition("/")[0]


def _server(host, address, kind=socket.SOCK_STREAM):
    with inside_netns(host.fd):
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    made.bind((address, 0))
    made.settimeout(2)
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


@pytest.mark.parametrize("family", [4, 6])
def test_a_private_network_reaches_the_host_end_and_nothing_else(pair, family):
    box, subnet, host, _ = pair
    with _server(host, _host(subnet, family)) as server:
        beyond = "203.0.113.1" if family == 4 else "2001:db8::1"
        with box.attach(NetworkPolicy(default=Verdict.ALLOW)):
            assert box.run(lambda: attempt(lambda: tcp(server.getsockname()[:2]))[0]) == "ok"
            assert box.run(lambda: attempt(lambda: tcp((beyond, 80), 0.3))[0]) in (
                "TIMEOUT",
                "ENETUNREACH",
                "EHOSTUNREACH",
            )


def _frame(subnet, port):
    source, target = (socket.inet_aton(a[0].partition("/")[0]) for a in (subnet.test, subnet.host))
    payload = b"raw!"
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0) + source + target
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + header[12:]
    return header + struct.pack("!HHHH", 4444, port, 8 + len(payload), 0) + payload


def test_packet_sockets_are_caught_at_the_host_end(pair, engine, kind):
    """AF_PACKET never reaches the cgroup's hooks; PACKET_QDISC_BYPASS evades the test's own end of the veth."""
    box, subnet, host, index = pair
    with _server(host, _host(subnet), socket.SOCK_DGRAM) as server:
        port = server.getsockname()[1]
        hardware = _hardware(host, subnet)

        def work():
            with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as made:
                made.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
                for _ in range(10):
                    made.sendto(_frame(subnet, port), ("eth0", ETH_P_IP, 0, 0, hardware))

        with (
            engine.attach_interface(host.fd, index, NetworkPolicy().allow(_host(subnet), udp=[port])) as link,
            box.attach(NetworkPolicy()) as net,
        ):
            assert link._place.kind == kind
            with bpf.load(objects.LINK_PROGRAMS) as another_process_s:  # which takes only its own away
                InterfacePrograms(another_process_s, host.fd, index).close()
            box.run(work)
            assert server.recv(10) == b"raw!"
            assert net.stats.packets_out == 0  # not seen there, which is why
            assert (link.stats.packets_out, link.stats.l3_bytes_out, link.stats.denied_out) == (10, 320, 0)
            for _ in range(9):
                server.recv(10)
            link.update(NetworkPolicy())
            box.run(work)
            assert link.stats.denied_out == 10
            assert [(str(e.address), e.port) for e in link.denied] == [(_host(subnet), port)]
            server.settimeout(0.05)
            with pytest.raises(TimeoutError):
                server.recv(10)


def _hardware(host, subnet):
    address = inside(host.fd, lambda route: route.get_links(ifname=f"iso{subnet.number:x}")[0].get_attr("IFLA_ADDRESS"))
    return bytes.fromhex(address.replace(":", ""))


def _packets(host, subnet):
    """(received, its bytes at L2) of the host's end, as the kernel's interface counters have it."""
    stats = inside(host.fd, lambda route: route.get_links(ifname=f"iso{subnet.number:x}")[0].get_attr("IFLA_STATS64"))
    return stats["rx_packets"], stats["rx_bytes"]


def _tcp_info(made):
    """(segments sent, payload bytes sent), retransmissions included. Source: struct tcp_info, linux/tcp.h."""
    info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 216)
    return [struct.unpack_from("=I", info, 136)[0], struct.unpack_from("=Q", info, 200)[0]]


def test_tcp_over_a_veth_is_counted_to_the_byte(pair, engine, kind):
    """Segments of one skb are counted as the packets a wire would carry: as many as TCP itself says it sent."""
    box, subnet, host, index = pair
    total = 3_000_000
    with _server(host, _host(subnet)) as server:

        def work():
            with tcp(server.getsockname()) as made:
                made.sendall(b"x" * total)
                made.shutdown(socket.SHUT_WR)
                assert made.recv(1) == b""
                return _tcp_info(made)

        with box.attach(NetworkPolicy().allow(_host(subnet))) as net, engine.attach_interface(host.fd, index) as link:
            job = box.start(work)
            peer, _ = server.accept()
            with peer:
                received = 0
                while chunk := peer.recv(1 << 16):
                    received += len(chunk)
            segments, payload = job.result()
            stats, wire = net.stats, link.stats
    assert received == total
    assert stats.packets_out < stats.wire_packets_out == segments  # it was offloaded
    # Every segment: 20 IP + 32 TCP with timestamps; SYN has 8 more.
    assert stats.wire_l3_bytes_out == payload + segments * 52 + 8
    assert (wire.wire_packets_out, wire.wire_l3_bytes_out) == (segments, stats.wire_l3_bytes_out)


def test_fragments_on_the_wire_are_judged_with_their_first(pair, engine, kind):
    box, subnet, host, index = pair
    with _server(host, _host(subnet), socket.SOCK_DGRAM) as server:
        address = server.getsockname()

        def work():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.sendto(b"x" * 4000, address)

        with engine.attach_interface(host.fd, index, NetworkPolicy().allow(_host(subnet), udp=[address[1]])) as link:
            box.run(work)
            assert len(server.recv(5000)) == 4000
            assert link.stats.packets_out == 3
            link.update(NetworkPolicy().allow(_host(subnet), udp=[1]))
            box.run(work)
            assert link.stats.denied_out >= 1
            server.settimeout(0.1)
            with pytest.raises(TimeoutError):
                server.recv(5000)


def test_a_hundred_private_networks_at_once_are_on_as_many_subnets_whoever_else_has_some():
    """More than one process's share of numbers, which its neighbours by pid share; made twice, each time anew."""
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(Netns())
        first, _ = private_network(stack, stack.enter_context(Netns()).fd, host.fd)
        for ahead in (1, 2, 5):  # somebody else's, where the count comes by
            number = (first.number + ahead) % interfaces.SUBNETS
            interfaces.veth(*(End(netns_fd=host.fd, name=name) for name in (f"iso{number:x}", f"foreign{ahead}")))
        made = [private_network(stack, stack.enter_context(Netns()).fd, host.fd)[0] for _ in range(100)]
        numbers = {(subnet.number - first.number) % interfaces.SUBNETS for subnet in made}
        assert len(numbers) == 100
        assert not numbers & {0, 1, 2, 5}
        with Netns() as one, Netns() as other:
            wires = {interfaces.wire(one.fd, other.fd, lambda *_: None).number for _ in range(3)}
        assert len(wires - {subnet.number for subnet in made}) == 3


def test_nothing_is_left_when_the_namespaces_go(hive):
    before = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    with Netns() as test, contextlib.ExitStack() as undo:
        private_network(undo, test.fd)
        during = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        assert "iso" in during
    assert subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout == before


def test_a_name_taken_in_the_tests_own_namespace_is_no_subnet_taken() -> None:
    """Every other subnet would meet it, too: it was tried with all of them."""
    with Netns() as host, Netns() as test, contextlib.ExitStack() as undo:
        private_network(undo, test.fd, host.fd)
        before = links(host)
        with pytest.raises(SetupError) as caught:
            private_network(undo, test.fd, host.fd)
        assert (caught.value.errno, links(host)) == (errno.EEXIST, before)


def links(netns: Netns) -> list[str]:
    return inside(netns.fd, lambda route: [link.get_attr("IFLA_IFNAME") for link in route.get_links()])
