"""The attempts that must not get through, each by a program in a sandbox: who it reaches freely, and what stops it.

Each is carried out three times: without a policy (the control: the server hears of it), under a policy that allows nothing,
and in the box for hostile code (profile strict with its seccomp filter, descriptors closed, signals and abstract sockets kept inside, and the same policy). The
server's ear decides, not the program's word. The table is printed at the end of the run.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_isolate import Sandbox, groups, networks
from pytest_isolate.kernel import landlock
from pytest_isolate.kernel.namespaces import inside_netns
from pytest_isolate.networks import Networks
from pytest_isolate.policy import Policy
from pytest_isolate.profile import MINIMAL, STRICT, vary
from tests.conftest import require, require_front_end
from tests.kernel.network.conftest import FRONT_ENDS

PYTHON = os.path.realpath(sys.executable)
URING = Path(__file__).with_name("uring.py").read_text().replace("from __future__ import annotations\n", "")
PRELUDE = """
import ctypes, errno, fcntl, os, socket, struct, sys
HOST, TCP, UDP, EXTRA = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
libc = ctypes.CDLL(None, use_errno=True)

def connect(host=HOST, family=socket.AF_INET):
    with socket.socket(family) as made:
        made.settimeout(3)
        made.connect((host, TCP))

def datagram(made, host=HOST):
    made.sendto(b"reached", (host, UDP))

def udp_packet(source="127.0.0.1", target=HOST):
    '''IPv4 and UDP, by hand.'''
    header = struct.pack("!BBHHHBBH", 0x45, 0, 35, 0, 0, 64, 17, 0) + socket.inet_aton(source) + socket.inet_aton(target)
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + header[12:]
    return header + struct.pack("!HHHH", 4444, UDP, 15, 0) + b"reached"

def frame():
    '''The same from this end of the wire to the other: the default gateway.'''
    gateway = next(line.split()[2] for line in open("/proc/net/route") if line.split()[1] == "00000000")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        mine = fcntl.ioctl(any_socket, 0x8915, b"eth0".ljust(40, b"\\0"))[20:24]  # SIOCGIFADDR
    return udp_packet(socket.inet_ntoa(mine), socket.inet_ntoa(bytes.fromhex(gateway)[::-1]))

def attack():
"""
LAST = """
try:
    attack()
    print("sent")
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
"""


@dataclass(frozen=True)
class Attempt:
    """``alone``: the policy by itself stops it; else only the box does. ``wire``: on a network of its own with a wire."""

    what: str
    code: str
    alone: bool = True
    wire: bool = False
    udp: bool = False
    extra: Callable[[contextlib.ExitStack, Server, Sandbox], list[str]] = lambda *_: []


class Server:
    """Ears on TCP and UDP at one address; what it hears is what was reached."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._listen()

    def _listen(self) -> None:
        self._tcp = socket.create_server((self.host, 0), backlog=16)
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((self.host, 0))

    def move(self, netns_fd: int) -> None:
        """Listen in another namespace."""
        self.close()
        with inside_netns(netns_fd):
            self._listen()

    @property
    def arguments(self) -> list[str]:
        return [self.host, str(self._tcp.getsockname()[1]), str(self._udp.getsockname()[1])]

    def heard(self, *, udp: bool, wait_s: float) -> bool:
        ear = self._udp if udp else self._tcp
        ear.settimeout(wait_s)
        try:
            if udp:
                return ear.recv(100) == b"reached"
            ear.accept()[0].close()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self._tcp.close()
        self._udp.close()


def inherited(stack: contextlib.ExitStack, server: Server, sandbox: Sandbox) -> list[str]:
    """A datagram socket of ours, left open over exec."""
    made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.set_inheritable(True)
    return [str(made.fileno())]


