"""From making to removal: kill, freeze, odd hosts, and nothing left behind. The sweep is in test_stale.py."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import time

import pytest

from pytest_isolate.errors import BackendUnavailable, CleanupError, PolicyError, SetupError
from pytest_isolate.kernel.cgroups import open_manager
from pytest_isolate.kernel.cgroups.layout import Layout
from pytest_isolate.outcome import Cause
from pytest_isolate.policy import Limits
from tests.kernel.joining import join


def fork_for_ever():
    """A tree that forks as fast as it can: each process is replaced by its child, and now and then by two."""
    turn = 0
    while True:
        turn += 1
        with contextlib.suppress(BlockingIOError):
            if os.fork() and turn % 50:
                os._exit(0)


def ticks(pid):
    """CPU time of a process in clock ticks."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def directories(manager, name=""):
    return [p for b in manager.branches if os.path.exists(p := f"{b.path}/{name}")]


def test_what_is_made_is_there_and_after_close_it_is_gone(manager):
    with manager.create("gw3-tests/test_a.py::test_b[x y]") as cgroup:
        assert cgroup.name.endswith("-gw3_tests_test_a.py_test_b_x_y")
        assert directories(manager, cgroup.name)
    assert not directories(manager, cgroup.name)


@pytest.mark.parametrize("name", ["", "..", "/", "a" * 500, "ü\udcff\n\0", "-rf"])
def test_any_name_is_made_safe_for_a_directory(manager, name):
    with manager.create(name) as cgroup:
        assert len(cgroup.name) < 200
        assert directories(manager, cgroup.name)


def test_a_child_that_joined_is_held_in_every_hierarchy(manager, nursery, until):
    with manager.create("gw0-held") as cgroup:
        child = nursery.start(cgroup, lambda: time.sleep(60))
        until(lambda: child.pid in cgroup.pids())
        assert os.getpid() not in cgroup.pids()
        cgroup.kill()
        assert child.wait() == -signal.SIGKILL
        assert cgroup.pids() == []


def test_freeze_stops_the_clock_and_thaw_starts_it_again(manager, need, nursery, until):
    need("freezer")
    with manager.create("gw0-ice") as cgroup:
        child = nursery.start(cgroup, lambda: [None for _ in iter(int, 1)])
        until(lambda: ticks(child.pid) > 2)
        assert cgroup.freeze()
        at_freeze = ticks(child.pid)
        time.sleep(1)
        assert ticks(child.pid) <= at_freeze + 1, "but for the tick that it was in"
        cgroup.thaw()
        until(lambda: ticks(child.pid) > at_freeze + 2)
        assert cgroup.freeze()
        cgroup.kill()
        assert child.wait() == -signal.SIGKILL


def test_v1s_freezer_is_joined_only_to_freeze_and_then_by_everyone(open_run, require, nursery, until):
    with open_run(1) as manager:
        able = manager.capabilities()["freezer"]
        require("cgroup1", able.available, able.reason)
        place = next(branch.path for branch in manager.branches if "freezer" in branch.controllers)

        def four():
            for _ in range(3):
                if os.fork() == 0:
                    break
            time.sleep(60)

        with manager.create("gw0-late-ice") as cgroup:
            child = nursery.start(cgroup, four)
            until(lambda: len(cgroup.pids()) == 4)
            assert not cgroup.nobody()
            assert not os.path.exists(f"{place}/{cgroup.name}")
            assert cgroup.freeze()
            with open(f"{place}/{cgroup.name}/cgroup.procs") as file:
                assert sorted(map(int, file)) == cgroup.pids()
            cgroup.kill()
            child.wait()  # a zombie counts until it is collected; its children's collector is init
            until(cgroup.nobody)


def test_kill_ends_a_tree_that_forks_all_the_time(manager, nursery, until):
    # The bomb is always bounded: a process is in one cgroup of each hierarchy, so by a fence in another hierarchy, or,
    # where the version under test has the pids controller itself (joining would leave the fence), by its own limit.
    with open_manager("fence") as outer, outer.create("fence", Limits(pids=60)) as fence:
        with manager.create("gw0-tree") as cgroup:

            def join_and_fork():
                join(cgroup)
                fork_for_ever()

            if "pids" in manager.version_of:
                cgroup.update(Limits(pids=60))
                nursery.start(cgroup, fork_for_ever)
            else:
                nursery.start(fence, join_and_fork)
            until(lambda: len(cgroup.pids()) > 3)
            cgroup.kill(deadline_s=30)
            assert cgroup.pids() == []
        fence.kill()


def test_kill_of_an_empty_cgroup_is_nothing(manager):
    with manager.create("gw0-empty") as cgroup:
        cgroup.kill(deadline_s=0.1)
        cgroup.kill(deadline_s=0.1)


def test_closing_with_a_process_inside_returns_at_once_and_the_run_removes_it_later(manager, nursery, until):
    cgroup = manager.create("gw0-held")
    child = nursery.start(cgroup, lambda: time.sleep(60))
    until(lambda: child.pid in cgroup.pids())
    start = time.monotonic()
    cgroup.close()
    cgroup.close()
    assert time.monotonic() - start < 2
    assert directories(manager, cgroup.name)
    child.stop()
    until(lambda: manager.tidy() or not directories(manager, cgroup.name))


def test_removal_can_be_left_to_an_idle_moment(manager):
    cgroup = manager.create("gw0-later")
    cgroup.close(later=True)
    assert directories(manager, cgroup.name)
    manager.tidy()
    assert not directories(manager, cgroup.name)


