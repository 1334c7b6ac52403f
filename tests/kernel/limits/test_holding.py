"""Who leaves the session, kills the monitor or leaves the cgroup is found, named and ended."""

from __future__ import annotations

import os
import signal

from pytest_isolate.kernel import processes
from pytest_isolate.outcome import Cause
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require
from tests.kernel.limits.programs import (
    BURN_ANEW,
    controller,
    python,
)

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "{seconds}"])
    os._exit(0)
os.wait()
"""


def test_a_daemon_that_left_the_session_is_found_in_the_cgroup_where_there_is_no_pid_namespace(box: Sandbox) -> None:
    controller("pids")
    tidy = box.run(python("print(1)"), namespaces="-pid", pids=20)
    assert (tidy.causes, tidy.leftovers) == ((), ())
    left = box.run(python(DAEMON.format(seconds=7811)), namespaces="-pid", pids=20)
    assert left.causes == (Cause.LEAK,)
    assert [leftover.command for leftover in left.leftovers] == ["sleep 7811"]
    assert processes.described([left.leftovers[0].pid]) == []


KILLS_ITS_MONITOR = DAEMON + "os.kill(os.getppid(), 9)\ntime.sleep(30)"


def test_a_daemon_of_a_program_that_killed_its_monitor_is_found_and_ended_by_the_cgroup(box: Sandbox) -> None:
    controller("pids")
    left = box.run(python(KILLS_ITS_MONITOR.format(seconds=7812)), namespaces="-pid", pids=20, timeout=20)
    assert left.status.signal == signal.SIGKILL
    assert left.causes == (Cause.LEAK,)
    assert [leftover.command for leftover in left.leftovers] == ["sleep 7812"]
    assert processes.described([left.leftovers[0].pid]) == []


RUNS_AWAY = """
for line in open("/proc/self/mountinfo"):
    fields, kind = line.split(), line.partition(" - ")[2]
    if kind.startswith("cgroup"):
        open(fields[4] + "/cgroup.procs", "w").write("0")
"""


def test_a_program_that_leaves_its_cgroup_is_told_by_the_cpu_time_its_cgroup_did_not_see(box: Sandbox) -> None:
    controller("pids")
    require("root", os.geteuid() == 0, "only root may write to the cgroups above")
    stays = box.run(python(BURN_ANEW.format(seconds=1.5)), pids=20)
    assert stays.causes == ()
    leaves = box.run(python(RUNS_AWAY + BURN_ANEW.format(seconds=1.5)), pids=20)
    assert leaves.causes == (Cause.SETUP,), leaves
    assert leaves.detail[0].startswith("the limits did not hold: the program left its cgroup: of ")
