"""A Filesystem policy compiled into a mount table for this host.

Owns: compile() and its values, Context (facts about host and launch) and MountPlan (the table, and what it will look like).
Refuses: to mount; the child interprets the table. Every op is first done to a model (tree.py), so that order, existence and
hidden sources are decided there, and a target that would have to be made on the host's own file systems is an error here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from pytest_isolate.errors import BackendUnavailable, PolicyError
from pytest_isolate.kernel.filesystem import mountinfo, programs
from pytest_isolate.kernel.filesystem.mountinfo import (
    MS_BIND,
    MS_MOVE,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
)
from pytest_isolate.kernel.filesystem.tree import FileSystem, Found, Lookup, Mounted, Node, Place, Tree, host_lookup, host_path, is_below
from pytest_isolate.kernel.plan import MountKind, MountOp
from pytest_isolate.policy import Bind, Filesystem, Overlay, Tmpfs

#: Where the sandbox may assemble things for a moment: the first that exists and is neither source nor target of the policy.
SCRATCH_CANDIDATES = ("/mnt", "/media", "/srv", "/opt", "/boot", "/var/tmp", "/run", "/home", "/tmp", "/usr/share", "/etc")

#: /proc entries that change or show the machine, of use to nobody in a sealed view. Source: OCI runtime spec, default Linux paths.
PROC_READONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "asound", "scsi")
PROC_MASKED = ("kcore", "keys", "timer_list", "sched_debug", "latency_stats")

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}

#: File systems that serve as the lower layer of an overlay; a mount of another kind below an overlay is bound read-only.
_STORES = frozenset("ext2 ext3 ext4 xfs btrfs f2fs tmpfs overlay zfs squashfs erofs iso9660 bcachefs".split())
_UNSAFE_IN_OPTIONS = frozenset(',:\\"')
_EMPTY = "size=4k,nr_inodes=2,mode=755"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Facts compile() decides by.

    Attributes:
        user_namespace: the child gets a new one, with its mount namespace in it: host mounts are locked there.
        root_outside: the child runs as the host's uid 0, to which /proc/sys obeys even without capabilities.
        pid_namespace: the child gets a new one, so that a fresh /proc is of use.
        mount_setattr: the kernel has mount_setattr(2) (Linux 5.12).
        keep_directory: where overlays with ``keep`` have their layers.
    """

    mounts: tuple[mountinfo.Mount, ...]
    lookup: Lookup = host_lookup
    user_namespace: bool = False
    root_outside: bool = True
    pid_namespace: bool = True
    mount_setattr: bool = True
    keep_directory: str | None = None

    @classmethod
    def of_this_host(
        cls, *, user_namespace: bool, pid_namespace: bool = True, keep_directory: str | None = None
    ) -> Context:
        """The facts as they are now."""
        release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
        return cls(
            mounts=mountinfo.read(),
            user_namespace=user_namespace,
            root_outside=os.geteuid() == 0,
            pid_namespace=pid_namespace,
            mount_setattr=release >= (5, 12),
            keep_directory=keep_directory,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Where the changes of one overlay are.

    ``upper`` is below the directory that the ``sent``-th SEND_DIR hands out, or an absolute path of the host when it is kept.
    ``made``: mount points the table itself had to create in it, which are no changes of the program.
    """

    target: str
    lower: str
    upper: str
    sent: int = -1
    kept: bool = False
    made: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPlan:
    """A mount table and what it amounts to.

    Attributes:
        ops: for Plan.mounts; with layers, first give it the socket: ``ops_sending_to(fd)``.
        words: for each op, what it is for; a SetupError's index points here.
        create: directories the supervisor makes before the launch (layers that are kept).
        skipped: what needed no op, with the reason.
        tree: the mounts as the sandbox will see them; ``host``: as the host has them.
    """

    ops: tuple[MountOp, ...]
    words: tuple[str, ...]
    tree: Tree
    host: Tree
    layers: tuple[Layer, ...] = ()
    create: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def sends(self) -> int:
        """How many directories the child hands out."""
        return sum(op.kind is MountKind.SEND_DIR for op in self.ops)

    def ops_sending_to(self, socket_fd: int) -> tuple[MountOp, ...]:
        """The ops with the number that the supervisor's socket has in the child."""
        return tuple(replace(op, flags=socket_fd) if op.kind is MountKind.SEND_DIR else op for op in self.ops)


def compile(filesystem: Filesystem, *, context: Context) -> MountPlan:  # noqa: A001 - the word of the design
    """The mount table that makes this view.

    Raises:
        PolicyError: the view has no meaning on this host (a source or target that is not there, two mounts at one place).
        BackendUnavailable: the kernel does not allow it to this user.
    """
    return _Compiler(filesystem, context).compile()


@dataclass(slots=True, kw_only=True)
class _Entry:
    """One place of the view. ``source``: the host path it needs, free of symlinks."""

    kind: Literal["bind", "overlay", "tmpfs", "mask", "proc", "link"]
    target: str
    source: str = ""
    writable: bool = False
    recursive: bool = True
    keep: bool = False
    size_bytes: int | None = None
    mode: int = 0o1777
    optional: bool = False  # left out where the view shows the same already
    implied: bool = False  # not written by the user
    words: str = ""


@dataclass(slots=True)
class _Compiler:
    filesystem: Filesystem
    context: Context
    host: Tree = field(init=False)
    tree: Tree = field(init=False)
    ops: list[MountOp] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    create: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    sealed_late: list[str] = field(default_factory=list)
    assembled: dict[str, str] = field(default_factory=dict)  # target -> where it is put together
    stores: list[str] = field(default_factory=list)  # directories with layers, one for each file system
    _overlays_made: dict[str, FileSystem] = field(default_factory=dict)
    scratch: str = ""
    new_root: str = ""  # where a root is put together that is pivoted to; empty: the host's root stays

    def __post_init__(self) -> None:
        self.host = Tree(self.context.mounts, self.context.lookup)
        self.tree = Tree(self.context.mounts, self.context.lookup)

    def compile(self) -> MountPlan:
        entries = self._entries()
        self._emit(MountKind.PROPAGATION, "/", "keep mounts from the host and the host's from us", flags=MS_REC | MS_PRIVATE)
        if self.filesystem.root == "readonly":
            self._seal("/", "make the host's file systems read-only")
        self._prepare_scratch(entries)
        for entry in entries:
            self._place(entry, entries)
        self._finish()
        return MountPlan(
            ops=tuple(self.ops),
            words=tuple(self.words),
            tree=self.tree,
            host=self.host,
            layers=tuple(self._made_on(layer) for layer in self.layers),
            create=tuple(self.create),
            skipped=tuple(self.skipped),
        )

    # -- what has to be placed, parents first

    def _entries(self) -> list[_Entry]:
        wanted = [*self._binds(), *self._overlays(), *self._tmpfs(), *self._masks(), *self._proc()]
        if self.filesystem.root == "minimal":
            wanted += self._devices()
        taken = _by_target(wanted)
        for entry in [e for e in wanted if e.kind == "overlay"]:
            for implied in self._submounts(entry):
                taken.setdefault(implied.target, implied)
        if self.filesystem.root == "minimal":
            for program in programs.closure(self.filesystem.programs):
                taken.setdefault(program.target, _program_entry(program))
        self._check_root(taken.get("/"))
        return sorted(taken.values(), key=lambda entry: entry.target.count("/") if entry.target != "/" else 0)

    def _binds(self) -> Iterator[_Entry]:
        for bind in self.filesystem.binds:
            source = self._host_source(bind.source, f"bind {bind.source}")
            if bind.writable and self.host.walk(source).place.mount.readonly:
                raise PolicyError(f"bind {bind.source}", "it is on a read-only mount of the host", "leave out writable")
            yield _Entry(
                kind="bind",
                target=self._target(bind.target),
                source=source,
                writable=bind.writable,
                recursive=self._recursive(bind, source),
                words=f"bind of {bind.source}, {'writable' if bind.writable else 'read-only'}",
            )

    def _recursive(self, bind: Bind, source: str) -> bool:
        if not bind.recursive and self.context.user_namespace and any(self.host.below(source)):
            raise BackendUnavailable(
                f"bind {bind.source} without the mounts below it",
                "in a user namespace the kernel does not uncover what they hide (EINVAL)",
                "make the bind recursive, or run as root",
            )
        return bind.recursive

    def _overlays(self) -> Iterator[_Entry]:
        for overlay in self.filesystem.overlays:
            source = self._host_source(overlay.target, f"overlay {overlay.target}")
            node = self.host.walk(source).node
            if node is None or node.kind != "directory":
                raise PolicyError(f"overlay {overlay.target}", "not a directory", "overlay the directory it is in")
            if overlay.keep and not self.context.keep_directory:
                raise PolicyError(f"overlay {overlay.target}", "nowhere to keep the changes", "name a directory to keep them in")
            yield _overlay_entry(overlay, source)

    def _tmpfs(self) -> Iterator[_Entry]:
        for tmpfs in self.filesystem.tmpfs:
            yield _tmpfs_entry(tmpfs, self._target(tmpfs.target))

    def _masks(self) -> Iterator[_Entry]:
        masks = [(mask, False) for mask in self.filesystem.masks]
        if self._fresh_proc and self.filesystem.root != "host" and self.context.root_outside:
            masks += [(f"/proc/{name}", True) for name in PROC_MASKED]
        for mask, implied in masks:
            target = self._target(mask)
            if self.context.lookup(target) is not None:
                yield _Entry(kind="mask", target=target, implied=implied, words="masked")
            elif not implied:
                self.skipped.append(f"mask {mask}: the host has nothing there")

    def _proc(self) -> Iterator[_Entry]:
        if not self.filesystem.proc:
            return
        if not self._fresh_proc:
            if self.filesystem.root == "minimal":
                yield _Entry(kind="bind", target="/proc", source="/proc", writable=True, implied=True, words="the host's /proc")
            return
        yield _Entry(kind="proc", target="/proc", implied=True, words="fresh /proc")
        if self.filesystem.root == "host" or not self.context.root_outside:
            return
        for name in PROC_READONLY:
            if self.context.lookup(f"/proc/{name}") is not None:
                yield _Entry(kind="bind", target=f"/proc/{name}", implied=True, words="a part of /proc, read-only")

    @property
    def _fresh_proc(self) -> bool:
        return self.filesystem.proc and self.context.pid_namespace

    def _devices(self) -> Iterator[_Entry]:
        for name in DEVICES:
            source = f"/dev/{name}"
            if self.context.lookup(source) is not None:
                yield _Entry(kind="bind", target=source, source=source, writable=True, implied=True, words="device")
        yield _Entry(kind="tmpfs", target="/dev/shm", implied=True, words="private tmpfs")
        for name, link in DEVICE_LINKS.items():
            yield _Entry(kind="link", target=f"/dev/{name}", source=link, implied=True)

    def _submounts(self, overlay: _Entry) -> Iterator[_Entry]:
        """The host's mounts below an overlay, which the overlay itself would hide."""
        below = list(self.host.below(overlay.source))
        if below and self.context.user_namespace:
            raise BackendUnavailable(
                f"overlay {overlay.target}",
                f"{below[0][0]} is mounted below it, and in a user namespace the kernel does not uncover what that hides (EINVAL)",
                f"overlay directories beside {below[0][0]} instead, or run as root",
            )
        whole: list[str] = []
        for path, mount in below:
            if any(is_below(path, folder) for folder in whole):
                continue
            node = self.host.node(Place(mount, mount.root))
            if mount.fs.fstype in _STORES and node is not None and node.kind == "directory":
                yield _overlay_entry(Overlay(target=path, keep=overlay.keep, size_bytes=overlay.size_bytes), path, implied=True)
            else:
                whole.append(path)
                yield _Entry(kind="bind", target=path, source=path, implied=True, words="mount of the host, read-only")

    def _check_root(self, base: _Entry | None) -> None:
        if base is None:
            return
        if self.filesystem.root == "minimal" or (base.kind == "overlay" and self.filesystem.root == "host"):
            return
        raise PolicyError(f"{base.kind} at /", f"the root is asked to be {self.filesystem.root!r}", "use root='minimal'")

    def _host_source(self, path: str, what: str) -> str:
        found = self.host.walk(path)
        if found.error:
            raise PolicyError(what, f"the host has no {path}", "create it first, or leave it out")
        return self.host.path_of(found.place)

    def _target(self, path: str) -> str:
        """Where a target is: on the host's own root without its symlinks; in a new root as written."""
        return os.path.normpath(path) if self.filesystem.root == "minimal" else self.host.real(path)

    # -- the stage: a tmpfs of our own for roots, layers, and places that hide what others need

    def _prepare_scratch(self, entries: list[_Entry]) -> None:
        base = next((entry for entry in entries if entry.target == "/"), None)
        pivots = base is not None or self.filesystem.root == "minimal"
        layered = any(entry.kind == "overlay" for entry in entries)
        hiding = [] if pivots else [entry.target for entry in entries if self._hides(entry, entries)]
        if not (pivots or layered or hiding):
            return
        self.scratch = self._choose_scratch(entries)
        self._emit(MountKind.MOUNT, self.scratch, "a stage", fstype="tmpfs", source="tmpfs", flags=MS_NOSUID | MS_NODEV, data="mode=755")
        if pivots:
            self.new_root = f"{self.scratch}/root"
            self._emit(MountKind.MKDIR, self.new_root, "the new root")
            if base is None:
                self._mount_tmpfs(self.new_root, "the new root", "mode=755")
                self.sealed_late.append(self.new_root)
        for number, target in enumerate(hiding):
            self.assembled[target] = f"{self.scratch}/place{number}"

    def _hides(self, entry: _Entry, entries: list[_Entry]) -> bool:
        """True when another place needs what the host has at or below this one; only the topmost such place counts."""
        if any(is_below(entry.target, other.target) for other in entries if other.kind not in ("link", "proc")):
            return False
        needed = [other.source for other in entries if other is not entry and other.source and other.kind != "link"]
        needed += self._kept(entries)
        return any(is_below(source, entry.target) or source == entry.target for source in needed)

    def _kept(self, entries: list[_Entry]) -> list[str]:
        return [self.host.real(self.context.keep_directory or "/")] if any(entry.keep for entry in entries) else []

    def _choose_scratch(self, entries: list[_Entry]) -> str:
        used = [e.source for e in entries if e.source] + self._kept(entries) + [e.target for e in entries if not self.new_root]
        for candidate in SCRATCH_CANDIDATES:
            node = self.context.lookup(candidate)
            if node is not None and node.kind == "directory":
                if not any(path == candidate or is_below(path, candidate) for path in used):
                    return candidate
        raise PolicyError("filesystem", f"it uses all of {', '.join(SCRATCH_CANDIDATES)}", "leave one directory alone")

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
            self._remount(path, self._mounted(path).flags | MS_RDONLY, "nothing more is added")
        for target, stage in self.assembled.items():
            self._emit(MountKind.MOUNT, target, f"put {target} in place", source=stage, flags=MS_MOVE)
        for store in self.stores:
            self._emit(MountKind.SEND_DIR, store, "hand the layers to the supervisor")
        if self.new_root:
            self._emit(MountKind.PIVOT, self.new_root, "enter the new root, leave the host's")
        elif self.scratch:
            self._emit(MountKind.UMOUNT, self.scratch, "take the stage away")

    # -- one place

    def _place(self, entry: _Entry, entries: list[_Entry]) -> None:
        found = self.tree.walk(entry.target, within=self.new_root) if self.new_root else self.tree.walk(self._inside(entry.target))
        if entry.optional and host_path(found.place) == entry.source:
            return
        if entry.kind == "overlay" and not entry.keep and self._overlaid(found, entry):
            self.skipped.append(f"overlay {entry.target}: part of the overlay above it")
            return
        path = self._mount_point(entry, found)
        match entry.kind:
            case "proc":
                flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
                self._emit(MountKind.MOUNT, path, entry.words, source="proc", fstype="proc", flags=flags)
            case "tmpfs":
                size = f",size={entry.size_bytes}" if entry.size_bytes else ""
                self._mount_tmpfs(path, entry.words, f"mode={entry.mode:o}{size}")
            case "mask":
                self._mask(path, entry, entries)
            case "bind":
                self._bind(path, entry)
            case "overlay":
                self._overlay(path, entry)
            case "link":
                pass

    def _overlaid(self, found: Found, entry: _Entry) -> bool:
        lower = found.place.mount.fs.lower
        return lower is not None and host_path(Place(lower.mount, f"{lower.path.rstrip('/')}{found.place.path}")) == entry.source

    def _mount_point(self, entry: _Entry, found: Found) -> str:
        """The path to mount on, symlink-free; made where the file system is the sandbox's own."""
        path = f"{self.tree.path_of(found.place)}/{'/'.join(found.rest)}".rstrip("/") if found.rest else self.tree.path_of(found.place)
        if entry.kind == "link":
            if found.error and self._is_ours(found.place.mount):
                self._emit(MountKind.SYMLINK, path, f"{entry.target}", source=entry.source)
            elif found.error:
                self.skipped.append(f"link {entry.target}: the file system there is the host's")
            return path
        kind = "directory" if entry.kind in ("tmpfs", "overlay", "proc") else self._kind_of(entry)
        if found.node is not None and not found.rest:
            if (found.node.kind == "directory") != (kind == "directory"):
                raise PolicyError(f"{entry.kind} at {entry.target}", f"there is a {found.node.kind}, a {kind} is needed", "")
            return path
        mount = found.place.mount
        if not self._is_ours(mount):
            raise PolicyError(
                f"{entry.kind} at {entry.target}",
                f"it does not exist, and creating it would change the host ({self.tree.path_of(Place(mount, mount.root))})",
                "create it first, or put an overlay or a tmpfs on the directory above",
            )
        made = MountKind.MKDIR if kind == "directory" else MountKind.MKFILE
        self._emit(made, path, f"a place for {entry.target}", data="755" if made is MountKind.MKDIR else "644")
        return path

    def _is_ours(self, mount: Mounted) -> bool:
        """True for a tmpfs or an overlay of the table: nothing made there reaches the host."""
        return mount.origin is None and mount.host_path is None

    def _made_on(self, layer: Layer) -> Layer:
        """The layer, knowing which of its entries the table made (by MKDIR and MKFILE on the overlay)."""
        made = self._overlays_made[layer.target].made
        return replace(layer, made=frozenset(f"{layer.target.rstrip('/')}{path}" for path in made))

    def _kind_of(self, entry: _Entry) -> str:
        node = self.context.lookup(entry.source or entry.target)
        return "directory" if node is not None and node.kind == "directory" else "file"

    def _mask(self, path: str, entry: _Entry, entries: list[_Entry]) -> None:
        if self._kind_of(entry) == "file":
            self._emit(MountKind.BIND, path, entry.words, source="/dev/null", flags=MS_BIND)
            return
        if any(is_below(other.target, entry.target) for other in entries):
            self._mount_tmpfs(path, entry.words, "mode=755")
            self.sealed_late.append(path)
            return
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
        self._emit(MountKind.MOUNT, path, entry.words, source="tmpfs", fstype="tmpfs", flags=flags, data=_EMPTY)

    def _mount_tmpfs(self, path: str, words: str, data: str) -> None:
        self._emit(MountKind.MOUNT, path, words, source="tmpfs", fstype="tmpfs", flags=MS_NOSUID | MS_NODEV, data=data)

    def _bind(self, path: str, entry: _Entry) -> None:
        source = entry.source or path  # a part of a mount just made, bound over itself
        self._emit(MountKind.BIND, path, entry.words, source=source, flags=MS_BIND | (MS_REC if entry.recursive else 0))
        self._uncover_stage(path, source)
        if not entry.writable:
            self._seal(path, entry.words)
            return
        for mount in list(self._mounted(path).subtree()):
            if mount.flags != mount.host_flags and not mount.host_flags & MS_RDONLY:
                self._unseal(self.tree.path_of(Place(mount, mount.root)), mount, entry.words)

    def _uncover_stage(self, path: str, source: str) -> None:
        """A recursive bind of a directory above the stage took a copy of it along."""
        if self.scratch and (is_below(self.scratch, source)):
            copy = path + self.scratch[len(source.rstrip("/")) :]
            if self.tree.walk(copy).place.mount in self._mounted(path).subtree() and self._is_stage(copy):
                self._emit(MountKind.UMOUNT, copy, "the stage is not part of it")

    def _is_stage(self, path: str) -> bool:
        return self.tree.walk(path).place.mount.fs is self._mounted(self.scratch).fs

    def _overlay(self, path: str, entry: _Entry) -> None:
        number = len(self.layers)
        home = f"{self._kept_home()}/{number}" if entry.keep else self._layer_home(entry, number)
        lower = self._plain_lower(entry.source, number)
        private = "userxattr" if self.context.user_namespace else "redirect_dir=on,index=off,metacopy=off"
        data = f"lowerdir={lower},upperdir={home}/upper,workdir={home}/work,{private}"
        self._emit(MountKind.MOUNT, path, entry.words, source="overlay", fstype="overlay", flags=MS_NODEV, data=data)
        self._overlays_made[entry.target] = self._mounted(path).fs
        if entry.keep:
            kept = f"{self.context.keep_directory}/{number}"
            self.create += [f"{kept}/upper", f"{kept}/work"]
            self.layers.append(Layer(target=entry.target, lower=entry.source, upper=f"{kept}/upper", kept=True))
            return
        store = next(store for store in self.stores if home == store or is_below(home, store))
        upper = f"{home}/upper"[len(store) + 1 :]
        self.layers.append(Layer(target=entry.target, lower=entry.source, upper=upper, sent=self.stores.index(store)))

    def _kept_home(self) -> str:
        """The directory to keep layers in, under a name on the stage: plain, and writable though the host is sealed."""
        alias, source = f"{self.scratch}/kept", self.host.real(self.context.keep_directory or "")
        if alias not in {op.target for op in self.ops}:
            self._emit(MountKind.MKDIR, alias, "a place for the layers to keep")
            self._bind(alias, _Entry(kind="bind", target=alias, source=source, writable=True, recursive=False, words="layers to keep"))
        return alias

    def _layer_home(self, entry: _Entry, number: int) -> str:
        """Where an overlay's layer is made: with the others, or on a tmpfs of its own when its size is bounded."""
        if entry.size_bytes:
            home = store = f"{self.scratch}/layer{number}"
            self._emit(MountKind.MKDIR, home, f"layer of {entry.target}", data="700")
            self._mount_tmpfs(home, f"layer of {entry.target}", f"mode=700,size={entry.size_bytes}")
        else:
            store = f"{self.scratch}/layers"
            home = f"{store}/{number}"
        if store not in self.stores:
            self.stores.append(store)
        node = self.host.walk(entry.source).node
        upper = self._layer_owner(node) if node is not None else "755"
        self._emit(MountKind.MKDIR, f"{home}/upper", f"layer of {entry.target}", data=upper)
        self._emit(MountKind.MKDIR, f"{home}/work", f"layer of {entry.target}", data="755")
        return home

    def _layer_owner(self, node: Node) -> str:
        """Mode and owner of the merged directory are those of the upper one: MKDIR's data."""
        return f"{node.mode:o}" if self.context.user_namespace else f"{node.mode:o}:{node.owner[0]}:{node.owner[1]}"

    def _plain_lower(self, source: str, number: int) -> str:
        """The lower directory under a name that needs no quoting and fits the kernel's page of options."""
        if not _UNSAFE_IN_OPTIONS & set(source) and len(source) < 1024:
            return source
        alias = f"{self.scratch}/lower{number}"
        self._emit(MountKind.MKDIR, alias, "a plain name for the lower directory")
        self._emit(MountKind.BIND, alias, "a plain name for the lower directory", source=source, flags=MS_BIND)
        return alias

    # -- flags

    def _seal(self, path: str, words: str) -> None:
        """Make a mount and all below it read-only. Other flags stay, locked ones above all."""
        if self.context.mount_setattr:
            self._emit(MountKind.SETATTR, path, words, flags=MS_REC, data=str(MS_RDONLY))
            return
        top = self._mounted(path)
        for shown, mount in [(path, top), *self.tree.below(path)]:
            if not mount.flags & MS_RDONLY:
                self._remount(shown, mount.flags | MS_RDONLY, words)

    def _unseal(self, path: str, mount: Mounted, words: str) -> None:
        if self.context.mount_setattr:
            self._emit(MountKind.SETATTR, path, words, data=f"0:{MS_RDONLY}")
        else:
            self._remount(path, mount.host_flags, words)

    def _remount(self, path: str, flags: int, words: str) -> None:
        self._emit(MountKind.REMOUNT, path, words, flags=MS_REMOUNT | MS_BIND | flags)

    def _mounted(self, path: str) -> Mounted:
        return self.tree.walk(path).place.mount

    def _emit(
        self, kind: MountKind, target: str, words: str, *, source: str = "", fstype: str = "", flags: int = 0, data: str = ""
    ) -> None:
        op = MountOp(kind=kind, target=target, source=source, fstype=fstype, flags=flags, data=data)
        self.tree.apply(op)
        self.ops.append(op)
        self.words.append(words)
        if kind in (MountKind.MOUNT, MountKind.BIND) and not flags & MS_MOVE:
            self._mounted(target).words = words


def _by_target(entries: list[_Entry]) -> dict[str, _Entry]:
    """The entries by their place; what the user wrote wins over what is implied, and two wishes for one place are an error."""
    taken: dict[str, _Entry] = {}
    for entry in entries:
        other = taken.get(entry.target)
        if other is None or other.implied:
            taken[entry.target] = entry
        elif not entry.implied and entry != other:
            raise PolicyError(f"filesystem {entry.target}", f"asked to be {other.kind} and {entry.kind}", "keep one of them")
    return taken


def _overlay_entry(overlay: Overlay, source: str, *, implied: bool = False) -> _Entry:
    kept = "kept" if overlay.keep else "thrown away"
    return _Entry(
        kind="overlay",
        target=source,
        source=source,
        keep=overlay.keep,
        size_bytes=overlay.size_bytes,
        implied=implied,
        words=f"overlay, changes are {kept}",
    )


def _tmpfs_entry(tmpfs: Tmpfs, target: str) -> _Entry:
    return _Entry(kind="tmpfs", target=target, size_bytes=tmpfs.size_bytes, mode=tmpfs.mode, words="private tmpfs")


def _program_entry(file: programs.Needed) -> _Entry:
    kind: Literal["link", "bind"] = "link" if file.link else "bind"
    return _Entry(kind=kind, target=file.target, source=file.link or file.target, optional=True, implied=True, words=file.words)
