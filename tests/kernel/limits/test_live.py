"""A program that runs: frozen, thawed, and given other limits."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_isolate.errors import BackendUnavailable, PolicyError, SetupError
from pytest_isolate.groups import Groups
from pytest_isolate.kernel.cgroups import discover, open_manager
from pytest_isolate.outcome import Cause
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require
from tests.kernel.limits.programs import (
    MIB,
    TOUCH,
    controller,
    python,
)


def counting(path: Path) -> list[str]:
    return python(
        f"import time\nn = 0\nwhile True:\n n += 1\n open({str(path)!r}, 'w').write(str(n))\n time.sleep(0.01)"
    )


def moves(path: Path, within_s: float) -> bool:
    before, end = path.read_text(), time.monotonic() + within_s
    while time.monotonic() < end:
        if path.read_text() not in ("", before):
            return True
        time.sleep(0.01)
    return False


def test_a_frozen_program_stands_still_until_it_is_thawed_and_can_be_ended(box: Sandbox, tmp_path: Path) -> None:
    controller("pids")
    controller("freezer")
    path = tmp_path / "count"
    path.write_text("0")
    running = box.spawn(counting(path), pids=20)
    assert moves(path, 10)
    running.freeze()
    time.sleep(0.05)
    assert not moves(path, 0.3)
    running.thaw()
    assert moves(path, 10)
    running.freeze()
    began = time.monotonic()
    outcome = running.terminate()
    assert outcome.status.signal == signal.SIGTERM
    assert time.monotonic() - began < 5
    with pytest.raises(PolicyError, match=r"freeze: the program has ended"):
        running.freeze()


def test_a_frozen_program_still_has_its_time_out(box: Sandbox) -> None:
    controller("pids")
    controller("freezer")
    running = box.spawn(["/bin/sleep", "60"], pids=20, timeout=0.5)
    running.freeze()
    assert running.wait().causes == (Cause.TIMEOUT,)


WAIT_THEN_TOUCH = TOUCH + "input(); touch(150 << 20, mmap.MAP_PRIVATE); print('touched')"


@pytest.mark.parametrize(("changed", "survives"), [("256M", True), ("64M", False)])
def test_a_memory_limit_changed_while_it_runs_is_the_one_that_holds(box: Sandbox, changed: str, survives: bool) -> None:
    controller("memory")
    read_fd, write_fd = os.pipe()
    try:
        running = box.spawn(python(WAIT_THEN_TOUCH), memory="128M", stdin=read_fd, timeout=30)
        running.limits.update(memory=changed)
        assert running.limits.memory_bytes == int(changed[:-1]) * MIB
        os.write(write_fd, b"go\n")
        outcome = running.wait()
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert (outcome.causes == ()) is survives, outcome
    if not survives:
        assert outcome.detail[0].startswith("OOM-killed: peak 64 MiB of 64 MiB")


def test_what_cannot_change_while_it_runs_is_refused_and_changes_nothing(box: Sandbox) -> None:
    controller("memory")
    with box.spawn(["/bin/sleep", "60"], memory="64M") as running:
        with pytest.raises(PolicyError, match=r"update\(rlimits=\.\.\.\): it cannot change while the program runs"):
            running.update(rlimits={"NOFILE": 5})
        with pytest.raises(PolicyError, match=r"memory: 'lots' is not a size"):
            running.limits.update(memory="lots")
        assert running.limits.memory_bytes == 64 * MIB
    with box.spawn(["/bin/sleep", "60"]) as running, pytest.raises(PolicyError, match=r"the program has no cgroup"):
        running.update(memory="64M")


def test_an_update_that_the_kernel_refuses_changes_nothing(box: Sandbox) -> None:
    for name in ("memory", "pids", "cpu"):
        controller(name)
    with box.spawn(python(HOLD), memory="128M", cpu=1, pids=20) as running:
        assert running._cgroup is not None
        running.wait_for_line("held")
        read = running._cgroup.counters.read
        files = {"pids": "pids.max"}
        if running._cgroup.counters._version("cpu") == 1:
            files |= {"cpu": "cpu.cfs_quota_us"}
        else:
            files |= {"cpu": "cpu.max"}
        before = {file: read(name, file) for name, file in files.items()}
        if running._cgroup.counters._version("memory") == 1:
            words, why = {"memory": "64K"}, "EBUSY"
        else:  # there the kernel takes any size, and kills
            words, why = {"cpuset": "9999"}, "E(INVAL|RANGE|NOSPC)"
        with pytest.raises(SetupError, match=why):
            running.update(cpu=0.5, pids=5, **words)
        assert (running.limits.cpu_cores, running.limits.pids, running.limits.memory_bytes) == (1.0, 20, 128 * MIB)
        assert {file: read(name, file) for name, file in files.items()} == before
        running.update(cpu=0.5, pids=5)
        assert all(read(name, file) != before[file] for name, file in files.items())


HOLD = TOUCH + "import time; held = touch(8 << 20, mmap.MAP_PRIVATE); print('held', flush=True); time.sleep(60)"


def test_a_limit_is_lifted_while_it_runs(box: Sandbox) -> None:
    controller("memory")
    controller("pids")
    read_fd, write_fd = os.pipe()
    source = WAIT_THEN_TOUCH + "; import threading; [threading.Thread(target=input).start() for _ in range(9)]"
    try:
        running = box.spawn(python(source), memory="64M", pids=5, stdin=read_fd, timeout=30)
        running.limits.update(memory="unlimited", pids="unlimited")
        assert (running.limits.memory_bytes, running.limits.pids) == (None, None)
        running.limits.update(memory=None)
        os.write(write_fd, b"go\n" * 10)
        outcome = running.wait()
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert outcome.ok, outcome
    assert box.run(python(source), memory="64M", pids=5, input="go\n" * 10).causes == (Cause.OOM,)


def test_swap_is_lifted_together_with_memory_or_not_at_all(box: Sandbox) -> None:
    controller("memory")
    with box.spawn(["/bin/sleep", "60"], memory="64M", swap="64M") as running:
        with pytest.raises(PolicyError, match=r"swap='unlimited'.*means no swap"):
            running.update(swap="unlimited")
        running.update(swap="unlimited", memory="unlimited")
        assert (running.limits.swap_bytes, running.limits.memory_bytes) == (None, None)
    with box.spawn(["/bin/sleep", "60"], memory="64M", swap="16M") as running:
        running.update(memory="unlimited")
        assert (running.limits.swap_bytes, running.limits.memory_bytes) == (None, None)


def test_what_a_group_holds_can_change_where_an_rlimit_holds_memory() -> None:
    layout = discover()
    pids = tuple(hierarchy for hierarchy in layout.v1 if hierarchy.controllers == {"pids"})
    require("cgroup1", bool(pids), "the controller of processes has no v1 hierarchy of its own")
    found = Groups()
    found._manager = open_manager("pids-only", layout=replace(layout, v1=pids, v2=None))
    with closing(found), Sandbox(cgroups=found) as box:
        words = {"memory": "640M", "memory_fallback": "rlimit"}
        with box.spawn(["/bin/sleep", "60"], pids=40, **words) as running:
            assert running._cgroup is not None
            running.update(pids=30)
            assert running._cgroup.counters.read("pids", "pids.max") == "30\n"
            with pytest.raises(BackendUnavailable, match="RLIMIT_DATA holds it here"):
                running.update(pids=20, memory="1G")
            assert running._cgroup.counters.read("pids", "pids.max") == "30\n"
            running.update(pids="unlimited")
            assert running._cgroup.counters.read("pids", "pids.max") == "max\n"


def test_a_lifted_quota_of_little_does_not_change_what_the_next_one_means(box: Sandbox) -> None:
    controller("cpu")
    with box.spawn(["/bin/sleep", "60"], cpu=0.5) as running:
        assert running._cgroup is not None
        file = "cpu.cfs_period_us" if running._cgroup.counters._version("cpu") == 1 else "cpu.max"
        usual = running._cgroup.counters.read("cpu", file)
        for cores in (0.005, "unlimited", 0.5):
            running.update(cpu=cores)
        assert running._cgroup.counters.read("cpu", file) == usual
