"""Sandboxes without a PID namespace: the monitor names, ends and collects the whole tree, under attack and when the caller is killed."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.kernel import library, native, processes
from pytest_isolate.kernel.plan import MountKind, MountOp, Plan
from tests.conftest import require
from tests.kernel.flat import BOTH, FLAT, GONE_S, daemonize, flat, line, started, state
from tests.kernel.launching import (
    LIMIT_S,
    become,
    close_end,
    helper,
    pipe,
    read_all,
    value,
)
from tests.kernel.throwaway import ROOT


@BOTH
def test_daemons_are_named_and_gone_after_kill(a_plan: Plan) -> None:
    def test(fd: int) -> None:
        daemonize(fd)
        os._exit(3)

    with pipe() as ends, started(a_plan, test, ends[1]) as child:
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert (exited.status.code, exited.leftovers) == (3, True)
        daemon = line(ends[0])
        assert [leftover.pid for leftover in child.leftovers()] == [daemon]
        child.kill()
        assert child.reap(block=True)
        assert state(daemon) == ""
        assert child.reap(block=False)


def test_a_program_with_daemons_too() -> None:
    script = "setsid sleep 61 & setsid sh -c 'sleep 62 & sleep 62' & sleep 0.1; exit 4"
    with native.spawn(FLAT, ["sh", "-c", script]) as child:
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert (exited.status.code, exited.leftovers) == (4, True)
        left = child.leftovers()
        assert sorted(leftover.command for leftover in left)[:1] == ["sh -c sleep 62 & sleep 62"]
        assert len(left) == 4
        child.kill()
        assert child.reap(block=True)
        assert [state(leftover.pid) for leftover in left] == [""] * 4


def test_kill_before_the_end_is_told_as_sigkill() -> None:
    with native.spawn(FLAT, ["sh", "-c", "setsid sleep 60 & sleep 60"]) as child:
        child.kill()
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert exited.status.signal == signal.SIGKILL
        assert child.reap(block=True)


def test_the_monitor_leaves_when_the_last_leftover_does() -> None:
    with native.spawn(FLAT, ["sh", "-c", "setsid sleep 0.3 & exit 0"]) as child:
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert processes.ended(child.init_pidfd, LIMIT_S)
        assert child.leftovers() == []
        assert child.reap(block=False)


def test_the_end_is_found_behind_anything_mounted_on_proc() -> None:
    hidden = MountOp(kind=MountKind.MOUNT, source="tmpfs", target="/proc", fstype="tmpfs")
    with native.spawn(flat(mounts=(hidden,)), ["sh", "-c", "ls /proc; setsid sleep 60 & setsid sleep 60 &"]) as child:
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert exited.leftovers
        left = child.leftovers()
        assert len(left) == 2
        child.kill()
        assert processes.ended(child.init_pidfd, GONE_S), "the monitor itself, not our fall-back"
        assert child.reap(block=True)
        assert [state(leftover.pid) for leftover in left] == ["", ""]


def may_fork(counter: int) -> None:
    """Take one of the forks that the test is bounded to; without one, sleep."""
    try:
        os.eventfd_read(counter)
    except BlockingIOError:
        time.sleep(60)


def chains(counter: int) -> None:
    """Twelve, each in a session of its own: fork, leave, and so on from the child. Whoever is listed is gone by now."""
    for _ in range(12):
        if os.fork() == 0:
            os.setsid()
            while True:
                may_fork(counter)
                if os.fork():
                    os._exit(0)
    time.sleep(60)


def bush(counter: int) -> None:
    """Twice as many each time, each in a session of its own."""
    while True:
        may_fork(counter)
        if os.fork() == 0:
            os.setsid()


def survivors(leader_ns: str) -> list[int]:
    """Processes with that UTS namespace: every member of the sandbox, whoever its parent is."""
    found = []
    for pid in processes.pids():
        try:
            if os.readlink(f"/proc/{pid}/ns/uts") == leader_ns and state(pid) not in "ZX":
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("bomb", "forks"), [(chains, 40_000), (bush, 300)])
def test_a_tree_that_forks_without_end_is_gone_after_kill(bomb: Any, forks: int) -> None:
    for _ in range(3):
        counter = os.eventfd(forks, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        try:
            with started(FLAT, bomb, counter) as child, open(f"/proc/{child.init_pid}/ns/uts", "rb"):
                # Held open: the number of a namespace that is gone would be another's at once.
                ours = os.readlink(f"/proc/{child.init_pid}/ns/uts")
                assert ours != os.readlink("/proc/self/ns/uts")
                while len(survivors(ours)) < 10:
                    time.sleep(0.001)
                child.kill()
                assert child.reap(block=True)
                assert survivors(ours) == []
                if bomb is chains:
                    assert select.select([counter], [], [], 0)[0], "it had ended by itself: the limit is too small"
        finally:
            os.close(counter)


# ---- a monitor under attack ----


def test_a_test_that_kills_its_parent_is_told_as_sigkill() -> None:
    def test() -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    with started(FLAT, test) as child:
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert exited.status.signal == signal.SIGKILL
        assert processes.ended(child.pidfd, GONE_S)
        child.kill()
        assert child.reap(block=True)


@pytest.fixture
def slow_forks(tmp_path: Path) -> Path:
    """A library whose ``slow()`` lets each later fork(2) of the process take 50 ms more in the parent, once the child is there."""
    compiler = shutil.which(os.environ.get("CC", "gcc")) or ""
    require("compiler", bool(compiler), "no gcc, and CC names none")
    source, built = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text(
        """
        #include <pthread.h>
        #include <unistd.h>
        static void slowly(void) { usleep(50000); }
        int slow(void) { return pthread_atfork(0, slowly, 0); }
        """
    )
    subprocess.run([compiler, "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", str(built), str(source)], check=True)
    return built


def test_a_test_cannot_kill_its_parent_while_that_is_in_the_runners_memory(slow_forks: Path) -> None:
    """Within fork(2) it holds locks of libc's, which would stay taken for the runner: its next malloc or fork never returned."""

    def body() -> list[int]:
        assert ctypes.CDLL(str(slow_forks)).slow() == 0
        signals = []
        for _ in range(2):
            with started(FLAT, lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(60))) as child:
                exited = child.wait(LIMIT_S)
                assert exited is not None
                signals.append(int(exited.status.signal or 0))
                child.kill()
                assert child.reap(block=True)
        return signals

    assert helper(body) == [signal.SIGKILL] * 2


