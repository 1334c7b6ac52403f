"""A process that was forked from the one that uses a sandbox has a copy: it looks, and ends, reads and removes nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate import groups, networks
from pytest_isolate.errors import BackendUnavailable, PolicyError, SetupError
from pytest_isolate.kernel import native, processes
from pytest_isolate.running import ProgramFailed, Running
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require
from tests.kernel.launching import plan, value
from tests.kernel.limits.programs import controller

LIMIT_S = 20
KINDS = pytest.mark.parametrize("words", [{}, {"namespaces": "+pid"}], ids=["monitor", "init"])


@pytest.fixture(scope="module", autouse=True)
def networks_of_this_process_closed() -> Iterator[None]:
    yield
    networks.close_those_of_this_process()


def fork(body: Callable[[], object]) -> None:
    """``body`` in a bare fork, which ends within LIMIT_S and without an exception."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    pidfd = os.pidfd_open(pid)
    try:
        in_time = processes.ended(pidfd, LIMIT_S)
        if not in_time:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)
    assert in_time, "it hung"
    assert status == 0


def leave(sandbox: Any) -> None:
    """As a child does that unwinds the stack it was forked with."""
    with contextlib.suppress(SystemExit), sandbox:
        sys.exit(0)


def ended(running: Running) -> Running:
    assert processes.ended(running._process.pidfd, LIMIT_S)
    return running


@KINDS
def test_how_a_program_ended_is_told_to_the_process_that_started_it(sandbox: Sandbox, words: dict[str, Any]) -> None:
    running = ended(sandbox.spawn(["sh", "-c", "echo hello; exit 3"], **words))

    def look() -> None:
        for _ in range(2):
            assert not running.running()
            assert running.wait_for_line("hello") == "hello"
            with pytest.raises(
                ProgramFailed, match="it has ended, and how is told to the process that started it"
            ) as got:
                running.wait_for_line("ready")
            assert got.value.returncode is None
            assert (got.value.outcome.status.code, got.value.outcome.status.signal) == (None, None)
            assert (got.value.stdout, got.value.outcome.ok) == ("hello\n", False)

    fork(look)
    fork(look)
    assert running.running() is False
    assert running.wait().status.code == 3


@KINDS
def test_what_is_known_before_the_fork_is_known_after_it(sandbox: Sandbox, words: dict[str, Any]) -> None:
    running = sandbox.spawn(["sh", "-c", "exit 3"], **words)
    outcome = running.wait()

    def look() -> None:
        assert running.wait() is running.terminate() is outcome

    fork(look)


@pytest.mark.parametrize("limits", [{}, {"memory": "64M"}], ids=["plain", "cgroup"])
def test_a_child_that_leaves_the_sandbox_ends_nothing_of_its_parents(sandbox: Sandbox, limits: dict[str, Any]) -> None:
    if limits:
        controller("memory")
    running = sandbox.spawn(["sleep", "60"], **limits)

    def go() -> None:
        with running:
            pass
        leave(sandbox)
        assert running.running()

    fork(go)
    assert running.running()
    outcome = running.terminate()
    assert (outcome.status.signal, outcome.causes, outcome.detail) == (signal.SIGTERM, (), ())


@pytest.mark.parametrize("verb", ["wait", "terminate", "freeze", "thaw"])
def test_a_child_that_asks_for_its_end_or_its_pause_is_refused(sandbox: Sandbox, verb: str) -> None:
    running = sandbox.spawn(["sleep", "60"])

    def ask() -> None:
        with pytest.raises(PolicyError, match=rf"^{verb}: sleep was started by another process"):
            getattr(running, verb)()

    fork(ask)
    assert running.running()


def test_a_child_may_signal(sandbox: Sandbox) -> None:
    running = sandbox.spawn(["sleep", "60"])
    fork(lambda: running.signal(signal.SIGUSR1))
    assert running.wait().status.signal == signal.SIGUSR1


