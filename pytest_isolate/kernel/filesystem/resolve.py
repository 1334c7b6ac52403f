"""What a path means inside a view: which mount answers, whether it can be written, and why an error was the answer.

Owns: resolve(), explain(), caused() and their words. Everything is read off the plan's model of the mounts; no sandbox has to run.
Refuses: to know what a program did meanwhile: a file it made, a mount of its own.
"""

from __future__ import annotations

import errno as _errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.filesystem import denied, mountinfo
from pytest_isolate.kernel.filesystem.tree import MAX_NAME_BYTES, Found, Mounted, Place, host_path
from pytest_isolate.policy import Hardening

if TYPE_CHECKING:
    from pytest_isolate.kernel.filesystem.mountplan import MountPlan

_MAX_PATH_BYTES = 4095  # PATH_MAX without its NUL, <linux/limits.h>
#: Of who is told of no hardening: nothing is given up.
_NONE = Hardening()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The answer to a path.

    Attributes:
        real: the path without symlinks and ``..``; as far as it exists. Below /proc/PID as asked: what is there the kernel decides.
        mountpoint: where the answering mount is, ``fstype`` and ``mount_root`` as in its line of mountinfo.
        inner: the path on that mount's file system.
        host: where the host shows the same; empty for what only the sandbox has. The lower one for an overlay.
        writable: the mount takes writes; file permissions are another matter.
        error: 0, or the errno of looking the path up: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG.
    """

    path: str
    real: str
    mountpoint: str
    mount_root: str
    fstype: str
    inner: str
    host: str
    writable: bool
    why: str
    error: int = 0

    @property
    def exists(self) -> bool:
        return self.error == 0


def resolve(path: str, plan: MountPlan) -> Resolution:
    """Which mount answers for an absolute ``path`` at the start of the sandbox. Raises PolicyError for one that is not."""
    found = _found(path, plan)
    mount = found.place.mount
    real = (
        f"{plan.tree.path_of(found.place).rstrip('/')}/{'/'.join(found.rest)}"
        if found.rest
        else plan.tree.path_of(found.place)
    )
    return Resolution(
        path=path,
        real=real,
        mountpoint=_mountpoint(plan, mount),
        mount_root=mount.root,
        fstype=mount.fs.fstype,
        inner=found.place.path,
        host=_shown_by_host(found.place) or "",
        writable=not mount.readonly,
        why=_why(plan, found),
        error=found.error,
    )


def exists(path: str, plan: MountPlan) -> bool:
    """True when an absolute ``path`` is there at the start of the sandbox. Raises PolicyError as resolve()."""
    return _found(path, plan).error == 0


def _found(path: str, plan: MountPlan) -> Found:
    if not path.startswith("/"):
        raise PolicyError(f"path {path!r}", "it is relative" if path else "it is empty", "write an absolute path")
    if "\0" in path:
        raise PolicyError(f"path {path!r}", "it holds a NUL byte", "leave it out: it would end the path")
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        root = plan.tree.walk("/")
        return root._replace(error=_errno.ENAMETOOLONG, rest=tuple(name for name in path.split("/") if name))
    return plan.tree.walk(path)


def explain(error: int, path: str, plan: MountPlan, hardening: Hardening = _NONE) -> str:
    """Why a program inside got ``error`` (an errno) for an absolute ``path``, and what would change that.

    ``hardening``: what its processes gave up besides. Raises PolicyError as resolve().
    """
    found = _found(path, plan)
    what = f"{path}: {_errno.errorcode.get(error, str(error))}"
    if by_seccomp := denied.by_seccomp(error, hardening):
        what += f": {by_seccomp}; of any other call"
    match error:
        case _errno.EROFS:
            return f"{what}: {_read_only(plan, found)}"
        case _errno.ENOENT | _errno.ENOTDIR | _errno.ELOOP:
            return f"{what}: {_missing(plan, found, path)}"
        case _errno.EACCES | _errno.EPERM:
            return f"{what}: {_denied(error, plan, found, hardening)}"
        case _errno.ENOSPC:
            return f"{what}: {_full(plan, found)}"
        case _errno.EXDEV:
            by_landlock = _by_landlock(error, plan, found, hardening)
            return f"{what}: {'; or: '.join(filter(None, (by_landlock, _across(plan, found))))}"
        case _errno.ENAMETOOLONG:
            return f"{what}: {_too_long(found, path)}"
        case _errno.EIO if found.place.mount.fs.fstype == "overlay" and found.place.mount.words:
            return f"{what}: {_no_xattr(plan, found)}"
        case _errno.EBUSY:
            return f"{what}: {_busy(plan, found)}"
        case _:
            return f"{what}: nothing of the view explains it; {_why(plan, found)}."


def caused(error: int, path: str, plan: MountPlan) -> bool:
    """True when ``error`` is the view's doing: on the host the same path would not have answered so."""
    found = plan.tree.walk(path)
    mount = found.place.mount
    match error:
        case _errno.EROFS:
            return mount.readonly and not (mount.fs.readonly or mount.host_flags & mountinfo.MS_RDONLY)
        case _errno.ENOENT:
            return found.error == _errno.ENOENT and plan.host.walk(path).error == 0
        case _errno.ENOSPC:
            return bool(mount.words)
        case _:
            return False


