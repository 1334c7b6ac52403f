"""The cgroup that is made in advance, while a program runs: taken, not mixed up, never in anybody's way, never left."""

from __future__ import annotations

import contextlib
import os

import pytest

from pytest_isolate.errors import BackendUnavailable, SetupError
from pytest_isolate.groups import Groups
from pytest_isolate.policy import Limits
from pytest_isolate.sandbox import Sandbox


def names(manager):
    return sorted({entry.name for b in manager.branches for entry in os.scandir(b.path) if entry.is_dir()})


def test_the_same_again_is_the_one_that_was_made_ready(manager):
    limits = Limits()
    manager.make_ready("gw0-again", limits)
    manager.make_ready("gw0-again", limits)
    (made,) = names(manager)
    with manager.create("gw0-again", limits) as cgroup:
        assert cgroup.name == made
        with manager.create("gw0-again", limits) as another:
            assert another.name != made
    assert names(manager) == []


def test_its_limits_hold_from_the_start(manager, nursery, need):
    need("pids")
    limits = Limits(pids=5)
    manager.make_ready("gw0-again", limits)

    def refused():
        pids = []
        try:
            for _ in range(10):
                pids.append(os.fork())
                if not pids[-1]:
                    os._exit(0)
        except BlockingIOError:
            os._exit(3)

    with manager.create("gw0-again", limits) as cgroup:
        assert nursery.run(cgroup, refused) == 3
        assert cgroup.usage().events.pids_max == 1


@pytest.mark.parametrize(("name", "limits"), [("gw0-other", Limits()), ("gw0-again", Limits(cpu_time_s=5))])
def test_another_name_or_other_limits_get_one_of_their_own(manager, name, limits):
    manager.make_ready("gw0-again", Limits())
    (made,) = names(manager)
    with manager.create(name, limits) as cgroup:
        assert names(manager) == [cgroup.name]
        assert cgroup.name != made
        assert cgroup.limits is limits


def test_it_holds_no_place_that_another_needs(open_run):
    """v1 has no limit on descendants."""
    with open_run(2) as manager:
        with open(f"{manager.branches[0].path}/cgroup.max.descendants", "w") as limit:
            limit.write("1")
        manager.make_ready("gw0-again", Limits())
        with manager.create("gw0-other"):
            manager.make_ready("gw0-again", Limits())  # does not fit, and says nothing
            assert len(names(manager)) == 1


def test_a_limit_that_cannot_be_is_left_for_create_to_say(manager):
    limits = Limits(cpuset="1000")
    manager.make_ready("gw0-less", limits)
    assert names(manager) == []
    with pytest.raises((SetupError, BackendUnavailable), match="cpuset"):
        manager.create("gw0-less", limits)


def test_a_forked_child_neither_takes_nor_removes_it(manager):
    limits = Limits()
    manager.make_ready("gw0-again", limits)
    (made,) = names(manager)
    pid = os.fork()
    if pid == 0:
        cgroup = manager.create("gw0-again", limits)
        manager.make_ready("gw0-again", limits)
        its_own = cgroup.name != made and made in names(manager)
        for branch in manager.branches:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{branch.path}/{cgroup.name}")
        os._exit(0 if its_own else 1)
    assert os.waitpid(pid, 0)[1] == 0
    with manager.create("gw0-again", limits) as cgroup:
        assert cgroup.name == made


def test_it_goes_when_the_run_ends_and_when_it_is_not_wanted(manager):
    fds = len(os.listdir("/proc/self/fd"))
    manager.make_ready("gw0-again", Limits())
    manager.drop_ready()
    manager.drop_ready()
    assert names(manager) == []
    assert len(os.listdir("/proc/self/fd")) == fds
    manager.make_ready("gw0-again", Limits())  # the fixture looks at what is left


def test_a_program_that_is_run_again_and_again_finds_its_group_ready(version, open_run):
    """From the second run on; and the sandbox that is closed leaves none."""
    with open_run(version):
        pass  # asks whether this host has it
    groups = Groups(f"v{version}", "again", account=True)
    try:
        with Sandbox(name="again", cgroups=groups) as box:
            held = []
            for _ in range(4):
                outcome = box.run(["sh", "-c", "exit 3"], timeout=60)
                assert outcome.returncode == 3
                assert outcome.usage.cgroup_cpu_usec is not None
                groups.tidy()
                held.append(names(groups.manager()))
            assert [len(found) for found in held] == [0, 1, 1, 1]
            assert len(set(map(tuple, held))) == 4, "each was taken by the next"
        assert names(groups.manager()) == []
    finally:
        groups.close()
