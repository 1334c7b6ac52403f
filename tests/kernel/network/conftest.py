"""A leaf cgroup, a network namespace with documentation addresses, an engine per front end, and a child to put in them.

Owns: what it makes; the namespace holds every address a test contacts (203.0.113.0/24, 2001:db8::/32, loopback).
Refuses: the machine's own cgroups and interfaces.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.groups import of_this_process as groups_of_this_process
from pytest_isolate.kernel import bcc
from pytest_isolate.kernel.bpf import load
from pytest_isolate.kernel.interfaces import Netns, loopback_up
from pytest_isolate.kernel.namespaces import CLONE_NEWNET, inside_netns, setns
from pytest_isolate.network import AttachedPolicy, NetworkPolicy, PolicyEngine
from pytest_isolate.networks import of_this_process as networks_of_this_process
from tests.conftest import require_front_end

ADDRESSES = (
    "203.0.113.1/32",
    "203.0.113.7/32",
    "203.0.113.8/32",
    "203.0.113.53/32",
    "2001:db8::1/128",
    "2001:db8::7/128",
)
LOADERS = {"libbpf": load, "bcc": bcc.load}
FRONT_ENDS = os.environ.get("ISOLATE_FRONT_ENDS", ",".join(LOADERS)).split(",")


def unified_mount() -> Path | None:
    """Where cgroup2 is mounted, from mountinfo."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    return None


