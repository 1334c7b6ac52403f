"""What was refused is told of the test that tried it, and always: no list of denials is empty where one was."""

from __future__ import annotations

import pytest

from .conftest import Run

RAW = """
import socket, pytest

pytestmark = pytest.mark.netpolicy(allow=["127.0.0.1"])

def raw():
    with pytest.raises(PermissionError):
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
"""


def test_each_test_with_the_same_marker_has_its_own_events(plain: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        RAW
        + """
def test_one(): raw(); assert 0
def test_two(): raw(); assert 0
def test_three(net_policy):
    raw()
    assert (net_policy.stats.denied, len(net_policy.denied)) == (1, 1)
def test_four(net_policy):
    raw()
    assert (net_policy.stats.denied, len(net_policy.denied)) == (1, 1)
"""
    )
    result = plain()
    result.assert_outcomes(passed=2, failed=2)
    assert result.stdout.str().count("NETDENIED raw socket/icmp by") == 2


def test_one_test_s_flood_does_not_eat_what_another_is_to_be_told(plain: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
import os, socket, time, pytest

def flood():
    for port in range(1, 5001):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            with pytest.raises(PermissionError):
                made.sendto(b"x", ("203.0.113.7", port))

def test_flood(net_policy, tmp_path):
    flood()
    open("flooded", "w").close()
    end = time.monotonic() + 20
    while not os.path.exists("told") and time.monotonic() < end:
        time.sleep(0.02)

def test_other(net_policy):
    end = time.monotonic() + 20
    while not os.path.exists("flooded") and time.monotonic() < end:
        time.sleep(0.02)
    with pytest.raises(PermissionError):
        socket.create_connection(("203.0.113.9", 443), 2)
    denied = net_policy.denied
    open("told", "w").close()
    assert [(event.port, event.name) for event in denied] == [(443, "")]
    assert net_policy.stats.events_lost == 0
    assert False, "shown"
""")
    result = plain("--isolate", "--isolate-jobs=2", "-rA")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*NETDENIED 203.0.113.9:443/tcp by *", "*AssertionError: shown*"], consecutive=False)


def test_events_that_were_lost_leave_a_line_and_never_an_empty_list(plain: Run, pytester: pytest.Pytester) -> None:
    """Here the flow was told of, once, in the test before, of the same process."""
    pytester.makepyfile("""
import socket, pytest

@pytest.fixture(scope="module")
def held():
    made = []
    yield made
    made[0].close()

class TestGroup:
    def send(self, held):
        if not held:
            held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with pytest.raises(PermissionError):
            held[0].sendto(b"x", ("203.0.113.7", 9))

    def test_one(self, net_policy, held):
        self.send(held)
        assert [event.port for event in net_policy.denied] == [9]

    def test_two(self, net_policy, held):
        self.send(held)
        assert net_policy.stats.denied == 1
        (event,) = net_policy.denied
        assert "told of before" in str(event)
        assert False, "shown"
""")
    result = plain("--isolate", "--isolate-scope=module")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*NETDENIED a destination unknown (1 refused: of a flow that was told of before*"])


def test_a_host_that_does_not_resolve_is_named_in_the_section(plain: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
import sys
from pytest_isolate.network import lookups
lookups.COMMAND = (sys.executable, "-c", "print('!-2 no such name', '.', sep=chr(10), end='')")
""")
    pytester.makepyfile("""
import socket, pytest
@pytest.mark.netpolicy(allow=["gone.test:80/tcp"])
def test_it(): socket.create_connection(("gone.test", 80), 5)
""")
    result = plain()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["UNRESOLVED gone.test (allow_host(*): this host knows no address of it: no such name)*"]
    )


def test_the_resolver_is_no_thread_to_warn_of(plain: Run, pytester: pytest.Pytester) -> None:
    """Nor does it use up the one warning of a run, which is the user's."""
    pytester.makepyfile("""
import socket, threading, pytest

@pytest.mark.isolate(scope="module")
class TestGroup:
    def test_a(self, net_policy):
        net_policy.redirect("api.example.com:443", to=("127.0.0.1", 9))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("api.example.com", 443), 2)

@pytest.mark.netpolicy()
def test_b(): pass
def test_c(net_policy): pass

@pytest.fixture(scope="session")
def mine():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="mine")
    thread.start()
    yield
    stop.set()
    thread.join()

def test_d(net_policy, mine): pass
@pytest.mark.netpolicy()
def test_e(): pass
""")
    result = plain("--isolate", "--isolate-jobs=2")
    result.assert_outcomes(passed=5, warnings=1)
    result.stdout.fnmatch_lines(["*IsolateWarning: pytest-isolate forks a process that has threads (mine)*"])
