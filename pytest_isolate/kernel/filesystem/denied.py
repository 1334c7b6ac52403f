"""What denies a path beside the mounts: a seccomp profile, Landlock rules, permissions; in words.

Owns: what each of them answers, and which of its words would change that. Refuses: to know which call the program made: whoever
asks tells an errno and a path only, so an answer names every rule that fits.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_isolate.kernel.filesystem.tree import Place
from pytest_isolate.kernel.seccomp import refused

if TYPE_CHECKING:
    from pytest_isolate.hardening import Landlock
    from pytest_isolate.kernel.filesystem.tree import Found, Node, Tree
    from pytest_isolate.policy import Hardening

#: System calls that fail for a path, or for a file that was opened by one.
_BY_PATH = frozenset(
    "open openat openat2 creat access faccessat faccessat2 stat lstat newfstatat statx readlink readlinkat link linkat symlink "
    "symlinkat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir mknod mknodat chmod fchmod fchmodat fchmodat2 chown "
    "lchown fchown fchownat utime utimes futimesat utimensat truncate ftruncate execve execveat chdir fchdir chroot statfs fstatfs "
    "getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr "
    "mount umount2 pivot_root open_tree open_tree_attr move_mount fspick mount_setattr swapon swapoff acct quotactl quotactl_fd "
    "open_by_handle_at name_to_handle_at inotify_add_watch fanotify_mark fallocate flock getdents getdents64".split()
)


def by_seccomp(error: int, hardening: Hardening) -> str:
    """Empty where the profile answers this errno to no call that takes a path."""
    calls = sorted(_BY_PATH & set(refused(hardening.seccomp, error)))
    if not calls:
        return ""
    name = hardening.seccomp if isinstance(hardening.seccomp, str) else hardening.seccomp.name
    return f"the seccomp profile {name} answers {_errno.errorcode[error]} to {_listed(calls)}, whatever the path"


def by_landlock(error: int, found: Found, tree: Tree, rules: Landlock) -> str:
    """Empty where the rules leave paths alone, or let everything be done with this one. Source: landlock(7)."""
    if "/" in rules.write:
        return ""
    if error == _errno.EPERM:
        return "Landlock lets no mount be made, moved or removed by who is under its rules for paths"
    if error not in (_errno.EACCES, _errno.EXDEV) or found.magic or _beneath(found, tree, rules.write):
        return ""
    shown = tree.path_of(found.place)
    folder = shown if found.node is not None and found.node.kind == "directory" else os.path.dirname(shown) or "/"
    read = _beneath(found, tree, rules.read)
    if error == _errno.EXDEV:
        return f"Landlock lets nothing be renamed or linked to and from what is not beneath landlock_write ({_listed(rules.write)})"
    if read:
        return (
            f"Landlock lets it be read, listed and executed (landlock_read has {read}), but not written, made, renamed or removed: "
            f"that is for what is beneath landlock_write ({_listed(rules.write)}). Add {folder} there"
        )
    return (
        f"Landlock lets nothing be done with it: it is beneath neither landlock_read ({_listed(rules.read)}) nor landlock_write "
        f"({_listed(rules.write)}). Add {folder} to one of them"
    )


def by_permissions(error: int, node: Node, hardening: Hardening) -> str:
    uid, gid = node.owner
    kept = hardening.capabilities
    if error == _errno.EPERM:
        without = " (the sandbox keeps neither)" if kept is not None and not kept & {"CAP_FOWNER", "CAP_CHOWN"} else ""
        return (
            f"its owner is {uid}:{gid} on the host: who is not this user changes mode, owner and times only with CAP_FOWNER and "
            f"CAP_CHOWN{without}, and only in a user namespace that maps the owner"
        )
    bound = "all but root" if kept is None or "CAP_DAC_OVERRIDE" in kept else "root too, who keeps no CAP_DAC_OVERRIDE,"
    return (
        f"its permissions are {node.mode:04o}, owner {uid}:{gid} on the host; they bind {bound} and root of a user namespace that "
        f"does not map this owner"
    )


def _beneath(found: Found, tree: Tree, paths: tuple[str, ...]) -> str:
    """The first of ``paths`` that the place is, or is beneath; empty for none. A rule is on a directory, not on its name."""
    above = {(id(place.mount.fs), place.path) for place in _upwards(found.place)}
    for path in paths:
        rule = tree.walk(path)
        if not rule.error and (id(rule.place.mount.fs), rule.place.path) in above:
            return path
    return ""


def _upwards(place: Place) -> Iterator[Place]:
    """The place and everything above it, on and below each mount."""
    mount, path = place
    while True:
        yield Place(mount, path)
        if path != mount.root and path != "/":
            path = os.path.dirname(path)
        elif mount.parent is not None:
            mount, path = mount.parent, mount.at
        else:
            return


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"