@pytest.fixture(scope="session")
def hive(require: Callable[[str, bool, str], None]) -> Iterator[Path]:
    """A cgroup directory of this run."""
    mount = unified_mount()
    require("cgroup2", mount is not None and os.access(mount, os.W_OK), "no writable cgroup2 hierarchy")
    assert mount is not None
    _sweep(mount)
    path = mount / f"pytest-isolate-network-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def _sweep(mount: Path) -> None:
    """What a suite left that was killed: the process that its group is named by is gone."""
    for left in mount.glob("pytest-isolate-network-*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            with contextlib.suppress(OSError):  # another suite sweeps, too, or somebody is in it
                for path in (*sorted(filter(Path.is_dir, left.rglob("*")), reverse=True), left):
                    path.rmdir()


@pytest.fixture(scope="session", params=FRONT_ENDS)
def loader(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """How the programs get into the kernel: every test runs with each."""
    require_front_end(request.param)
    return LOADERS[request.param]


_ATTEMPTS = pytest.StashKey[list[tuple[str, ...]]]()


@pytest.fixture
def attempts_table(request: pytest.FixtureRequest) -> list[tuple[str, ...]]:
    """Rows of (attempt, front end, without a policy, under one, in the box)."""
    return request.config.stash.setdefault(_ATTEMPTS, [])


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ATTEMPTS, [])
    if rows:
        terminalreporter.section("attempts that must not get through")
        for row in [("attempt", "by", "control", "policy alone", "policy in the box"), *sorted(rows)]:
            terminalreporter.line("{:<70} {:<7} {:<8} {:<13} {}".format(*row))


@pytest.fixture(scope="session")
def engine(hive: Path, loader: Callable[..., Any]) -> Iterator[PolicyEngine]:
    with PolicyEngine(hive, loader=loader, flows=4096) as engine:
        yield engine


@pytest.fixture(scope="session")
def netns() -> Iterator[Netns]:
    with Netns() as namespace:
        loopback_up(namespace.fd, ADDRESSES)
        with inside_netns(namespace.fd):
            _write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")  # of this namespace
            _write("/proc/sys/net/ipv4/tcp_fastopen", "3")
        yield namespace


@pytest.fixture(scope="module")
def by_libbpf() -> Iterator[None]:
    """What sandboxes of this process are held by, for a module of tests; given up after it."""
    require_front_end("libbpf")
    yield
    networks_of_this_process().close()
    groups_of_this_process().close()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


class Box:
    """A cgroup and a namespace to run functions in, each in a child of its own."""

    def __init__(self, cgroup: Path, namespace: Netns, engine: PolicyEngine) -> None:
        self.cgroup, self.namespace, self._engine = cgroup, namespace, engine
        self.fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def attach(self, policy: NetworkPolicy, **more: Any) -> AttachedPolicy:
        return self._engine.attach(self.fd, policy, netns_fd=self.namespace.fd, **more)

    def start(self, work: Callable[[], Any], before: Callable[[], Any] | None = None, uid: int = 0) -> Job:
        """Run ``work`` in a child in the cgroup and the namespace; ``before`` in the child while it is still outside."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writing)
            return Job(pid, reading)
        try:
            os.close(reading)
            setns(self.namespace.fd, CLONE_NEWNET)
            given = (before(),) if before else ()
            (self.cgroup / "cgroup.procs").write_text("0")
            self._engine.close_in_child()
            if uid:
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            answer: Any = {"value": work(*given)}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)

    def run(self, work: Callable[[], Any], **more: Any) -> Any:
        return self.start(work, **more).result()

    def close(self) -> None:
        os.close(self.fd)


class Job:
    """A child at work."""

    def __init__(self, pid: int, reading: int) -> None:
        self.pid, self._reading = pid, reading

    def result(self) -> Any:
        with os.fdopen(self._reading, "rb") as pipe:
            text = pipe.read()
        os.waitpid(self.pid, 0)
        answer = json.loads(text)
        assert "error" not in answer, answer["error"]
        return answer["value"]


def _fresh_box(hive: Path, namespace: Netns, engine: PolicyEngine, name: str) -> Iterator[Box]:
    path = hive / name
    path.mkdir()
    box = Box(path, namespace, engine)
    yield box
    box.close()
    path.rmdir()


@pytest.fixture
def box(hive: Path, netns: Netns, engine: PolicyEngine) -> Iterator[Box]:
    yield from _fresh_box(hive, netns, engine, "isolate-one")


@pytest.fixture
def other_box(hive: Path, netns: Netns, engine: PolicyEngine) -> Iterator[Box]:
    yield from _fresh_box(hive, netns, engine, "isolate-two")


@pytest.fixture
def steps() -> Iterator[tuple[int, int, int, int]]:
    """Two pipes, by which a test and its job take turns: (go to read, go to write, done to read, done to write)."""
    ends = (*os.pipe(), *os.pipe())
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def listen(netns: Netns) -> Iterator[Callable[..., tuple[Any, ...]]]:
    """``listen(host, port, kind)``: a socket outside the cgroup, in the namespace; its address."""
    with contextlib.ExitStack() as stack:

        def make(host: str = "203.0.113.7", port: int = 0, kind: int = socket.SOCK_STREAM) -> socket.socket:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with inside_netns(netns.fd):
                server = stack.enter_context(socket.socket(family, kind))
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            server.settimeout(2)
            if kind == socket.SOCK_STREAM:
                server.setsockopt(socket.IPPROTO_TCP, 23, 16)  # TCP_FASTOPEN
                server.listen(64)
            return server

        yield make


def attempt(work: Callable[[], Any]) -> list[Any]:
    """["ok" or the errno's name, milliseconds it took]."""
    begin = time.perf_counter()
    try:
        made = work()
        if isinstance(made, socket.socket):
            made.close()
        answer = "ok"
    except TimeoutError:
        answer = "TIMEOUT"
    except OSError as error:
        answer = errno.errorcode.get(error.errno or 0, repr(error))
    return [answer, (time.perf_counter() - begin) * 1000]


def tcp(address: tuple[Any, ...], timeout_s: float = 2.0) -> socket.socket:
    """A connected TCP socket."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    made = socket.socket(family)
    made.settimeout(timeout_s)
    try:
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


def udp(address: tuple[Any, ...], payload: bytes = b"x" * 32, *, connected: bool = False, times: int = 1) -> None:
    """Send datagrams."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.settimeout(2)
        if connected:
            made.connect(address)
        for _ in range(times):
            made.send(payload) if connected else made.sendto(payload, address)


@pytest.fixture
def scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="isolate-net-"))
    yield path
    shutil.rmtree(path)


def sends(address: Any, steps: tuple[int, int, int, int], times: int) -> list[str]:
    """For a job: what each byte sent over one connected datagram socket was answered; ``steps`` tells when."""
    answers = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.connect(address)
        for _ in range(times):
            os.read(steps[0], 1)
            answers.append(attempt(lambda: made.send(b"x"))[0])
            os.write(steps[3], b"x")
    return answers


def gone(names: Iterable[str]) -> bool:
    """True when this host has no such interface; the kernel takes a dead namespace's apart in its own time."""
    watched, end = set(names), time.monotonic() + 5
    while (there := watched & {name for _, name in socket.if_nameindex()}) and time.monotonic() < end:
        time.sleep(0.02)
    return not there


#: Stands in for the program that asks this host: no test asks the names of the outside.
LOOKER = """
import sys, time
known = {"db.test": "203.0.113.7", "web.test": "203.0.113.8", "again.test": "!-3 try again later", "six.test": "2001:db8::7"}
if sys.argv[1] == "slow.test":
    time.sleep(30)
print(known.get(sys.argv[1], "!-2 no such name"), ".", sep="\\n", end="")
"""


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this host knows of names."""
    monkeypatch.setattr("pytest_isolate.network.lookups.COMMAND", (sys.executable, "-I", "-S", "-c", LOOKER))
