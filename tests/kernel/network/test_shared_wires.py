"""Wires that several programs share: of one sandbox at once, and of two that were joined. Frames by packet sockets, so only the wire judges.

Owns: who is judged by whose rules, and when. Refuses: the attempts themselves (test_attempts.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate import PolicyError, Sandbox, SetupError
from pytest_isolate.groups import of_this_process as groups_of_this_process
from pytest_isolate.kernel.namespaces import inside_netns

# A line on stdin (our address, theirs, port) makes it send a frame by each interface that is not lo.
FRAMES = r"""
import socket, struct, sys
made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
made.setsockopt(263, 20, 1)
print("ready", flush=True)
for number, line in enumerate(sys.stdin, 1):
    ours, theirs, port = line.split()
    header = struct.pack("!BBHHHBBH", 0x45, 0, 35, 0, 0, 64, 17, 0) + socket.inet_aton(ours) + socket.inet_aton(theirs)
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + header[12:]
    frame = header + struct.pack("!HHHH", 4444, int(port), 15, 0) + b"reached"
    for _, name in socket.if_nameindex():
        if name != "lo":
            made.sendto(frame, (name, 0x0800, 0, 0, b"\xff" * 6))
    print(f"sent {number}", flush=True)
"""
RULES: dict[str, Any] = {"net": "private", "net_allow": ["192.0.2.1"]}


@pytest.fixture(scope="module", autouse=True)
def _engine(by_libbpf: None) -> None:
    """Everything here is held by it."""


class Ear:
    """A UDP socket in a namespace (-1: ours)."""

    def __init__(self, netns_fd: int = -1) -> None:
        with inside_netns(netns_fd):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("0.0.0.0", 0))
        self._socket.settimeout(0.3)
        self.port = str(self._socket.getsockname()[1])

    def heard(self) -> bool:
        try:
            return self._socket.recv(100) == b"reached"
        except TimeoutError:
            return False

    def close(self) -> None:
        self._socket.close()


class Sender:
    """FRAMES at work in a sandbox."""

    def __init__(self, sandbox: Sandbox, **words: Any) -> None:
        reading, self._writing = os.pipe()
        self._said = 0
        try:
            self._running = sandbox.spawn([sys.executable, "-I", "-c", FRAMES], stdin=reading, **words)
        finally:
            os.close(reading)
        self._running.wait_for_line("ready")

    def send(self, *words: str) -> None:
        os.write(self._writing, f"{' '.join(words)}\n".encode())
        self._said += 1
        self._running.wait_for_line(f"sent {self._said}")

    def forget(self) -> None:
        """In a fork: it is the parent's, which ends it."""
        os.close(self._writing)

    def end(self) -> int:
        """Its refusals."""
        os.close(self._writing)
        traffic = self._running.wait().traffic
        return traffic.denied if traffic is not None else 0


def _host_wire(sandbox: Sandbox) -> tuple[str, str]:
    subnet = sandbox.network.subnet
    return subnet.test[0].partition("/")[0], subnet.host[0].partition("/")[0]


def test_programs_with_equal_rules_share_the_wire_and_the_end_of_one_frees_no_other() -> None:
    with Sandbox() as sandbox, contextlib.closing(Ear()) as ear:
        way = *_host_wire(sandbox), ear.port
        free = Sender(sandbox, net="private")
        free.send(*way)
        assert ear.heard()  # the control
        free.end()
        first, second = (Sender(sandbox, **RULES) for _ in range(2))
        first.send(*way)
        assert first.end() == 1
        second.send(*way)
        assert not ear.heard()
        assert second.end() == 2  # whose a frame is, nothing tells: both are told of it
        after = Sender(sandbox, net="private")
        after.send(*way)
        assert ear.heard()
        after.end()


def test_programs_with_other_rules_do_not_share_a_wire() -> None:
    with Sandbox() as sandbox:
        assert sandbox.network.subnet is not None
        first = Sender(sandbox, **RULES)
        with pytest.raises(PolicyError, match=r"other rules hold .* give each a Sandbox of its own"):
            sandbox.run(["true"], net="private", net_allow=["192.0.2.2"])
        assert sandbox.run(["true"], **RULES).ok
        first.end()
        assert sandbox.run(["true"], net="private", net_allow=["192.0.2.2"]).ok


