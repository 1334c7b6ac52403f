"""What a program changed below an overlay, read from the overlay's upper layer.

Owns: the meaning of an upper layer (whiteouts, opaque and redirected directories) and the hand-over of its directory.
Refuses: to trust it. The program inside decides what the layer holds, so nothing in it is followed, opened unless it is a regular
file, descended beyond MAX_DEPTH or listed beyond `limit` entries; what was cut short is said.
Source: Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING

from pytest_isolate.kernel.filesystem.idmapped import owned_tree
from pytest_isolate.outcome import FilesChanged

if TYPE_CHECKING:
    from typing_extensions import Self

    from pytest_isolate.kernel.filesystem.mountplan import Layer, MountPlan
    from pytest_isolate.kernel.plan import MountOp

MAX_DEPTH = 200  # one open directory for each
MAX_ENTRIES = 100_000
_CHUNK_BYTES = 1 << 20
_INT_BYTES = struct.calcsize("i")
_XATTR_PREFIXES = ("trusted.overlay.", "user.overlay.")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: O_NONBLOCK: should the entry have become a fifo since it was looked at, nobody waits for a writer.
_REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Layers:
    """The way by which one sandbox hands its overlay layers out: owner of a socket pair and of the directories that arrive.

    The child sends the directories (MountOp SEND_DIR) and then unmounts them, so that no program inside can reach them, while they
    live as long as this object: changes can be read while the sandbox runs and after it ended. One object for one launch.
    """

    def __init__(self, plan: MountPlan) -> None:
        self._plan = plan
        self._fds: list[int] = []
        self._trees: dict[int, int] = {}  # number of the bind -> its tree
        self._ours, self._childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        for folder in self._plan.create:
            os.makedirs(folder, exist_ok=True)
        for layer in self._plan.layers:
            if layer.kept:
                _copy_mode_and_owner(layer.lower, layer.upper)
        try:
            for number in self._plan.owned:
                self._trees[number] = owned_tree(self._plan.ops[number].source)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ops(self) -> tuple[MountOp, ...]:
        """The plan's table, for Plan.mounts of the launch."""
        ops = list(self._plan.ops_sending_to(self._childs.fileno()))
        for number, tree_fd in self._trees.items():
            ops[number] = replace(ops[number], data=str(tree_fd))
        return tuple(ops)

    def receive(self) -> None:
        """Take over what a child that has been set up has sent. What comes beyond that is the program's, and stays unread."""
        with contextlib.suppress(BlockingIOError):
            while len(self._fds) < self._plan.sends:
                # Not socket.recv_fds(): it loses its flags in some releases of Python, and would wait.
                flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                _, messages, _, _ = self._ours.recvmsg(1, socket.CMSG_SPACE(_INT_BYTES), flags)
                self._fds += [struct.unpack("i", data[:_INT_BYTES])[0] for _, _, data in messages]

    def changed(self, limit: int = MAX_ENTRIES) -> FilesChanged:
        """The changes of all overlays of the plan, up to now; none where no child was set up."""
        self.receive()
        present = [layer for layer in self._plan.layers if layer.kept or layer.sent < len(self._fds)]
        parts = [
            files_changed(layer, layers_fd=-1 if layer.kept else self._fds[layer.sent], limit=limit)
            for layer in present
        ]
        return FilesChanged(
            added=tuple(sorted(path for part in parts for path in part.added)),
            modified=tuple(sorted(path for part in parts for path in part.modified)),
            deleted=tuple(sorted(path for part in parts for path in part.deleted)),
            incomplete=any(part.incomplete for part in parts),
        )

    def close(self) -> None:
        """Give up the layers; those that are not kept are gone once the sandbox is. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())
        while self._trees:
            os.close(self._trees.popitem()[1])
        self._ours.close()
        self._childs.close()


def _copy_mode_and_owner(lower: str, upper: str) -> None:
    """The merged directory shows those of the upper one."""
    status = os.stat(lower)
    if os.geteuid() == 0:
        os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, stat.S_IMODE(status.st_mode))


def files_changed(layer: Layer, *, layers_fd: int = -1, limit: int = MAX_ENTRIES) -> FilesChanged:
    """Compare an upper layer with what it lies on. ``layers_fd``: the directory sent, for a layer that is not kept."""
    upper = os.open(layer.upper, _DIRECTORY, dir_fd=None if layer.kept else layers_fd)
    walk = _Walk(layer, limit)
    try:
        walk.directory(upper, layer.target, layer.lower, depth=0)
    finally:
        os.close(upper)
    return walk.result()


@dataclass(slots=True)
class _Walk:
    layer: Layer
    left: int
    added: list[str] = field(default_factory=list)
    modified: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    incomplete: bool = False

    def result(self) -> FilesChanged:
        return FilesChanged(
            added=tuple(sorted(self.added)),
            modified=tuple(sorted(self.modified)),
            deleted=tuple(sorted(self.deleted)),
            incomplete=self.incomplete,
        )

    def directory(self, upper: int, shown: str, lower: str | None, depth: int) -> None:
        """One directory of the layer; ``lower`` is what it is merged with, None for one that is all new."""
        names = set()
        for name in self._names(upper):
            names.add(name)
            with contextlib.suppress(FileNotFoundError):  # the sandbox may still be at work
                self._entry(upper, name, _join(shown, name), _join(lower, name) if lower else None, depth)
        if lower and _overlay_xattr(upper, "opaque") == b"y":
            self.deleted += [_join(shown, name) for name in _lower_names(lower) if name not in names]

    def _names(self, folder: int) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if self.left <= 0:
                    self.incomplete = True
                    return
                self.left -= 1
                yield entry.name

    def _entry(self, folder: int, name: str, shown: str, lower: str | None, depth: int) -> None:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        before = _lstat(lower)
        if _is_whiteout(status, folder, name):
            if before is not None:
                self.deleted.append(shown)
        elif stat.S_ISDIR(status.st_mode):
            self._folder(folder, name, shown, lower, before, status, depth)
        elif before is None:
            self._add(shown)
        elif stat.S_ISDIR(before.st_mode) or _differs(folder, name, status, lower or "", before):
            self.modified.append(shown)

    def _folder(
        self,
        folder: int,
        name: str,
        shown: str,
        lower: str | None,
        before: os.stat_result | None,
        status: os.stat_result,
        depth: int,
    ) -> None:
        merged = before is not None and stat.S_ISDIR(before.st_mode)
        if before is None:
            self._add(shown)
        elif not merged or _attributes(before) != _attributes(status):
            self.modified.append(shown)
        if depth >= MAX_DEPTH:
            self.incomplete = True
            return
        upper = os.open(name, _DIRECTORY, dir_fd=folder)
        try:
            moved = _overlay_xattr(upper, "redirect")
            if moved:
                self._moved(upper, shown, lower, moved)
            self.directory(upper, shown, lower if merged else None, depth + 1)
        finally:
            os.close(upper)

    def _moved(self, upper: int, shown: str, lower: str | None, redirect: bytes) -> None:
        """A directory renamed within the overlay: what it had before is new at this place, without being in the layer."""
        text = os.fsdecode(redirect)
        origin = (
            self.layer.lower.rstrip("/") + text
            if text.startswith("/")
            else os.path.join(os.path.dirname(lower or ""), text)
        )
        present = set(os.listdir(upper))
        for path, _, names in _lower_walk(origin):
            inner = os.path.relpath(path, origin)
            for name in names:
                relative = os.path.normpath(os.path.join(inner, name))
                if relative.split("/")[0] not in present:
                    self._take(_join(shown, relative))

    def _take(self, shown: str) -> None:
        if self.left <= 0:
            self.incomplete = True
            return
        self.left -= 1
        self._add(shown)

    def _add(self, shown: str) -> None:
        if shown not in self.layer.made:
            self.added.append(shown)


def _is_whiteout(status: os.stat_result, folder: int, name: str) -> bool:
    """A character device 0:0, or an empty file that says so."""
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        return False
    with contextlib.suppress(OSError):
        fd = os.open(name, _REGULAR, dir_fd=folder)
        try:
            return _overlay_xattr(fd, "whiteout") is not None
        finally:
            os.close(fd)
    return False


def _overlay_xattr(fd: int, name: str) -> bytes | None:
    """``trusted.`` for a privileged mount, ``user.`` for one with userxattr."""
    for prefix in _XATTR_PREFIXES:
        with contextlib.suppress(OSError):
            return os.getxattr(fd, prefix + name)
    return None


def _differs(folder: int, name: str, status: os.stat_result, lower: str, before: os.stat_result) -> bool:
    """True when a copied-up file is not what it was: being opened for writing is enough to be copied up."""
    if _attributes(before) != _attributes(status) or before.st_size != status.st_size:
        return True
    if before.st_mtime_ns != status.st_mtime_ns:
        return True
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(name, dir_fd=folder) != os.readlink(lower)
    return stat.S_ISREG(status.st_mode) and not _same_content(folder, name, lower)


def _same_content(folder: int, name: str, lower: str) -> bool:
    """Size and time can be put back; the bytes cannot lie."""
    try:
        with (
            open(os.open(name, _REGULAR, dir_fd=folder), "rb") as now,
            open(os.open(lower, _REGULAR), "rb") as before,
        ):
            while True:
                chunk = now.read(_CHUNK_BYTES)
                if chunk != before.read(_CHUNK_BYTES):
                    return False
                if not chunk:
                    return True
    except OSError:
        return False


def _attributes(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid


def _lower_walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for path, folders, files in os.walk(folder):
        yield path, folders, folders + files


def _lower_names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _lstat(path: str | None) -> os.stat_result | None:
    try:
        return os.lstat(path) if path else None
    except OSError:
        return None


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
