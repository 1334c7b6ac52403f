"""A program that forks until it is stopped, in a PID namespace of its own (it looks first): stopped, and gone with its sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_isolate import groups
from pytest_isolate.kernel import probe
from pytest_isolate.profile import STRICT, vary
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require
from tests.kernel.throwaway import PYTHON, throwaway

BOMB = """
import errno, os, time
assert os.getpid() < 10 and len([n for n in os.listdir("/proc") if n.isdigit()]) < 10, "not alone: no bomb"
made = 0
while made < 100:
    try:
        pid = os.fork()
    except OSError as error:
        assert error.errno == errno.EAGAIN
        break
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    made += 1
print(made)
"""


def made(who: str, **words: Any) -> tuple[int, int]:
    """(forks that succeeded, processes left and named)."""

    def body() -> Any:
        try:
            with Sandbox(vary(STRICT, **words), name="bomb") as sandbox:
                outcome = sandbox.run([PYTHON, "-I", "-c", BOMB])
                assert outcome.status.code == 0, outcome.stderr
                return int(outcome.stdout), len(outcome.leftovers)
        finally:
            groups.of_this_process().close()

    forks, left = throwaway(body, who=who)
    return forks, left


def test_root_is_held_by_its_cgroup() -> None:
    feature = probe.feature("cgroup_pids")
    require("cgroup-pids", feature.available, feature.reason)
    assert made("root", pids=200) == (100, 100)
    forks, left = made("root", pids=20)
    assert forks == left < 20


@pytest.mark.parametrize("who", ["user"])
def test_a_plain_user_is_held_by_its_rlimit(who: str) -> None:
    """RLIMIT_NPROC counts the user's processes everywhere; user 0 is exempt."""
    assert made(who)[0] == 100
    assert made(who, rlimits={"NPROC": 20})[0] < 20
