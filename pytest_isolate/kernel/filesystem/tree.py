"""A model of a mount namespace: what a table of MountOps makes of the host's mounts, without making it.

Owns: Tree (mounts, and the path walk over them, as fs/namei.c does it) and the effect of every MountOp on it.
Refuses: system calls; what files the host has is asked through a Lookup, so that tests can answer from a dict.
Source: path_resolution(7), mount_namespaces(7), Documentation/filesystems/sharedsubtree.rst.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pytest_isolate.kernel.filesystem import mountinfo
from pytest_isolate.kernel.plan import MountKind, MountOp

MAX_LINKS = 40  # MAXSYMLINKS, <linux/namei.h>
MAX_NAME_BYTES = 255  # NAME_MAX, <linux/limits.h>
_ATTRIBUTES = (
    mountinfo.MS_RDONLY | mountinfo.MS_NOSUID | mountinfo.MS_NODEV | mountinfo.MS_NOEXEC
)  # same bits as MOUNT_ATTR_*
_ANY_NAME = frozenset({"proc", "sysfs", "cgroup", "cgroup2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What stands at a path: ``link`` is the text of a symlink; a ``device`` is a file like any other."""

    kind: Literal["directory", "file", "link"]
    device: bool = False
    mode: int = 0o755
    owner: tuple[int, int] = (0, 0)
    link: str = ""


DIRECTORY = Node(kind="directory")
#: lstat(2) of a host path; None where there is nothing to be seen.
Lookup = Callable[[str], "Node | None"]


def host_lookup(path: str) -> Node | None:
    """The Lookup that asks this host."""
    try:
        status = os.lstat(path)
        mode, owner = stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid)
        if stat.S_ISLNK(status.st_mode):
            return Node(kind="link", mode=mode, owner=owner, link=os.readlink(path))
    except (OSError, ValueError):
        return None
    device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return Node(kind="directory" if stat.S_ISDIR(status.st_mode) else "file", device=device, mode=mode, owner=owner)


@dataclass(slots=True, eq=False, kw_only=True)
class FileSystem:
    """One superblock. ``made``: what the table itself creates on it; ``lower``: what an overlay shows below its changes."""

    fstype: str
    source: str = ""
    readonly: bool = False
    made: dict[str, Node] = field(default_factory=dict)
    lower: Place | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Mounted:
    """One mount: ``root`` of a file system, seen at ``at`` of the parent mount (paths are those of the file systems).

    ``origin``: the mount of the host that this one is or was cloned from; ``host_path`` is where the host has it.
    """

    fs: FileSystem
    root: str = "/"
    flags: int = 0
    parent: Mounted | None = None
    at: str = ""
    children: list[Mounted] = field(default_factory=list)
    origin: Mounted | None = None
    host_path: str | None = None
    host_flags: int = 0  # what the host has, whatever the table did to ``flags`` since
    covers: tuple[str, ...] = ()  # of a host mount: where the host has other mounts on it
    words: str = ""  # what it is for, when the table made it

    @property
    def readonly(self) -> bool:
        return self.fs.readonly or bool(self.flags & mountinfo.MS_RDONLY)

    def subtree(self) -> Iterator[Mounted]:
        """This mount and every mount on it, parents first."""
        yield self
        for child in self.children:
            yield from child.subtree()


class Place(NamedTuple):
    """A path on a mount, in the words of the mount's file system."""

    mount: Mounted
    path: str


class Found(NamedTuple):
    """Where a walk ended. ``error`` is 0, or the errno of the kernel's answer; then ``rest`` was not walked.

    ``magic``: the walk came to a process's part of /proc, where the kernel decides at the moment of use; ``rest`` was not walked.
    """

    place: Place
    node: Node | None
    error: int = 0
    rest: tuple[str, ...] = ()
    magic: bool = False


