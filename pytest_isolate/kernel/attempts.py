"""Does the thing, once, in a throw-away child: every question of the doctor as an act.

Owns: one function per act. Nothing stays: namespaces and mounts die with the child (throwaway.py).
Refuses: to read a sysctl and conclude; to word a remedy (remedies.py).
An act returns a fact worth telling (often nothing) or raises Refused with step and errno.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import importlib.util
import json
import os
import resource
import signal
import socket
import struct
import tempfile
from dataclasses import replace
from typing import Any

from pytest_isolate.errors import BackendUnavailable, IsolateError, SetupError
from pytest_isolate.kernel import capabilities, filesystem
from pytest_isolate.kernel import landlock as landlock_abi
from pytest_isolate.kernel.capabilities import LOCKED_SECUREBITS
from pytest_isolate.kernel.plan import CLONE_FLAGS, IdMap, LandlockRuleset, MountKind, MountOp, Plan
from pytest_isolate.kernel.seccomp import compile_profile
from pytest_isolate.kernel.throwaway import DEADLINE_S, Act, Refused, as_plain_user, in_child, libc, syscall
from pytest_isolate.policy import Bind, Filesystem, Namespace, Overlay, Tmpfs

_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MS_REC_PRIVATE = 0x4000 | 0x40000
PRIVATE = MountOp(kind=MountKind.PROPAGATION, target="/", flags=_MS_REC_PRIVATE)
PROC = MountOp(kind=MountKind.MOUNT, source="proc", target="/proc", fstype="proc", flags=_MS_NOSUID_NODEV_NOEXEC)

# Numbers since 424 are the same on every architecture. Source: include/uapi/asm-generic/unistd.h.
_SYS_PIDFD_OPEN, _SYS_CLONE3, _SYS_CLOSE_RANGE, _SYS_LANDLOCK_CREATE_RULESET = 434, 435, 436, 444
_PR_GET_NO_NEW_PRIVS, _PR_GET_SECUREBITS = 39, 27


# ---- namespaces ----


def plan_of(*namespaces: Namespace, **settings: Any) -> Plan:
    """A plan with these namespaces, made the way the native backend makes it: a plain user gets a user namespace too."""
    wanted = set(namespaces)
    if wanted and not capabilities.has("CAP_SYS_ADMIN"):
        wanted.add(Namespace.USER)
    mounts: tuple[MountOp, ...] = settings.pop("mounts", ())
    if Namespace.MOUNT in wanted:
        mounts = (PRIVATE, *mounts)
    if Namespace.USER in wanted:
        uid, gid = os.geteuid(), os.getegid()
        settings["uid_map"] = (IdMap(inside=uid, outside=uid, count=1),)
        settings["gid_map"] = (IdMap(inside=gid, outside=gid, count=1),)
    return Plan(namespaces=sum(CLONE_FLAGS[name] for name in wanted), mounts=mounts, **settings)


def namespace(kind: Namespace) -> str:
    """One namespace by itself, and it is another than ours."""
    outside = os.readlink(f"/proc/self/ns/{kind.value}")

    def is_another() -> str:
        if os.readlink(f"/proc/self/ns/{kind.value}") == outside:
            raise Refused("clone", 0, "the call succeeded, and the namespace is the old one")
        return ""

    return in_child(plan_of(kind), is_another)


def namespaces_together() -> str:
    """Every namespace but time in one clone, with a hostname, private mounts, a fresh /proc and the loopback."""
    every = [kind for kind in Namespace if kind is not Namespace.TIME]
    return in_child(plan_of(*every, mounts=(PROC,), hostname="isolate-probe", loopback_up=True), _is_alone)


def sandbox() -> str:
    """What the profile `standard` does, start to end: namespaces, private mounts, a fresh /proc that shows only us."""
    standard = (Namespace.PID, Namespace.UTS, Namespace.IPC, Namespace.MOUNT)
    return in_child(plan_of(*standard, mounts=(PROC,)), _is_alone)


def sandbox_plain_user() -> str:
    """The same for a plain user. AppArmor's trap (the namespace is made, then its mounts are refused) shows here."""
    return as_plain_user(sandbox)


def proc() -> str:
    """A fresh /proc in a PID namespace."""
    return in_child(plan_of(Namespace.PID, Namespace.MOUNT, mounts=(PROC,)), _is_alone)


def _is_alone() -> str:
    """A fresh /proc of a new PID namespace shows its init and us."""
    seen = [name for name in os.listdir("/proc") if name.isdigit()]
    if os.getpid() > 2 or len(seen) > 2:
        raise Refused("proc", 0, f"pid {os.getpid()} inside, and /proc shows {len(seen)} processes")
    return ""


def network_loopback() -> str:
    """A network namespace whose loopback carries a connection."""
    return in_child(plan_of(Namespace.NET, loopback_up=True), _talk_to_self)


