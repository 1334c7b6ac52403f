"""A host to throw away: runs a test's body in a forked process with a mount namespace of its own, as root or as a plain user.

Owns: throwaway(), and launch(), which runs a function inside a view there. Refuses: to touch the real host's mounts.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_isolate.kernel import filesystem, native
from pytest_isolate.kernel.plan import IdMap, Plan
from pytest_isolate.outcome import FilesChanged

if TYPE_CHECKING:
    from pytest_isolate.policy import Filesystem

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
PR_SET_DUMPABLE = 4
NOBODY = 65534
ROOT = Path(__file__).resolve().parents[2]
_libc = ctypes.CDLL(None, use_errno=True)


def throwaway(body: Callable[[], Any], *, who: str = "root", prepare: Callable[[], None] | None = None) -> Any:
    """Run ``prepare`` as root and then ``body`` as ``who`` in a process with its own mounts; returns what body returns (by JSON).

    Plain users may enter this checkout there, and its interpreter, even where they are in a home of root.
    A plain user is one already, and has no host to prepare: then ``who`` is "user", and the mounts are the host's, unchanged.
    An exception of the body, such as a failed assert, is raised here with its traceback as text.
    """
    read_fd, write_fd = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, such as xdist's
        pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _run(body, who, prepare, write_fd)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as answers:
        answer = json.loads(answers.read() or b'{"failed": "the process died"}')
    os.waitpid(pid, 0)
    if "failed" in answer:
        raise AssertionError(answer["failed"])
    return answer["result"]


def _run(body: Callable[[], Any], who: str, prepare: Callable[[], None] | None, write_fd: int) -> NoReturn:
    try:
        if os.geteuid() == 0 or who == "root":
            own_mounts()
            if os.geteuid() == 0:
                open_to_everyone()
            if prepare is not None:
                prepare()
            if who == "user":
                change_user(NOBODY)
                os.environ["HOME"] = "/nonexistent"
        before = mount_table()
        answer = {"result": body()}
        assert mount_table() == before, "the sandbox has changed the mounts of its host"
    except BaseException:
        answer = {"failed": traceback.format_exc()}
    with os.fdopen(write_fd, "w") as pipe:
        json.dump(answer, pipe)
    os._exit(0)


def own_mounts() -> None:
    if _libc.unshare(CLONE_NEWNS) or _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "a mount namespace of our own")


def change_user(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # or nobody may write our uid_map


def mount(source: str, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2), for preparing a host."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, fstype)]
    if _libc.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {target}: {os.strerror(error)}")


#: Not in a virtual environment, which a plain user may not be able to enter (.tox is root's alone): the standard library only.
PYTHON = os.path.realpath(sys.executable)


def open_to_everyone() -> None:
    """In mounts of our own: this checkout and its interpreter, where a directory that is root's alone, such as /root, hides them.

    All else in such a directory stays hidden.
    """
    paths = {os.path.realpath(sys.base_prefix), sys.prefix, str(ROOT)}
    fds = {path: os.open(path, os.O_PATH) for path in sorted(paths)}  # a directory before what is in it
    for path, fd in fds.items():
        if closed := _closed_to_others(path):
            mount("tmpfs", closed, "tmpfs", 0, "mode=755")
        if not os.path.exists(path):
            os.makedirs(path)
            mount(f"/proc/self/fd/{fd}", path, None, MS_BIND | MS_REC)
        os.close(fd)


def _closed_to_others(path: str) -> str | None:
    """The uppermost directory on the way that others may not enter."""
    return next(
        (str(step) for step in reversed(Path(path).parents) if step.exists() and not step.stat().st_mode & 0o001), None
    )


def mount_table() -> str:
    with open("/proc/self/mountinfo") as table:
        return table.read()


@dataclass(frozen=True)
class Inside:
    """What a function said inside a view, what changed below its overlays, and the plan of the view."""

    result: Any
    changed: FilesChanged
    plan: filesystem.MountPlan


def context(**facts: Any) -> filesystem.Context:
    """The facts of the throw-away host for whoever runs here: a plain user needs a user namespace."""
    found = filesystem.Context.of_this_host(user_namespace=os.geteuid() != 0)
    return dataclasses.replace(found, **facts)


def launch(view: Filesystem, function: Callable[[], Any], cwd: str = "", **facts: Any) -> Inside:
    """Compile the view, run ``function`` in a sandbox that has it, and collect. The result travels as JSON."""
    plan = filesystem.compile(view, context=context(**facts))
    read_fd, write_fd = os.pipe()
    with filesystem.Layers(plan) as layers:
        child = native.fork(launch_plan(layers, cwd))
        if child is None:
            _answer(function, write_fd)
        os.close(write_fd)
        with child, os.fdopen(read_fd, "rb") as answers:
            layers.receive()
            answer = json.loads(answers.read() or b'{"failed": "the sandbox died"}')
            child.wait(20)
        assert "failed" not in answer, answer["failed"]
        return Inside(answer["result"], layers.changed(), plan)


def launch_plan(layers: filesystem.Layers, cwd: str = "") -> Plan:
    uid, gid = os.geteuid(), os.getegid()
    mine = uid != 0
    return Plan(
        namespaces=CLONE_NEWNS | CLONE_NEWPID | (CLONE_NEWUSER if mine else 0),
        uid_map=(IdMap(inside=uid, outside=uid, count=1),) if mine else (),
        gid_map=(IdMap(inside=gid, outside=gid, count=1),) if mine else (),
        mounts=layers.ops,
        cwd=cwd,
    )


def _answer(function: Callable[[], Any], write_fd: int) -> NoReturn:
    try:
        answer = {"result": function()}
    except BaseException:
        answer = {"failed": traceback.format_exc()}
    with os.fdopen(write_fd, "w") as pipe:
        json.dump(answer, pipe)
    sys.stdout.flush()
    os._exit(0)