class Tree:
    """Mounts as one process sees them. Made from the host's mounts, changed by apply()."""

    def __init__(self, mounts: Iterable[mountinfo.Mount], lookup: Lookup) -> None:
        self._lookup = lookup
        self.root = _host_tree(tuple(mounts))

    # -- reading

    def walk(self, path: str, *, follow: bool = True, within: str = "") -> Found:
        """Resolve an absolute path as openat2(2) would; ``follow=False`` leaves a last symlink alone.

        ``within``: a directory that plays the root, for symlinks and ``..`` too (RESOLVE_IN_ROOT); already free of symlinks.
        """
        # The namespace's root itself is not crossed: what is mounted on it is seen by "/.." only, as in the kernel.
        root = self._start(within)
        place, todo, links = root, _components(path)[::-1], 0
        node = self.node(place)
        while todo:
            name = todo.pop()
            if node is None or node.kind != "directory":
                return Found(place, node, errno.ENOTDIR if node else errno.ENOENT, _named(name, *todo[::-1]))
            if name == ".":
                continue
            if name == "..":
                place = place if place == root else self._up(place)
                node = self.node(place)
                continue
            if _is_too_long(name, place):
                return Found(place, node, errno.ENAMETOOLONG, _named(name, *todo[::-1]))
            here, place = place, self._top(Place(place.mount, _join(place.path, name)))
            if _is_of_a_process(place):
                return Found(place, DIRECTORY, 0, _named(*todo[::-1]), magic=True)
            node = self.node(place)
            if node is None and todo:
                return Found(place, None, errno.ENOENT, _named(*todo[::-1]))
            if node is None or node.kind != "link" or not (todo or follow):
                continue
            links += 1
            if links > MAX_LINKS:
                return Found(place, node, errno.ELOOP, _named(*todo[::-1]))
            todo += _components(node.link)[::-1]
            place = root if node.link.startswith("/") else here
            node = self.node(place)
        return Found(place, node, 0 if node else errno.ENOENT)

    def node(self, place: Place) -> Node | None:
        """What stands there, as far as the host's files and the table tell."""
        mount, path = place
        made = mount.fs.made.get(path)
        if made is not None:
            return made
        if mount.fs.lower is not None:
            lower = mount.fs.lower
            return self.node(Place(lower.mount, _join(lower.path, path[1:])))
        shown = host_path(place)
        if shown is not None:
            return self._lookup(shown)
        if path == mount.root:
            return DIRECTORY
        covering = [child for child in (mount.origin or mount).covers if child == path]
        return self._mount_point(place) if covering else None

    def _mount_point(self, place: Place) -> Node | None:
        """What the host has mounted over is a directory or a file as what it is covered by."""
        owner = place.mount.origin or place.mount
        return self._lookup(_join(owner.host_path or "/", place.path[len(owner.root.rstrip("/")) :].lstrip("/")))

    def path_of(self, place: Place) -> str:
        """The absolute path, free of symlinks, at which the namespace has the place."""
        mount, path = place
        shown = path[len(mount.root.rstrip("/")) :]
        if mount.parent is None:
            return shown or "/"
        above = self.path_of(Place(mount.parent, mount.at))
        return above if shown in ("", "/") else above.rstrip("/") + shown

    def real(self, path: str) -> str:
        """``path`` without symlinks, ``.`` and ``..``; what does not exist stays as written, as in os.path.realpath."""
        found = self.walk(path)
        return _join(self.path_of(found.place), "/".join(found.rest))

    def below(self, path: str) -> Iterator[tuple[str, Mounted]]:
        """(path, mount) of every mount that is seen strictly below ``path``; parents first, over-mounted ones left out."""
        prefix = path.rstrip("/") + "/"
        for mount in self.root.subtree():
            shown = self.path_of(Place(mount, mount.root))
            if shown.startswith(prefix) and shown != path and self.walk(shown, follow=False).place.mount is mount:
                yield shown, mount

    def _start(self, within: str) -> Place:
        place = Place(self.root, self.root.root)
        for name in _named(*_components(within)):
            place = self._top(Place(place.mount, _join(place.path, name)))
        return place

    def _top(self, place: Place) -> Place:
        """Cross into the last mount on a place, and the last one on that."""
        while True:
            on = [child for child in place.mount.children if child.at == place.path]
            if not on:
                return place
            place = Place(on[-1], on[-1].root)

    def _up(self, place: Place) -> Place:
        """``..``: leave the mounts whose root this is, then go up; stays at the namespace's root."""
        while place.path == place.mount.root:
            if place.mount.parent is None:
                return self._top(place)
            place = Place(place.mount.parent, place.mount.at)
        return self._top(Place(place.mount, os.path.dirname(place.path)))

    # -- changing

    def apply(self, op: MountOp) -> None:
        """Do to the model what the child does to its namespace. Raises LookupError where the kernel would refuse."""
        match op.kind:
            case MountKind.MOUNT if op.flags & mountinfo.MS_MOVE:
                moved = self._mount_at(op.source)
                _detach(moved)
                self._attach(moved, op.target)
            case MountKind.MOUNT:
                self._attach(self._new(op), op.target)
            case MountKind.BIND:
                clone = _clone(self._existing(op.source), recursive=bool(op.flags & mountinfo.MS_REC))
                for each in clone.subtree():
                    each.flags |= op.flags & _ATTRIBUTES
                self._attach(clone, op.target)
            case MountKind.MKDIR:
                self._make(op.target, Node(kind="directory", mode=int(op.data.split(":")[0] or "755", 8)))
            case MountKind.MKFILE:
                self._make(op.target, Node(kind="file", mode=0o644))
            case MountKind.MKNOD:
                self._make(op.target, Node(kind="file", device=True, mode=int(op.data.split(":")[0], 8)))
            case MountKind.SYMLINK:
                self._make(op.target, Node(kind="link", link=op.source))
            case MountKind.PIVOT:
                self.root = self._mount_at(op.target)
                _detach(self.root)
            case MountKind.REMOUNT:
                self._mount_at(op.target).flags = op.flags & sum(mountinfo.KEPT_FLAGS.values())
            case MountKind.SETATTR:
                self._set_attributes(op)
            case MountKind.UMOUNT:
                _detach(self._mount_at(op.target))
            case MountKind.PROPAGATION | MountKind.SEND_DIR:
                pass

    def _new(self, op: MountOp) -> Mounted:
        fs = FileSystem(fstype=op.fstype, source=op.source)
        mounted = Mounted(fs=fs, flags=op.flags & sum(mountinfo.KEPT_FLAGS.values()))
        options = dict(option.partition("=")[::2] for option in op.data.split(","))
        match op.fstype:
            case "overlay":
                fs.lower = self._existing(options["lowerdir"])
            case "proc":
                mounted.host_path = "/proc"  # the names are those of any other /proc
            case "tmpfs":
                fs.made["/"] = Node(kind="directory", mode=int(options.get("mode", "1777"), 8))
        return mounted

    def _existing(self, path: str) -> Place:
        found = self.walk(path)
        if found.error:
            raise LookupError(found.error, path)
        return found.place

    def _mount_at(self, path: str) -> Mounted:
        place = self._existing(path)
        if place.path != place.mount.root:
            raise LookupError(errno.EINVAL, path)
        return place.mount

    def _attach(self, mounted: Mounted, path: str) -> None:
        place = self._existing(path)
        mounted.parent, mounted.at = place.mount, place.path
        place.mount.children.append(mounted)

    def _make(self, path: str, node: Node) -> None:
        """Enter ``path`` into what its file system has, parents as directories; what exists stays."""
        *parents, _ = _named(*_components(path))
        for depth in range(len(parents)):
            self._make_one("/" + "/".join(parents[: depth + 1]), DIRECTORY)
        self._make_one(path, node)

    def _make_one(self, path: str, node: Node) -> None:
        found = self.walk(path, follow=False)
        if found.rest:
            raise LookupError(found.error, path)
        if found.node is None:
            found.place.mount.fs.made[found.place.path] = node

    def _set_attributes(self, op: MountOp) -> None:
        added, _, removed = op.data.partition(":")
        mount = self._mount_at(op.target)
        for each in mount.subtree() if op.flags else [mount]:
            each.flags = (each.flags & ~int(removed or "0", 0)) | int(added, 0) & _ATTRIBUTES