def _talk_to_self() -> str:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.settimeout(DEADLINE_S / 2)
        client.connect(server.getsockname())
    return ""


# ---- file systems: the views that the product makes, made by its own compiler ----


def _view(view: Filesystem, act: Act) -> str:
    context = filesystem.Context.of_this_host(user_namespace=not capabilities.has("CAP_SYS_ADMIN"))
    try:
        plan = filesystem.compile(view, context=context)
    except IsolateError as error:
        raise Refused("mounts", 0, f"{error.what}: {error.why}", error.remedy) from error
    with filesystem.Layers(plan) as layers:
        return in_child(replace(plan_of(Namespace.PID, Namespace.MOUNT), mounts=layers.ops), act)


def overlayfs() -> str:
    """A directory of the host, writable inside, unchanged outside."""
    with tempfile.TemporaryDirectory(prefix="isolate-probe-") as place:

        def write() -> str:
            with open(f"{place}/written", "w") as file:
                file.write("inside")
            return ""

        os.chmod(place, 0o777)
        fact = _view(Filesystem(overlays=(Overlay(target=place),)), write)
        if os.listdir(place):
            raise Refused("overlay", 0, "a file that was written inside is outside")
        return fact


def readonly_root() -> str:
    """The host's file systems, read-only, with a private /tmp."""

    def write() -> str:
        with open("/tmp/isolate-probe", "w") as file:
            file.write("inside")
        try:
            os.close(os.open(beside, os.O_CREAT | os.O_WRONLY))
        except OSError as error:
            if error.errno == errno.EROFS:
                return ""
            raise
        raise Refused("mounts", 0, f"{beside} could be written")

    beside = os.path.join("/var/tmp" if os.access("/var/tmp", os.W_OK) else os.path.expanduser("~"), ".isolate-probe")
    return _view(Filesystem(root="readonly", tmpfs=(Tmpfs(target="/tmp"),)), write)


def pivot_root() -> str:
    """A root of our own with /usr in it and the host's /etc not."""

    def look() -> str:
        if os.path.exists("/etc/passwd"):
            raise Refused("pivot_root", 0, "the host's /etc is still there")
        return ""

    return _view(Filesystem(root="minimal", binds=(Bind(source="/usr", target="/usr"),)), look)


# ---- processes, limits, privileges ----


def rlimits() -> str:
    """A limit set by the plan holds in the child."""

    def holds() -> str:
        found = resource.getrlimit(resource.RLIMIT_NOFILE)
        if found != (64, 64):
            raise Refused("rlimits", 0, f"NOFILE is {found}")
        return ""

    return in_child(Plan(rlimits=((resource.RLIMIT_NOFILE, 64, 64),)), holds)


def rlimits_raise() -> str:
    """A hard limit, lowered, can be raised again: needs CAP_SYS_RESOURCE."""

    def raise_hard() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
        except ValueError as error:  # Python's word for EPERM of setrlimit(2)
            raise Refused("setrlimit", errno.EPERM) from error
        return ""

    return in_child(Plan(), raise_hard)


def pidfd() -> str:
    """A pidfd can be opened, polled and signalled."""

    def open_and_signal() -> str:
        fd = syscall("pidfd_open", _SYS_PIDFD_OPEN, os.getpid(), 0)
        signal.pidfd_send_signal(fd, 0)
        return ""

    return in_child(Plan(), open_and_signal)


def clone3() -> str:
    """clone3(2) makes a process."""

    def clone() -> str:
        arguments = ctypes.create_string_buffer(struct.pack("=11Q", 0, 0, 0, 0, signal.SIGCHLD, *[0] * 6), 88)
        pid = syscall("clone3", _SYS_CLONE3, arguments, ctypes.c_size_t(88))
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return ""

    return in_child(Plan(), clone)


def close_range() -> str:
    """close_range(2) marks descriptors close-on-exec."""

    def mark() -> str:
        fd = os.open("/", os.O_RDONLY)
        os.set_inheritable(fd, True)
        syscall("close_range", _SYS_CLOSE_RANGE, ctypes.c_uint(fd), ctypes.c_uint(fd), ctypes.c_uint(4))
        if os.get_inheritable(fd):
            raise Refused("close_range", 0, "it succeeded and changed nothing")
        return ""

    return in_child(Plan(), mark)


def no_new_privs() -> str:
    """No program can give the child more privileges."""

    def is_set() -> str:
        if libc().prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
            raise Refused("no_new_privs", 0, "it was set and is not in force")
        return ""

    return in_child(Plan(no_new_privs=True), is_set)


def capabilities_drop() -> str:
    """Every capability set of the child is empty."""

    def are_gone() -> str:
        if left := capabilities.effective():
            raise Refused("capabilities", 0, f"still in effect: {left:#x}")
        return ""

    # Emptying the bounding set takes CAP_SETPCAP, which a plain user has in a user namespace of its own.
    inside = () if capabilities.has("CAP_SETPCAP") else (Namespace.USER,)
    in_child(plan_of(*inside, capabilities=0), are_gone)
    return "inside a user namespace" if inside else ""


