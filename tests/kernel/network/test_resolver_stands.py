"""Whatever a client, a name or this host does: the resolver answers who asks next, and what went wrong is told."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.namespaces import unshare
from pytest_isolate.network import NetworkPolicy, Verdict
from pytest_isolate.network.lookups import Found, Lookups
from tests.kernel.network.conftest import attempt, tcp
from tests.kernel.throwaway import CLONE_NEWPID

from .test_names_and_redirects import V4, _ask_tcp, _ask_udp, query

SERVER = ("203.0.113.53", 53)
EVEN = list(range(1000, 1040, 2))


def test_a_slow_name_keeps_no_other_waiting_and_is_given_up(box, hosts, monkeypatch):
    monkeypatch.setattr("pytest_isolate.network.lookups.LOOKUP_S", 4.0)

    def work():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as slow:
            slow.settimeout(30)
            slow.sendto(query("slow.test"), SERVER)
            quick = _ask_udp("db.test")[:2]
            waits = not select.select([slow], [], [], 0)[0]
            return quick, waits, slow.recv(512)[3] & 15

    with box.attach(NetworkPolicy().allow_host("slow.test", tcp=[80]).allow_host("db.test", tcp=[80])) as net:
        quick, waits, slow = box.run(work)
        assert (quick, waits, slow) == ([0, 1], True, 2)
        assert [str(e) for e in net.events()] == [
            'UNRESOLVED slow.test (allow_host("slow.test"): could not be looked up now: no answer in 4 s)'
        ]
        assert net.denied == []


def test_silent_clients_keep_nobody_waiting(box, hosts):
    def work():
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(tcp(SERVER))
            return _ask_udp("db.test")[:2], _ask_tcp("db.test")[:2]

    with box.attach(NetworkPolicy().allow_host("db.test", tcp=[80])):
        assert box.run(work) == [[0, 1], [0, 1]]


def test_one_connection_may_ask_again_and_bit_by_bit(box, hosts):
    def work():
        text = len(query("db.test")).to_bytes(2, "big") + query("db.test")
        with tcp(SERVER) as made:
            found = []
            for pieces in ([text], [text[:1], text[1:9], text[9:]]):
                for piece in pieces:
                    made.sendall(piece)
                    time.sleep(0.02)
                found.append(socket.inet_ntoa(made.recv(512)[-4:]))
            return found

    with box.attach(NetworkPolicy().allow_host("db.test", tcp=[80])):
        assert box.run(work) == [V4, V4]


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("gone.test", 0, "this host knows no address of it: no such name"),
        ("again.test", 2, "could not be looked up now: try again later"),
    ],
)
def test_a_host_without_address_is_named_in_an_event(box, hosts, name, code, text):
    with box.attach(NetworkPolicy().allow_host(name, tcp=[80])) as net:
        assert box.run(lambda: _ask_udp(name))[:2] == [code, 0]
        (event,) = net.events()
        assert str(event) == f'UNRESOLVED {name} (allow_host("{name}"): {text})'
        assert event.verdict is Verdict.LOG


def test_addresses_that_cannot_be_allowed_are_told_and_leave_the_rest(box, hosts, listen):
    server = listen("203.0.113.8")
    policy = (
        NetworkPolicy()
        .allow("203.0.113.7/32", tcp=EVEN)
        .allow_host("db.test", tcp=[p + 1000 for p in EVEN])
        .allow_host("web.test", tcp=[server.getsockname()[1]])
    )
    with box.attach(policy) as net:
        assert box.run(lambda: _ask_udp("db.test"))[:2] == [2, 0]
        assert "41 ranges of ports are more than 32" in str(net.denied[0])
        assert str(net.denied[0]).startswith("NETDENIED db.test (")
        assert box.run(lambda: _ask_udp("web.test"))[:2] == [0, 1]
        assert box.run(lambda: attempt(lambda: tcp(server.getsockname()))[0]) == "ok"
        net.update(net.policy.allow("203.0.113.1"))


def test_ports_that_fit_beside_no_address_are_refused_when_the_host_is_named(box):
    policy = NetworkPolicy().allow("*", tcp=EVEN).allow_host("db.test", tcp=[p + 1000 for p in EVEN])
    with pytest.raises(PolicyError, match=r'allow_host\("db.test"\).* ranges of ports are more than 32'):
        box.attach(policy)


def test_a_process_with_more_than_1024_descriptors_has_a_resolver(box, hosts):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(1100)]
    try:
        with box.attach(NetworkPolicy().allow_host("db.test", tcp=[80])):
            assert box.run(lambda: _ask_udp("db.test"))[:2] == [0, 1]
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_this_host_s_own_words_are_read():
    """No mock, and nothing of the outside is asked: a number is a name for getaddrinfo, the other is none."""
    found: dict[str, Found] = {}
    lookups = Lookups(found.__setitem__)
    for name in ("0x7f000001", "a" * 64 + ".invalid"):
        lookups.ask(name)
    end = time.monotonic() + 5
    while len(found) < 2 and time.monotonic() < end:
        for fd in lookups.fds():
            lookups.heard(fd)
    lookups.close()
    assert [str(a) for a in found["0x7f000001"].addresses] == ["127.0.0.1"]
    assert found["a" * 64 + ".invalid"].why


def test_nothing_is_left_of_a_look_up_that_was_under_way(box, hosts):
    with box.attach(NetworkPolicy().allow_host("slow.test", tcp=[80])):
        box.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(query("slow.test"), SERVER))
        time.sleep(0.3)
    lists = [p.read_bytes() for p in Path(f"/proc/{os.getpid()}/task").glob("*/children")]
    children = {int(pid) for text in lists for pid in text.split()}
    assert not [pid for pid in children if b"slow.test" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_process_forked_by_others_keeps_no_resolver_from_closing(box):
    """It knows nothing of it, so it has all of its descriptors."""
    (waits, goes), net = os.pipe(), box.attach(NetworkPolicy().allow_host("db.test", tcp=[80]))
    if (pid := os.fork()) == 0:
        os.read(waits, 1)
        os._exit(0)
    closing = threading.Thread(target=net.close)
    closing.start()
    closing.join(10)
    hangs = closing.is_alive()
    os.write(goes, b"x")
    os.waitpid(pid, 0)
    closing.join()
    for fd in (waits, goes):
        os.close(fd)
    assert not hangs


def test_an_update_that_is_refused_leaves_what_a_host_was_allowed(box, hosts, listen):
    server = listen(V4)
    policy = NetworkPolicy().allow_host("db.test", tcp=[server.getsockname()[1]])

    def reaches():
        return attempt(lambda: tcp(server.getsockname()))[0]

    with box.attach(policy) as net:
        assert box.run(lambda: _ask_udp("db.test"))[:2] == [0, 1]
        with pytest.raises(PolicyError, match="40 ranges of ports"):
            net.update(NetworkPolicy().allow(V4, tcp=list(range(1000, 1080, 2))))
        assert net.policy is policy
        assert box.run(lambda: _ask_udp("db.test"))[:2] == [0, 1]
        net.update(policy.allow("203.0.113.8"))
        assert box.run(reaches) == "ok"
        net.update(NetworkPolicy())
        assert box.run(reaches) == "EPERM"


def test_a_stranger_with_the_number_of_a_look_up_that_somebody_else_reaped_lives(hosts):
    def ends_a_stranger():
        lookups = Lookups(lambda *_: None)
        lookups.ask("slow.test")
        (pid,) = (asked.pid for asked in lookups._asked.values())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(-1, 0)
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        if (stranger := os.fork()) == 0:
            signal.pause()
        lookups.close()
        time.sleep(0.1)
        ended = os.waitpid(stranger, os.WNOHANG) != (0, 0)
        if not ended:
            os.kill(stranger, signal.SIGKILL)
        return stranger == pid, ended

    assert _in_a_pid_namespace(ends_a_stranger) == "(True, False)"


def _in_a_pid_namespace(work):
    """The text of what ``work`` answers there: numbers of processes are its own."""
    reading, writing = os.pipe()
    if (outer := os.fork()) == 0:
        try:
            unshare(CLONE_NEWPID)
            if (inner := os.fork()) == 0:
                os.write(writing, str(work()).encode())
            else:
                os.waitpid(inner, 0)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(outer, 0)
    return answer