def _why(plan: MountPlan, found: Found) -> str:
    mount = found.place.mount
    state = "read-only" if mount.readonly else "writable"
    text = f"{_mountpoint(plan, mount)} is {_name(mount)}, {state}"
    if found.magic:
        return f"{text}; what is in it the kernel decides at the moment of use"
    if found.error:
        return f"{text}; {plan.tree.path_of(found.place)}: {os.strerror(found.error).lower()}"
    return text


def _name(mount: Mounted) -> str:
    """What a mount is, in words."""
    if mount.words:
        return mount.words.removesuffix(", read-only").removesuffix(", writable")
    if mount.readonly and not (mount.fs.readonly or mount.host_flags & mountinfo.MS_RDONLY):
        return f"the host's {mount.fs.fstype}, sealed for this sandbox"
    return f"the host's {mount.fs.fstype}"


def _read_only(plan: MountPlan, found: Found) -> str:
    mount = found.place.mount
    where = f"{_mountpoint(plan, mount)} is {_name(mount)}"
    if not mount.readonly:
        return f"{where}, which is writable at the start: the sandboxed program has changed that."
    if mount.fs.readonly or mount.host_flags & mountinfo.MS_RDONLY:
        return f"{where}, read-only on the host already. Put an overlay or a tmpfs on the directory to write there."
    folder = _folder(plan, found)
    return (
        f"{where}, and read-only inside. To write there, put an overlay on {folder} (changes are listed and thrown away), "
        f"a tmpfs (starts empty), or a writable bind (changes the host)."
    )


def _missing(plan: MountPlan, found: Found, path: str) -> str:
    where = f"{_mountpoint(plan, found.place.mount)} is {_name(found.place.mount)}"
    if not found.error:
        return f"the view has it ({where}): the program inside has moved or removed it, or looked for it from another directory."
    asked = plan.tree.path_of(found.place)
    full = f"{asked.rstrip('/')}/{'/'.join(found.rest)}" if found.rest else asked
    on_host = plan.host.walk(full)
    if found.error == _errno.ENOENT and on_host.error == 0:
        return f"the host has it, but inside {where}, which hides it. Bind {full} to show it."
    if found.error == _errno.ENOENT and path != full:
        return f"it leads to {full}, and there is no {asked} ({where}; the host has none either)."
    if found.error == _errno.ENOENT:
        return f"there is no {asked} ({where}; the host has none either)."
    return f"{asked}: {os.strerror(found.error).lower()} ({where})."


