"""Programs in sandboxes with networks: traffic in the outcome, two on one private network, many at once."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from pytest_isolate import Cause, PolicyError, Sandbox
from pytest_isolate.networks import policy_of
from pytest_isolate.policy import Network
from tests.kernel.network.conftest import gone

DIAL = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).close()"


@pytest.fixture(scope="module", autouse=True)
def _engine(by_libbpf: None) -> None:
    """Everything here is held by it."""


@pytest.fixture
def port() -> Iterator[int]:
    """A server on this host's loopback that lets everybody connect."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        yield server.getsockname()[1]


def test_a_program_s_outcome_has_its_traffic_and_its_refusals(port: int) -> None:
    with Sandbox() as sandbox:
        argv = [sys.executable, "-c", DIAL, str(port)]
        allowed = sandbox.run(argv, net="policy", net_allow=[f"127.0.0.1:{port}/tcp"])
        denied = sandbox.run(argv, net="policy")
        plain = sandbox.run(argv)
    assert allowed.ok
    assert allowed.traffic is not None
    assert (allowed.traffic.connections_out, allowed.traffic.denied) == (1, 0)
    assert allowed.traffic.contacted == (f"127.0.0.1:{port}/tcp",)
    assert denied.returncode == 1
    assert denied.causes == (Cause.NETDENIED,)
    assert denied.detail[0].startswith(f"NETDENIED 127.0.0.1:{port}/tcp by python")
    assert plain.traffic is None


def test_refusals_that_there_is_no_room_for_are_counted_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_isolate.network.attached.MAX_EVENTS", 100)
    refused = (
        "import contextlib, socket\n"
        "for port in range(1, 151):\n"
        "    with contextlib.suppress(PermissionError): socket.create_connection(('127.0.0.1', port))"
    )
    with Sandbox() as sandbox:
        traffic = sandbox.run([sys.executable, "-c", refused], net="policy").traffic
    assert traffic is not None
    assert (traffic.denied, len(traffic.refused), traffic.events_lost) == (150, 100, 50)


def test_client_and_server_in_two_sandboxes_on_one_private_network() -> None:
    serve = "import socket; s = socket.create_server(('0.0.0.0', 7000)); print('up', flush=True)\nwhile True: s.accept()[0].send(b'hi')"
    ask = "import socket, sys; print(socket.create_connection((sys.argv[1], 7000), 2).recv(2))"
    with Sandbox(name="server") as server, Sandbox(name="client") as client, Sandbox(name="stranger") as stranger:
        _, theirs = client.network.join(server)
        running = server.spawn([sys.executable, "-c", serve], net="private")
        running.wait_for_line("up")
        found = client.run([sys.executable, "-c", ask, theirs], net="private")
        assert (found.stdout, found.returncode) == ("b'hi'\n", 0), found.stderr
        refused = client.run([sys.executable, "-c", ask, theirs], net="private", net_allow=["192.0.2.1"])
        assert refused.causes == (Cause.NETDENIED,)
        assert not stranger.run([sys.executable, "-c", ask, theirs], net="private").ok


def test_sandboxes_at_once_have_networks_of_their_own() -> None:
    with Sandbox() as sandbox:
        running = [sandbox.spawn(["sleep", "60"], net="private") for _ in range(5)]
        subnets = {r.network.subnet for r in running if r.network is not None}
        assert len(subnets) == 5
    assert gone(f"iso{subnet.number:x}" for subnet in subnets if subnet is not None)


@pytest.mark.parametrize("text", ["", "[2001:db8::]/32:443", "127.0.0.1:80/icmp", "10.0.0.1/8", ":80"])
def test_a_rule_without_meaning_is_a_policy_error(text: str) -> None:
    with pytest.raises(PolicyError):
        policy_of(Network(mode="policy", allow=(text,)))