def passed(stack: contextlib.ExitStack, server: Server, sandbox: Sandbox) -> list[str]:
    """Somebody outside hands a datagram socket to whoever connects to an abstract UNIX socket."""
    ear = stack.enter_context(socket.socket(socket.AF_UNIX))
    name = f"isolate-attempt-{os.getpid()}-{id(ear)}"
    ear.bind(f"\0{name}")
    ear.listen()

    def hand_over() -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            peer, _ = ear.accept()
            with peer:
                socket.send_fds(peer, [b"x"], [made.fileno()])

    def let_go() -> None:
        with socket.socket(socket.AF_UNIX) as nobody:  # nothing else wakes a listener that still waits
            nobody.connect(f"\0{name}")

    thread = threading.Thread(target=hand_over)
    thread.start()
    stack.callback(thread.join)
    stack.callback(let_go)
    return [name]


def leading_out(stack: contextlib.ExitStack, server: Server, sandbox: Sandbox) -> list[str]:
    """The network namespace of this process, by a path and by an open descriptor."""
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    stack.callback(os.close, fd)
    os.set_inheritable(fd, True)
    return [str(fd)]


def another_group(stack: contextlib.ExitStack, server: Server, sandbox: Sandbox) -> list[str]:
    home = groups.of_this_process().v2_directory()
    assert home is not None
    return [str(Path(home).parent)]


FRAME = (
    "made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)); made.setsockopt(263, 20, 1); "
    "made.sendto({packet}, ({interface}, 0x0800, 0, 0, bytes([255] * 6)))"
)
OVER_A_JOIN = FRAME.format(packet="udp_packet(EXTRA[0], EXTRA[1])", interface="EXTRA[2]")


def with_a_network(stack: contextlib.ExitStack, server: Server, sandbox: Sandbox) -> list[str]:
    """The sandbox's network is there before the run, and outlives it."""
    return [sandbox.network.subnet.host[0]]


def joined(stack: contextlib.ExitStack, server: Server, sandbox: Sandbox) -> list[str]:
    """A wire to another sandbox, which has the server's ears."""
    peer = stack.enter_context(Sandbox(MINIMAL, name="peer"))
    ours, theirs = sandbox.network.join(peer)
    server.move(peer.network.netns_fd)
    return [ours, theirs, f"iso{(int(ipaddress.ip_address(ours)) - int(ipaddress.ip_address('100.64.0.0'))) // 4:x}"]


ATTEMPTS = (
    Attempt("TCP: connect(2)", "connect()"),
    Attempt("UDP: sendto(2)", "datagram(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))", udp=True),
    Attempt(
        "UDP: connect(2), then send(2)",
        "made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); made.connect((HOST, UDP)); made.send(b'reached')",
        udp=True,
    ),
    Attempt("TCP to the v4-mapped address", "connect('::ffff:' + HOST, socket.AF_INET6)"),
    Attempt(
        "UDP to the v4-mapped address",
        "datagram(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), '::ffff:' + HOST)",
        udp=True,
    ),
    Attempt("TCP fast open: sendto(MSG_FASTOPEN)", "socket.socket().sendto(b'x', 0x20000000, (HOST, TCP))"),
    Attempt("TCP fast open: sendmsg(MSG_FASTOPEN)", "socket.socket().sendmsg([b'x'], [], 0x20000000, (HOST, TCP))"),
    Attempt(
        "TCP fast open: TCP_FASTOPEN_CONNECT, then write",
        "made = socket.socket(); made.setsockopt(6, 30, 1); made.connect((HOST, TCP)); made.send(b'x')",
    ),
    Attempt("MPTCP", "made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); made.connect((HOST, TCP))"),
    Attempt("io_uring: IORING_OP_CONNECT", "print(connect_by_uring((HOST, TCP), False))"),
    Attempt("io_uring with SQPOLL: the kernel's thread connects", "print(connect_by_uring((HOST, TCP), True))"),
    Attempt(
        "raw socket: an IP packet by hand",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto(udp_packet(), (HOST, 0))",
        udp=True,
    ),
    Attempt(
        "packet socket: a frame by hand, past the queue (PACKET_QDISC_BYPASS)",
        FRAME.format(packet="frame()", interface="'eth0'"),
        wire=True,
        udp=True,
    ),
    Attempt(
        "packet socket, on a network that outlives the run (Sandbox.network)",
        FRAME.format(packet="frame()", interface="'eth0'"),
        wire=True,
        udp=True,
        extra=with_a_network,
    ),
    Attempt(
        "packet socket, over a wire to another sandbox (join)",
        OVER_A_JOIN,
        wire=True,
        udp=True,
        extra=joined,
    ),
    Attempt(
        "a socket inherited from outside",
        "datagram(socket.socket(fileno=int(EXTRA[0])))",
        alone=False,
        udp=True,
        extra=inherited,
    ),
    Attempt(
        "a socket passed from outside (SCM_RIGHTS)",
        "way = socket.socket(socket.AF_UNIX); way.connect(chr(0) + EXTRA[0])\n"
        "datagram(socket.socket(fileno=socket.recv_fds(way, 1, 1)[1][0]))",
        alone=False,
        udp=True,
        extra=passed,
    ),
    Attempt(
        "setns(2) to another network namespace, by a descriptor of it",
        "fd = int(EXTRA[0])\nif libc.setns(fd, 0x40000000): raise OSError(ctypes.get_errno(), 'setns')\nconnect()",
        extra=leading_out,
    ),
    Attempt(
        "unshare(2) of the network, and back",
        "was = os.open('/proc/self/ns/net', 0)\n"
        "for call, word in ((libc.unshare, 0x40000000), (lambda w: libc.setns(was, w), 0x40000000)):\n"
        "    if call(word): raise OSError(ctypes.get_errno(), 'unshare')\n"
        "connect()",
    ),
    Attempt(
        "another cgroup: cgroup.procs of the parent",
        "open(EXTRA[0] + '/cgroup.procs', 'w').write('0'); connect()",
        alone=False,
        extra=another_group,
    ),
)