def _denied(error: int, plan: MountPlan, found: Found, hardening: Hardening) -> str:
    mount, where = found.place.mount, _mountpoint(plan, found.place.mount)
    reasons = [_by_landlock(error, plan, found, hardening)]
    if error == _errno.EACCES and not found.error and mount.flags & mountinfo.MS_NOEXEC:
        reasons.append(f"{where} does not let programs be executed (noexec)")
    device = found.node is not None and found.node.device
    if error == _errno.EACCES and device and mount.flags & mountinfo.MS_NODEV:
        reasons.append(f"device files on {where} cannot be opened (nodev). Bind this one to use it")
    if found.node is not None:
        reasons.append(denied.by_permissions(error, found.node, hardening))
    elif found.error == _errno.ENOENT and not found.rest:
        folder = os.path.dirname(plan.tree.path_of(found.place))
        above = plan.tree.walk(folder).node
        if above is not None:
            reasons.append(f"of {folder}, to make it: {denied.by_permissions(error, above, hardening)}")
    return "; ".join([*filter(None, reasons), _why(plan, found)]) + "."


def _by_landlock(error: int, plan: MountPlan, found: Found, hardening: Hardening) -> str:
    return "" if hardening.landlock is None else denied.by_landlock(error, found, plan.tree, hardening.landlock)


def _too_long(found: Found, path: str) -> str:
    if found.error != _errno.ENAMETOOLONG:
        return "neither a name of it nor the whole is too long where it leads from /; from a directory it may be."
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        return f"it has {len(os.fsencode(path))} bytes, and a path at most {_MAX_PATH_BYTES}. Open it from a directory on the way."
    return f"{found.rest[0][:20]}... has {len(os.fsencode(found.rest[0]))} bytes, and a name at most {MAX_NAME_BYTES}. Shorten it."


def _full(plan: MountPlan, found: Found) -> str:
    mount, where = found.place.mount, _mountpoint(plan, found.place.mount)
    match mount.fs.fstype:
        case "tmpfs" if mount.words:
            return f"{where} is a tmpfs of the sandbox and full. Raise its size_bytes."
        case "overlay" if mount.words:
            return f"the changes below {where} fill the tmpfs that holds them. Raise its size_bytes, or keep the changes on a disk."
        case _:
            return f"{where} is {_name(mount)}, and that is full: nothing of the view limits it."


def _across(plan: MountPlan, found: Found) -> str:
    mount = found.place.mount
    where = _mountpoint(plan, mount)
    if mount.fs.fstype == "overlay":
        return (
            f"{where} is an overlay: in a user namespace a directory of the host cannot be renamed in it, and nothing can be renamed "
            f"out of it. Programs copy instead (shutil.move, mv)."
        )
    return f"{where} is a mount of its own: nothing can be renamed or linked across its border. Programs copy instead (shutil.move, mv)."


def _no_xattr(plan: MountPlan, found: Found) -> str:
    where = _mountpoint(plan, found.place.mount)
    return (
        f"{where} is an overlay: in a user namespace before Linux 6.6 no directory of the host can be removed in it, for its tmpfs has "
        f"no user xattrs to note that with. Keep the changes on a disk, or run as root."
    )


def _busy(plan: MountPlan, found: Found) -> str:
    mount = found.place.mount
    if found.place.path == mount.root:
        return f"it is a mount point ({_name(mount)}) and can be neither removed nor renamed inside."
    return f"nothing of the view explains it; {_why(plan, found)}."


def _folder(plan: MountPlan, found: Found) -> str:
    shown = plan.tree.path_of(found.place)
    return shown if found.node is not None and found.node.kind == "directory" else os.path.dirname(shown) or "/"


def _mountpoint(plan: MountPlan, mount: Mounted) -> str:
    return plan.tree.path_of(Place(mount, mount.root))


def _shown_by_host(place: Place) -> str | None:
    lower = place.mount.fs.lower
    if lower is None:
        return host_path(place)
    return host_path(Place(lower.mount, lower.path.rstrip("/") + place.path))
