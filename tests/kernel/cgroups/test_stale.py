"""What a run that died without cleaning up left is swept by the next, and nobody else's is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from pytest_isolate.groups import Groups
from pytest_isolate.kernel.cgroups import open_manager, stale

_RUN_THAT_DIES = """
import os, sys, time
from pytest_isolate.kernel.cgroups import open_manager
from tests.kernel.joining import join
manager = open_manager("victim", mode=sys.argv[1])
left = manager.create("left")
pid = os.fork()
if pid == 0:
    join(left)
    os.setsid()
    os.close(1)
    time.sleep(120)
    os._exit(0)
print(pid, *(branch.path for branch in manager.branches), flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_a_dead_runs_directory_is_swept_with_the_process_in_it_and_a_live_ones_is_not(version, open_run, until):
    mode = f"v{version}"
    with open_run(version, "before"):
        pass  # cgroups can be made here: else this test is skipped
    command = [sys.executable, "-c", _RUN_THAT_DIES, mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        orphan, *paths = run.stdout.readline().split()
        until(lambda: all(_holds(path, orphan) for path in paths))
        with open_manager("living", mode=mode):
            assert all(map(os.path.isdir, paths)), "a live run was swept"
        assert os.path.exists(f"/proc/{orphan}/exe")
    assert run.returncode == -signal.SIGKILL
    assert all(map(os.path.isdir, paths)), "the dead run cleaned up after itself, so this test shows nothing"
    with open_manager("next", mode=mode) as manager:
        assert not any(map(os.path.exists, paths))
        assert manager.left_behind == []
    until(lambda: not _runs(orphan))


def test_groups_sweep_at_their_end_only_where_a_child_died(version, open_run, until):
    with open_run(version, "before"):
        pass
    groups = Groups()
    command = [sys.executable, "-c", _RUN_THAT_DIES, f"v{version}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        orphan, *paths = run.stdout.readline().split()
        until(lambda: all(_holds(path, orphan) for path in paths))
        groups.bereave()
        groups.close()
        assert all(map(os.path.isdir, paths)), "a living run was swept"
    groups.close()
    assert all(map(os.path.isdir, paths)), "nobody died that it knows of"
    none = Groups("none")
    none.bereave()
    none.close()
    assert all(map(os.path.isdir, paths)), "a run without cgroups looks for none"
    groups.bereave()
    groups.close()
    assert not any(map(os.path.exists, paths))
    until(lambda: not _runs(orphan))


def test_groups_are_closed_where_the_sweep_fails(version, open_run, monkeypatch):
    with open_run(version, "before"):
        pass
    groups = Groups(f"v{version}")
    paths = [branch.path for branch in groups.manager().branches]
    assert all(map(os.path.isdir, paths))
    groups.bereave()
    monkeypatch.setattr(stale, "is_dead", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        groups.close()
    assert not any(map(os.path.exists, paths))


def _holds(path, pid):
    """True when every cgroup of that run's sandbox holds ``pid``; a run may have hierarchies no sandbox needed."""
    for name in os.listdir(path):
        if "left" in name:
            with open(f"{path}/{name}/cgroup.procs") as file:
                if pid not in file.read().split():
                    return False
    return True


def _runs(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_run_of_another_pid_namespace_is_not_judged_by_its_pid(require):
    here = os.stat("/proc/self/ns/pid").st_ino
    assert stale.is_dead(stale.Owner(2**22 + 1, 1, here))
    assert stale.is_dead(stale.Owner(os.getpid(), 1, here)), "the number was used again by a later process"
    mine = stale.owner(stale.run_name("x-1"))
    assert not stale.is_dead(mine)
    child = subprocess.Popen(
        [
            "unshare",
            *([] if os.geteuid() == 0 else ["--user"]),
            "--pid",
            "--fork",
            sys.executable,
            "-c",
            "import sys; print(flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        made = child.stdout.readline()
        require("namespace-pid", bool(made), "unshare cannot make one")
        with open(f"/proc/{child.pid}/task/{child.pid}/children") as file:
            inside = os.stat(f"/proc/{file.read().split()[0]}/ns/pid").st_ino
        assert inside != here
        assert not stale.is_dead(stale.Owner(1, 1, inside))
    first = here == 0xEFFFFFFC  # only the initial namespace sees that nobody is left in another one
    assert stale.is_dead(stale.Owner(1, 1, inside)) is first


@pytest.mark.parametrize("name", ["pytest-isolate-", "pytest-isolate-x-1-2", "other-1-2-3", "pytest-isolate--1-2-3"])
def test_a_foreign_name_is_nobodys_run(name):
    assert stale.owner(name) is None
