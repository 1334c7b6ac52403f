"""Children in cgroups, for tests on the real kernel.

Owns: one manager per hierarchy version, the honest skip for a controller the host keeps elsewhere, and children that
join by writing themselves (no native library needed). Every child is ended and collected here.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel.cgroups import Cgroup, CgroupManager, discover, open_manager
from tests.kernel.joining import join

Require = Callable[[str, bool, str], None]
Opener = Callable[..., contextlib.AbstractContextManager[CgroupManager]]
_PLAIN_V1 = {"memory", "pids", "cpu", "cpuset", "freezer"}


@dataclass
class Child:
    """A forked child of the test; ``stop`` ends it whatever it does."""

    pid: int
    pidfd: int
    status: int | None = None

    def wait(self, timeout_s: float = 30.0) -> int:
        """As subprocess: exit status, or minus the signal."""
        if self.status is None:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            assert poll.poll(timeout_s * 1000), f"child {self.pid} still runs after {timeout_s} s"
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self.pidfd)
        return self.status

    def stop(self) -> None:
        if self.status is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.wait()


@dataclass
class Nursery:
    """Starts children in a cgroup and sees that none survives the test."""

    children: list[Child] = field(default_factory=list)

    def start(self, cgroup: Cgroup, work: Callable[[], object]) -> Child:
        """Fork; the child joins the cgroup, runs ``work`` and exits with 0, or 1 when it raised."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                join(cgroup)
                work()
                code = 0
            finally:
                os._exit(code)
        child = Child(pid, os.pidfd_open(pid))
        self.children.append(child)
        return child

    def run(self, cgroup: Cgroup, work: Callable[[], object], timeout_s: float = 30.0) -> int:
        return self.start(cgroup, work).wait(timeout_s)


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    for child in made.children:
        child.stop()


@pytest.fixture(params=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param[1])


@pytest.fixture
def open_run(require: Require) -> Opener:
    """``open_run(version)``: the manager of a run on one version; skips where there is none, or none for this user."""

    @contextlib.contextmanager
    def opened(version: int, run_id: str = "tests") -> Iterator[CgroupManager]:
        layout = discover()
        there = bool(layout.v1) if version == 1 else layout.v2 is not None
        require(f"cgroup{version}", there, f"this host's layout is {layout.kind}")
        try:
            manager = open_manager(run_id, mode="v1" if version == 1 else "v2")
        except BackendUnavailable as error:
            require(f"cgroup{version}", False, str(error))
            raise
        with manager:
            yield manager

    return opened


@pytest.fixture
def manager(version: int, open_run: Opener) -> Iterator[CgroupManager]:
    """A run of its own on one version of cgroups."""
    with open_run(version) as opened:
        yield opened
    assert not [b.path for b in opened.branches if os.path.exists(b.path)], "the run's directories remain"


@pytest.fixture
def need(manager: CgroupManager, version: int, require: Require) -> Callable[..., None]:
    """``need("memory", "pids")``: skip, by name, what this host keeps in the other version or not at all."""

    def check(*controllers: str) -> None:
        for name in controllers:
            can = manager.capabilities()[name]
            feature = "cgroup1" if version == 1 and name in _PLAIN_V1 else f"cgroup{version}-{name}"
            require(feature, can.available, can.reason)

    return check


def until(what: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Wait for ``what()`` to be true."""
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.005)


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., None]:
    return until