def test_each_end_of_a_join_is_judged_by_its_own_rules_also_while_a_program_runs() -> None:
    with (
        Sandbox() as one,
        Sandbox() as other,
        contextlib.closing(Ear(one.network.netns_fd)) as ear,
        contextlib.closing(Ear(other.network.netns_fd)) as far,
    ):
        begun, free = Sender(one, **RULES), Sender(other, net="private")
        ours, theirs = one.network.join(other)
        begun.send(ours, theirs, far.port)
        assert not far.heard()
        free.send(theirs, ours, ear.port)
        assert ear.heard()
        assert begun.end() >= 1
        free.end()
        allowed = Sender(one, net="private", net_allow=[f"{theirs}:{far.port}/udp"])
        ruled = Sender(other, **RULES)
        allowed.send(ours, theirs, far.port)
        assert far.heard()
        ruled.send(theirs, ours, ear.port)
        assert not ear.heard()
        allowed.end()
        ruled.end()


@contextlib.contextmanager
def fork(work: Callable[[], object]) -> Iterator[Callable[[], str]]:
    """``work`` begun in a forked process; its answer, or the error it ended with, when asked for. It ends then."""
    (reading, answer), (end, told) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.close(told)
            try:
                said = str(work())
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            os.write(answer, said.encode())
            os.read(end, 1)
        finally:
            os._exit(0)
    for fd in (answer, end):
        os.close(fd)
    try:
        yield lambda: os.read(reading, 4096).decode()
    finally:
        os.close(told)
        os.waitpid(pid, 0)
        os.close(reading)
        groups_of_this_process().bereave()


def test_a_fork_judges_its_own_program_after_that_of_its_parent_has_ended() -> None:
    """What the parent had under rules when it forked is no wire of the child's."""
    with Sandbox() as sandbox, contextlib.closing(Ear()) as ear:
        way, wait = (*_host_wire(sandbox), ear.port), os.pipe()

        def begun_later() -> str:
            first.forget()
            os.read(wait[0], 1)
            Sender(sandbox, **RULES).send(*way)
            return "sent"

        first = Sender(sandbox, **RULES)
        with fork(begun_later) as said:
            first.send(*way)
            assert first.end() == 1
            free = Sender(sandbox, net="private")
            free.send(*way)
            assert ear.heard()  # the control
            free.end()
            os.write(wait[1], b"x")
            assert said() == "sent"
            assert not ear.heard()
        for fd in wait:
            os.close(fd)


def test_programs_of_two_forks_share_a_wire_only_with_equal_rules() -> None:
    with Sandbox() as sandbox:
        assert sandbox.network.subnet is not None
        other = {"net": "private", "net_allow": ["192.0.2.2"]}
        named = {"net": "private", "net_allow": ["db.test:80"]}

        def runs(**words: Any) -> str:
            return f"exit {sandbox.run(['true'], **words).returncode}"

        with fork(lambda: Sender(sandbox, **RULES)) as begun:
            assert "Sender" in begun()
            assert runs(**RULES) == "exit 0"
            with pytest.raises(PolicyError, match=r"other rules hold.* give each a Sandbox of its own"):
                runs(**other)
            with pytest.raises(PolicyError, match="host names"):
                runs(**named)
            assert runs(net="private") == "exit 0"
        assert runs(**other) == "exit 0"  # it has ended, without a word
        held = Sender(sandbox, **named)
        with fork(lambda: runs(**named)) as said:
            assert said().startswith("PolicyError: network policy: other rules hold, or host names are allowed")
        held.end()
        with fork(lambda: runs(**named)) as said:
            assert said() == "exit 0"


def _ipv6(sandbox: Sandbox, *, on: bool) -> None:
    """Whether interfaces to come may have addresses of it."""
    with inside_netns(sandbox.network.netns_fd):
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text(str(int(not on)))


def test_a_join_that_fails_leaves_both_as_they_were() -> None:
    with Sandbox() as one, Sandbox() as other:
        assert one.network.subnet is not None
        running = Sender(one, **RULES)
        _ipv6(other, on=False)  # so the last step fails: an address for an end that takes none
        with pytest.raises(SetupError, match="interfaces"):
            one.network.join(other)
        _ipv6(other, on=True)
        assert one.run(["true"], **RULES).ok
        assert running.end() == 0
        for sandbox in (one, other):
            assert sandbox.run(["true"], **RULES).ok
        assert one.network.join(other)


def test_a_program_with_rules_starts_after_the_peer_of_its_wire_is_gone() -> None:
    with Sandbox() as one:
        with Sandbox() as other:
            one.network.join(other)
        assert one.run(["true"], **RULES).ok
