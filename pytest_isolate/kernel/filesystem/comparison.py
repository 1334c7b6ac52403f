"""What an overlay shows now, compared path by path with what its directory held before.

Owns: the meaning of an upper layer (whiteouts, opaque and redirected directories) and of "changed".
Refuses: to trust it. The program inside decides what the layer holds, so nothing in it is followed, opened unless it is a regular
file, descended beyond MAX_DEPTH or listed beyond a limit of entries; what was cut short is said.
Source: Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_isolate.outcome import FilesChanged

if TYPE_CHECKING:
    from pytest_isolate.kernel.filesystem.mountplan import Layer

MAX_DEPTH = 200  # one open directory for each
MAX_ENTRIES = 100_000
_CHUNK_BYTES = 1 << 20
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: O_NONBLOCK: should the entry have become a fifo since it was looked at, nobody waits for a writer.
_REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
#: The sandbox may still be at work: what was there a moment ago is gone, or of another kind.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
#: Labels that the system gives by itself, to a copy others than to the original. Source: xattr(7).
_LABELS = frozenset(f"security.{name}" for name in ("selinux", "SMACK64", "apparmor", "ima", "evm"))


def compare(layer: Layer, upper_fd: int, limit: int = MAX_ENTRIES) -> FilesChanged:
    """Everything that differs below ``layer``; ``upper_fd``: its open upper directory. Looks at no more than ``limit`` entries."""
    prefix = "user.overlay." if layer.userxattr else "trusted.overlay."
    walk = _Walk(layer=layer, prefix=prefix, user_xattrs=_has_user_xattrs(upper_fd), left=limit)
    walk.top(upper_fd)
    return FilesChanged(
        added=tuple(sorted(walk.added)),
        modified=tuple(sorted(walk.modified)),
        deleted=tuple(sorted(walk.deleted)),
        incomplete=walk.incomplete,
    )


@dataclass(slots=True, kw_only=True)
class _Walk:
    """Three trees are walked at once: the upper layer, the lower directory that it is merged with, and the one that was there before.

    The latter two are one, unless a directory was renamed: then what it is merged with is where it came from.
    """

    layer: Layer
    prefix: str  # of the xattrs that only the kernel writes
    user_xattrs: bool  # the layer can hold them; where it cannot, a copy has lost them
    left: int
    added: list[str] = field(default_factory=list)
    modified: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    incomplete: bool = False

    def top(self, upper_fd: int) -> None:
        """The directory of the overlay itself: its layer was made with the mode it had, which may lose the set-group-ID bit."""
        before = self._lstat(self.layer.lower)
        if before is not None and (before.st_mode ^ os.fstat(upper_fd).st_mode) & 0o1777:
            self.modified.append(self.layer.target)
        self._directory(upper_fd, self.layer.lower, self.layer.lower, self.layer.target, 0)

    def _directory(self, upper: int, lower: str, old: str, shown: str, depth: int) -> None:
        """``upper``: -1 where the layer has nothing; ``lower``, ``old``: host paths, empty where nothing is merged, or was."""
        if depth > MAX_DEPTH:
            self.incomplete = True
            return
        names: dict[str, bool] = {}  # name -> the layer has it
        if upper >= 0:
            self._list(upper, names, in_upper=True)
        if lower != old:  # else what the layer does not have is as it was
            for folder in filter(None, (lower, old)):
                self._list(folder, names, in_upper=False)
        for name, in_upper in names.items():
            here = f"/proc/self/fd/{upper}/{name}" if in_upper else ""
            try:
                self._entry(here, _join(lower, name), _join(old, name), _join(shown, name), depth)
            except OSError as error:  # or closed, by a program of the same user
                self.incomplete |= error.errno not in _GONE

    def _list(self, folder: int | str, names: dict[str, bool], *, in_upper: bool) -> None:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name in names:
                        continue
                    if self.left <= 0:
                        self.incomplete = True
                        return
                    self.left -= 1
                    names[entry.name] = in_upper
        except OSError as error:
            self.incomplete |= error.errno not in _GONE

    def _entry(self, upper: str, lower: str, old: str, shown: str, depth: int) -> None:
        """One name. The paths: in the layer, on the host where it comes from, on the host where it is; empty for nothing."""
        before = self._lstat(old)
        now = os.lstat(upper) if upper else self._lstat(lower)
        if now is None or (upper and self._is_whiteout(now, upper)):
            if before is not None:
                self.deleted.append(shown)
            return
        here, was_directory = upper or lower, before is not None and stat.S_ISDIR(before.st_mode)
        if before is None:
            self._add(shown)
        elif here != old and self._differs(here, now, old, before):
            self.modified.append(shown)
        if stat.S_ISDIR(now.st_mode):
            self._merged(upper, lower, old if was_directory else "", shown, depth + 1)
        elif was_directory:
            self._directory(-1, "", old, shown, depth + 1)  # its content is gone

    def _merged(self, upper: str, lower: str, old: str, shown: str, depth: int) -> None:
        if not upper:
            if lower != old:
                self._directory(-1, lower, old, shown, depth)
            return
        fd = os.open(upper, DIRECTORY)
        try:
            self._directory(fd, self._origin(fd, lower), old, shown, depth)
        finally:
            os.close(fd)

    def _origin(self, upper_fd: int, lower: str) -> str:
        """What a directory of the layer is merged with. Source: ovl_lookup() in fs/overlayfs/namei.c."""
        if self._mark(upper_fd, "opaque") == b"y":
            return ""
        redirect = None if self.layer.userxattr else self._mark(upper_fd, "redirect")
        if redirect:
            text = os.fsdecode(redirect)
            if ".." in text.split("/"):
                return ""
            if text.startswith("/"):
                lower = self.layer.lower.rstrip("/") + text
            elif lower:
                lower = _join(os.path.dirname(lower), text)
        status = self._lstat(lower)
        return lower if status is not None and stat.S_ISDIR(status.st_mode) else ""

    def _is_whiteout(self, status: os.stat_result, path: str) -> bool:
        """A character device 0:0, or an empty file that says so."""
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        return stat.S_ISREG(status.st_mode) and not status.st_size and self._mark(path, "whiteout") is not None

    def _mark(self, place: str | int, name: str) -> bytes | None:
        with contextlib.suppress(OSError):
            return os.getxattr(place, self.prefix + name, follow_symlinks=isinstance(place, int))
        return None

    def _differs(self, here: str, now: os.stat_result, old: str, before: os.stat_result) -> bool:
        """True when what is here is not what was. A file opened for writing is in the layer, and need not be."""
        if _attributes(now) != _attributes(before) or self._xattrs(here) != self._xattrs(old):
            return True
        if stat.S_ISDIR(now.st_mode):
            return False
        if (now.st_size, now.st_mtime_ns, now.st_rdev) != (before.st_size, before.st_mtime_ns, before.st_rdev):
            return True
        if stat.S_ISLNK(now.st_mode):
            return os.readlink(here) != os.readlink(old)
        return stat.S_ISREG(now.st_mode) and not os.path.samestat(now, before) and not _same_content(here, old)

    def _xattrs(self, path: str) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        with contextlib.suppress(OSError):
            for name in os.listxattr(path, follow_symlinks=False):
                if name in _LABELS or name.startswith(self.prefix):
                    continue
                if self.user_xattrs or not name.startswith("user."):
                    found[name] = None  # as far as we may not read it
                    with contextlib.suppress(OSError):
                        found[name] = os.getxattr(path, name, follow_symlinks=False)
        return found

    def _lstat(self, path: str) -> os.stat_result | None:
        """Of a host path; a whiteout is nothing in a lower directory, too."""
        if not path:
            return None
        try:
            status = os.lstat(path)
        except OSError as error:
            self.incomplete |= error.errno not in _GONE
            return None
        return None if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 else status

    def _add(self, shown: str) -> None:
        if shown not in self.layer.made:
            self.added.append(shown)


def _has_user_xattrs(fd: int) -> bool:
    """A tmpfs has them since Linux 6.6."""
    try:
        os.getxattr(fd, "user.pytest-isolate")
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def _attributes(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid


def _same_content(one: str, other: str) -> bool:
    """Size and time can be put back; the bytes cannot lie."""
    try:
        with open(os.open(one, _REGULAR), "rb") as now, open(os.open(other, _REGULAR), "rb") as before:
            while True:
                chunk = now.read(_CHUNK_BYTES)
                if chunk != before.read(_CHUNK_BYTES):
                    return False
                if not chunk:
                    return True
    except OSError:
        return False


def _join(folder: str, name: str) -> str:
    """Empty for what is in no folder."""
    return f"{folder.rstrip('/')}/{name}" if folder else ""