def host_path(place: Place) -> str | None:
    """Where the host itself shows what is at a place; None for what only the sandbox has, or the host has mounted over."""
    mount = place.mount
    owner = mount.origin or mount
    if owner.host_path is None or any(place.path == path or is_below(place.path, path) for path in owner.covers):
        return None
    return _join(owner.host_path, place.path[len(owner.root.rstrip("/")) :].lstrip("/"))


def is_below(path: str, folder: str) -> bool:
    """True for paths strictly below ``folder``."""
    return path != folder and path.startswith(folder.rstrip("/") + "/")


def _host_tree(mounts: tuple[mountinfo.Mount, ...]) -> Mounted:
    """The mounts of mountinfo lines, linked; a root that is no mount point (after chroot) is stood in for."""
    systems: dict[str, FileSystem] = {}
    known: dict[int, tuple[mountinfo.Mount, Mounted]] = {}
    for line in mounts:
        fs = systems.setdefault(
            line.device, FileSystem(fstype=line.fstype, source=line.source, readonly=line.readonly_fs)
        )
        known[line.mount_id] = (
            line,
            Mounted(fs=fs, root=line.root, flags=line.flags, host_flags=line.flags, host_path=line.mountpoint),
        )
    roots = [mounted for line, mounted in known.values() if line.parent_id not in known and line.mountpoint == "/"]
    root = roots[0] if roots else Mounted(fs=FileSystem(fstype="unknown"), host_path="/")
    for line, mounted in known.values():
        above, parent = known.get(line.parent_id, (None, root))
        if mounted is root:
            continue
        start = "/" if above is None else above.mountpoint
        mounted.parent, mounted.at = parent, _join(parent.root, line.mountpoint[len(start.rstrip("/")) :].lstrip("/"))
        parent.children.append(mounted)
    for each in root.subtree():
        each.covers = tuple(child.at for child in each.children)
    return root


