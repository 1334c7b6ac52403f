"""A mount table while it is written: each op is done to the model of the mounts at once.

Owns: the ops and what each is for, and how a mount is made read-only on kernels with and without mount_setattr(2).
Refuses: to know what the mounts are for (view.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_isolate.kernel.filesystem.mountinfo import (
    MS_BIND,
    MS_MOVE,
    MS_NODEV,
    MS_NOSUID,
    MS_REC,
    MS_REMOUNT,
)
from pytest_isolate.kernel.filesystem.tree import Mounted, Tree
from pytest_isolate.kernel.plan import MountKind, MountOp


@dataclass(slots=True, kw_only=True)
class MountTable:
    """``tree``: the mounts after the last op; ``words``: for each op, what it is for."""

    tree: Tree
    mount_setattr: bool
    ops: list[MountOp] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def bind(self, path: str, words: str, *, source: str, recursive: bool, flags: int) -> None:
        """Bind ``source``, and give it and all below it ``flags`` as seal(): at once where the kernel can, for no second look-up."""
        at_once = flags if self.mount_setattr else 0
        how = MS_BIND | (MS_REC if recursive else 0) | at_once
        self.emit(MountKind.BIND, path, words, source=source, flags=how)
        if flags != at_once:
            self.seal(path, words, flags)

    def seal(self, path: str, words: str, flags: int) -> None:
        """Give a mount and all below it ``flags``, MS_RDONLY or MS_NODEV or both. Others stay, locked ones above all."""
        if self.mount_setattr:
            self.emit(MountKind.SETATTR, path, words, flags=MS_REC, data=str(flags))
            return
        top = self.mounted(path)
        for shown, mount in [(path, top), *self.tree.below(path)]:
            if flags & ~mount.flags:
                self.remount(shown, mount.flags | flags, words)

    def unseal(self, path: str, mount: Mounted, words: str, flags: int) -> None:
        """Take ``flags`` from one mount; none that it has on the host."""
        if self.mount_setattr:
            self.emit(MountKind.SETATTR, path, words, data=f"0:{flags}")
        else:
            self.remount(path, mount.flags & ~flags, words, off=flags)

    def remount(self, path: str, flags: int, words: str, *, off: int = 0) -> None:
        """Give a mount these flags. It keeps others that a user namespace may have locked, but for those in ``off``."""
        data = str(off) if off else ""
        self.emit(MountKind.REMOUNT, path, words, flags=MS_REMOUNT | MS_BIND | flags, data=data)

    def mounted(self, path: str) -> Mounted:
        return self.tree.walk(path).place.mount

    def emit(
        self,
        kind: MountKind,
        target: str,
        words: str,
        *,
        source: str = "",
        fstype: str = "",
        flags: int = 0,
        data: str = "",
    ) -> None:
        op = MountOp(kind=kind, target=target, source=source, fstype=fstype, flags=flags, data=data)
        self.tree.apply(op)
        self.ops.append(op)
        self.words.append(words)
        if kind in (MountKind.MOUNT, MountKind.BIND) and not flags & MS_MOVE:
            self.mounted(target).words = words

    def mount_tmpfs(self, path: str, words: str, data: str, *, devices: bool = False) -> None:
        flags = MS_NOSUID | (0 if devices else MS_NODEV)
        self.emit(MountKind.MOUNT, path, words, source="tmpfs", fstype="tmpfs", flags=flags, data=data)
