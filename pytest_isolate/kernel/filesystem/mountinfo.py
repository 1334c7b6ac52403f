"""The mount table of a process, read as values.

Owns: the parser of /proc/<pid>/mountinfo and the names of the mount flags. Source: proc_pid_mountinfo(5), mount(2).
Refuses: to resolve paths (tree.py) and to change anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

# <linux/mount.h>; Python has names for none of them.
MS_RDONLY = 1 << 0
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_REMOUNT = 1 << 5
MS_NOSYMFOLLOW = 1 << 8
MS_BIND = 1 << 12
MS_MOVE = 1 << 13
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18

#: The flags a bind remount must repeat, or they are taken off (or refused with EPERM where they are locked).
#: The atime flags are not among them: a remount that names none keeps them. Source: mount(2), do_mount() in fs/namespace.c.
KEPT_FLAGS: Mapping[str, int] = MappingProxyType(
    {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "nosymfollow": MS_NOSYMFOLLOW}
)

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo.

    Attributes:
        root: the directory of the file system that is seen at ``mountpoint``.
        flags: MS_* of the mount; ``readonly_fs`` is the file system's own state, which no remount of a mount lifts.
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    flags: int
    fstype: str
    source: str
    readonly_fs: bool = False


def parse(text: str) -> tuple[Mount, ...]:
    """Every mount of a mountinfo text, in its order: parents come before what is mounted on them."""
    return tuple(_line(line) for line in text.splitlines() if line)


def read(pid: int | str = "self") -> tuple[Mount, ...]:
    """The mounts that process ``pid`` sees below its root."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return parse(table.read())


def flags_of(options: Iterable[str]) -> int:
    """MS_* flags of mount options; options without a kept flag count for nothing."""
    return sum({KEPT_FLAGS.get(option, 0) for option in options})


def _line(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    mount_id, parent_id, device, root, mountpoint, options = left.split(" ")[:6]
    fstype, source, super_options = right.split(" ")[:3]
    return Mount(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        device=device,
        root=_plain(root),
        mountpoint=_plain(mountpoint),
        flags=flags_of(options.split(",")),
        fstype=fstype,
        source=_plain(source),
        readonly_fs="ro" in super_options.split(","),
    )


def _plain(text: str) -> str:
    r"""Space, tab, newline and backslash are written as octal: ``\040``. Source: mangle_path() in fs/seq_file.c."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
