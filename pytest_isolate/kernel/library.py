"""libisolate.so: found, loaded at first use, its version checked; and isolate-init, its companion.

Owns: the library handle and the prototypes of its functions. Refuses: to know what they are called for.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel import abi

_DIRECTORY = Path(__file__).resolve().parent.parent / "_native"
_REMEDY = "build it with `make -C native`, or reinstall pytest-isolate-sandbox on a machine with a C compiler"
_OPEN = "install pytest-isolate-sandbox where every user may read it, and not in a home that is root's alone"


@dataclass(frozen=True, slots=True)
class Library:
    """The C functions. ``fork`` keeps the GIL: the child must come out of it holding it."""

    spawn: Any
    fork: Any
    wait: Any
    await_: Any
    end_tree: Any
    arena: Any
    netns: Any
    step_name: Any
    hooks: abi.Hooks


def find(name: str) -> Path:
    path = _DIRECTORY / name
    what = f"native backend ({name})"
    try:
        path.stat()
    except PermissionError as error:
        raise BackendUnavailable(what, f"user {os.geteuid()} may not enter the directory of {path}", _OPEN) from error
    except OSError as error:
        raise BackendUnavailable(what, f"{path} does not exist", _REMEDY) from error
    return path


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendUnavailable("native backend (libisolate.so)", str(error), _REMEDY) from error


def _hook(name: str) -> int:
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


def _prototype(function: Any, *arguments: Any) -> Any:
    function.argtypes, function.restype = arguments, ctypes.c_int
    return function


@functools.cache
def load() -> ctypes.CDLL:
    """The loaded libisolate.so.

    Raises:
        BackendUnavailable: it is not there, not loadable, or of another version.
    """
    loaded = _open(find("libisolate.so"))
    loaded.iso_abi_version.restype = ctypes.c_uint32
    found = loaded.iso_abi_version()
    if found != abi.VERSION:
        raise BackendUnavailable("native backend", f"libisolate.so has layout {found}, this is {abi.VERSION}", _REMEDY)
    return loaded


@functools.cache
def functions() -> Library:
    released = load()
    held = ctypes.PyDLL(None, handle=released._handle)
    plan, failure, child = (ctypes.POINTER(kind) for kind in (abi.Plan, abi.Failure, abi.Child))
    arena, name = released.iso_arena, released.iso_step_name
    arena.argtypes, arena.restype = (), ctypes.c_void_p
    name.argtypes, name.restype = (ctypes.c_int32,), ctypes.c_char_p
    return Library(
        spawn=_prototype(released.iso_spawn, plan, ctypes.POINTER(abi.Exec), child, failure),
        fork=_prototype(held.iso_fork, plan, ctypes.POINTER(abi.Hooks), child, failure),
        wait=_prototype(released.iso_wait, ctypes.c_int, ctypes.c_int, ctypes.POINTER(abi.Exit)),
        await_=_prototype(released.iso_await, child, ctypes.c_int, ctypes.POINTER(abi.Exit)),
        end_tree=_prototype(released.iso_end_tree, child),
        arena=arena,
        netns=_prototype(released.iso_netns, ctypes.c_int),
        step_name=name,
        hooks=abi.Hooks(
            prepare=_hook("PyOS_BeforeFork"),
            parent=_hook("PyOS_AfterFork_Parent"),
            child=_hook("PyOS_AfterFork_Child"),
        ),
    )
