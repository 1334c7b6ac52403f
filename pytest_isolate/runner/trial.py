"""A start of a process that does what every test's process does first, and leaves: is there room for it under the rlimits?

Owns: which rlimits can keep a fork of pytest from starting, the trial, and the words of its failure.
Refuses: memory limits (groups.check_room) and new interpreters (starting.py, endings.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import replace

import pytest

from pytest_isolate.backend import Backend
from pytest_isolate.backends.forked import end_of
from pytest_isolate.errors import PolicyError
from pytest_isolate.policy import UNLIMITED, Limits, Policy
from pytest_isolate.runner import crash
from pytest_isolate.runner.child import take_outputs

#: CPU takes a second at least, and a start milliseconds; what a test's process reports goes through a pipe, which FSIZE spares.
_CAN_PREVENT = ("AS", "DATA", "NOFILE", "STACK")


def check(config: pytest.Config, policy: Policy, backend: Backend) -> None:
    """Fork once under the policy, where it has an rlimit that can prevent a start; no fork otherwise.

    Raises:
        PolicyError: the process does not start, and does without these rlimits. Names those that prevent it alone, else all.
    """
    names = _set(policy.limits)
    if not names or not (why := _start(config, policy, backend)):
        return
    if _start(config, _with_only(policy, ()), backend):
        return  # not by these limits: the first test will say by what
    alone = [name for name in names if _start(config, _with_only(policy, (name,)), backend)]
    raise PolicyError(
        in_words(policy.limits, alone or names),
        f"a process forked from this one, which has {_open_files()} files open, does not even start under it ({why})",
        "write several times as much",
    )


def in_words(limits: Limits, names: Iterable[str] = _CAN_PREVENT) -> str:
    """``rlimit NOFILE = 3``, of those of ``names`` that are set; empty where none is."""
    told = [f"{name} = {limits.rlimits[name][0]}" for name in _set(limits) if name in names]
    return f"rlimit {', '.join(told)}" if told else ""


def _set(limits: Limits) -> list[str]:
    return [name for name in _CAN_PREVENT if limits.rlimits.get(name, (UNLIMITED, UNLIMITED))[0] != UNLIMITED]


def _with_only(policy: Policy, names: Iterable[str]) -> Policy:
    kept = {name: pair for name, pair in policy.limits.rlimits.items() if name not in _CAN_PREVENT or name in names}
    return replace(policy, limits=replace(policy.limits, rlimits=kept))


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) - 1


def _start(config: pytest.Config, policy: Policy, backend: Backend) -> str:
    """Why the trial's process did not start; empty when it did."""
    outputs = crash.Outputs.make()
    try:
        exited = end_of(
            backend, policy, within=lambda: take_outputs(config, outputs.out_fd, outputs.err_fd, outputs.trace_fd)
        )
    finally:
        outputs.close()
    if exited is None:
        return "it hung"
    return "" if exited.status.code == 0 else errno.errorcode.get(exited.status.code or 0, str(exited.status))
