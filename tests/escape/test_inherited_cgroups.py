"""A forked test or function inherits its parent's memory and descriptors: none of them is a way out of its cgroup.

A program is no victim of this: its exec closes them. Control: where the view is the host's, root walks out by the same code.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_isolate.policy import Policy
from pytest_isolate.profile import MINIMAL, STRICT
from pytest_isolate.sandbox import Sandbox

TEST = """
import os
from tests.escape.test_inherited_cgroups import walk_out

def test_walks_out():
    print("answers", sorted(walk_out()))
    assert not walk_out()
"""


def walk_out() -> list[str]:
    """Write ourselves into whatever cgroup an open descriptor leads to, beside and above; those that took us."""
    took = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            place = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if "cgroup" not in place:
            continue
        for path in ("", "tasks", "cgroup.procs", "../tasks", "../cgroup.procs"):
            try:
                target = os.open(path, os.O_WRONLY, dir_fd=fd) if path else os.dup(fd)
                os.write(target, b"0")
            except OSError:
                continue
            took.append(f"{place}/{path}")
    return took


def memory_cgroup() -> str:
    return Path("/proc/self/cgroup").read_text()


@pytest.fixture
def limited() -> dict[str, object]:
    """Root's alone: a plain user may write to no cgroup but those it was given."""
    return {"memory": "200M"}


@pytest.mark.parametrize(("profile", "free"), [(STRICT, False), (MINIMAL, True)], ids=["strict", "control"])
def test_a_function_finds_no_way_out(limited: dict[str, object], profile: Policy, free: bool) -> None:
    with Sandbox(profile) as box, Sandbox(profile) as neighbour:
        server = neighbour.spawn(["sleep", "60"], **limited)
        for _ in range(3):  # from the second on the next one's group is made in advance
            assert box.run(["true"], **limited).ok
        took = box.python(walk_out, policy=limited)
        assert bool(took) == free, took
        server.terminate()


@pytest.mark.parametrize(("profile", "free"), [("strict", False), ("minimal", True)])
@pytest.mark.usefixtures("limited")
def test_a_test_finds_no_way_out(pytester: pytest.Pytester, profile: str, free: bool) -> None:
    pytester.makepyfile(TEST)
    pytester.makeini(f"[pytest]\npythonpath = {Path(__file__).parents[2]}\n")
    run = pytester.runpytest_subprocess(
        "--isolate", f"--isolate-profile={profile}", "--isolate-mem-limit=200M", timeout=60
    )
    # Who walked out may be told so besides, as an error: by CPU time that its cgroup did not see.
    errors = run.parseoutcomes().get("errors", 0) if free else 0
    run.assert_outcomes(passed=not free, failed=free, errors=errors)
    run.stdout.fnmatch_lines(["*cgroup*"] if free else ["*1 passed*"])
