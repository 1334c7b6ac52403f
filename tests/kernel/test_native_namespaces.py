"""Each namespace alone, all together, joined and nested: different from the parent's, and only those that were asked."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from typing import Any

import pytest

from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import IdMap, Plan
from tests.kernel.launching import LIMIT_S, NAMESPACES, finish, flags, forked, helper, pipe, plan, run, value
from tests.kernel.throwaway import ROOT

READ_LINKS = f"for name in {' '.join(NAMESPACES)}; do readlink /proc/self/ns/$name; done"


def program_links(a_plan: Plan) -> dict[str, str]:
    return dict(zip(NAMESPACES, run(a_plan, "sh", "-c", READ_LINKS).text.split(), strict=True))


def links() -> dict[str, str]:
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}


def changed(inside: dict[str, str]) -> set[str]:
    outside = links()
    return {name for name in NAMESPACES if inside[name] != outside[name]}


COMBINATIONS = [(), *((name,) for name in NAMESPACES), tuple(NAMESPACES), ("pid", "uts", "ipc", "mnt")]


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_a_forked_child_is_in_exactly_the_namespaces_asked_for(names: tuple[str, ...]) -> None:
    assert changed(value(plan(*names), links)) == set(names)


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_a_program_is_in_exactly_the_namespaces_asked_for(names: tuple[str, ...]) -> None:
    assert changed(program_links(plan(*names))) == set(names)


def ids() -> list[int]:
    return [os.getpid(), os.getppid(), os.getsid(0)]


def test_the_test_is_process_2_and_its_parent_the_init() -> None:
    assert value(plan("pid", "mnt"), ids) == [2, 1, 2]


def test_a_program_is_process_2_and_its_parent_the_init() -> None:
    assert run(plan("pid", "mnt"), "sh", "-c", "echo $$ $PPID").text == "2 1\n"


def held_by(pid: int) -> list[str]:
    directory = f"/proc/{pid}/fd"
    return [os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory)]


def test_the_init_is_the_static_program_and_holds_nothing_open() -> None:
    end = time.monotonic() + LIMIT_S
    with native.spawn(plan("pid"), ["sleep", "30"]) as child:
        assert os.readlink(f"/proc/{child.init_pid}/exe") == str(ROOT / "pytest_isolate/_native/isolate-init")
        held = held_by(child.init_pid)
        # Status socket, pidfd of the caller, and, once it has something to wait for, a signalfd.
        while len(held) != 3 and time.monotonic() < end:
            held = held_by(child.init_pid)
        assert len(held) == 3, held
        assert {link.partition(":")[0] for link in held} == {"socket", "anon_inode"}


def test_pids_of_a_child_are_the_hosts() -> None:
    with native.spawn(plan("pid"), ["sleep", "30"]) as child:
        with open(f"/proc/{child.pid}/status") as status:
            numbers = next(line.split()[1:] for line in status if line.startswith("NSpid:"))
        assert numbers == [str(child.pid), "2"]


def test_a_pid_is_known_even_when_the_program_ends_at_once() -> None:
    for _ in range(50):
        with native.spawn(plan("pid"), ["/bin/true"]) as child:
            assert child.pid > 0
            exited = child.wait(10)
            assert exited is not None
            assert exited.status.code == 0


def hostname() -> str:
    return os.uname().nodename


def test_the_hostname_is_set_inside_only() -> None:
    before = hostname()
    assert value(plan("uts", hostname="inside"), hostname) == "inside"
    assert value(plan("uts", "pid", hostname="inside"), hostname) == "inside"
    assert hostname() == before


def reach_loopback() -> int:
    """0, or the errno of a connection to a port on this very loopback device that listens."""
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.settimeout(2)
        return client.connect_ex(server.getsockname())


def test_loopback_is_up_when_asked_and_down_when_not() -> None:
    assert value(plan("net", loopback_up=True), reach_loopback) == 0
    assert value(plan("net", "pid", loopback_up=True), reach_loopback) == 0
    assert value(plan("net"), reach_loopback) == errno.ENETUNREACH


def maps() -> list[Any]:
    with open("/proc/self/uid_map") as uid_map, open("/proc/self/gid_map") as gid_map:
        return [os.getuid(), os.getgid(), uid_map.read().split(), gid_map.read().split()]


EVERY = (IdMap(inside=0, outside=0, count=2**32 - 1),)
SHIFTED = (IdMap(inside=0, outside=100000, count=1000), IdMap(inside=5000, outside=200000, count=10))


@pytest.mark.parametrize("names", [("user",), ("user", "pid", "mnt")], ids="+".join)
def test_maps_that_the_caller_must_write_are_written(names: tuple[str, ...]) -> None:
    every = value(plan(*names, uid_map=EVERY, gid_map=EVERY), maps)
    assert every == [0, 0, ["0", "0", "4294967295"], ["0", "0", "4294967295"]]
    shifted = value(plan(*names, uid_map=SHIFTED, gid_map=SHIFTED), maps)
    assert shifted[:2] == [0, 0]
    assert shifted[2] == ["0", "100000", "1000", "5000", "200000", "10"]
    assert run(plan(*names, uid_map=SHIFTED, gid_map=SHIFTED), "id", "-u").text == "0\n"


def dumpable() -> int:
    import ctypes

    return int(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))


def test_a_child_with_other_ids_leaves_the_caller_dumpable() -> None:
    shifted = plan("user", "pid", "mnt", uid_map=SHIFTED, gid_map=SHIFTED)
    assert dumpable() == 1
    assert value(shifted, dumpable) == 1
    assert run(shifted, "true").exited.status.code == 0
    assert dumpable() == 1


def open_namespaces(pid: int, *names: str) -> list[tuple[int, int]]:
    return [(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), NAMESPACES[name]) for name in names]


@pytest.mark.parametrize(
    "names", [("net",), ("uts", "ipc"), ("time",), ("pid",), ("pid", "net", "uts", "time")], ids="+".join
)
def test_existing_namespaces_are_joined_by_file(names: tuple[str, ...]) -> None:
    with native.spawn(plan("pid", "net", "uts", "ipc", "time"), ["sleep", "30"]) as other:
        joins = open_namespaces(other.pid, *names)
        try:
            joining = Plan(join_fds=tuple(joins))
            expected = {name: os.readlink(f"/proc/{other.pid}/ns/{name}") for name in names}
            forked_links, spawned_links = value(joining, links), program_links(joining)
        finally:
            for fd, _ in joins:
                os.close(fd)
    for seen in (forked_links, spawned_links):
        assert {name: seen[name] for name in names} == expected
        assert changed(seen) == set(names)


def test_namespaces_are_joined_by_pidfd() -> None:
    with native.spawn(plan("pid", "net", "uts"), ["sleep", "30"]) as other:
        joining = Plan(join_fds=((other.pidfd, flags("net", "uts")),))
        assert changed(value(joining, links)) == {"net", "uts"}


def test_a_child_in_a_joined_pid_namespace_has_a_true_status_and_can_be_killed() -> None:
    with native.spawn(plan("pid"), ["sleep", "30"]) as other:
        joining = Plan(join_fds=((other.pidfd, flags("pid")),))
        assert run(joining, "sh", "-c", "kill -TERM $$").exited.status.signal == signal.SIGTERM
        with native.spawn(joining, ["sleep", "30"]) as child:
            child.kill()
            assert child.wait(10) is not None
        assert other.poll() is None


def nest(depth: int) -> list[int]:
    """A sandbox in a sandbox ...: the pid of this process here, then those of all further in."""
    here = os.getpid()
    if depth == 0:
        return [here]
    inner = forked(plan("pid", "mnt", "uts", "ipc", *(("user",) if os.geteuid() else ())), nest, depth - 1)
    assert inner.exited.status.code == 0, inner.exited
    return [here, *inner.json]


def test_sandboxes_nest_ten_deep() -> None:
    assert value(plan("pid", "mnt"), nest, 9) == [2] * 10


def programs_nested(depth: int) -> int:
    if depth == 0:
        return int(run(plan("pid", "mnt"), "sh", "-c", "echo $$").text)
    return int(value(plan("pid", "mnt"), programs_nested, depth - 1))


def test_programs_start_ten_deep() -> None:
    assert programs_nested(9) == 2


PLAIN = ("user", "pid", "mnt", "uts", "ipc", "net")


def as_plain_user() -> dict[str, Any]:
    outside = links()
    inside = value(plan(*PLAIN), links)
    spawned = program_links(plan(*PLAIN))
    return {
        "uid": os.geteuid(),
        "forked": sorted(name for name in NAMESPACES if inside[name] != outside[name]),
        "spawned": sorted(name for name in NAMESPACES if spawned[name] != outside[name]),
        "ids": value(plan(*PLAIN, hostname="here", loopback_up=True), ids),
        "uid inside": value(plan(*PLAIN), os.geteuid),
        "nested": value(plan(*PLAIN), nest, 3),
        "loopback": value(plan(*PLAIN, loopback_up=True), reach_loopback),
        "status": forked(plan(*PLAIN), signal.raise_signal, signal.SIGKILL).exited.status.signal,
    }


def test_a_plain_user_gets_all_of_it_through_a_user_namespace() -> None:
    seen = helper(as_plain_user, uid=65534)
    assert seen == {
        "uid": 65534,
        "forked": sorted(PLAIN),
        "spawned": sorted(PLAIN),
        "ids": [2, 1, 2],
        "uid inside": 65534,
        "nested": [2, 2, 2, 2],
        "loopback": 0,
        "status": signal.SIGKILL,
    }


def test_a_failed_spawn_gives_the_write_end_back() -> None:
    with pipe() as ends:
        ran = finish(native.spawn(plan("pid"), ["echo", "x"], stdout_fd=ends[1]), ends)
    assert ran.text == "x\n"
