"""Starts children through libisolate.so: plan in, Child out, SetupError when a step failed.

Owns: the two ways to start, and the words of their refusals. Refuses: to decide anything.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel import abi, library
from pytest_isolate.kernel.child import Child, Exited, Rusage
from pytest_isolate.kernel.compiled import Arg, Joined, Memory, launch
from pytest_isolate.kernel.rlimits import name_of
from pytest_isolate.policy import UNLIMITED

if TYPE_CHECKING:
    from pytest_isolate.kernel.plan import Plan

__all__ = ["Child", "Exited", "Joined", "Rusage", "fork", "spawn"]

#: Python ignores these for itself; a program expects their defaults (as subprocess.Popen's restore_signals has it).
_DEFAULT_SIGNALS = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ))

#: What makes a known refusal go away, wherever we are: (step, errno) -> remedy. See _remedy for the others.
_REMEDIES: Mapping[tuple[str, int], str] = {
    ("clone", errno.EAGAIN): "raise the limit on processes (ulimit -u, pids.max)",
    ("maps", errno.EACCES): "the calling process is not dumpable: prctl(PR_SET_DUMPABLE, 1) after it changed its uid",
    (
        "maps",
        errno.EPERM,
    ): "map only your own ids, or have CAP_SETUID and CAP_SETGID; uid 0 needs CAP_SETFCAP to map itself (Linux 5.12)",
    ("stdio", errno.EBADF): "give descriptors that are open",
    ("proc", errno.ESRCH): "mount a /proc of this PID namespace, or give the sandbox a PID namespace",
    ("rlimits", errno.EPERM): (
        "write no hard limit above the one this process has (ulimit -H), or have CAP_SYS_RESOURCE; NOFILE is never above fs.nr_open"
    ),
    ("landlock", errno.ENOENT): "name only paths that the sandbox has",
    ("securebits", errno.EPERM): "securebits take CAP_SETPCAP: run as root, or add a user namespace",
    ("init", errno.EACCES): "isolate-init must be executable, where this user may enter, and not on a noexec mount",
}


def _setup_error(plan: Plan, failure: abi.Failure, argv: Sequence[Arg] = ()) -> SetupError:
    step = library.functions().step_name(failure.step).decode()
    detail = ""
    if step == "mounts" and 0 <= failure.index < len(plan.mounts):
        op = plan.mounts[failure.index]
        detail = f"({op.kind.name} {op.target})"
    elif step == "landlock" and plan.landlock is not None and 0 <= failure.index < len(plan.landlock.rules):
        rule = plan.landlock.rules[failure.index]
        detail = f"({rule.path or f'port {rule.port}'})"
    elif step == "rlimits" and 0 <= failure.index < len(plan.rlimits):
        number, _, hard = plan.rlimits[failure.index]
        detail = f"({name_of(number)}, hard limit {'unlimited' if hard == UNLIMITED else hard})"
    elif step == "cwd":
        detail = f"({plan.cwd})"
    elif step == "exec" and argv:
        detail = f"({os.fsdecode(argv[0])})"
    return SetupError(step, failure.err, failure.index, detail, _remedy(step, failure.err, failure.index))


def _remedy(step: str, number: int, index: int = -1) -> str:
    """Why namespaces are refused depends on the place: a uid 0 in a container is told of its capability, not of root.

    The first mount is only a change of propagation: who is refused that is refused any.
    """
    refused = step in ("clone", "unshare") and number in (errno.EPERM, errno.ENOSPC)
    if not refused and not (step == "mounts" and index == 0 and number in (errno.EPERM, errno.EACCES)):
        return _REMEDIES.get((step, number), "")
    from pytest_isolate.kernel import remedies, surroundings

    return remedies.remedy(remedies.Case(feature="", step=step, errno=number, place=surroundings.observe()))


def _child(plan: Plan, raw: abi.Child) -> Child:
    return Child(
        raw.main_pid,
        raw.main_pidfd,
        raw.init_pid,
        raw.init_pidfd,
        raw.status_fd,
        plan.new_session,
        bool(raw.monitor),
        raw,
    )


def _candidates(program: str, env: Mapping[Any, Any]) -> list[str]:
    """The paths to try, as execvp(3): PATH of the environment the program gets. (os.get_exec_path() takes 12 us.)"""
    if "/" in program or not program:  # an empty name is found nowhere (ENOENT)
        return [program]
    path = env["PATH"] if "PATH" in env else dict(env).get(b"PATH", os.defpath)
    return [os.path.join(directory, program) for directory in os.fsdecode(path).split(os.pathsep)]


def _environment(env: Mapping[Any, Any]) -> list[bytes]:
    return [os.fsencode(key) + b"=" + os.fsencode(value) for key, value in env.items()]


#: Memory of the library's that no start uses now. A start takes one and gives it back.
_arenas: list[int] = []


def _free_arena() -> int:
    try:
        return _arenas.pop()
    except IndexError:  # not asked before: another thread may be faster
        return 0


def spawn(
    plan: Plan,
    argv: Sequence[Arg],
    env: Mapping[Any, Any] | None = None,
    *,
    stdin_fd: int = -1,
    stdout_fd: int = -1,
    stderr_fd: int = -1,
    executable_fd: int = -1,
    joined: Joined | None = None,
) -> Child:
    """Start a program under ``plan`` and return once it executes.

    ``env`` None: this process's environment. Absent stdio fds (-1) are inherited; all fds stay the caller's.

    Raises:
        SetupError: a step failed; nothing of the child remains. ``exec`` with ENOENT: no such program.
        BackendUnavailable: the native library is not there.
    """
    if not argv:
        raise ValueError("argv is empty: name a program")
    memory = Memory()
    request = abi.Exec(
        size=ctypes.sizeof(abi.Exec),
        executable_fd_plus1=executable_fd + 1,
        paths=0
        if executable_fd >= 0
        else memory.texts(_candidates(os.fsdecode(argv[0]), os.environ if env is None else env)),
        argv=memory.texts(argv),
        envp=0 if env is None else memory.texts(_environment(env)),  # 0: this process's, as the C library has it
        default_signals=_DEFAULT_SIGNALS,
        stdin_fd_plus1=stdin_fd + 1,
        stdout_fd_plus1=stdout_fd + 1,
        stderr_fd_plus1=stderr_fd + 1,
    )
    child, failure = abi.Child(), abi.Failure()
    functions = library.functions()
    ready, _alive = launch(plan, joined)
    request.arena = _free_arena() or functions.arena() or 0
    try:
        answer = functions.spawn(ready, request, child, failure)
    finally:
        if request.arena:
            _arenas.append(request.arena)
    if answer < 0:
        raise _setup_error(plan, failure, argv)
    return _child(plan, child)


def fork(plan: Plan, joined: Joined | None = None) -> Child | None:
    """Fork this process into a sandbox: None in the child, the Child in the parent, once every step succeeded.

    Python's own fork hooks (os.register_at_fork, threading, random) run as for os.fork().

    Raises:
        SetupError: in the parent; a step failed and nothing of the child remains.
        BackendUnavailable: the native library is not there.
    """
    child, failure = abi.Child(), abi.Failure()
    functions = library.functions()
    sys.audit("os.fork")
    ready, _alive = launch(plan, joined)
    answer = functions.fork(ready, functions.hooks, child, failure)
    if answer < 0:
        raise _setup_error(plan, failure)
    return _child(plan, child) if answer else None
