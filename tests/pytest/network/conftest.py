"""Network policies as users meet them: a server to reach, tests that dial it, and each front end. Traffic on loopback and in own namespaces only.

Owns: the fixtures ``port``, ``tests``, and ``plain`` once more with each front end.
"""

from __future__ import annotations

import socket
import textwrap
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import require_front_end, require_policy_engine
from tests.pytest.conftest import Run

HEAD = """
import socket, subprocess, sys, time
import pytest

PORT = {port}

def dial(port=PORT, host="127.0.0.1"):
    socket.create_connection((host, port), 5).close()
"""


@pytest.fixture(scope="session", autouse=True)
def _policies() -> None:
    """Everything here needs the policy engine."""
    require_policy_engine()


@pytest.fixture(params=["libbpf", "bcc"])
def plain(request: pytest.FixtureRequest, plain: Run) -> Run:
    """As everywhere, once with each front end."""
    front_end: str = request.param
    require_front_end(front_end)

    def run(*args: object, **words: float) -> pytest.RunResult:
        return plain(f"--isolate-bpf={front_end}", *args, **words)

    return run


@pytest.fixture
def port() -> Iterator[int]:
    """A server on this host's loopback that lets everybody connect."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        yield server.getsockname()[1]


@pytest.fixture
def tests(pytester: pytest.Pytester, port: int) -> Callable[[str], None]:
    """``tests(body)`` writes a module whose ``dial()`` reaches the server, where it is allowed."""

    def write(body: str) -> None:
        pytester.makepyfile(test_it=HEAD.format(port=port) + textwrap.dedent(body))

    return write