@pytest.fixture(scope="module", params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> Iterator[str]:
    """The process's networks use this front end."""
    require_front_end(request.param)
    before = networks.of_this_process()
    made = networks._process = Networks(groups.of_this_process(), front_end=request.param)
    yield request.param
    made.close()
    networks._process = before


@pytest.fixture
def server(front_end: str) -> Iterator[Callable[[str], Server]]:
    with contextlib.ExitStack() as stack:

        def make(host: str) -> Server:
            made = Server(host)
            stack.callback(made.close)
            return made

        yield make


def carried_out(attempt: Attempt, policy: Policy, make: Callable[[str], Server]) -> str:
    """REACHED, or what the program was told."""
    uses_uring = URING if "uring" in attempt.code else ""
    program = uses_uring + PRELUDE + textwrap.indent(attempt.code, "    ") + "\n" + LAST
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(policy, name="attempt"))
        server = make("0.0.0.0" if attempt.wire else "127.0.0.1")  # of a wire's addresses none is known before
        words = attempt.extra(stack, server, sandbox)  # it may move the server
        done = sandbox.run([PYTHON, "-I", "-c", program, *server.arguments, *words], cwd="/", timeout=20)
        said = str(done.stdout).partition("\n")[0] or f"{done.status} {str(done.stderr).strip()[-200:]}"
        reached = server.heard(udp=attempt.udp, wait_s=1.0 if said.startswith(("sent", "ok")) else 0.05)
    return "REACHED" if reached else said


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.what)
def test_it_reaches_freely_and_not_under_a_policy(
    attempt: Attempt, front_end: str, server: Callable[[str], Server], attempts_table: list[tuple[str, ...]]
) -> None:
    if attempt.extra is passed:
        require("landlock", landlock.abi() >= 6, "scopes are of Landlock ABI 6 (Linux 6.12)")
    free, held = (
        ({"net": "private"}, {"net": "private", "net_default": "deny"}) if attempt.wire else ({}, {"net": "policy"})
    )
    control = carried_out(attempt, vary(MINIMAL, **free), server)
    alone = carried_out(attempt, vary(MINIMAL, **held), server)
    box = vary(STRICT, **held, seccomp="default", landlock_scoped=landlock.abi() >= 6)
    boxed = carried_out(attempt, box, server)
    attempts_table.append((attempt.what, front_end, control, alone, boxed))
    assert control == "REACHED"
    assert (alone != "REACHED") is attempt.alone
    assert boxed != "REACHED"
