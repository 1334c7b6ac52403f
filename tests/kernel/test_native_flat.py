"""Sandboxes without a PID namespace: statuses are true, the monitor stays out of sight, and nothing is left behind."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import MountKind, MountOp, Plan
from tests.kernel.flat import BOTH, FLAT, flat, started
from tests.kernel.launching import (
    LIMIT_S,
    MS_BIND,
    forked,
    open_fds,
    pipe,
    plan,
    run,
    value,
)

# ---- statuses ----


@BOTH
@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exit_codes_are_true(a_plan: Plan, code: int) -> None:
    for exited in (run(a_plan, "sh", "-c", f"exit {code}").exited, forked(a_plan, os._exit, code).exited):
        assert (exited.status.code, exited.leftovers) == (code, False)


def end_by(signum: int) -> None:
    if signum != signal.SIGKILL:
        signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


@BOTH
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGRTMAX])
def test_signals_are_true(a_plan: Plan, signum: int) -> None:
    assert forked(a_plan, end_by, int(signum)).exited.status.signal == signum
    assert run(a_plan, "sh", "-c", f"kill -{int(signum)} $$").exited.status.signal == signum


def test_a_caller_that_ignores_sigchld_still_gets_the_status() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for _ in range(20):
            assert run(FLAT, "sh", "-c", "exit 5").exited.status.code == 5
            assert forked(FLAT, os._exit, 6).exited.status.code == 6
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_failed_start_says_why_and_leaves_no_process() -> None:
    before = own_children()
    with pytest.raises(SetupError, match=r"exec.*ENOENT"):
        native.spawn(FLAT, ["/nowhere/program"])
    with pytest.raises(SetupError, match=r"mounts.*ENOENT"):
        native.fork(flat(mounts=(MountOp(kind=MountKind.BIND, source="/nowhere", target="/nowhere", flags=MS_BIND),)))
    with pytest.raises(SetupError, match="rlimits"):
        native.fork(flat(rlimits=((resource.RLIMIT_NOFILE, 64, 32),)))
    assert own_children() == before


# ---- what the main process sees ----


def surroundings() -> dict[str, Any]:
    status = dict(entry.split(":", 1) for entry in Path("/proc/self/status").read_text().splitlines())
    sid = os.getsid(0)
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "sid": sid,
        "blocked": status["SigBlk"].strip(),
        "ignored": status["SigIgn"].strip(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
    }


def test_pids_are_the_hosts_and_no_signal_setting_of_the_monitor_leaks() -> None:
    child = native.fork(FLAT)
    if child is None:
        os._exit(0)
    with child:
        assert child.monitored
        assert child.wait(LIMIT_S) is not None
    with pipe() as ends:
        child = started(FLAT, lambda: (os.write(ends[1], repr(surroundings()).encode()), os._exit(0)))
        with child:
            seen = eval(os.read(ends[0], 4096))
            ours = surroundings()
            assert (seen["pid"], seen["ppid"], seen["sid"]) == (child.pid, child.init_pid, child.pid)
            assert [seen[key] for key in ("blocked", "ignored", "nice")] == [
                ours[key] for key in ("blocked", "ignored", "nice")
            ]
            assert child.wait(LIMIT_S) is not None


def test_the_namespaces_asked_for_are_new_and_the_pid_namespace_is_ours() -> None:
    inside = value(FLAT, lambda: {name: os.readlink(f"/proc/self/ns/{name}") for name in ("uts", "ipc", "mnt", "pid")})
    ours = {name: os.readlink(f"/proc/self/ns/{name}") for name in inside}
    assert {name for name in inside if inside[name] != ours[name]} == {"uts", "ipc", "mnt"}


def test_a_pid_namespace_needs_no_monitor() -> None:
    with native.spawn(plan("pid", "mnt", monitor=True), ["sleep", "60"]) as child:
        assert not child.monitored
        assert child.init_pid > 0


def test_without_a_session_of_its_own_main_stays_in_ours_and_the_monitor_does_not() -> None:
    with native.spawn(flat(new_session=False), ["sleep", "60"]) as child:
        assert os.getsid(child.pid) == os.getsid(0)
        assert os.getpgid(child.pid) == os.getpgid(0)
        assert os.getpgid(child.init_pid) == child.init_pid


def test_terminal_signals_do_not_reach_the_monitor() -> None:
    with native.spawn(FLAT, ["sh", "-c", "sleep 0.3; exit 6"]) as child:
        for signum in (1, 2, 3, 10, 13, 14, 15, 20, 21, 22, 28):
            os.kill(child.init_pid, signum)
        exited = child.wait(LIMIT_S)
        assert exited is not None
        assert exited.status.code == 6


# ---- nothing left ----


def own_children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_no_zombie_and_no_descriptor_after_200_cycles() -> None:
    run(FLAT, "true")
    fds, children = open_fds(), own_children()
    for number in range(100):
        with native.spawn(FLAT, ["/bin/true"]) as child:
            assert child.wait(LIMIT_S) is not None
        with started(FLAT, os._exit, 0) as child:
            if number % 2:
                assert child.wait(LIMIT_S) is not None
    assert (open_fds(), own_children()) == (fds, children)


def descriptors() -> list[str]:
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in sorted(open_fds()) if os.path.exists(f"/proc/self/fd/{fd}")]


def test_a_forked_child_holds_none_of_our_descriptors() -> None:
    ours, inside = descriptors(), forked(FLAT, descriptors).json
    held = [
        link for link in inside if link == "/proc" or "pidfd" in link or "socket:" in link or "isolate-init" in link
    ]
    assert held == [link for link in ours if link == "/proc" or "pidfd" in link or "socket:" in link]


def test_a_strangers_proc_is_refused() -> None:
    """A PID namespace that still shows the /proc of its parent: its numbers would name strangers."""

    def start() -> str:
        try:
            native.spawn(flat("mnt"), ["true"])
        except SetupError as error:
            return error.step
        return ""

    assert value(plan("pid"), start) == "proc"
