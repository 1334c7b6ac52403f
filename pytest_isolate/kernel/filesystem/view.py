"""A Filesystem policy compiled into a mount table for this host.

Owns: compile(): the order of the mounts, and the stage on which a new root, layers and places that hide others are put together.
Refuses: to mount; the child interprets the table. Every op is first done to a model (tree.py), so that order, existence and
hidden sources are decided there, and a target that would have to be made on the host's own file systems is an error here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.filesystem.entries import DEVICES, Entry, entries
from pytest_isolate.kernel.filesystem.mountinfo import (
    MS_BIND,
    MS_MOVE,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
)
from pytest_isolate.kernel.filesystem.mountplan import Layer, MountPlan
from pytest_isolate.kernel.filesystem.mounttable import MountTable
from pytest_isolate.kernel.filesystem.tree import FileSystem, Found, Mounted, Node, Place, Tree, host_path, is_below
from pytest_isolate.kernel.plan import MountKind

if TYPE_CHECKING:
    from pytest_isolate.kernel.filesystem.context import Context
    from pytest_isolate.policy import Filesystem

#: Where the sandbox may assemble things for a moment: the first that exists and is neither source nor target of the policy.
STAGE_CANDIDATES = (
    "/mnt",
    "/media",
    "/srv",
    "/opt",
    "/boot",
    "/var/tmp",
    "/run",
    "/home",
    "/tmp",
    "/usr/share",
    "/etc",
)

_UNSAFE_IN_OPTIONS = frozenset(',:\\"')
#: What a masked file is.
_NOTHING = "/dev/null"
#: Stands for all of them: the child names what it mounts on by /proc/self/fd (native/src/targets.c).
_EVERY_PLACE = -1 << 31
_EMPTY = "size=4k,nr_inodes=2,mode=755"
#: Source: Documentation/filesystems/devpts.rst.
_TERMINALS = "newinstance,ptmxmode=666,mode=620"


def compile(filesystem: Filesystem, *, context: Context) -> MountPlan:  # noqa: A001 - the word of the design
    """The mount table that makes this view.

    Raises:
        PolicyError: the view has no meaning on this host (a source or target that is not there, two mounts at one place).
        BackendUnavailable: the kernel does not allow it to this user.
    """
    return _Compiler(filesystem, context).compile()


@dataclass(slots=True)
class _Compiler:
    filesystem: Filesystem
    context: Context
    host: Tree = field(init=False)
    tree: Tree = field(init=False)
    table: MountTable = field(init=False)
    wanted: list[Entry] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    owned: list[int] = field(default_factory=list)
    sealed_late: list[str] = field(default_factory=list)
    assembled: dict[str, str] = field(default_factory=dict)  # target -> where it is put together
    stores: list[str] = field(default_factory=list)  # directories with layers, one for each file system
    _overlays_made: dict[str, FileSystem] = field(default_factory=dict)
    stage: str = ""
    new_root: str = ""  # where a root is put together that is pivoted to; empty: the host's root stays

    def __post_init__(self) -> None:
        self.host = Tree(self.context.mounts, self.context.lookup)
        self.tree = Tree(self.context.mounts, self.context.lookup)
        self.table = MountTable(tree=self.tree, mount_setattr=self.context.mount_setattr)

    def compile(self) -> MountPlan:
        self.wanted = entries(self.filesystem, context=self.context, host=self.host)
        self.table.emit(
            MountKind.PROPAGATION, "/", "keep mounts from the host and the host's from us", flags=MS_REC | MS_PRIVATE
        )
        if self.filesystem.root == "readonly":
            self.table.seal("/", "make the host's file systems read-only, without devices", MS_RDONLY | MS_NODEV)
        self._prepare_stage()
        for entry in self.wanted:
            self._place(entry)
        self._finish()
        return MountPlan(
            ops=tuple(self.table.ops),
            words=tuple(self.table.words),
            tree=self.tree,
            host=self.host,
            layers=tuple(self._made_on(layer) for layer in self.layers),
            owned=tuple(self.owned),
        )

    # -- the stage: a tmpfs of our own for roots, layers, and places that hide what others need

    def _prepare_stage(self) -> None:
        base = next((entry for entry in self.wanted if entry.target == "/"), None)
        pivots = base is not None or self.filesystem.root == "minimal"
        layered = any(entry.kind == "overlay" for entry in self.wanted)
        hiding = [] if pivots else self._hiding()
        if not (pivots or layered or hiding):
            return
        self.stage = self._choose_stage(targets_count=not pivots)
        self.table.mount_tmpfs(self.stage, "a stage", "mode=755")
        if base is None and pivots and not layered:  # nothing but the root needs the stage: it is the root
            self.new_root = self.stage
            self.sealed_late.append(self.new_root)
        elif pivots:
            self.new_root = f"{self.stage}/root"
            self.table.emit(MountKind.MKDIR, self.new_root, "the new root")
            if base is None:
                self.table.mount_tmpfs(self.new_root, "the new root", "mode=755")
                self.sealed_late.append(self.new_root)
        for number, target in enumerate(hiding):
            self.assembled[target] = f"{self.stage}/place{number}"

    def _hiding(self) -> list[str]:
        """The outermost places at or above something that another place needs from the host."""
        needed: dict[str, set[int]] = {}
        for number, source in self._sources():
            for path in _with_parents(source):
                needed.setdefault(path, set()).add(number)
        needed["/proc"] = {_EVERY_PLACE}
        mounted = {entry.target for entry in self.wanted if entry.kind != "link"}
        return [
            entry.target
            for number, entry in enumerate(self.wanted)
            if entry.kind != "proc"
            and needed.get(entry.target, set()) - {number}
            and not mounted & set(_with_parents(entry.target)[1:])
        ]

    def _sources(self) -> Iterator[tuple[int, str]]:
        """(index of the place, host path it needs); a negative one for a directory that a layer is kept in."""
        for number, entry in enumerate(self.wanted):
            if entry.source and entry.kind != "link":
                yield number, entry.source
            if entry.kind == "mask" and not self._makes_nothing:
                yield number, _NOTHING
            if entry.kept_in:
                yield -1 - number, entry.kept_below

    def _choose_stage(self, *, targets_count: bool) -> str:
        used = {path for _, source in self._sources() for path in _with_parents(source)}
        used |= {path for entry in self.wanted if targets_count for path in _with_parents(entry.target)}
        for candidate in STAGE_CANDIDATES:
            node = self.context.lookup(candidate)
            if node is not None and node.kind == "directory" and candidate not in used:
                return candidate
        raise PolicyError("filesystem", f"it uses all of {', '.join(STAGE_CANDIDATES)}", "leave one directory alone")

    def _inside(self, target: str) -> str:
        """Where ``target`` of the view is while it is being put together."""
        if self.new_root:
            return self.new_root + target if target != "/" else self.new_root
        for top, stage in self.assembled.items():
            if target == top or is_below(target, top):
                return stage + target[len(top) :]
        return target

    def _finish(self) -> None:
        for path in self.sealed_late:
            self.table.remount(path, self.table.mounted(path).flags | MS_RDONLY, "nothing more is added")
        for store in self.stores:
            self.table.emit(MountKind.SEND_DIR, store, "hand the layers to the supervisor")
        for target, stage in sorted(self.assembled.items(), key=lambda item: item[0] == "/proc"):
            self.table.emit(MountKind.MOUNT, target, f"put {target} in place", source=stage, flags=MS_MOVE)
        if self.new_root:
            self.table.emit(MountKind.PIVOT, self.new_root, "enter the new root, leave the host's")
        elif self.stage:
            self.table.emit(MountKind.UMOUNT, self.stage, "take the stage away")

    # -- one place

    def _place(self, entry: Entry) -> None:
        found = (
            self.tree.walk(entry.target, within=self.new_root)
            if self.new_root
            else self.tree.walk(self._inside(entry.target))
        )
        if entry.kind == "mask" and found.error and entry.target not in self.assembled:
            if entry.implied:
                return
            raise PolicyError(f"mask {entry.target}", "there is nothing in the view to be hidden", "leave it out")
        if entry.optional and host_path(found.place) == entry.source:
            return
        if entry.kind == "overlay" and not entry.kept_in and self._overlaid(found, entry):
            return  # part of the overlay above it
        path = self._mount_point(entry, found)
        match entry.kind:
            case "proc":
                flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
                self.table.emit(MountKind.MOUNT, path, entry.words, source="proc", fstype="proc", flags=flags)
            case "tmpfs":
                size = f",size={entry.size_bytes}" if entry.size_bytes else ""
                self.table.mount_tmpfs(path, entry.words, f"mode={entry.mode:o}{size}", devices=entry.devices)
                if entry.sealed:
                    self.sealed_late.append(path)
            case "device":
                numbers = "{}:{}".format(*DEVICES[entry.target.rpartition("/")[2]])
                self.table.emit(MountKind.MKNOD, path, entry.words, data=f"666:{numbers}")
            case "devpts":
                flags = MS_NOSUID | MS_NOEXEC
                self.table.emit(
                    MountKind.MOUNT, path, entry.words, source="devpts", fstype="devpts", flags=flags, data=_TERMINALS
                )
            case "mask":
                self._mask(path, entry)
            case "bind":
                self._bind(path, entry)
            case "overlay":
                self._overlay(path, entry)
            case "link":
                pass

    def _overlaid(self, found: Found, entry: Entry) -> bool:
        lower = found.place.mount.fs.lower
        return (
            lower is not None
            and host_path(Place(lower.mount, f"{lower.path.rstrip('/')}{found.place.path}")) == entry.source
        )

    def _mount_point(self, entry: Entry, found: Found) -> str:
        """The path to mount on, symlink-free; made where the file system is the sandbox's own."""
        path = (
            f"{self.tree.path_of(found.place)}/{'/'.join(found.rest)}".rstrip("/")
            if found.rest
            else self.tree.path_of(found.place)
        )
        if entry.kind == "device":
            return path
        if entry.kind == "link":
            if found.error and self._is_ours(found.place.mount):
                self.table.emit(MountKind.SYMLINK, path, f"{entry.target}", source=entry.source)
            return path
        if found.error not in (0, errno.ENOENT):
            raise PolicyError(f"{entry.kind} at {entry.target}", os.strerror(found.error).lower(), "name another place")
        kind = "directory" if entry.kind in ("tmpfs", "overlay", "proc", "devpts") else self._kind_of(entry, found)
        if found.node is not None and not found.rest:
            if (found.node.kind == "directory") != (kind == "directory"):
                raise PolicyError(
                    f"{entry.kind} at {entry.target}", f"there is a {found.node.kind}, a {kind} is needed", ""
                )
            return path
        mount = found.place.mount
        if not self._is_ours(mount):
            raise PolicyError(
                f"{entry.kind} at {entry.target}",
                f"it does not exist, and creating it would change the host ({self.tree.path_of(Place(mount, mount.root))})",
                "create it first, or put an overlay or a tmpfs on the directory above",
            )
        made = MountKind.MKDIR if kind == "directory" else MountKind.MKFILE
        self.table.emit(made, path, f"a place for {entry.target}", data="755" if made is MountKind.MKDIR else "644")
        return path

    def _is_ours(self, mount: Mounted) -> bool:
        """True for a tmpfs or an overlay of the table: nothing made there reaches the host."""
        return mount.origin is None and mount.host_path is None

    def _made_on(self, layer: Layer) -> Layer:
        """The layer, knowing which of its entries the table made (by MKDIR and MKFILE on the overlay)."""
        made = self._overlays_made[layer.target].made
        return replace(
            layer,
            userxattr=self.context.user_namespace,
            made=frozenset(f"{layer.target.rstrip('/')}{path}" for path in made),
        )

    def _kind_of(self, entry: Entry, found: Found) -> str:
        """Of what is mounted: of its source, or of what is there; where a cover of the host's own is put together apart, of that."""
        node = self.context.lookup(entry.source) if entry.source else found.node or self.context.lookup(entry.target)
        return "directory" if node is not None and node.kind == "directory" else "file"

    def _mask(self, path: str, entry: Entry) -> None:
        if self._kind_of(entry, self.tree.walk(path)) == "file":
            self.table.emit(MountKind.BIND, path, entry.words, source=self._nothing(), flags=MS_BIND)
            if self._makes_nothing:
                return
            if not self.table.mounted(path).flags & MS_RDONLY:
                self.table.seal(path, entry.words, MS_RDONLY)
            self._give_back(path, entry.words, MS_RDONLY)
            return
        if any(is_below(other.target, entry.target) for other in self.wanted):
            self.table.mount_tmpfs(path, entry.words, "mode=755")
            self.sealed_late.append(path)
            return
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
        self.table.emit(MountKind.MOUNT, path, entry.words, source="tmpfs", fstype="tmpfs", flags=flags, data=_EMPTY)

    @property
    def _makes_nothing(self) -> bool:
        """True where /dev/null is a new node, which is nobody's on the host."""
        return any(entry.kind == "device" and entry.target == _NOTHING for entry in self.wanted)

    def _nothing(self) -> str:
        """The view's own /dev/null, whose mode is nobody's to change, where it has one; else the host's."""
        own = self._inside(_NOTHING)
        return own if own != _NOTHING and not self.tree.walk(own).error else _NOTHING

    def _bind(self, path: str, entry: Entry) -> None:
        source = entry.source or path  # a part of a mount just made, bound over itself
        if entry.owned:
            self.owned.append(len(self.table.ops))
        kept = (0 if entry.writable else MS_RDONLY) | (0 if entry.devices else MS_NODEV)
        self.table.bind(path, entry.words, source=source, recursive=entry.recursive, flags=kept)
        self._uncover_stage(path, source)
        self._give_back(path, entry.words, kept)

    def _give_back(self, path: str, words: str, kept: int) -> None:
        """Take from the mounts at and below ``path`` what the seal of the root gave them, and the host did not, but for ``kept``."""
        for mount in list(self.table.mounted(path).subtree()):
            if off := mount.flags & ~(mount.host_flags | kept) & (MS_RDONLY | MS_NODEV):
                self.table.unseal(self.tree.path_of(Place(mount, mount.root)), mount, words, off)

    def _uncover_stage(self, path: str, source: str) -> None:
        """A recursive bind of a directory above the stage took a copy of it along."""
        if self.stage and (is_below(self.stage, source)):
            copy = path + self.stage[len(source.rstrip("/")) :]
            if self.tree.walk(copy).place.mount in self.table.mounted(path).subtree() and self._is_stage(copy):
                self.table.emit(MountKind.UMOUNT, copy, "the stage is not part of it")

    def _is_stage(self, path: str) -> bool:
        return self.tree.walk(path).place.mount.fs is self.table.mounted(self.stage).fs

    def _overlay(self, path: str, entry: Entry) -> None:
        number = len(self.layers)
        home = self._kept_home(entry, number) if entry.kept_in else self._layer_home(entry, number)
        lower = self._plain_lower(entry.source, number)
        private = "userxattr" if self.context.user_namespace else "redirect_dir=on,index=off,metacopy=off"
        data = f"lowerdir={lower},upperdir={home}/upper,workdir={home}/work,{private}"
        flags = MS_NODEV | self.host.walk(entry.source).place.mount.flags & (
            MS_NOSUID | MS_NOEXEC
        )  # no more than the host allows
        self.table.emit(MountKind.MOUNT, path, entry.words, source="overlay", fstype="overlay", flags=flags, data=data)
        self._overlays_made[entry.target] = self.table.mounted(path).fs
        if kept := entry.kept_in:
            self.layers.append(Layer(target=entry.target, lower=entry.source, upper=f"{kept}/upper", kept=True))
            return
        store = next(store for store in self.stores if home == store or is_below(home, store))
        upper = f"{home}/upper"[len(store) + 1 :]
        self.layers.append(Layer(target=entry.target, lower=entry.source, upper=upper, sent=self.stores.index(store)))

    def _kept_home(self, entry: Entry, number: int) -> str:
        """The directory to keep a layer in, under a name on the stage: plain, and writable though the host is sealed."""
        alias, source = f"{self.stage}/kept{number}", entry.kept_below
        self.table.emit(MountKind.MKDIR, alias, "a place for the layer to keep")
        self._bind(
            alias,
            Entry(kind="bind", target=alias, source=source, writable=True, recursive=False, words="layer to keep"),
        )
        return alias + entry.kept_in[len(source.rstrip("/")) :]

    def _layer_home(self, entry: Entry, number: int) -> str:
        """Where an overlay's layer is made: with the others, or on a tmpfs of its own when its size is bounded."""
        if entry.size_bytes:
            home = store = f"{self.stage}/layer{number}"
            self.table.emit(MountKind.MKDIR, home, f"layer of {entry.target}", data="700")
            self.table.mount_tmpfs(home, f"layer of {entry.target}", f"mode=700,size={entry.size_bytes}")
        else:
            store = f"{self.stage}/layers"
            home = f"{store}/{number}"
        if store not in self.stores:
            self.stores.append(store)
        node = self.host.walk(entry.source).node
        upper = self._layer_owner(node) if node is not None else "755"
        self.table.emit(MountKind.MKDIR, f"{home}/upper", f"layer of {entry.target}", data=upper)
        self.table.emit(MountKind.MKDIR, f"{home}/work", f"layer of {entry.target}", data="755")
        return home

    def _layer_owner(self, node: Node) -> str:
        """Mode and owner of the merged directory are those of the upper one: MKDIR's data."""
        return f"{node.mode:o}" if self.context.user_namespace else f"{node.mode:o}:{node.owner[0]}:{node.owner[1]}"

    def _plain_lower(self, source: str, number: int) -> str:
        """The lower directory under a name that needs no quoting and fits the kernel's page of options."""
        if not _UNSAFE_IN_OPTIONS & set(source) and len(source) < 1024:
            return source
        alias = f"{self.stage}/lower{number}"
        self.table.emit(MountKind.MKDIR, alias, "a plain name for the lower directory")
        self.table.emit(MountKind.BIND, alias, "a plain name for the lower directory", source=source, flags=MS_BIND)
        return alias


def _with_parents(path: str) -> list[str]:
    """The path, then every directory above it, up to ``/``."""
    found = [path]
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        found.append(path)
    return found