def test_the_session_dies_with_a_killed_monitor() -> None:
    with native.spawn(FLAT, ["sh", "-c", "sleep 60 & echo; sleep 60"]) as child:
        while not (left := child.leftovers()):
            time.sleep(0.01)
        os.kill(child.init_pid, signal.SIGKILL)
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert exited.status.signal == signal.SIGKILL
        assert {state(leftover.pid) for leftover in left} <= {"", "Z"}


def test_a_stopped_monitor_is_woken() -> None:
    with native.spawn(FLAT, ["sh", "-c", "setsid sleep 60 & sleep 60"]) as child:
        while not (left := child.leftovers()):
            time.sleep(0.01)
        os.kill(child.init_pid, signal.SIGSTOP)
        begun = time.monotonic()
        child.kill()
        assert child.reap(block=True)
        assert time.monotonic() - begun < LIMIT_S
        assert {state(leftover.pid) for leftover in left} == {""}


PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207


@pytest.fixture
def traced_monitor() -> Iterator[native.Child]:
    """Held by ptrace(2): SIGCONT does not wake it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with native.spawn(FLAT, ["sh", "-c", "setsid sleep 60 & sleep 60"]) as child:
        assert libc.ptrace(PTRACE_SEIZE, child.init_pid, 0, 0) == 0, os.strerror(ctypes.get_errno())
        assert libc.ptrace(PTRACE_INTERRUPT, child.init_pid, 0, 0) == 0
        while state(child.init_pid) != "t":
            time.sleep(0.01)
        yield child


def test_a_monitor_that_cannot_be_woken_is_done_without(traced_monitor: native.Child) -> None:
    while not (left := traced_monitor.leftovers()):
        time.sleep(0.01)
    traced_monitor.kill()
    assert traced_monitor.reap(block=True)
    assert {state(leftover.pid) for leftover in left} <= {"", "Z"}
    exited = traced_monitor.wait(LIMIT_S)
    assert exited is not None
    assert exited.status.signal == signal.SIGKILL


# ---- a caller that is killed ----


def family(report_fd: int, uid: int | None) -> None:
    """Starts sandboxes, each with a daemon in it; every process holds report_fd."""
    if uid is not None:
        become(uid)
    a_plan = flat(*(("user",) if uid else ()), "uts", "ipc", "mnt")
    os.write(report_fd, b"x")
    kept = []
    for number in range(6):
        if number % 2:
            kept.append(native.spawn(a_plan, ["sh", "-c", "setsid sh -c 'sleep 60 & sleep 60' & sleep 60"]))
        else:
            kept.append(started(a_plan, lambda: (daemonize(report_fd), time.sleep(60))))
    time.sleep(60)


@pytest.mark.parametrize("uid", [None, 65534], ids=["root", "user"])
def test_nothing_survives_a_caller_killed_at_a_random_moment(uid: int | None) -> None:
    late = 0
    for number in range(50):
        with pipe() as ends:
            os.set_inheritable(ends[1], True)
            pid = os.fork()
            if pid == 0:
                try:
                    family(ends[1], uid)
                finally:
                    os._exit(1)
            close_end(ends, 1)
            assert os.read(ends[0], 1) == b"x"
            time.sleep(0.0006 * number)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            try:
                read_all(ends[0], GONE_S)  # the end of the stream: nobody holds it any more
            except AssertionError:
                late += 1
    assert late == 0


def as_plain_user() -> list[Any]:
    a_plan = flat("user", "uts", "ipc", "mnt")
    with native.spawn(a_plan, ["sh", "-c", "setsid sleep 60 & sleep 0.1; exit 7"]) as child:
        exited = child.wait(LIMIT_S)
        assert exited is not None
        left = child.leftovers()
        child.kill()
        collected = child.reap(block=True)
    inside = value(a_plan, os.getuid)
    return [exited.status.code, exited.leftovers, len(left), collected, state(left[0].pid), inside]


def test_a_plain_user_gets_the_same() -> None:
    uid = 65534 if os.geteuid() == 0 else None
    assert helper(as_plain_user, uid=uid) == [7, True, 1, True, "", uid or os.geteuid()]


# ---- a kernel without /proc/PID/task/TID/children ----


@pytest.fixture
def scanning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library beside an isolate-init that looks for its children in every /proc/PID/stat."""
    flags = ["INIT_CFLAGS=-std=gnu11 -Os -ffreestanding -fno-builtin -fno-stack-protector -fno-pie -Iinclude -Isrc "]
    flags[0] += '-fno-asynchronous-unwind-tables -fcf-protection=none -DCHILDREN_FILE=\\"nowhere\\"'
    if os.uname().machine != "x86_64":
        flags[0] = flags[0].replace("-fcf-protection=none ", "")
    subprocess.run(["make", "-C", str(ROOT / "native"), f"OUT={tmp_path}", *flags], check=True, capture_output=True)
    monkeypatch.setattr(library, "_DIRECTORY", tmp_path)


@pytest.mark.usefixtures("scanning")
def test_children_are_found_without_the_kernels_list_of_them() -> None:
    a_plan = flat()
    script = "setsid sleep 61 & setsid sh -c 'sleep 62 & sleep 62' & sleep 0.1; exit 4"
    with native.spawn(a_plan, ["sh", "-c", script]) as child:
        assert child.wait(LIMIT_S) is not None
        left = child.leftovers()
        assert len(left) == 4
        child.kill()
        assert processes.ended(child.init_pidfd, GONE_S), "the monitor itself, not our fall-back"
        assert child.reap(block=True)
        assert [state(leftover.pid) for leftover in left] == [""] * 4
