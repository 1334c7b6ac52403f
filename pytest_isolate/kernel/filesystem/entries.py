"""The places of a view: what a Filesystem policy, the kind of its root and the host's mounts ask for, parents first.

Owns: Entry, entries() and the lists of what a sealed or minimal view has besides the user's wishes.
Refuses: to order mounts among each other beyond that, and to emit ops (view.py).
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_isolate.errors import BackendUnavailable, PolicyError
from pytest_isolate.kernel.filesystem import machine, programs
from pytest_isolate.kernel.filesystem.tree import Place, Tree, is_below
from pytest_isolate.policy import Bind, Filesystem, Overlay, Tmpfs

if TYPE_CHECKING:
    from pytest_isolate.kernel.filesystem.context import Context

#: The devices that a sealed or minimal view has: what programs count on, and nothing of the machine.
#: By major and minor number. Source: Documentation/admin-guide/devices.txt.
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}

#: File systems that serve as the lower layer of an overlay; a mount of another kind below an overlay is bound read-only.
_STORES = frozenset(
    [
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "f2fs",
        "tmpfs",
        "overlay",
        "zfs",
        "squashfs",
        "erofs",
        "iso9660",
        "bcachefs",
    ]
)


@dataclass(slots=True, kw_only=True)
class Entry:
    """One place of the view. ``source``: the host path it needs, free of symlinks."""

    kind: Literal["bind", "overlay", "tmpfs", "mask", "proc", "device", "devpts", "link"]
    target: str
    source: str = ""
    writable: bool = False
    devices: bool = True  # of a bind and a tmpfs: the device nodes in it can be opened
    recursive: bool = True
    kept_in: str = ""  # the directory for the changes of an overlay, free of symlinks; empty: they are thrown away
    kept_below: str = ""  # what is there of the way to it: the rest is made for the launch
    size_bytes: int | None = None
    mode: int = 0o1777
    owned: bool = False
    sealed: bool = False  # of a tmpfs: read-only when all places on it are made
    optional: bool = False  # left out where the view shows the same already
    implied: bool = False  # not written by the user
    words: str = ""


def entries(filesystem: Filesystem, *, context: Context, host: Tree) -> list[Entry]:
    """Every place, parents before what is inside them."""
    return _Wishes(filesystem, context, host).sorted()


@dataclass(slots=True)
class _Wishes:
    filesystem: Filesystem
    context: Context
    host: Tree

    def sorted(self) -> list[Entry]:
        wanted = [*self._binds(), *self._overlays(), *self._tmpfs(), *self._masks(), *self._proc()]
        if self._sealed:
            wanted += self._devices()
        taken = _by_target(wanted)
        _one_layer_each(wanted)
        for entry in [e for e in wanted if e.kind == "overlay"]:
            for implied in self._submounts(entry):
                taken.setdefault(implied.target, implied)
        if self.filesystem.root == "minimal":
            for program in programs.closure(self.filesystem.programs):
                taken.setdefault(program.target, _program_entry(program))
        self._check_root(taken.get("/"))
        shown = _not_covered(taken)
        return sorted(shown, key=_order)

    def _binds(self) -> Iterator[Entry]:
        for bind in self.filesystem.binds:
            source = self._host_source(bind.source, f"bind {bind.source}")
            if bind.writable and self.host.walk(source).place.mount.readonly:
                raise PolicyError(f"bind {bind.source}", "it is on a read-only mount of the host", "leave out writable")
            yield Entry(
                kind="bind",
                target=self._target(bind.target),
                source=source,
                writable=bind.writable,
                devices=not self._sealed or self._is_device(source),
                recursive=not bind.owned and self._recursive(bind, source),
                owned=bind.owned,
                words=f"bind of {bind.source}, {'writable' if bind.writable else 'read-only'}",
            )

    def _is_device(self, path: str) -> bool:
        """True for who asks for a device, or for /dev or a part of it: to be used."""
        node = self.context.lookup(path)
        return path == "/dev" or is_below(path, "/dev") or (node is not None and node.device)

    def _recursive(self, bind: Bind, source: str) -> bool:
        if not bind.recursive and self.context.user_namespace and any(self.host.below(source)):
            raise BackendUnavailable(
                f"bind {bind.source} without the mounts below it",
                "in a user namespace the kernel does not uncover what they hide (EINVAL)",
                "make the bind recursive, or run as root",
            )
        return bind.recursive

    def _overlays(self) -> Iterator[Entry]:
        for overlay in self.filesystem.overlays:
            source = self._host_source(overlay.target, f"overlay {overlay.target}")
            node = self.host.walk(source).node
            if node is None or node.kind != "directory":
                raise PolicyError(f"overlay {overlay.target}", "not a directory", "overlay the directory it is in")
            yield self._overlay_entry(source, self._kept_in(overlay, source), overlay.size_bytes)

    def _overlay_entry(self, source: str, kept_in: str, size_bytes: int | None, *, implied: bool = False) -> Entry:
        kept_below = kept_in
        while kept_below and self.host.walk(kept_below).error:
            kept_below = os.path.dirname(kept_below)
        return Entry(
            kind="overlay",
            target=source,
            source=source,
            kept_in=kept_in,
            kept_below=kept_below,
            size_bytes=size_bytes,
            implied=implied,
            words=f"overlay, changes are {'kept' if kept_in else 'thrown away'}",
        )

    def _kept_in(self, overlay: Overlay, source: str) -> str:
        what = f"overlay {overlay.target}"
        if overlay.keep is True and source == "/":
            raise PolicyError(f"{what}: keep", "there is nothing beside it", "name the directory: keep='/...'")
        kept = overlay.keep if isinstance(overlay.keep, str) else f"{source}.changes" if overlay.keep else ""
        if self.context.user_namespace and not self.context.userxattr:
            raise BackendUnavailable(
                what, "a user namespace has no overlays before Linux 5.11", "run as root, or use a tmpfs"
            )
        if not kept:
            return ""
        found = self.host.walk(kept)
        if found.error and (found.error != errno.ENOENT or found.rest):
            why = f"to keep the changes in {kept} is impossible: {os.strerror(found.error).lower()}"
            raise PolicyError(what, why, "create the directory it is in")
        if not found.error and found.node is not None and found.node.kind != "directory":
            raise PolicyError(what, f"{kept}, to keep the changes in, is a {found.node.kind}", "name a directory")
        mount = found.place.mount
        if mount.fs.fstype == "overlay":
            raise PolicyError(
                what, f"{kept} is on an overlay, which cannot hold another's changes", "name one on a disk or tmpfs"
            )
        if mount.readonly:
            raise PolicyError(what, f"{kept} is on a read-only mount of the host", "name one that can be written")
        real = self.host.path_of(found.place)
        if real == source or is_below(real, source) or is_below(source, real):
            raise PolicyError(what, f"{kept}, to keep the changes in, overlaps it", "name a directory beside it")
        if found.error and self.context.user_namespace and any(self.host.below(os.path.dirname(real))):
            why = f"a user namespace cannot make {kept} in a directory below which something is mounted (EINVAL)"
            raise BackendUnavailable(what, why, f"create {kept} first")
        return real

    def _tmpfs(self) -> Iterator[Entry]:
        for tmpfs in self.filesystem.tmpfs:
            yield _tmpfs_entry(tmpfs, self._target(tmpfs.target))

    def _masks(self) -> Iterator[Entry]:
        for mask in self.filesystem.masks:
            yield Entry(kind="mask", target=self._target(mask), words="masked")
        if self._sealed:
            root, fresh, own = self.context.root_outside, self._fresh_proc, self._own_dev
            for path in machine.masked(self.host, root_outside=root, fresh_proc=fresh, own_dev=own):
                yield Entry(kind="mask", target=path, implied=True, words="masked: it shows the machine")

    @property
    def _sealed(self) -> bool:
        """True where what the host has is for looking at, and not for use."""
        return self.filesystem.root != "host" or any(
            self.host.real(overlay.target) == "/" for overlay in self.filesystem.overlays
        )

    def _proc(self) -> Iterator[Entry]:
        if not self.filesystem.proc:
            return
        if not self._fresh_proc:
            if self.filesystem.root == "minimal":
                yield Entry(
                    kind="bind", target="/proc", source="/proc", implied=True, words="the host's /proc, read-only"
                )
            return
        yield Entry(kind="proc", target="/proc", implied=True, words="fresh /proc")
        if not self._sealed or not self.context.root_outside:
            return
        for name in machine.READONLY:
            if self.context.lookup(f"/proc/{name}") is not None:
                yield Entry(kind="bind", target=f"/proc/{name}", implied=True, words="a part of /proc, read-only")

    @property
    def _fresh_proc(self) -> bool:
        return self.filesystem.proc and self.context.pid_namespace

    @property
    def _own_dev(self) -> bool:
        """True where the view has a /dev of its own: it is sealed, and nobody asks for another at this place."""
        return self._sealed and not self._asked("/dev")

    def _asked(self, path: str) -> bool:
        """True where the user writes what is to be at ``path``."""
        view = self.filesystem
        places: tuple[Bind | Overlay | Tmpfs, ...] = (*view.binds, *view.overlays, *view.tmpfs)
        return path in map(self._target, (*(place.target for place in places), *view.masks))

    def _devices(self) -> Iterator[Entry]:
        """Those of every sealed view: new nodes, or the host's bound read-only, so that nobody changes their modes there."""
        built = self.filesystem.root == "minimal"
        if not (built or self._own_dev):
            return
        makes = self._own_dev and self.context.makes_devices
        for path in [f"/dev/{name}" for name in DEVICES]:
            if makes:
                yield Entry(kind="device", target=path, implied=True, words="device")
            elif self.context.lookup(path) is not None:
                yield Entry(kind="bind", target=path, source=path, implied=True, words="device")
        yield Entry(kind="tmpfs", target="/dev/shm", devices=False, implied=True, words="private tmpfs")
        if not self._own_dev:
            return
        if makes or not built or self._asked("/"):  # else /dev is a directory of the root, a tmpfs that has no devices
            words = "devices of its own"
            yield Entry(kind="tmpfs", target="/dev", mode=0o755, sealed=True, implied=True, words=words)
        if self.context.lookup("/dev/ptmx") is not None:
            yield Entry(kind="devpts", target="/dev/pts", implied=True, words="terminals of its own")
            yield Entry(kind="link", target="/dev/ptmx", source="pts/ptmx", implied=True)
        for name, link in DEVICE_LINKS.items():
            yield Entry(kind="link", target=f"/dev/{name}", source=link, implied=True)

    def _submounts(self, overlay: Entry) -> Iterator[Entry]:
        """The host's mounts below an overlay, which the overlay itself would hide."""
        below = list(self.host.below(overlay.source))
        if overlay.source == "/":  # has a /dev of its own
            below = [(path, mount) for path, mount in below if path != "/dev" and not is_below(path, "/dev")]
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
                kept_in = f"{overlay.kept_in}/{_one_name(path, overlay.source)}" if overlay.kept_in else ""
                yield self._overlay_entry(path, kept_in, overlay.size_bytes, implied=True)
            else:
                whole.append(path)
                words = "mount of the host, read-only"
                yield Entry(kind="bind", target=path, source=path, devices=False, implied=True, words=words)

    def _check_root(self, base: Entry | None) -> None:
        if base is None:
            return
        if self.filesystem.root == "minimal" or (base.kind == "overlay" and self.filesystem.root == "host"):
            return
        raise PolicyError(
            f"{base.kind} at /", f"the root is asked to be {self.filesystem.root!r}", "use root='minimal'"
        )

    def _host_source(self, path: str, what: str) -> str:
        found = self.host.walk(path)
        if found.error:
            raise PolicyError(what, f"the host has no {path}", "create it first, or leave it out")
        return self.host.path_of(found.place)

    def _target(self, path: str) -> str:
        """Where a target is: on the host's own root without its symlinks; in a new root as written."""
        return os.path.normpath(path) if self.filesystem.root == "minimal" else self.host.real(path)