def test_a_child_leaves_while_a_thread_of_its_parents_waits(sandbox: Sandbox) -> None:
    running = sandbox.spawn(["sleep", "60"])
    entered = threading.Event()
    outcomes = []

    def wait() -> None:
        entered.set()
        outcomes.append(running.wait())

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        assert entered.wait(LIMIT_S)
        waiting.join(0.3)  # it waits by now, and holds what who waits holds

        def go() -> None:
            assert running.running()
            leave(sandbox)

        fork(go)
        assert not outcomes
        running.signal(signal.SIGUSR1)
    finally:
        running.signal(signal.SIGKILL)
        waiting.join(LIMIT_S)
    assert [outcome.status.signal for outcome in outcomes] == [signal.SIGUSR1]


def test_a_child_ends_what_it_has_started_itself_in_its_copy(sandbox: Sandbox) -> None:
    parents = sandbox.spawn(["sleep", "60"])

    def go() -> None:
        own = sandbox.spawn(["sleep", "60"])
        assert sandbox.run(["sh", "-c", "exit 4"]).returncode == 4
        leave(sandbox)
        assert own.wait().status.signal == signal.SIGTERM
        assert parents.running()

    fork(go)
    assert parents.running()


def test_a_child_that_leaves_the_sandbox_leaves_its_private_network(sandbox: Sandbox) -> None:
    try:
        network = sandbox.network
    except (BackendUnavailable, SetupError) as error:
        require("private", False, str(error))
        raise
    interface = Path("/sys/class/net", network.subnet.interface)
    assert interface.exists()

    def go() -> None:
        network.close()
        leave(sandbox)
        assert interface.exists()

    fork(go)
    assert interface.exists()
    assert sandbox.run(["true"], net="private").ok
    sandbox.close()
    assert not interface.exists()


def test_a_cgroup_is_killed_by_the_process_that_made_it(sandbox: Sandbox) -> None:
    controller("pids")
    running = sandbox.spawn(["sleep", "60"], pids=20)
    cgroup = running._cgroup
    assert cgroup is not None
    fork(cgroup.kill)
    assert running.running()


@pytest.mark.parametrize("a_plan", [plan(), plan("pid", "mnt")], ids=["direct", "init"])
def test_the_record_of_a_child_is_its_owners(a_plan: Any) -> None:
    with native.spawn(a_plan, ["sh", "-c", "read line; exit 3"], stdin_fd=(ends := os.pipe())[0]) as child:

        def harmless() -> None:
            assert child.poll() is None
            with child:  # kills and collects, in its owner
                assert child.reap(block=True)

        def told() -> None:
            with pytest.raises(ChildProcessError, match="has ended; how is told to the process that started it"):
                child.wait(LIMIT_S)

        fork(harmless)
        assert child.poll() is None
        os.write(ends[1], b"\n")
        fork(told)
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert exited.status.code == 3
    for end in ends:
        os.close(end)


def test_a_copy_with_the_number_of_its_owner_is_a_copy() -> None:
    """In nested PID namespaces each test is number 2."""
    a_plan = plan("pid", "mnt")

    def owner() -> list[Any]:
        with Sandbox() as sandbox:
            running = sandbox.spawn(["sleep", "60"])

            def copy() -> int:
                leave(sandbox)
                return os.getpid()

            number = value(a_plan, copy)
            return [number == os.getpid(), running.running()]

    assert value(a_plan, owner) == [True, True]


def test_a_lock_that_a_thread_held_when_it_was_forked_is_free_in_the_child() -> None:
    """Of cgroups that are being opened for the first time, and of networks; the thread that would open them is not there."""
    found = groups.Groups()
    held = networks.Networks(groups.Groups("none"))

    def opens() -> None:
        found.manager()
        found.close()
        with pytest.raises(BackendUnavailable):
            held.engine()

    with found._opening, held._opening:
        fork(opens)
