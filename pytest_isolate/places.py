"""A view as tools are told of it: places to mount, one after the other, and the directory to begin in.

Owns: Place, places(), directory(). Refuses: to mount, and what the native backend would refuse: a tool makes the targets and
directories that it does not find, on the host where the view is the host's.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import Literal

from pytest_isolate.errors import BackendUnavailable, SetupError
from pytest_isolate.kernel import capabilities, filesystem
from pytest_isolate.kernel.filesystem.entries import entries
from pytest_isolate.kernel.filesystem.tree import Tree
from pytest_isolate.policy import Filesystem, Namespace, Policy
from pytest_isolate.remembered import Remembered

__all__ = ["Place", "context_of", "directory", "places"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One place of a view, sources and targets without symlinks; in the order in which they are to be mounted.

    ``bind`` shows ``source``; ``tmpfs`` is empty, ``size_bytes`` large (None: no bound) with ``mode``; ``mask`` hides
    what is there, a ``directory`` or not; ``proc`` is a fresh /proc, ``devpts`` are terminals of its own; ``link`` is a symlink to
    ``source``. ``implied``: nobody asked for it by name.
    """

    kind: Literal["bind", "tmpfs", "mask", "proc", "devpts", "link"]
    target: str
    source: str = ""
    writable: bool = False
    recursive: bool = True
    size_bytes: int | None = None
    mode: int = 0o1777
    directory: bool = False
    implied: bool = False

    @property
    def is_device(self) -> bool:
        """True for the parts of the /dev of a sealed view, which tools have by themselves; /dev/shm is none."""
        below = self.target.startswith("/dev/") and self.kind != "tmpfs"
        return self.implied and (below or self.target == "/dev")


def places(policy: Policy) -> list[Place]:
    """What is mounted over the root of ``policy``'s view, parents first. An overlay is there already: it is bound in its place.

    Raises:
        PolicyError: a source or target that is not there: a tool would make it, on the host.
        BackendUnavailable: the kernel does not allow it to this user; a bind as its owner's, for tools map no ids of a mount.
    """
    view = _view(policy)
    if owned := [bind.source for bind in policy.filesystem.binds if bind.owned]:
        what = f"bind of {owned[0]} as its owner's"
        raise BackendUnavailable(what, "tools map no ids of a mount", "use the backend native, as root")
    context = context_of(policy)
    found = entries(_filesystem(policy), context=context, host=Tree(context.mounts, context.lookup))
    return [
        Place(
            kind="bind" if entry.kind == "overlay" or entry.kind == "device" else entry.kind,
            target=entry.target,
            source=entry.source or entry.target,
            writable=entry.writable or entry.kind == "overlay",
            recursive=entry.recursive,
            size_bytes=entry.size_bytes,
            mode=entry.mode,
            directory=entry.kind == "mask" and _is_directory(entry.target, view),
            implied=entry.implied,
        )
        for entry in found
    ]


def _is_directory(path: str, view: filesystem.MountPlan | None) -> bool:
    if view is None:
        return os.path.isdir(path)
    node = view.tree.walk(path).node
    return node is not None and node.kind == "directory"


def context_of(policy: Policy) -> filesystem.Context:
    """What of this host and of the policy decides what can be mounted."""
    return filesystem.Context.of_this_host(
        user_namespace=Namespace.USER in policy.namespaces or not capabilities.has("CAP_SYS_ADMIN"),
        pid_namespace=Namespace.PID in policy.namespaces,
    )


_views: Remembered[filesystem.MountPlan | None] = Remembered()


def _view(policy: Policy) -> filesystem.MountPlan | None:
    """The mounts that ``policy`` asks for, as they are compiled for the native backend: what is wrong with them is said by that.

    None for what this user may not mount by himself, and a tool perhaps may.
    """
    return _views.of(policy, lambda: _compiled_view(policy))


def _compiled_view(policy: Policy) -> filesystem.MountPlan | None:
    try:
        return filesystem.compile(_filesystem(policy), context=context_of(policy))
    except BackendUnavailable:
        return None


def _filesystem(policy: Policy) -> Filesystem:
    return policy.filesystem if Namespace.MOUNT in policy.namespaces else replace(policy.filesystem, proc=False)


def directory(policy: Policy, cwd: str | None) -> str:
    """Where the program begins: ``cwd``, or where we are, if the view shows that. A runtime makes what it does not find.

    Raises:
        SetupError: the view has no such directory.
    """
    path = os.path.abspath(cwd or os.getcwd())
    if not policy.filesystem.needs_mounts:
        there = os.path.isdir(path)
    else:
        view = _view(policy)
        there = view is None or filesystem.resolve(path, view).exists
    if there:
        return path
    if cwd is None:
        return "/"
    raise SetupError("cwd", errno.ENOENT, detail=f"({path})")
