"""Clients that people use obey a network policy, in process and as programs: allowed they work, refused they fail at once.

Each test is isolated by asking for ``net_policy``; the servers run outside, on this host's loopback.
"""

from __future__ import annotations

import importlib
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_isolate.testing.requirement import required_features
from tests.conftest import require

from .conftest import program

if TYPE_CHECKING:
    from pytest_isolate.runner.netpolicy import NetPolicy

#: Where there is no eBPF these are skipped, and stop no other test's run; unless it is asked for by name.
pytestmark = pytest.mark.isolate(missing="error" if "bpf" in required_features() else "skip")

#: A refused client answers at once; what it takes is its own start on a busy machine, and never a time-out.
AT_ONCE_S = 5.0


def library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        require(name.partition(".")[0], False, str(error))


def ran(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def by_requests(port: int) -> str:
    return str(library("requests").get(f"http://127.0.0.1:{port}/hello.txt", timeout=30).text)


def by_httpx(port: int) -> str:
    return str(library("httpx").get(f"http://127.0.0.1:{port}/hello.txt", timeout=30).text)


def by_httpx_async(port: int) -> str:
    import asyncio

    async def fetch() -> str:
        async with library("httpx").AsyncClient(timeout=30) as client:
            return str((await client.get(f"http://127.0.0.1:{port}/hello.txt")).text)

    return asyncio.run(fetch())


def by_curl(port: int) -> str:
    return ran(program("curl", "curl"), "-sS", "--max-time", "30", f"http://127.0.0.1:{port}/hello.txt")


def by_git(port: int) -> str:
    return ran(program("git", "git"), "ls-remote", f"http://127.0.0.1:{port}/repo.git", "HEAD")


def by_psycopg(port: int) -> str:
    psycopg = library("psycopg")
    with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres connect_timeout=30") as connection:
        return str(connection.execute("select 'hel' || 'lo'").fetchone()[0])


def by_redis(port: int) -> str:
    # Without retries: they are redis-py's own patience, not a hang.
    retry = library("redis.retry").Retry(library("redis.backoff").NoBackoff(), 0)
    with library("redis").Redis(port=port, host="127.0.0.1", socket_timeout=30, retry=retry) as client:
        client.set("word", "hello")
        return str(client.get("word").decode())


def by_dig_udp(port: int) -> str:
    return ran(program("dig", "dnsutils"), "@127.0.0.1", "-p", str(port), "+short", "+tries=1", "+time=30", "db.test")


def by_dig_tcp(port: int) -> str:
    dig = program("dig", "dnsutils")
    return ran(dig, "@127.0.0.1", "-p", str(port), "+tcp", "+short", "+tries=1", "+time=30", "db.test")


#: (client, fixture of its server, part of the answer, the process that is refused)
CLIENTS = [
    (by_requests, "http", "hello", "py"),
    (by_httpx, "http", "hello", "py"),
    (by_httpx_async, "http", "hello", "py"),
    (by_curl, "http", "hello", "curl"),
    (by_git, "http", "HEAD", "git-remote-http"),
    (by_psycopg, "postgres", "hello", "py"),
    (by_redis, "redis_server", "hello", "py"),
    (by_dig_udp, "dns", "127.0.0.1", ""),
    (by_dig_tcp, "dns", "127.0.0.1", ""),
]
each_client = pytest.mark.parametrize(
    ("client", "server", "answer", "comm"),
    CLIENTS,
    indirect=["server"],
    scope="session",  # a parameter of the test's own scope would have the server made inside its sandbox
    ids=[client.__name__[3:] for client, *_ in CLIENTS],
)
Client = Callable[[int], str]


@each_client
def test_an_allowed_client_works_and_what_it_contacted_is_known(
    net_policy: NetPolicy, client: Client, server: int, answer: str, comm: str
) -> None:
    net_policy.allow("127.0.0.1", tcp=[server], udp=[server])
    assert answer in client(server)
    assert net_policy.denied == []
    assert any(flow.peer_port == server and flow.packets_in for flow in net_policy.flows())


@each_client
def test_a_refused_client_fails_at_once_and_is_named(
    net_policy: NetPolicy, client: Client, server: int, answer: str, comm: str
) -> None:
    net_policy.allow("127.0.0.1", tcp=[server + 1 if server < 65535 else server - 1])
    net_policy.errno = "ECONNREFUSED"
    began = time.monotonic()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has an exception of its own
        client(server)
    assert time.monotonic() - began < AT_ONCE_S
    assert not isinstance(caught.value, pytest.skip.Exception)
    refused = [event for event in net_policy.denied if event.port == server]
    assert refused
    assert refused[0].comm.startswith(comm)
    assert net_policy.stats.connections_out == 0


def test_names_of_a_policy_resolve_and_others_do_not(http: int, net_policy: NetPolicy) -> None:
    requests = library("requests")
    net_policy.redirect(f"api.example.com:{http}", to=("127.0.0.1", http))
    assert requests.get(f"http://api.example.com:{http}/hello.txt", timeout=30).text == "hello"
    assert ran(program("curl", "curl"), "-sS", f"http://api.example.com:{http}/hello.txt") == "hello"
    assert ran(program("dig", "dnsutils"), "+short", "api.example.com").startswith("198.18.")
    began = time.monotonic()
    with pytest.raises(requests.ConnectionError, match=r"other\.example\.com"):
        requests.get(f"http://other.example.com:{http}/hello.txt", timeout=30)
    assert time.monotonic() - began < AT_ONCE_S


def test_a_database_by_name_is_reached_by_its_name_only(postgres: int, net_policy: NetPolicy) -> None:
    psycopg = library("psycopg")
    net_policy.redirect(f"db.test:{postgres}", to=("127.0.0.1", postgres))
    with psycopg.connect(f"host=db.test port={postgres} user=postgres connect_timeout=30") as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(f"host=127.0.0.2 port={postgres} user=postgres connect_timeout=30")
    assert [str(event.address) for event in net_policy.denied if event.port == postgres] == ["127.0.0.2"]
