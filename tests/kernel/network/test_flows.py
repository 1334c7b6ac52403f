"""The flow table: per destination, exact, direction-normalised, and bounded."""

from __future__ import annotations

import os
import socket

from pytest_isolate.network import NetworkPolicy, PolicyEngine, Verdict
from tests.kernel.network.conftest import Box, attempt, sends, tcp, udp

V4, V6 = "203.0.113.7", "2001:db8::7"


def _both(policy=None):
    return (policy or NetworkPolicy(flows=True)).allow(V4).allow(V6)


def test_each_conversation_is_one_flow_counted_both_ways(box, listen):
    def work(host):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as one, socket.socket(family, socket.SOCK_DGRAM) as two:
            two.bind((host, 0))
            for _ in range(5):
                one.sendto(b"x" * 32, two.getsockname()[:2])
                data, peer = two.recvfrom(100)
                two.sendto(data, peer)
                one.recv(100)
            return [two.getsockname()[1], one.getsockname()[1]]

    for host, header in ((V4, 28), (V6, 48)):
        with box.attach(_both()) as net:
            offered, asking = box.run(lambda host=host: work(host))
            flows = {f.peer_port: f for f in net.flows()}
            stats = net.stats
        # Both ends are in the test here: one flow as seen from each.
        assert set(flows) == {offered, asking}
        flow = flows[offered]
        assert (flow.packets_out, flow.packets_in) == (5, 5)
        assert (flow.l3_bytes_out, flow.l3_bytes_in) == (5 * (32 + header),) * 2
        assert (flow.opened_by_peer, flows[asking].opened_by_peer) == (False, True)
        assert str(flow.peer) == host
        assert sum(f.packets_out for f in flows.values()) == stats.packets_out == 10
        assert stats.flows_lost == 0


def test_flows_of_a_finished_test_are_gone(box, listen, engine):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()
    with box.attach(_both()) as net:
        box.run(lambda: udp(address, times=3))
        assert [f.packets_out for f in net.flows()] == [3]
    assert list(engine.plane.maps["np_flows4"].items()) == []


def test_a_change_of_policy_reaches_flows_in_the_table(box, listen, steps):
    server = listen(kind=socket.SOCK_DGRAM)
    _, go_w, done_r, _ = steps

    with box.attach(_both()) as net:
        job = box.start(lambda: sends(server.getsockname(), steps, 3))
        os.write(go_w, b"x")
        os.read(done_r, 1)
        net.update(NetworkPolicy(flows=True))
        os.write(go_w, b"x")
        os.read(done_r, 1)
        net.update(_both())
        os.write(go_w, b"x")
        assert job.result() == ["ok", "EPERM", "ok"]
        assert [(f.packets_out, f.verdict) for f in net.flows()] == [(2, Verdict.ALLOW)]


def test_an_answer_to_a_datagram_of_ours_passes_where_inbound_is_denied(box, listen):
    """What the table is for: without it a datagram that comes in is judged by itself."""
    server = listen(kind=socket.SOCK_DGRAM)

    def work():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(0.3)
            made.sendto(b"x", server.getsockname())
            return attempt(lambda: made.recv(10))[0]

    def serve(net):
        job = box.start(work)
        data, peer = server.recvfrom(10)
        server.sendto(data, peer)
        return job.result()

    with box.attach(NetworkPolicy(flows=True, inbound=Verdict.DENY).allow(V4)) as net:
        assert serve(net) == "ok"


def test_tcp_is_one_flow_and_established_connections_count(box, listen):
    address = listen(V4).getsockname()
    with box.attach(_both()) as net:
        assert box.run(lambda: [attempt(lambda: tcp(address))[0] for _ in range(3)]) == ["ok"] * 3
        assert len([f for f in net.flows() if f.peer_port == address[1]]) == 3
        assert all(f.destination == f"{V4}:{address[1]}/tcp" for f in net.flows())


def test_a_full_table_loses_flows_but_no_packet(hive, netns, loader, listen):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()
    home = hive / "isolate-small"
    home.mkdir()
    leaf = home / "leaf"
    leaf.mkdir()
    with PolicyEngine(home, loader=loader, flows=16) as engine:
        box = Box(leaf, netns, engine)

        def work():
            for _ in range(100):
                udp(address)

        with box.attach(_both()) as net:
            box.run(work)
            stats, flows = net.stats, net.flows()
        box.close()
        assert stats.packets_out == 100
        assert 0 < len(flows) <= 16
        assert sum(f.packets_out for f in flows) + stats.flows_lost == 100  # a source port may come twice
    leaf.rmdir()
    home.rmdir()
