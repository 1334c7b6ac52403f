"""How children end: true statuses through the init, orphans, time-outs, whole trees killed, nothing left behind."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import select
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_isolate.kernel import native
from tests.kernel.launching import LIMIT_S, become, close_end, forked, open_fds, pipe, plan, read_all, run

if TYPE_CHECKING:
    from pytest_isolate.kernel.plan import Plan

NO_CORE = ((resource.RLIMIT_CORE, 0, 0),)
WITH_INIT = plan("pid", "mnt", rlimits=NO_CORE)
WITHOUT = plan(rlimits=NO_CORE)
BOTH = pytest.mark.parametrize("a_plan", [WITH_INIT, WITHOUT], ids=["init", "direct"])


@BOTH
@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exit_codes_are_true(a_plan: Plan, code: int) -> None:
    assert run(a_plan, "sh", "-c", f"exit {code}").exited.status.code == code
    assert forked(a_plan, os._exit, code).exited.status.code == code


def end_by(signum: int) -> None:
    faulthandler.disable()
    signal.signal(signum, signal.SIG_DFL) if signum not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), signum)
    time.sleep(LIMIT_S)


@BOTH
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMAX])
def test_signals_are_true(a_plan: Plan, signum: int) -> None:
    assert forked(a_plan, end_by, int(signum)).exited.status.signal == signum
    assert run(a_plan, "sh", "-c", f"kill -{int(signum)} $$").exited.status.signal == signum


def abort() -> None:
    faulthandler.disable()
    os.abort()


@BOTH
def test_abort_is_reported_as_sigabrt(a_plan: Plan) -> None:
    assert forked(a_plan, abort).exited.status.signal == signal.SIGABRT


def burn() -> int:
    held = bytearray(40 << 20)
    end = time.process_time() + 0.05
    while time.process_time() < end:
        held[0] ^= 1
    return len(held)


@BOTH
def test_what_it_cost_is_told(a_plan: Plan) -> None:
    usage = forked(a_plan, burn).exited.rusage
    assert 0.05 <= usage.user_s + usage.system_s < 5
    assert usage.max_rss_bytes > 40 << 20
    assert usage.minor_faults > 1000


def make_orphans() -> int:
    for _ in range(20):
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
    end = time.monotonic() + LIMIT_S
    while (found := others()) != ["Z"] * 20 and time.monotonic() < end:
        time.sleep(0.01)
    return len(found)


def others() -> list[str]:
    """The states of all processes but this one and the init."""
    return [state(int(name)) for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())]


def state(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]
    return ""


def test_orphans_are_collected_by_the_init_and_its_own_children_by_nobody_else() -> None:
    ran = forked(WITH_INIT, make_orphans)
    assert ran.json == 20  # the test's own 20 zombies; the 20 orphans are gone
    assert ran.exited.leftovers is False


def leave_daemon(ready_fd: int) -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(ready_fd, b"x")
            time.sleep(60)
        os._exit(0)
    os.wait()


def test_a_daemon_is_named_as_leftover_and_dies_with_the_tree() -> None:
    with pipe() as ends, pipe() as alive:
        child = native.fork(WITH_INIT)
        if child is None:
            leave_daemon(ends[1])
            os._exit(3)
        close_end(alive, 1)
        with child:
            exited = child.wait(LIMIT_S)
            assert exited is not None
            assert exited.status.code == 3
            assert exited.leftovers is True
            assert select.select([ends[0]], [], [], LIMIT_S)[0]
            (leftover,) = child.leftovers()
            assert state(leftover.pid) in ("R", "S"), "it has written, and goes to sleep"
            assert 0 <= leftover.age_s < LIMIT_S
            child.kill()
            assert child.reap(block=True)
            assert state(leftover.pid) == ""
        assert read_all(alive[0]) == b"", "the daemon held the other end"


def nested_daemon() -> None:
    inner = native.spawn(plan("pid", "mnt"), ["sleep", "60"])
    assert inner.pid > 0
    os._exit(0)


def test_leftovers_in_a_nested_sandbox_are_seen() -> None:
    child = native.fork(WITH_INIT)
    if child is None:
        nested_daemon()
        raise AssertionError
    with child:
        exited = child.wait(LIMIT_S)
        assert exited is not None
        # The nested init dies with the process that made it: what is left is at most on its way out.
        deadline = time.monotonic() + LIMIT_S
        while child.leftovers() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert child.leftovers() == []


def test_wait_gives_up_at_its_deadline_and_poll_never_blocks() -> None:
    with native.spawn(WITH_INIT, ["sleep", "60"]) as child:
        begun = time.monotonic()
        assert child.poll() is None
        assert child.wait(0.2) is None
        assert 0.2 <= time.monotonic() - begun < 2
        child.signal(signal.SIGTERM)
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert exited.status.signal == signal.SIGTERM


@BOTH
def test_kill_ends_the_tree_and_wait_says_so(a_plan: Plan) -> None:
    with native.spawn(a_plan, ["sh", "-c", "sleep 60 & sleep 60"]) as child:
        child.kill()
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert exited.status.signal == signal.SIGKILL
        assert child.reap(block=True)
        assert child.reap(block=False)
    child.close()


def test_nobody_inside_can_kill_the_init() -> None:
    script = "for s in 1 2 3 6 9 11 15 19 31; do kill -$s 1; done; sleep 0.1; echo alive"
    assert run(WITH_INIT, "sh", "-c", script).text == "alive\n"


def test_a_killed_init_takes_everything_along_and_is_told_as_sigkill() -> None:
    with native.spawn(WITH_INIT, ["sleep", "60"]) as child:
        os.kill(child.init_pid, signal.SIGKILL)
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert exited.status.signal == signal.SIGKILL
        assert select.select([child.pidfd], [], [], LIMIT_S)[0]


def ignores(signum: int) -> bool:
    """What the kernel says; Python only remembers what it was told."""
    with open("/proc/self/status") as status:
        (mask,) = (line.split()[1] for line in status if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (signum - 1) & 1)


def test_a_caller_that_ignores_sigchld_still_gets_the_status() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for _ in range(40):  # the program may end before the init has begun
            assert run(WITH_INIT, "sh", "-c", "exit 5").exited.status.code == 5
        for _ in range(40):
            ran = forked(WITH_INIT, ignores, signal.SIGCHLD)
            assert (ran.exited.status.code, ran.json) == (0, True)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_stolen_zombie_of_the_init_loses_nothing() -> None:
    with native.spawn(WITH_INIT, ["sh", "-c", "exit 4"]) as child:
        assert os.waitpid(child.init_pid, 0)[0] == child.init_pid
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert exited.status.code == 4
        assert child.reap(block=True)


def test_descriptors_are_all_given_back() -> None:
    run(WITH_INIT, "true")
    before = open_fds()
    for number in range(200):
        with native.spawn(WITH_INIT if number % 2 else WITHOUT, ["/bin/true"]) as child:
            assert child.wait(LIMIT_S) is not None
    assert open_fds() == before


def descriptors() -> list[str]:
    links = []
    for fd in sorted(open_fds()):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return links


@BOTH
def test_a_forked_child_holds_none_of_our_descriptors(a_plan: Plan) -> None:
    inside = forked(a_plan, descriptors).json
    ours = [link for link in inside if "pidfd" in link or "socket:" in link or "isolate-init" in link]
    before = [link for link in descriptors() if "pidfd" in link or "socket:" in link]
    assert ours == before


# ---- a caller that is killed ----


def family(count: int, report_fd: int, uid: int | None) -> None:
    """Starts sandboxes without end, each with a daemon in it; every process holds report_fd."""
    if uid is not None:
        become(uid)
    names = ("pid", "mnt", *(("user",) if uid else ()))
    a_plan = plan(*names)
    os.write(report_fd, b"x")
    kept = []
    for number in range(count):
        if number % 2:
            kept.append(native.spawn(a_plan, ["sh", "-c", "setsid sleep 60 & sleep 60"]))
            continue
        child = native.fork(a_plan)
        if child is None:
            leave_daemon(report_fd)
            time.sleep(60)
        kept.append(child)
    time.sleep(60)


@pytest.mark.parametrize("uid", [None, 65534], ids=["root", "user"])
def test_nothing_survives_a_caller_killed_at_a_random_moment(uid: int | None) -> None:
    survivors = 0
    for number in range(50):
        with pipe() as ends:
            os.set_inheritable(ends[1], True)
            pid = os.fork()
            if pid == 0:
                try:
                    family(6, ends[1], uid)
                finally:
                    os._exit(1)
            close_end(ends, 1)
            assert os.read(ends[0], 1) == b"x"
            time.sleep(0.0006 * number)  # 0 to 30 ms: before, within and after six starts
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            try:
                read_all(ends[0], 2.0)  # the end of the stream: nobody holds it any more
            except AssertionError:
                survivors += 1
    assert survivors == 0


def test_a_child_outlives_the_thread_that_started_it() -> None:
    """Also one that ends before the init has begun: its PDEATHSIG, which hangs on the thread, is gone by then."""
    started: list[native.Child] = []
    for _ in range(10):
        thread = threading.Thread(target=lambda: started.append(native.spawn(WITH_INIT, ["sleep", "30"])))
        thread.start()
        thread.join()
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(child) for child in started]
        assert children[0].wait(0.3) is None
        assert [child.wait(0) for child in children] == [None] * 10


def own_children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_no_zombie_is_left_of_all_this() -> None:
    before = own_children()
    for a_plan in (WITH_INIT, WITHOUT):
        run(a_plan, "true")
        forked(a_plan, os.getpid)
    assert own_children() == before