def _clone(place: Place, *, recursive: bool) -> Mounted:
    """A detached copy of the mount of a place, with its root there; of the mounts below, when ``recursive``."""
    source = place.mount
    copy = Mounted(
        fs=source.fs, root=place.path, flags=source.flags, host_flags=source.host_flags, origin=source.origin or source
    )
    if recursive:
        for child in source.children:
            if child.at == place.path or is_below(child.at, place.path):
                below = _clone(Place(child, child.root), recursive=True)
                below.parent, below.at = copy, child.at
                copy.children.append(below)
    return copy


def _detach(mounted: Mounted) -> None:
    if mounted.parent is not None:
        mounted.parent.children.remove(mounted)
        mounted.parent = None


def _is_of_a_process(place: Place) -> bool:
    """Below /proc/PID: processes come and go, and their links (fd, cwd, root, exe) lead wherever the kernel says."""
    top = place.path.split("/")[1]
    return place.mount.fs.fstype == "proc" and (top.isdigit() or top in ("self", "thread-self"))


def _is_too_long(name: str, place: Place) -> bool:
    """File systems in the kernel's memory only look for it; the others refuse. Source: their lookup functions."""
    return (
        len(name) * 4 > MAX_NAME_BYTES
        and len(os.fsencode(name)) > MAX_NAME_BYTES
        and place.mount.fs.fstype not in _ANY_NAME
    )


def _components(path: str) -> list[str]:
    """The names of a path; a slash at the end is a ``.``, which only a directory has."""
    names = [name for name in path.split("/") if name]
    return [*names, "."] if path.endswith("/") and names else names


def _named(*rest: str) -> tuple[str, ...]:
    return tuple(name for name in rest if name != ".")


def _join(folder: str, rest: str) -> str:
    return f"{folder.rstrip('/')}/{rest}" if rest else folder
