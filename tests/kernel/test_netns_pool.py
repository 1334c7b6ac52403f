"""Network namespaces made ahead: clean when they are handed out, never handed out twice, and nobody's when a process forks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel import netns_pool
from pytest_isolate.kernel.namespaces import inside_netns
from pytest_isolate.kernel.netns_pool import POOL, READY, NetnsPool
from pytest_isolate.profile import STANDARD, STRICT, vary
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require
from tests.kernel.launching import open_fds
from tests.kernel.throwaway import throwaway


@pytest.fixture
def pool() -> Iterator[NetnsPool]:
    require("root", os.geteuid() == 0, "network namespaces without a user namespace")
    with contextlib.closing(NetnsPool()) as made, contextlib.closing(POOL):
        made.hold()
        POOL.close()
        yield made


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def state_of_lo(fd: int) -> int:
    """Its flags: IFF_UP is 1."""
    import fcntl
    import socket
    import struct

    with inside_netns(fd), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
        answer = fcntl.ioctl(talk, 0x8913, struct.pack("16sH14x", b"lo", 0))  # SIOCGIFFLAGS
    return int(struct.unpack("16xH14x", answer)[0])


@pytest.mark.parametrize("loopback", [True, False])
def test_one_is_new_and_lo_is_as_asked(loopback: bool) -> None:
    require("root", os.geteuid() == 0, "network namespaces without a user namespace")
    fd = netns_pool.make(loopback=loopback)
    try:
        assert inode(fd) != os.stat("/proc/self/ns/net").st_ino
        assert bool(state_of_lo(fd) & 1) == loopback
    finally:
        os.close(fd)


def test_nothing_is_made_before_somebody_asked(pool: NetnsPool) -> None:
    pool.fill()
    assert len(pool) == 0
    assert pool.take(loopback=True) == -1
    for _ in range(READY + 2):
        pool.fill()
    assert len(pool) == READY


def test_each_is_handed_out_once(pool: NetnsPool) -> None:
    before = open_fds()
    pool.take(loopback=True)
    taken = []
    for _ in range(6):
        pool.fill()
        taken.append(pool.take(loopback=True))
    assert len({inode(fd) for fd in taken}) == 6
    for fd in taken:
        os.close(fd)
    pool.close()
    assert open_fds() == before


def test_nothing_is_kept_for_nobody() -> None:
    pool, before = NetnsPool(), open_fds()
    pool.take(loopback=True)
    pool.fill()
    assert len(pool) == 0
    holders = [pool.hold(), pool.hold()]
    pool.fill()
    holders.pop()()
    assert len(pool) == 1
    holders.pop()()
    assert (len(pool), open_fds()) == (0, before)


def test_a_plain_user_is_told_why() -> None:
    def body() -> str:
        try:
            netns_pool.make(loopback=True)
        except BackendUnavailable as error:
            return str(error)
        return "made"

    assert "this user may not make one" in throwaway(body, who="user")


# ---- in sandboxes ----

NETWORK = "readlink /proc/self/ns/net"


def test_a_program_gets_the_one_that_is_ready(pool: NetnsPool) -> None:
    with Sandbox(vary(STRICT, fs="host")) as sandbox:
        first = sandbox.run(["sh", "-c", NETWORK]).stdout  # made by itself, and while it ran one was made ahead
        assert len(POOL) == 1
        ready = inode(POOL._ready[True][0])
        second = sandbox.run(["sh", "-c", NETWORK]).stdout
    assert second == f"net:[{ready}]\n" != first


def test_what_one_did_to_its_network_the_next_does_not_see(pool: NetnsPool) -> None:
    """The control: it can, for it is root there."""
    ttl = "/proc/sys/net/ipv4/ip_default_ttl"
    with Sandbox(vary(STANDARD, net="loopback", namespaces="net")) as sandbox:
        for _ in range(2 * READY + 1):
            outcome = sandbox.run(["sh", "-c", f"cat {ttl}; echo 99 >{ttl}; cat {ttl}"])
            assert outcome.stdout == "64\n99\n", outcome


def test_a_function_gets_one_too_and_holds_none_of_the_others(pool: NetnsPool) -> None:
    others = _held()  # by whoever ran before in this process
    with Sandbox(vary(STANDARD, net="loopback", namespaces="+net")) as sandbox:
        sandbox.python(os.getpid)
        sandbox.python(os.getpid)
        ready = inode(POOL._ready[True][0])
        assert sandbox.python(_where) == [f"net:[{ready}]", others]


def _where() -> list[object]:
    return [os.readlink("/proc/self/ns/net"), _held()]


def _held() -> list[str]:
    """The network namespaces that this process has a descriptor of."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(link for link in links if link.startswith("net:"))


def test_a_user_namespace_owns_its_network(pool: NetnsPool) -> None:
    """Nothing made ahead is handed to it: inside, one may do with it as one likes."""
    POOL.take(loopback=True)
    POOL.fill()
    with Sandbox(vary(STANDARD, net="loopback", namespaces="user,net,mnt")) as sandbox:
        assert sandbox.run(["sh", "-c", NETWORK]).stdout != f"net:[{inode(POOL._ready[True][0])}]\n"