def test_closing_the_run_kills_and_removes_what_is_still_open(version, nursery, until, open_run):
    with open_run(version) as manager:
        cgroup = manager.create("gw0-open")
        child = nursery.start(cgroup, lambda: time.sleep(60))
        until(lambda: child.pid in cgroup.pids())
    assert child.wait() == -signal.SIGKILL
    assert not directories(manager)
    with pytest.raises(SetupError, match="the run's cgroups are closed"):
        manager.create("too late")


def test_a_forked_child_that_unwinds_removes_nothing_of_its_parent(manager):
    with manager.create("gw0-parent") as cgroup:
        pid = os.fork()
        if pid == 0:
            cgroup.close()
            manager.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert directories(manager, cgroup.name)


def test_a_process_that_will_not_die_in_time_is_named(manager, nursery, until):
    """With no time at all even a SIGKILL is not through with 100 MiB."""
    with manager.create("gw0-late") as cgroup:
        memory = mmap.mmap(-1, 100 * 2**20)

        def fill_and_wait():
            memory.write(bytes(len(memory)))
            os.write(ready, b".")
            time.sleep(60)

        heard, ready = os.pipe()
        child = nursery.start(cgroup, fill_and_wait)
        os.close(ready)
        with open(heard, "rb") as told:
            assert told.read(1) == b"."
        with pytest.raises(CleanupError, match=rf"still there after 0 s: pid {child.pid} \("):
            cgroup.kill(deadline_s=0)
        child.stop()


def test_a_directory_removed_under_us_is_a_clear_answer_everywhere(manager):
    with manager.create("gw0-gone", Limits()) as cgroup:
        for path in directories(manager, cgroup.name):
            os.rmdir(path)
        assert cgroup.pids() == []
        assert cgroup.usage().memory_bytes is None
        cgroup.kill()
        with pytest.raises(SetupError) as caught:
            cgroup.procs_fds or cgroup.dir_fd  # noqa: B018
        assert caught.value.errno in (errno.ENOENT, errno.ENODEV)


def test_a_limit_whose_cgroup_was_removed_did_not_hold_and_the_verdict_says_so(manager, need):
    need("memory")
    with manager.create("gw0-lost", Limits(memory_bytes=2**26)) as cgroup:
        for path in directories(manager, cgroup.name):
            os.rmdir(path)
        ((cause, detail),) = cgroup.verdicts()
        assert cause is Cause.SETUP
        assert detail.startswith("the memory limit did not hold")


def test_the_runs_directory_removed_under_us_names_the_step_and_what_happened(version, open_run):
    with open_run(version) as manager:
        for branch in manager.branches:
            os.rmdir(branch.path)
        with pytest.raises(SetupError, match="cgroup mkdir") as caught:
            manager.create("gw0-x")
        assert caught.value.errno in (errno.ENOENT, errno.ENODEV)
        assert "removed from outside" in str(caught.value)


def test_a_refused_limit_leaves_no_directory(manager, need):
    need("cpuset")
    with pytest.raises(SetupError) as caught:
        manager.create("gw0-half", Limits(pids=None, cpuset="1-0"))
    assert caught.value.step == "cgroup cpuset.cpus"
    assert caught.value.errno == errno.EINVAL
    assert not [name for b in manager.branches for name in os.listdir(b.path) if "half" in name]


@pytest.mark.parametrize(("file", "room"), [("cgroup.max.descendants", 1), ("cgroup.max.depth", 0)])
def test_the_limits_on_descendants_and_depth_are_told_with_their_remedy(open_run, file, room):
    """v1 has no such limits."""
    with open_run(2) as manager, contextlib.ExitStack() as made:
        with open(f"{manager.branches[0].path}/{file}", "w") as limit:
            limit.write(str(room))
        for _ in range(room):
            made.enter_context(manager.create("gw0-fits"))
        with pytest.raises(SetupError, match=r"EAGAIN.*[Cc]group\.max\.depth or cgroup\.max\.descendants") as caught:
            manager.create("gw0-too-many")
        assert caught.value.step == "cgroup mkdir"
        with open(f"{manager.branches[0].path}/{file}", "w") as limit:
            limit.write("max")
        made.enter_context(manager.create("gw0-fits-again"))


def test_a_missing_controller_is_an_error_with_reason_and_remedy_and_nothing_is_made():
    with open_manager("tests", layout=Layout()) as manager:
        assert not any(c.available for c in manager.capabilities().values())
        with pytest.raises(BackendUnavailable) as caught:
            manager.create("gw0-x", Limits(memory_bytes=2**26))
    assert str(caught.value) == (
        "cgroup controller memory: no cgroup file system is mounted. Mount cgroup2 on /sys/fs/cgroup."
    )


def test_without_any_cgroup_a_sandbox_without_group_limits_still_has_its_object():
    with open_manager("tests", layout=Layout()) as manager, manager.create("gw0-x", Limits(cpu_time_s=1)) as cgroup:
        assert (cgroup.dir_fd, cgroup.procs_fds, cgroup.pids()) == (-1, (), [])
        assert cgroup.usage().cpu_usec is None
        assert cgroup.verdicts() == []
        assert not cgroup.freeze()


def test_an_explicit_mode_that_the_host_has_not_is_an_error():
    with pytest.raises(BackendUnavailable, match="cgroup mode v2: no v2 hierarchy is mounted"):
        open_manager("tests", mode="v2", layout=Layout())
    with pytest.raises(PolicyError, match="Use auto, v1, v2, systemd"):
        open_manager("tests", mode="v3")


def test_a_thousand_sandboxes_leave_no_directory_and_no_descriptor(manager):
    fds = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        with manager.create("gw0-many") as cgroup:
            assert cgroup.procs_fds or cgroup.dir_fd >= 0
    assert len(os.listdir("/proc/self/fd")) == fds
    for branch in manager.branches:
        assert not [entry.name for entry in os.scandir(branch.path) if entry.is_dir()]
