"""ctypes mirrors of native/include/isolate_abi.h.

Owns: layouts and numbers. Every field here is compared with the library's own table, both ways, by tests/abi.
Refuses: to load the library or to know what a plan means (see native.py).
"""

from __future__ import annotations

import enum
from ctypes import Structure, c_char_p, c_int32, c_uint32, c_uint64

VERSION = 1
EXIT_MAGIC = 0x4F534931


class Step(enum.IntEnum):
    """What the child was doing when it failed, in order of execution. Mirrors enum iso_step."""

    PLAN = 1
    PREPARE = 2
    CLONE = 3
    SIGNALS = 4
    SESSION = 5
    PDEATHSIG = 6
    CGROUP = 7
    UNSHARE = 8
    MAPS = 9
    JOIN = 10
    HOSTNAME = 11
    LOOPBACK = 12
    MOUNTS = 13
    CWD = 14
    FORK = 15
    UMASK = 16
    RLIMITS = 17
    CAPABILITIES = 18
    NO_NEW_PRIVS = 19
    LANDLOCK = 20
    STDIO = 21
    FDS = 22
    SECCOMP = 23
    EXEC = 24
    INIT = 25
    PROC = 26
    SECUREBITS = 27


class Flag(enum.IntFlag):
    """iso_plan.flags."""

    NEW_SESSION = 1
    LOOPBACK_UP = 2
    NO_NEW_PRIVS = 4
    CLOSE_FDS = 8
    SET_UMASK = 16
    SET_CAPABILITIES = 32
    MONITOR = 64


class IdMap(Structure):
    _fields_ = (("inside", c_uint32), ("outside", c_uint32), ("count", c_uint32), ("pad", c_uint32))


class Rlimit(Structure):
    _fields_ = (("resource", c_uint32), ("pad", c_uint32), ("soft", c_uint64), ("hard", c_uint64))


class Join(Structure):
    _fields_ = (("fd", c_int32), ("flags", c_uint32))


class Mount(Structure):
    _fields_ = (
        ("kind", c_uint32),
        ("pad", c_uint32),
        ("flags", c_uint64),
        ("source", c_uint64),
        ("target", c_uint64),
        ("fstype", c_uint64),
        ("data", c_uint64),
    )


class Landlock(Structure):
    _fields_ = (("rights", c_uint64), ("path", c_uint64), ("port", c_uint32), ("optional", c_uint32))


class Plan(Structure):
    _fields_ = (
        ("size", c_uint32),
        ("version", c_uint32),
        ("namespaces", c_uint64),
        ("flags", c_uint64),
        ("init", c_uint64),
        ("hostname", c_uint64),
        ("cwd", c_uint64),
        ("uid_map", c_uint64),
        ("gid_map", c_uint64),
        ("mounts", c_uint64),
        ("rlimits", c_uint64),
        ("joins", c_uint64),
        ("cgroup_procs_fds", c_uint64),
        ("keep_fds", c_uint64),
        ("seccomp", c_uint64),
        ("uid_map_count", c_uint32),
        ("gid_map_count", c_uint32),
        ("mounts_count", c_uint32),
        ("rlimits_count", c_uint32),
        ("joins_count", c_uint32),
        ("cgroup_procs_fds_count", c_uint32),
        ("keep_fds_count", c_uint32),
        ("seccomp_count", c_uint32),
        ("capabilities", c_uint64),
        ("cgroup_fd_plus1", c_uint32),
        ("landlock_fd_plus1", c_uint32),
        ("pdeathsig", c_uint32),
        ("umask", c_uint32),
        ("landlock", c_uint64),
        ("landlock_fs", c_uint64),
        ("landlock_net", c_uint64),
        ("landlock_scoped", c_uint64),
        ("landlock_count", c_uint32),
        ("securebits", c_uint32),
    )


class Exec(Structure):
    _fields_ = (
        ("size", c_uint32),
        ("executable_fd_plus1", c_uint32),
        ("paths", c_uint64),
        ("argv", c_uint64),
        ("envp", c_uint64),
        ("default_signals", c_uint64),
        ("stdin_fd_plus1", c_uint32),
        ("stdout_fd_plus1", c_uint32),
        ("stderr_fd_plus1", c_uint32),
        ("pad", c_uint32),
        ("arena", c_uint64),
    )


class Hooks(Structure):
    _fields_ = (("prepare", c_uint64), ("parent", c_uint64), ("child", c_uint64))


class Failure(Structure):
    _fields_ = (("step", c_int32), ("err", c_int32), ("index", c_int32), ("pad", c_uint32))


class Child(Structure):
    _fields_ = (
        ("main_pid", c_int32),
        ("main_pidfd", c_int32),
        ("init_pid", c_int32),
        ("init_pidfd", c_int32),
        ("status_fd", c_int32),
        ("monitor", c_uint32),
    )


class Exit(Structure):
    _fields_ = (
        ("magic", c_uint32),
        ("status", c_int32),
        ("leftovers", c_uint32),
        ("pad", c_uint32),
        ("user_usec", c_uint64),
        ("system_usec", c_uint64),
        ("max_rss_bytes", c_uint64),
        ("minor_faults", c_uint64),
        ("major_faults", c_uint64),
        ("voluntary_switches", c_uint64),
        ("involuntary_switches", c_uint64),
        ("blocks_in", c_uint64),
        ("blocks_out", c_uint64),
    )


class AbiField(Structure):
    """One row of iso_abi_fields(); an empty ``field`` carries the size of the struct ``owner``."""

    _fields_ = (("owner", c_char_p), ("field", c_char_p), ("offset", c_uint32), ("size", c_uint32))


#: The library's name of every struct that is shared with it.
MIRRORS: dict[str, type[Structure]] = {
    "iso_idmap": IdMap,
    "iso_rlimit": Rlimit,
    "iso_join": Join,
    "iso_mount": Mount,
    "iso_landlock": Landlock,
    "iso_plan": Plan,
    "iso_exec": Exec,
    "iso_hooks": Hooks,
    "iso_failure": Failure,
    "iso_child": Child,
    "iso_exit": Exit,
}