#: pidfd_open -> EXDEV, which it never answers by itself; everything else is allowed. Source: seccomp(2).
_DENY_PIDFD_OPEN = b"".join(
    struct.pack("=HBBI", *row)
    for row in (
        (0x20, 0, 0, 0),  # load the number
        (0x15, 0, 1, _SYS_PIDFD_OPEN),
        (0x06, 0, 0, 0x00050000 | errno.EXDEV),
        (0x06, 0, 0, 0x7FFF0000),
    )
)


def seccomp() -> str:
    """A filter is loaded, and refuses what it should."""

    def is_refused() -> str:
        try:
            os.close(syscall("pidfd_open", _SYS_PIDFD_OPEN, os.getpid(), 0))
        except Refused as refused:
            if refused.errno == errno.EXDEV:
                return ""
            raise
        raise Refused("seccomp", 0, "the filter was loaded and refuses nothing")

    return in_child(Plan(seccomp=_DENY_PIDFD_OPEN, no_new_privs=True), is_refused)


def landlock() -> str:
    """A ruleset without rules refuses to write; the fact is the version of the kernel's interface."""
    version = syscall("landlock", _SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    write_file = ctypes.create_string_buffer(struct.pack("=Q", 1 << 1), 8)
    ruleset_fd = syscall("landlock", _SYS_LANDLOCK_CREATE_RULESET, write_file, ctypes.c_size_t(8), ctypes.c_uint(0))

    def is_refused() -> str:
        try:
            os.close(os.open(os.devnull, os.O_WRONLY))
        except PermissionError:
            return f"ABI {version}"
        raise Refused("landlock", 0, "the ruleset is in force and refuses nothing")

    try:
        return in_child(Plan(landlock_fd=ruleset_fd, no_new_privs=True), is_refused)
    finally:
        os.close(ruleset_fd)


def seccomp_default() -> str:
    """The profile `default` is loaded, and refuses to unshare nothing."""
    program = compile_profile("default")

    def is_refused() -> str:
        if libc().unshare(0) == 0:
            raise Refused("seccomp", 0, "the filter was loaded and refuses nothing")
        return f"{len(program) // 8} instructions"

    return in_child(Plan(seccomp=program, no_new_privs=True), is_refused)


def landlock_tcp() -> str:
    """A ruleset without ports refuses to bind one."""
    version = landlock_abi.abi()
    if version < 4:
        raise Refused("landlock", 0, f"ABI {version}, of 4", "needs Linux 6.7")

    def is_refused() -> str:
        with socket.socket() as server:
            try:
                server.bind(("127.0.0.1", 0))
            except PermissionError:
                return f"ABI {version}"
        raise Refused("landlock", 0, "the ruleset is in force and refuses nothing")

    return in_child(Plan(landlock=LandlockRuleset(net=1), no_new_privs=True), is_refused)


def securebits() -> str:
    """They are set, and locked."""

    def are_set() -> str:
        if (found := libc().prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)) != LOCKED_SECUREBITS:
            raise Refused("securebits", 0, f"they were set and are {found:#x}")
        return ""

    inside = () if capabilities.has("CAP_SETPCAP") else (Namespace.USER,)
    in_child(plan_of(*inside, securebits=LOCKED_SECUREBITS), are_set)
    return "inside a user namespace" if inside else ""


# ---- control groups and eBPF ----


def cgroups() -> dict[str, tuple[bool, str, str]]:
    """Controller -> (usable, why or a note, remedy), by making a run's cgroups, joining them and removing them again.

    In a child: on v2 the process that makes them may have to move aside first.
    """

    def try_all() -> str:
        from pytest_isolate.kernel.cgroups import open_manager

        with open_manager("doctor") as manager:
            found = manager.capabilities().values()
            return json.dumps({one.name: (one.available, one.reason, one.remedy) for one in found})

    return {name: tuple(row) for name, row in json.loads(in_child(Plan(), try_all)).items()}


def bpf() -> str:
    """The network policy's programs pass the verifier; they are attached to nothing."""

    def load() -> str:
        if importlib.util.find_spec("pytest_isolate.kernel.bpf") is None:
            raise Refused("bpf-load", 0, "this version has no eBPF part")
        dataplane = importlib.import_module("pytest_isolate.kernel.bpf.dataplane")
        try:
            with dataplane.load(dataplane.ALL_PROGRAMS) as plane:
                return f"{len(plane.programs)} programs by {plane.front_end}"
        except SetupError as error:
            raise Refused(error.step, error.errno or 0, remedy=error.remedy) from error
        except BackendUnavailable as error:
            raise Refused("bpf-load", 0, error.why, error.remedy) from error

    return in_child(Plan(), load, deadline_s=3 * DEADLINE_S)
