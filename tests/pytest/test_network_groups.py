"""Network policies of tests that share a sandbox: nothing that one did is the next one's, and older fixtures end under the test's rules.

Traffic on loopback only.
"""

from __future__ import annotations

import re
import textwrap
import xml.etree.ElementTree as ET

import pytest

from tests.conftest import require_policy_engine

from .conftest import Run

HEAD = """
import socket
import pytest

pytestmark = pytest.mark.isolate(scope="module")

def server():
    return socket.create_server(("127.0.0.1", 0), backlog=100)

def dial(to):
    socket.create_connection(to.getsockname(), 2).close()

def send(port, size=1):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"x" * size, ("127.0.0.1", port))
"""


@pytest.fixture(scope="module", autouse=True)
def _policies() -> None:
    """Everything here needs the policy engine."""
    require_policy_engine()


def _module(pytester: pytest.Pytester, body: str) -> None:
    pytester.makepyfile(test_it=HEAD + textwrap.dedent(body))


def test_what_limits_allow_is_allowed_to_each_test_and_after_each_reset(
    isolated: Run, pytester: pytest.Pytester
) -> None:
    _module(
        pytester,
        """
        @pytest.mark.parametrize("number", [1, 2])
        def test_connections(net_policy, number):
            with server() as to:
                for _ in range(2):
                    net_policy.allow("127.0.0.1")
                    net_policy.limit(connections=2)
                    dial(to), dial(to)
                    with pytest.raises(PermissionError):
                        dial(to)
                    net_policy.reset()
        @pytest.mark.parametrize("number", [1, 2])
        def test_bytes(net_policy, number):
            net_policy.allow("127.0.0.1")
            net_policy.limit(bytes=100)
            send(9999, 32)
            with pytest.raises(PermissionError):
                send(9999, 32)
        """,
    )
    isolated().assert_outcomes(passed=4)


def test_flows_are_those_of_the_test(isolated: Run, pytester: pytest.Pytester) -> None:
    _module(
        pytester,
        """
        @pytest.fixture(scope="module")
        def kept():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                yield made
        def test_one(net_policy, kept):
            net_policy.allow("127.0.0.1")
            kept.sendto(b"x", ("127.0.0.1", 11111))
            send(11112)
            assert sorted((f.peer_port, f.packets_out) for f in net_policy.flows()) == [(11111, 1), (11112, 1)]
        def test_two(net_policy, kept):
            assert net_policy.flows() == []
            net_policy.allow("127.0.0.1")
            kept.sendto(b"xyz", ("127.0.0.1", 11111))
            [flow] = net_policy.flows()
            assert (flow.peer_port, flow.packets_out, flow.l3_bytes_out) == (11111, 1, 31)
        """,
    )
    isolated().assert_outcomes(passed=2)


def test_a_fixture_older_than_net_policy_is_torn_down_under_the_test_s_rules(
    isolated: Run, pytester: pytest.Pytester
) -> None:
    _module(
        pytester,
        """
        @pytest.fixture
        def client():
            with server() as to:
                held = {"to": to}
                yield held
                held["made"].sendall(b"bye")
                peer, _ = to.accept()
                peer.settimeout(2)
                assert peer.recv(3) == b"bye"
        def test_one(client, net_policy):
            net_policy.allow("127.0.0.1", tcp=[client["to"].getsockname()[1]])
            client["made"] = socket.create_connection(client["to"].getsockname(), 2)
        def test_two(net_policy):
            with server() as to, pytest.raises(PermissionError):
                dial(to)
        @pytest.mark.netpolicy()
        def test_three():
            with server() as to, pytest.raises(PermissionError):
                dial(to)
        """,
    )
    isolated().assert_outcomes(passed=3)


def test_what_was_contacted_is_told_by_what_was_asked_for(isolated: Run, pytester: pytest.Pytester) -> None:
    _module(
        pytester,
        """
        def test_it(net_policy):
            with server() as to:
                net_policy.redirect("203.0.113.7:443", to=to.getsockname())
                net_policy.redirect("api.example.com:444", to=to.getsockname())
                socket.create_connection(("203.0.113.7", 443), 2).close()
                socket.create_connection(("api.example.com", 444), 2).close()
                print("PORT", to.getsockname()[1])
        def test_next(net_policy):
            net_policy.allow("127.0.0.1")
            send(11111)
        """,
    )
    text = str(isolated("-rP").stdout)
    port = re.findall(r"^PORT (\d+)", text, re.MULTILINE)[0]
    assert re.findall("^contacted (.*)", text, re.MULTILINE) == [
        f"127.0.0.1:{port}/tcp (redirected from 203.0.113.7:443 or api.example.com:444)",
        "127.0.0.1:11111/udp",
    ]


def test_a_full_table_of_flows_is_told_and_so_are_the_destinations_left_out(
    isolated: Run, pytester: pytest.Pytester
) -> None:
    _module(
        pytester,
        """
        @pytest.mark.netpolicy(allow=["127.0.0.0/8"])
        def test_it():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                for number in range(4300):
                    made.sendto(b"x", (f"127.1.{number >> 8}.{number & 255}", 9))
        """,
    )
    text = str(isolated("-rP", "--junitxml=found.xml").stdout)
    assert re.search(r"the table of flows was full: destinations of \d+ packets may be missing", text)
    found = {e.attrib["name"]: e.attrib["value"] for e in ET.parse(pytester.path / "found.xml").iter("property")}
    assert int(found["isolate_net_flows_lost"]) >= 4300 - 4096
    assert re.search(r"; \.\.\. and \d+ more$", found["isolate_net_contacted"])
