"""Real servers on loopback, for real clients: HTTP, git over HTTP, PostgreSQL, Redis, DNS. One of each for the session.

Owns: their processes and directories; each is started when the first test asks for it, from the distribution's packages.
Refuses: to pretend: a program that is not installed is a named skip.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require, require_policy_engine

_STARTS_S = 30.0


@pytest.fixture(scope="session", autouse=True)
def _policies() -> None:
    """Everything here needs the policy engine."""
    require_policy_engine()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients speak to the servers here, not to a proxy of this machine."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def program(name: str, package: str, *places: str) -> str:
    """The path of a program, or a skip that names its package."""
    found = shutil.which(name) or next((path for place in places for path in sorted(glob.glob(place))), None)
    require(package, found is not None, f"no {name}: apt-get install {package}")
    assert found is not None
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def served(argv: list[str], port: int, **words: object) -> Iterator[int]:
    """A server process that accepts TCP on ``port``; ended, and waited for, afterwards, and killed when this process is."""
    tied = [program("setpriv", "util-linux"), "--pdeathsig", "KILL", *argv]
    process = subprocess.Popen(tied, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **words)  # type: ignore[call-overload]
    try:
        end = time.monotonic() + _STARTS_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, f"{argv[0]} does not listen"
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=_STARTS_S)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> int:
    """The port of the server that the parameter names; of session scope, so it is made outside the test's sandbox."""
    return int(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A directory over HTTP: ``hello.txt``, and ``repo.git``, a repository with one commit."""
    root = tmp_path_factory.mktemp("http")
    (root / "hello.txt").write_text("hello")
    git = program("git", "git")
    commit = [git, "-c", "user.name=a", "-c", "user.email=a@b.test", "commit", "-q", "--allow-empty", "-m", "one"]
    subprocess.run([git, "init", "-q", root / "work"], check=True)
    subprocess.run(commit, cwd=root / "work", check=True)
    subprocess.run([git, "clone", "-q", "--bare", root / "work", root / "repo.git"], check=True)
    subprocess.run([git, "update-server-info"], cwd=root / "repo.git", check=True)
    port = free_port()
    argv = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(root)]
    with served(argv, port):
        yield port


@pytest.fixture(scope="session")
def postgres() -> Iterator[int]:
    """PostgreSQL with trust on loopback; as root it runs as the user postgres, for it refuses root."""
    binaries = Path(program("postgres", "postgresql", "/usr/lib/postgresql/*/bin/postgres")).parent
    data = f"/tmp/pytest-isolate-postgres-{os.getpid()}"
    user: dict[str, object] = {}
    if os.geteuid() == 0:
        names = [entry.pw_name for entry in pwd.getpwall()]
        require("postgresql", "postgres" in names, "there is no user postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    try:
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"],
            check=True, capture_output=True, cwd="/", **user,
        )  # type: ignore[call-overload]  # fmt: skip
        port = free_port()
        argv = [str(binaries / "postgres"), "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        argv += ["-c", "unix_socket_directories=", "-c", "fsync=off"]
        with served(argv, port, cwd="/", **user):
            yield port
    finally:
        shutil.rmtree(data, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Redis, in memory."""
    port = free_port()
    argv = [program("redis-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with served(argv, port, cwd=tmp_path_factory.mktemp("redis")):
        yield port


@pytest.fixture(scope="session")
def dns() -> Iterator[int]:
    """A name server that knows ``db.test``, over UDP and TCP."""
    port = free_port()
    argv = [program("dnsmasq", "dnsmasq-base", "/usr/sbin/dnsmasq"), "--no-daemon", f"--port={port}", "--no-hosts"]
    argv += [
        "--no-resolv",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--address=/db.test/127.0.0.1",
        "-C",
        "/dev/null",
    ]
    with served(argv, port):
        yield port