def _order(entry: Entry) -> tuple[bool, bool, int]:
    """Parents before what is inside them; devices early, for a masked file is one of them."""
    path = entry.target
    return path != "/", path != "/dev" and not is_below(path, "/dev"), path.count("/")


def _by_target(entries: list[Entry]) -> dict[str, Entry]:
    """The entries by their place; what the user wrote wins over what is implied, and two wishes for one place are an error."""
    taken: dict[str, Entry] = {}
    for entry in entries:
        other = taken.get(entry.target)
        if other is None or other.implied:
            taken[entry.target] = entry
        elif not entry.implied and entry != other:
            raise PolicyError(
                f"filesystem {entry.target}", f"asked to be {other.kind} and {entry.kind}", "keep one of them"
            )
    return taken


def _one_layer_each(entries: list[Entry]) -> None:
    """No layer is kept in another's, nor within it. Source: overlayfs.rst, Sharing and copying layers."""
    for one, other in itertools.permutations([entry for entry in entries if entry.kept_in], 2):
        if one.target != other.target and (one.kept_in == other.kept_in or is_below(one.kept_in, other.kept_in)):
            why = f"both are to be kept in {other.kept_in}"
            raise PolicyError(f"overlays {other.target} and {one.target}", why, "name a directory for each")


def _one_name(path: str, above: str) -> str:
    """Where ``path`` is below ``above``, as the name of a directory: %2Fa%2Fb; none that an overlay itself makes begins so."""
    return path[len(above.rstrip("/")) :].replace("%", "%25").replace("/", "%2F")


def _not_covered(taken: Mapping[str, Entry]) -> list[Entry]:
    """The entries without what is implied below a mask of the user's, or in a /proc of his own making: it would undo that."""
    covers = [e.target for e in taken.values() if not e.implied and (e.kind == "mask" or e.target == "/proc")]
    return [e for e in taken.values() if not (e.implied and any(is_below(e.target, cover) for cover in covers))]


def _tmpfs_entry(tmpfs: Tmpfs, target: str) -> Entry:
    return Entry(
        kind="tmpfs", target=target, devices=False, size_bytes=tmpfs.size_bytes, mode=tmpfs.mode, words="private tmpfs"
    )


def _program_entry(file: programs.Needed) -> Entry:
    kind: Literal["link", "bind"] = "link" if file.link else "bind"
    return Entry(
        kind=kind, target=file.target, source=file.link or file.target, optional=True, implied=True, words=file.words
    )
