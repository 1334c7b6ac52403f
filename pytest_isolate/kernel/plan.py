"""The plan: a policy compiled for one launch on this host. Flat, complete, ready for the C library.

Owns: the shape of Plan and its parts. File descriptors in a plan are borrowed: the caller keeps and closes them.
Refuses: to decide anything (see backends/) and to touch ctypes (see native.py).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pytest_isolate.policy import Namespace

#: CLONE_NEW* by namespace. Source: linux/sched.h.
CLONE_FLAGS = {
    Namespace.TIME: 0x00000080,
    Namespace.MOUNT: 0x00020000,
    Namespace.CGROUP: 0x02000000,
    Namespace.UTS: 0x04000000,
    Namespace.IPC: 0x08000000,
    Namespace.USER: 0x10000000,
    Namespace.PID: 0x20000000,
    Namespace.NET: 0x40000000,
}


class MountKind(enum.IntEnum):
    """What one entry of the mount table does, in the sandbox's own mount namespace. Mirrors enum iso_mount_kind."""

    PROPAGATION = 1  # mount(NULL, target, NULL, flags): MS_REC | MS_PRIVATE and the like
    MOUNT = 2  # mount(source, target, fstype, flags, data)
    BIND = 3  # open_tree + move_mount, or mount(MS_BIND), then a remount for flags
    MKDIR = 4  # mkdir(target, mode in data), parents too; EEXIST is fine
    MKFILE = 5  # an empty file at target, as a bind's target; EEXIST is fine
    SYMLINK = 6  # symlink(source, target)
    PIVOT = 7  # pivot_root(target), old root detached, chdir("/")
    REMOUNT = 8  # mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | flags), and the flags it has, but MS_RDONLY and those in data
    SETATTR = 9  # mount_setattr(target, AT_RECURSIVE by flags), attributes in data
    UMOUNT = 10  # umount2(target, MNT_DETACH)
    SEND_DIR = 11  # open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC), sent as SCM_RIGHTS on the socket whose number is in flags
    MKNOD = 12  # mknod(target, S_IFCHR | mode, makedev(major, minor)), "mode:major:minor" in data


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOp:
    """One entry of the mount table; executed in order by the child."""

    kind: MountKind
    target: str
    source: str = ""
    fstype: str = ""
    flags: int = 0
    data: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """One line of uid_map or gid_map. Source: user_namespaces(7)."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LandlockRule:
    """One rule: ``rights`` (LANDLOCK_ACCESS_*) beneath ``path`` as the sandbox sees it, or, without a path, for ``port``."""

    rights: int
    path: str = ""
    port: int = 0
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LandlockRuleset:
    """What is governed, and the exceptions. Source: landlock(7)."""

    fs: int = 0
    net: int = 0
    scoped: int = 0
    rules: tuple[LandlockRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything the child will do between clone and exec (or between fork and the test).

    Attributes:
        namespaces: CLONE_NEW* flags for clone3(2).
        uid_map, gid_map: lines for a new user namespace; empty without one.
        cgroup_fd: directory fd for CLONE_INTO_CGROUP (v2), or -1.
        cgroup_procs_fds: open files the child writes ``0`` into (v1's ``tasks``, or v2's ``cgroup.procs``).
        rlimits: (resource number, soft, hard); -1 means RLIM_INFINITY.
        monitor: without a PID namespace, a tiny process between this one and the main process collects its
            orphans, names them and ends the whole tree; with a PID namespace the init does that anyway.
        capabilities: mask of what remains in every set (bit n = capability n), or None to keep all.
        seccomp: a BPF program, struct sock_filter[] as bytes; empty for none.
        landlock: a ruleset that the child makes among its own mounts, and enforces.
        landlock_fd: a ruleset made before, to enforce, or -1.
        securebits: for prctl(PR_SET_SECUREBITS); 0 leaves them.
        keep_fds: with close_fds, the numbers that stay open besides 0, 1 and 2.
    """

    namespaces: int = 0
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    hostname: str = ""
    loopback_up: bool = False
    mounts: tuple[MountOp, ...] = ()
    cgroup_fd: int = -1
    cgroup_procs_fds: tuple[int, ...] = ()
    join_fds: tuple[tuple[int, int], ...] = ()  # (fd of a namespace or pidfd, CLONE_NEW* flags) for setns(2)
    rlimits: tuple[tuple[int, int, int], ...] = ()
    capabilities: int | None = None
    no_new_privs: bool = False
    landlock: LandlockRuleset | None = None
    landlock_fd: int = -1
    securebits: int = 0
    seccomp: bytes = b""
    new_session: bool = True
    monitor: bool = False
    pdeathsig: int = 9
    close_fds: bool = False
    keep_fds: tuple[int, ...] = ()
    umask: int = -1
    cwd: str = ""
