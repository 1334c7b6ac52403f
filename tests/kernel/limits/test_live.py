"""A program that runs: frozen, thawed, and given other limits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.outcome import Cause
from pytest_isolate.sandbox import Sandbox
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
