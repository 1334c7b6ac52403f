"""Sandboxes without a PID namespace, started for tests: plans, daemons that outlive their parents, states of processes."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from typing import Any

import pytest

from pytest_isolate.kernel import native, processes
from pytest_isolate.kernel.plan import Plan
from tests.kernel.launching import (
    LIMIT_S,
    plan,
)

NO_CORE = ((resource.RLIMIT_CORE, 0, 0),)
NAMESPACES = ("uts", "ipc", "mnt") if os.geteuid() == 0 else ("user", "uts", "ipc", "mnt")
GONE_S = 5.0


def flat(*names: str, **settings: Any) -> Plan:
    return plan(*(names or NAMESPACES), monitor=True, **{"rlimits": NO_CORE, **settings})


FLAT = flat()
BOTH = pytest.mark.parametrize("a_plan", [FLAT, flat(new_session=False)], ids=["session", "ours"])


def state(pid: int) -> str:
    try:
        return processes._stat(pid)[0]
    except OSError:
        return ""


def daemonize(ready_fd: int) -> None:
    """Twice forked, with a session of its own, deaf to SIGTERM."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(ready_fd, b"%d\n" % os.getpid())
            time.sleep(60)
        os._exit(0)
    os.wait()


def line(fd: int) -> int:
    """A number written by one write() of a child."""
    assert select.select([fd], [], [], LIMIT_S)[0]
    return int(os.read(fd, 64).split()[0])


def started(a_plan: Plan, act: Any, *arguments: Any) -> native.Child:
    child = native.fork(a_plan)
    if child is None:
        try:
            act(*arguments)
        finally:
            os._exit(98)
    return child
