"""Idmapped trees: a directory of the host in which its owner's files are shown as those of whoever starts the sandbox.

Owns: the user namespaces that carry the maps, one for each pair of owners. Refuses: to mount: the child moves the tree to its place.
Source: mount_setattr(2), Documentation/filesystems/idmappings.rst. Only who has CAP_SYS_ADMIN over the file system may do so, so
it is done before the child is in a user namespace, by us.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import CLONE_FLAGS, IdMap, Plan
from pytest_isolate.policy import Namespace

_SYS_OPEN_TREE, _SYS_MOUNT_SETATTR = 428, 442  # the same on every architecture
_OPEN_TREE_CLONE, _AT_EMPTY_PATH, _AT_FDCWD = 1, 0x1000, -100
_MOUNT_ATTR_IDMAP = 0x00100000
_KILLED_S = 60.0  # long before that
_LEAVE_OUT = "leave out owned=True"
_WHY = {
    errno.EPERM: ("this user may not", "run as root, or leave out owned=True"),
    errno.ENOSYS: ("Linux 5.12 has mount_setattr(2), or a seccomp profile refuses it", _LEAVE_OUT),
    errno.EINVAL: ("its file system, or this kernel, has no idmapped mounts", _LEAVE_OUT),
}
_libc = ctypes.CDLL(None, use_errno=True)
_carriers: dict[tuple[int, int, int, int], int] = {}


class _MountAttr(ctypes.Structure):
    """struct mount_attr. Source: linux/mount.h."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def owned_tree(source: str) -> int:
    """A descriptor, the caller's, of a detached mount of ``source``: what is its owner's on disk is ours in it, and back.

    Raises:
        BackendUnavailable: not for this user, not on this kernel, or not on that file system; says which.
    """
    try:
        owner = os.stat(source)
        carrier_fd = _carrier((owner.st_uid, owner.st_gid, os.geteuid(), os.getegid()))
        tree_fd = _checked(
            _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
        )
        attributes = _MountAttr(set=_MOUNT_ATTR_IDMAP, userns_fd=carrier_fd)
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        try:
            _checked(_libc.syscall(_SYS_MOUNT_SETATTR, tree_fd, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size))
        except OSError:
            os.close(tree_fd)
            raise
    except OSError as error:
        why, remedy = _WHY.get(error.errno or 0, (os.strerror(error.errno or 0), _LEAVE_OUT))
        raise BackendUnavailable(f"bind of {source} as its owner's", why, remedy) from error
    return tree_fd


def _checked(answer: int) -> int:
    if answer < 0:
        raise OSError(ctypes.get_errno(), "")
    return answer


def _carrier(ids: tuple[int, int, int, int]) -> int:
    """The user namespace whose maps say (uid on disk, gid on disk, uid shown, gid shown); kept for the next time.

    Its process is gone: the descriptor alone holds it. Nobody is ever in it.
    """
    if ids not in _carriers:
        uid, gid, shown_uid, shown_gid = ids
        plan = Plan(
            namespaces=CLONE_FLAGS[Namespace.USER],
            uid_map=(IdMap(inside=uid, outside=shown_uid, count=1),),
            gid_map=(IdMap(inside=gid, outside=shown_gid, count=1),),
        )
        child = native.fork(plan)
        if child is None:
            time.sleep(_KILLED_S)
            os._exit(0)
        with child:
            _carriers[ids] = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    return _carriers[ids]


def forget() -> None:
    """Give the carriers back; a forked child does, for they are its parent's, where it was left them open."""
    while _carriers:
        with contextlib.suppress(OSError):
            os.close(_carriers.popitem()[1])


os.register_at_fork(after_in_child=forget)
