"""Network policies without eBPF: what a plain user gets, and that it is called what it is.

Each run is pytest as a plain user, in a throw-away host: real seccomp filters, Landlock rulesets and user namespaces.
Every denial stands beside what the same tier lets through.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_isolate.kernel import landlock
from tests.conftest import require
from tests.kernel.throwaway import MS_BIND, MS_REC, NOBODY, PYTHON, mount, throwaway

ROOT = Path(__file__).parents[2]
SITE = sysconfig.get_path("purelib")
HEAD = """
import errno, os, socket, subprocess, sys
import pytest

def outcome(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def connect(port, host="127.0.0.1"):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as made:
        made.settimeout(5)
        made.connect((host, port))

@pytest.fixture(scope="session")
def server():
    '''Outside of every sandbox.'''
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made.getsockname()[1]
"""
Run = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def _plain_users() -> None:
    require("root", os.geteuid() == 0, "plain users are made from it")


@pytest.fixture
def run() -> Run:
    """``run(body, *args)``: what pytest says to a plain user."""
    return as_a_plain_user


def as_a_plain_user(body: str, *args: str, module: str = "test_it.py") -> str:
    def prepare() -> None:
        fds = [os.open(path, os.O_PATH) for path in (str(ROOT), SITE)]
        mount("tmpfs", "/mnt", "tmpfs", 0, "mode=755")
        for name, fd in zip(("checkout", "site"), fds, strict=True):
            os.mkdir(f"/mnt/{name}")
            mount(f"/proc/self/fd/{fd}", f"/mnt/{name}", None, MS_BIND | MS_REC)
            os.close(fd)
        os.mkdir("/mnt/work")
        Path("/mnt/work", module).write_text(HEAD + textwrap.dedent(body))
        os.chown("/mnt/work", NOBODY, NOBODY)

    def work() -> str:
        argv = [PYTHON, "-m", "pytest", "-p", "pytest_isolate.runner.plugin", "-p", "no:cacheprovider", "-rA", *args]
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": "/mnt/checkout:/mnt/site",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "COLUMNS": "300",
            "TMPDIR": "/mnt/work",
        }
        done = subprocess.run(argv, cwd="/mnt/work", env=environment, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    text: str = throwaway(work, who="user", prepare=prepare)
    return text


def needs_landlock() -> None:
    require("landlock-tcp", landlock.abi() >= 4, f"Landlock ABI {landlock.abi()}, TCP ports are of ABI 4")


def test_a_policy_that_allows_nothing_is_seccomp_and_no_socket_but_af_unix(run: Run) -> None:
    said = run(
        """
        def attempts(server):
            return {
                "tcp": outcome(lambda: connect(server)),
                "tcp6": outcome(lambda: socket.socket(socket.AF_INET6).close()),
                "udp": outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()),
                "netlink": outcome(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
                "unix": outcome(lambda: [s.close() for s in socket.socketpair()]),
            }
        CODE = "import socket; socket.create_connection(('127.0.0.1', {}))"
        @pytest.mark.isolate
        def test_control(server):
            assert set(attempts(server).values()) == {"ok"}
            assert subprocess.run([sys.executable, "-c", CODE.format(server)]).returncode == 0
        @pytest.mark.netpolicy()
        def test_denied(server):
            assert attempts(server) == {"tcp": "EPERM", "tcp6": "EPERM", "udp": "EPERM", "netlink": "EPERM", "unix": "ok"}
            assert subprocess.run([sys.executable, "-c", CODE.format(server)], stderr=subprocess.DEVNULL).returncode == 1
        """,
        "--isolate-profile=minimal",
        "--junitxml=junit.xml",
    )
    assert "2 passed" in said, said
    assert "isolate: network held without eBPF, by seccomp: no sockets but AF_UNIX; nothing is counted" in said
    assert "counts: not available: the network is held by seccomp: no sockets but AF_UNIX" in said
    assert "DEGRADED" not in said


def test_ports_of_tcp_are_landlock_s_and_every_way_around_connect_is_closed(run: Run) -> None:
    needs_landlock()
    said = run(
        """
        PORT, OTHER = 7001, 7002
        FAST_OPEN, MPTCP = 0x20000000, 262
        @pytest.fixture(scope="session", autouse=True)
        def servers():
            '''Outside of every sandbox, on both ports; TCP_FASTOPEN is on.'''
            made = [socket.create_server(("127.0.0.1", port)) for port in (PORT, OTHER)]
            for one in made:
                one.setsockopt(socket.IPPROTO_TCP, 23, 16)
            yield
            for one in made:
                one.close()
        def fast_open(port):
            with socket.socket() as made:
                made.sendto(b"x", FAST_OPEN, ("127.0.0.1", port))
        def fast_open_by_sendmsg(port):
            with socket.socket() as made:
                made.sendmsg([b"x"], [], FAST_OPEN, ("127.0.0.1", port))
        def udp(port):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.sendto(b"x", ("127.0.0.1", port))
        def mptcp(port):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP) as made:
                made.connect(("127.0.0.1", port))
        def io_uring():
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.syscall(425, 4, ctypes.create_string_buffer(120)) < 0:
                raise OSError(ctypes.get_errno(), "")
        WAYS = [connect, lambda port: connect(port, "::ffff:127.0.0.1"), fast_open, fast_open_by_sendmsg, udp]
        @pytest.mark.isolate
        def test_control():
            assert [outcome(lambda way=way: way(OTHER)) for way in WAYS] == ["ok"] * 5
            assert outcome(lambda: mptcp(OTHER)) in ("ok", "EPROTONOSUPPORT")
            assert outcome(io_uring) in ("ok", "ENOSYS", "EPERM")
        @pytest.mark.netpolicy(allow=["*:7001/tcp"])
        def test_allowed():
            assert [outcome(lambda way=way: way(PORT)) for way in WAYS[:2]] == ["ok", "ok"]
        @pytest.mark.netpolicy(allow=["*:7001/tcp"])
        def test_denied():
            assert [outcome(lambda way=way: way(OTHER)) for way in WAYS] == ["EACCES", "EACCES", "ENOTSUP", "ENOTSUP", "EPERM"]
            assert [outcome(lambda: mptcp(OTHER)), outcome(io_uring)] == ["EPERM", "ENOSYS"]
        """,
        "--isolate-profile=minimal",
    )
    assert "3 passed" in said, said
    words = "Landlock: TCP to port 7001, and seccomp: no other protocol; nothing is counted"
    assert f"isolate: network held without eBPF, by {words}" in said
    assert "DEGRADED" not in said


LOOPBACK = """
    @pytest.mark.netpolicy(allow=["localhost"])
    def test_it(server):
        with socket.create_server(("127.0.0.1", 0)) as mine:
            assert outcome(lambda: connect(mine.getsockname()[1])) == "ok"
        assert outcome(lambda: connect(server)) == "ECONNREFUSED"
        assert outcome(lambda: connect(9, "203.0.113.7")) == "ENETUNREACH"
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
"""


def test_loopback_rules_are_an_error_that_says_what_a_namespace_would_cut(run: Run) -> None:
    said = run(LOOPBACK)
    assert "no tests ran" in said or "ERROR" in said, said
    assert "take with --isolate-missing=warn: a network namespace: 127.0.0.1 and ::1 of its own" in said
    assert "out of reach though allowed: what listens on the host's loopback; nothing is counted" in said


def test_loopback_rules_become_a_loopback_of_its_own_and_that_is_said(run: Run) -> None:
    said = run(LOOPBACK, "--isolate-missing=warn")
    assert "1 passed" in said, said
    assert "isolate: DEGRADED network held without eBPF, by a network namespace" in said
    assert "counts: not available: the network is held by a network namespace" in said


def test_what_ports_cannot_say_is_said_to_be_lost(run: Run) -> None:
    needs_landlock()
    said = run(
        """
        @pytest.mark.netpolicy(allow=["203.0.113.0/24:7001/tcp"], deny=["203.0.113.9"])
        def test_it(server):
            assert outcome(lambda: connect(server)) == "EACCES"
            assert outcome(lambda: connect(7001)) == "ECONNREFUSED"  # not held: the address
        """,
        "--isolate-missing=warn",
        "--isolate-profile=minimal",
    )
    assert "1 passed" in said, said
    assert "DEGRADED network held without eBPF, by Landlock: TCP to port 7001" in said
    assert "not held: addresses (these ports are open to all of them), deny rules; nothing is counted" in said


@pytest.mark.parametrize("marker", ['default="allow", deny=["203.0.113.7"]', 'allow=["203.0.113.7:53/udp"]'])
def test_rules_that_nothing_else_can_hold_are_refused_and_with_warn_given_up_by_name(run: Run, marker: str) -> None:
    body = f"""
        @pytest.mark.netpolicy({marker})
        def test_it(server): connect(server)
    """
    refused = run(body)
    assert "1 passed" not in refused, refused
    assert "take with --isolate-missing=warn: nothing; not held: the rules; nothing is counted" in refused
    said = run(body, "--isolate-missing=warn", "--isolate-profile=minimal")
    assert "1 passed" in said, said
    assert "DEGRADED network held without eBPF, by nothing; not held: the rules; nothing is counted" in said


def test_the_fixture_is_an_error_where_rules_cannot_change_while_a_test_runs(run: Run) -> None:
    said = run("def test_it(net_policy): net_policy.allow('*')")
    assert "1 passed" not in said, said
    assert "network policy" in said, said


def test_a_shared_network_that_nobody_counts_says_so_and_never_zero(run: Run) -> None:
    body = "def test_it(server): connect(server)"
    refused = run(body, "--isolate", "--isolate-net=shared")
    assert "not held: counts" in refused, refused
    said = run(body, "--isolate", "--isolate-net=shared", "--isolate-missing=warn")
    assert "1 passed" in said, said
    assert "counts: not available: the network is held by nothing" in said
    assert "out 0 packets" not in said


@pytest.mark.parametrize("mode", ["none", "loopback"])
def test_a_network_of_its_own_needs_no_privilege(run: Run, mode: str) -> None:
    body = f"""
        def test_it(server):
            assert outcome(lambda: connect(server)) in ("ENETUNREACH", "ECONNREFUSED")
            with socket.create_server(("127.0.0.1", 0)) as mine:
                assert (outcome(lambda: connect(mine.getsockname()[1])) == "ok") is ({mode!r} == "loopback")
    """
    said = run(body, "--isolate", f"--isolate-net={mode}")
    assert "1 passed" in said, said


def test_a_private_network_without_privilege_is_a_loopback_by_name(run: Run) -> None:
    body = """
        def test_it(server):
            with socket.create_server(("127.0.0.1", 0)) as mine:
                assert outcome(lambda: connect(mine.getsockname()[1])) == "ok"
            assert outcome(lambda: connect(server)) == "ECONNREFUSED"
    """
    assert "1 passed" not in run(body, "--isolate", "--isolate-net=private")
    said = run(body, "--isolate", "--isolate-net=private", "--isolate-missing=warn")
    assert "1 passed" in said, said
    assert "DEGRADED network held without eBPF, by a network namespace" in said
    assert "out of reach though allowed: the host's end of the wire; nothing is counted" in said
