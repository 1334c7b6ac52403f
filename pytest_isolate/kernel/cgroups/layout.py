"""Where this host keeps its cgroups: which controller is in which hierarchy, and where we are in each.

Owns: reading /proc/self/mountinfo, /proc/self/cgroup, /proc/cgroups; no mount point is ever assumed.
Refuses: to create or write anything, and to say what may be written: that is found by trying, in delegation.py.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Controllers this package has limits, counters or a use for, by their v2 name.
CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "cpuset", "io", "hugetlb", "freezer")
_V1_NAMES = {"blkio": "io"}
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """One mounted cgroup tree, as this process sees it.

    Attributes:
        version: 1 or 2.
        controllers: by v2 name (``io`` for v1's ``blkio``); on v2 those of our own cgroup's ``cgroup.controllers``.
        mount: the mount point; ``root`` is the cgroup shown there, ``path`` our own (/proc/self/cgroup).
        directory: our own cgroup as a directory; None when this mount does not show it.
        options: mount options such as ``nsdelegate``.
    """

    version: int
    controllers: frozenset[str]
    mount: str
    root: str = "/"
    path: str = "/"
    directory: str | None = None
    read_only: bool = False
    options: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Every hierarchy of this host. ``disabled``: controllers the kernel has, switched off at boot."""

    v1: tuple[Hierarchy, ...] = ()
    v2: Hierarchy | None = None
    disabled: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        """``v1``, ``v2``, ``hybrid`` (both) or ``none``."""
        if self.v1:
            return "hybrid" if self.v2 else "v1"
        return "v2" if self.v2 else "none"

    def where(self, controller: str) -> Hierarchy | None:
        """The hierarchy a controller is in, or None. A controller is in at most one (cgroups(7))."""
        found = next((h for h in self.v1 if controller in h.controllers), None)
        if found is None and self.v2 is not None and controller in self.v2.controllers:
            found = self.v2
        return found


def discover() -> Layout:
    """Read this process's layout from /proc. Does no more than read."""
    layout = parse(_text("/proc/self/mountinfo"), _text("/proc/self/cgroup"), _text("/proc/cgroups"))
    if layout.v2 is None or layout.v2.directory is None:
        return layout
    names = frozenset(_text(f"{layout.v2.directory}/cgroup.controllers").split())
    return replace(layout, v2=replace(layout.v2, controllers=names & frozenset(CONTROLLERS)))


def parse(mountinfo: str, self_cgroup: str, proc_cgroups: str) -> Layout:
    """Build a Layout from the text of the three files. Pure; v2 controllers are left empty.

    Source: proc_pid_mountinfo(5), cgroups(7).
    """
    own_v1, own_v2 = own_paths(self_cgroup)
    v1: dict[frozenset[str], Hierarchy] = {}
    v2: Hierarchy | None = None
    for mount in _visible(_mounts(mountinfo)):
        if mount.version == 2:
            v2 = _better(v2, _placed(mount, own_v2))
        elif mount.controllers:
            path = next((own_v1[name] for name in mount.controllers if name in own_v1), None)
            v1[mount.controllers] = _better(v1.get(mount.controllers), _placed(mount, path))
    return Layout(v1=tuple(v1.values()), v2=v2, disabled=_disabled(proc_cgroups))


def is_machine_root(directory: str) -> bool:
    """True for the root of the whole v2 tree: only there is no ``cgroup.type`` (a namespace's root has one)."""
    return not os.path.exists(f"{directory}/cgroup.type")


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:  # a masked or missing /proc file means: nothing there that we could use
        return ""


def _mounts(mountinfo: str) -> Iterator[Hierarchy]:
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not dash or kind[0] not in ("cgroup", "cgroup2"):
            # Kept as version 0: whatever is mounted over a cgroup mount hides it.
            if len(fields) > 4:
                yield Hierarchy(version=0, controllers=frozenset(), mount=_unescape(fields[4]))
            continue
        per_mount, super_options = fields[5].split(","), kind[2].split(",") if len(kind) > 2 else []
        names = {_V1_NAMES.get(o, o) for o in super_options} if kind[0] == "cgroup" else set()
        yield Hierarchy(
            version=2 if kind[0] == "cgroup2" else 1,
            controllers=frozenset(names) & frozenset(CONTROLLERS),
            mount=_unescape(fields[4]),
            root=_unescape(fields[3]),
            read_only="ro" in per_mount or "ro" in super_options,
            options=frozenset(super_options) - {"rw", "ro"},
        )


def _visible(mounts: Iterator[Hierarchy]) -> list[Hierarchy]:
    """Drop the cgroup mounts that a later mount, on the same place or above it, hides."""
    shown: list[Hierarchy] = []
    for mount in mounts:
        cover = mount.mount.rstrip("/") + "/"
        shown = [m for m in shown if not (m.mount + "/").startswith(cover)]
        if mount.version:
            shown.append(mount)
    return shown


def _placed(mount: Hierarchy, path: str | None) -> Hierarchy:
    """Fill in our own path and directory. A root such as ``/..`` lies outside our cgroup namespace."""
    if path is None:
        return mount
    root = [part for part in mount.root.split("/") if part]
    own = [part for part in path.split("/") if part]
    if own[: len(root)] != root or ".." in own[len(root) :]:
        return replace(mount, path=path)
    return replace(mount, path=path, directory="/".join([mount.mount.rstrip("/"), *own[len(root) :]]))


def _better(one: Hierarchy | None, other: Hierarchy) -> Hierarchy:
    """Of two mounts of one tree, the one that shows our cgroup, is writable, and shows most of the tree."""
    if one is None:
        return other
    return max(one, other, key=lambda h: (h.directory is not None, not h.read_only, -len(h.root)))


def own_paths(self_cgroup: str) -> tuple[dict[str, str], str | None]:
    """Paths by v1 controller, and the v2 path. A removed cgroup's path ends in `` (deleted)``."""
    v1: dict[str, str] = {}
    v2: str | None = None
    for line in self_cgroup.splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        path = path.removesuffix(" (deleted)")
        if number == "0" and not names:
            v2 = path
        for name in names.split(","):
            v1[_V1_NAMES.get(name, name)] = path
    return v1, v2


def _disabled(proc_cgroups: str) -> frozenset[str]:
    rows = [line.split() for line in proc_cgroups.splitlines() if not line.startswith("#")]
    return frozenset(_V1_NAMES.get(row[0], row[0]) for row in rows if len(row) == 4 and row[3] == "0")


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)
