"""Starts that must fail: as a program and as a fork, on each of the bases, and where they say that they did; and what /proc says of one that did not."""

from __future__ import annotations

import gc
import os

import pytest

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import Plan
from tests.kernel.launching import (
    open_fds,
)


def fork_and_leave(a_plan: Plan) -> None:
    if native.fork(a_plan) is None:
        os._exit(0)


def refused(a_plan: Plan, *argv: str, start: str = "both") -> list[SetupError]:
    """The errors of a spawn and a fork under this plan; both must fail alike, leaving no fd behind."""
    gc.collect()  # what earlier tests have left in cycles is not closed in the middle of this
    before, errors = open_fds(), []
    with pytest.raises(SetupError) as spawned:
        native.spawn(a_plan, argv or ("/bin/true",))
    errors.append(spawned.value)
    if start == "both":
        with pytest.raises(SetupError) as forking:
            fork_and_leave(a_plan)
        errors.append(forking.value)
    assert open_fds() == before
    assert {(e.step, e.errno, e.index) for e in errors} == {(errors[0].step, errors[0].errno, errors[0].index)}
    return errors


BASES = [(), ("pid", "mnt"), ("user", "pid", "mnt")]
EVERYWHERE = pytest.mark.parametrize("names", BASES, ids=lambda names: "+".join(names) or "none")


def places(errors: list[SetupError]) -> tuple[str, int, int]:
    return errors[0].step, errors[0].errno, errors[0].index


def status_lines(*names: str) -> dict[str, str]:
    with open("/proc/self/status") as status:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in status)
    return {name: fields[name] for name in names}
