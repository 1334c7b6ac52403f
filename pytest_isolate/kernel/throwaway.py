"""A throw-away child that acts once under a plan and says what came of it.

Owns: the child, its deadline and its one answer; Refused; raw system calls for those that Python has no name for.
Refuses: to trust the answer with more than 4 KiB, and to leave anything: leaving kills and collects the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
from collections.abc import Callable
from typing import Any, NoReturn

from pytest_isolate.errors import BackendUnavailable, SetupError
from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import Plan

#: What is done in the child: returns a fact worth telling (often nothing) or raises Refused or OSError.
Act = Callable[[], str]

DEADLINE_S = 10.0
NOBODY = 65534
_PR_SET_DUMPABLE = 4


class Refused(Exception):
    """The host said no: at which step, with which errno (0: none), and why in words."""

    def __init__(self, step: str, number: int, why: str = "", remedy: str = "") -> None:
        super().__init__(step, number, why)
        self.step = step
        self.errno = number
        self.why = why or (f"{errno.errorcode.get(number, number)} ({os.strerror(number)})" if number else "")
        self.remedy = remedy


def in_child(plan: Plan, act: Act | None = None, *, deadline_s: float = DEADLINE_S) -> str:
    """Fork under ``plan``, act there, and bring back what the act returned.

    Raises:
        Refused: the plan or the act was refused, or it took longer than ``deadline_s``.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        child = _fork(plan)
        if child is None:
            _answer(act or _nothing, write_fd)
        with child:
            os.close(write_fd)
            write_fd = -1
            return _listen(read_fd, child, deadline_s)
    finally:
        for fd in (read_fd, write_fd):
            if fd >= 0:
                os.close(fd)


def _nothing() -> str:
    return ""


def _fork(plan: Plan) -> native.Child | None:
    try:
        return native.fork(plan)
    except BackendUnavailable as error:
        raise Refused("native", 0, error.why, error.remedy) from error
    except SetupError as error:
        step = f"{error.step}[{error.index}]" if error.index >= 0 else error.step
        raise Refused(step, error.errno or 0, remedy=error.remedy) from error


def _answer(act: Act, write_fd: int) -> NoReturn:
    """In the child: act, say what came of it in one write, and leave without any clean-up of the parent's."""
    answer: dict[str, Any]
    try:
        answer = {"fact": act()}
    except Refused as refused:
        answer = {"step": refused.step, "errno": refused.errno, "why": refused.why, "remedy": refused.remedy}
    except OSError as error:
        answer = {"step": getattr(act, "__name__", "act").strip("_"), "errno": error.errno or 0, "why": ""}
    except BaseException as error:
        answer = {"step": "probe", "errno": 0, "why": f"{type(error).__name__}: {error}"}
    with contextlib.suppress(OSError):
        os.write(write_fd, json.dumps(answer).encode()[:4096])
    os._exit(0)


def _listen(read_fd: int, child: native.Child, deadline_s: float) -> str:
    """What the child wrote. One read: nobody waits for the end of a stream."""
    poller = select.poll()
    poller.register(read_fd, select.POLLIN)
    if not poller.poll(deadline_s * 1000):
        raise Refused("probe", 0, f"no answer within {deadline_s:g} s")
    text = os.read(read_fd, 4096)
    if not text:
        exited = child.wait(deadline_s)
        raise Refused("probe", 0, f"its child {exited.status if exited else 'said nothing'}")
    answer = json.loads(text)
    if "fact" in answer:
        return str(answer["fact"])
    raise Refused(answer["step"], answer["errno"], answer["why"], answer.get("remedy", ""))


def as_plain_user(act: Act) -> str:
    """Act as uid 65534 when we are root, else as who we are."""

    def become_and_act() -> str:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        libc().prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # /proc/self belongs to root otherwise, and no id map can be written
        return act()

    return in_child(Plan(), become_and_act) if os.geteuid() == 0 else act()


def libc() -> ctypes.PyDLL:
    """libc with the GIL held: a raw clone must come out of it holding it."""
    return ctypes.PyDLL(None, use_errno=True)


def syscall(step: str, *arguments: Any) -> int:
    call = libc().syscall
    call.restype = ctypes.c_long
    result = call(*arguments)
    if result < 0:
        raise Refused(step, ctypes.get_errno())
    return int(result)
