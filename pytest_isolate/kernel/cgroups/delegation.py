"""cgroup v2: whose children our sandboxes can be, and what has to be changed, and undone, for that.

Owns: the choice of the parent, moving ourselves to a leaf, turning controllers on and off again.
Refuses: to move anything out of a cgroup that is not delegated to us, and to go above an outer limit.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel.cgroups import cgroupfs
from pytest_isolate.kernel.cgroups.layout import is_machine_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LEAF = "supervisor"
#: What an outer cgroup may hold us by; a sandbox beside that cgroup would escape it.
_OUTER_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "cpu.max")


def candidates(own: str, mount: str) -> Iterator[str]:
    """Our own cgroup, then those above as far as no limit of a cgroup in between would be escaped."""
    here = own
    yield here
    while here != mount and not any(_held(here, file) for file in _OUTER_LIMITS):
        here = os.path.dirname(here)
        yield here


def _held(directory: str, file: str) -> bool:
    words = _words(directory, file)
    return bool(words) and words[0] != "max"


def offers(parent: str, own: str) -> frozenset[str]:
    """The controllers a child of ``parent`` has or can be given by us."""
    if parent == own and (is_machine_root(own) or may_move(own) or may_move(own, already=True)):
        return frozenset(_words(parent, "cgroup.controllers"))
    return frozenset(_words(parent, "cgroup.subtree_control"))


def may_move(own: str, *, already: bool = False) -> bool:
    """True when ``own`` is delegated to us with controllers, and holds this process alone (``already``: nobody)."""
    if is_machine_root(own) or not _words(own, "cgroup.controllers") or not _delegated(own):
        return False
    return _words(own, "cgroup.procs") == ([] if already else [str(os.getpid())])


def _delegated(own: str) -> bool:
    """Marked so by systemd, given to this user by ownership, or the root of a cgroup namespace (a container's)."""
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(own, name) == b"1":
                return True
    if os.geteuid() != 0:
        return os.access(f"{own}/cgroup.subtree_control", os.W_OK)
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        return "0::/\n" in file.readlines()


def _words(directory: str, file: str) -> list[str]:
    try:
        with open(f"{directory}/{file}", encoding="ascii", errors="replace") as opened:
            return opened.read().split()
    except OSError:
        return []


def step_aside(own: str, undo: ExitStack) -> None:
    """Move this process to a leaf: a v2 cgroup with controllers for its children may hold no process itself."""
    with cgroupfs.opened(own) as fd:
        try:
            os.mkdir(_LEAF, 0o755, dir_fd=fd)
        except FileExistsError:
            pass
        except OSError as error:
            raise cgroupfs.fault("mkdir", error, f"{own}/{_LEAF}") from error
        undo.callback(_remove_leaf, own)
        cgroupfs.write(fd, f"{_LEAF}/cgroup.procs", "0")
        undo.callback(_move_back, own)


def _remove_leaf(own: str) -> None:
    with contextlib.suppress(SetupError), cgroupfs.opened(own) as fd:
        cgroupfs.remove(fd, _LEAF)


def _move_back(own: str) -> None:
    """Return to where we came from. Refused (EBUSY) while another run needs the controllers: then we stay."""
    with contextlib.suppress(SetupError), cgroupfs.opened(own) as fd:
        cgroupfs.write(fd, "cgroup.procs", "0")


def enabler(own: str, undo: ExitStack) -> Callable[[frozenset[str]], None]:
    """What turns controllers on for the children of ``own``, and off again at the end if nobody else is there."""
    turned_on: list[str] = []
    undo.callback(_disable, own, turned_on)

    def enable(wanted: frozenset[str]) -> None:
        with cgroupfs.opened(own) as fd:
            missing = wanted - frozenset((cgroupfs.read(fd, "cgroup.subtree_control") or "").split()) - {"freezer"}
            for name in sorted(missing):
                cgroupfs.write(fd, "cgroup.subtree_control", f"+{name}")
                turned_on.append(name)

    return enable


def _disable(own: str, names: list[str]) -> None:
    """A leaf of somebody else's would silently lose its limits: only when nobody but our own leaf is there."""
    with contextlib.suppress(SetupError), cgroupfs.opened(own) as fd:
        for name in names:
            if {os.path.basename(child) for child in cgroupfs.children(fd, ".")} <= {_LEAF}:
                with contextlib.suppress(SetupError):
                    cgroupfs.write(fd, "cgroup.subtree_control", f"-{name}")
