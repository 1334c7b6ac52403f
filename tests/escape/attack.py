"""What an attack is, and how one is carried out: twice, in a throw-away host, by root or by a plain user.

Owns: Attack and carry_out(). Refuses: attacks that would change the machine. They open for writing and write nothing; what they
kill, trace or read was made for them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_isolate.policy import Policy
from pytest_isolate.profile import MINIMAL, STRICT, vary
from pytest_isolate.sandbox import Sandbox
from tests.kernel.throwaway import PYTHON, throwaway

#: Words at hand in every program; it prints ``done``, or the errno that stopped it.
PRELUDE = """
import ctypes, errno, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def checked(answer):
    if answer == -1:
        raise OSError(ctypes.get_errno(), "")
    return answer
def attempt(act):
    try:
        act()
    except OSError as error:
        print(errno.errorcode.get(error.errno, error.errno))
    else:
        print("done")
"""
DONE = "done"

Host = Callable[[contextlib.ExitStack], list[str]]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """``program`` runs under ``box``, where it must be stopped with one of ``refused``, and under ``free``, where it must succeed.

    Attributes:
        host: makes the victim, given back by the stack; its words are the program's arguments.
        box: words on top of the profile strict with the seccomp profile default.
        free: words on top of the profile minimal.
        control_by_root: a plain user could not do it anywhere, so the control is root's.
        needs: ``landlock_scoped``, where the box needs that of the kernel; ``cgroup v1``, where the control does.
    """

    what: str
    program: str
    refused: tuple[str, ...]
    box: Mapping[str, Any] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)
    host: Host = lambda _stack: []
    control_by_root: bool = False
    needs: str = ""


def _carried_out(attack: Attack, policy: Policy) -> str:
    with contextlib.ExitStack() as stack:
        words = attack.host(stack)
        sandbox = stack.enter_context(Sandbox(policy, name="escape"))
        outcome = sandbox.run([PYTHON, "-I", "-c", PRELUDE + attack.program, *words], cwd="/")
        assert outcome.stdout, outcome.stderr
        return str(outcome.stdout).strip()


def boxed(attack: Attack, who: str) -> str:
    """What the attack says from inside the box."""
    policy = vary(STRICT, **{"seccomp": "default", "timeout": 20, **attack.box})
    return str(throwaway(lambda: _carried_out(attack, policy), who=who))


def free(attack: Attack, who: str) -> str:
    """What it says where nothing holds it."""
    policy = vary(MINIMAL, timeout=20, **attack.free)
    by = "root" if attack.control_by_root else who
    return str(throwaway(lambda: _carried_out(attack, policy), who=by))


def sleeper(stack: contextlib.ExitStack) -> list[str]:
    """A victim: a process of this user's, by its pid."""
    process = stack.enter_context(subprocess.Popen(["sleep", "30"]))
    stack.callback(process.kill)
    return [str(process.pid)]


def open_root(stack: contextlib.ExitStack) -> list[str]:
    """An inheritable descriptor of the host's root."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, fd)
    os.set_inheritable(fd, True)
    return [str(fd)]
