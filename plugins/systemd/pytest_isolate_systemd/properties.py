"""A policy as the properties of a transient service.

Owns: the table from what a policy asks for to systemd's own sandboxing. Refuses: what systemd cannot say, or says only from a
version on that this plugin does not ask for: a PID namespace (257), a hostname (257), user namespaces that keep every id.
Source: systemd.exec(5), systemd.resource-control(5).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence

from pytest_isolate.capability import Capability
from pytest_isolate.errors import PolicyError, SetupError
from pytest_isolate.policy import UNLIMITED, Namespace, Policy
from pytest_isolate.tool import places

from .manager import Property

ENFORCES = frozenset(
    {
        Capability.SESSION,
        Capability.NAMESPACE_UTS,
        Capability.NAMESPACE_IPC,
        Capability.NAMESPACE_MNT,
        Capability.NAMESPACE_NET,
        Capability.ROOT_READONLY,
        Capability.BINDS,
        Capability.TMPFS,
        Capability.MASKS,
        Capability.NETWORK_LOOPBACK,
        Capability.RLIMITS,
        Capability.CAPABILITIES,
        Capability.NO_NEW_PRIVS,
        Capability.CLOSE_FDS,
        Capability.UMASK,
        Capability.ENVIRONMENT,
    }
)
_SWITCHES = {Namespace.UTS: "ProtectHostname", Namespace.IPC: "PrivateIPC", Namespace.MOUNT: "PrivateMounts"}
_MS_REC = 0x4000
_INFINITY = 2**64 - 1
_NAMES = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def of_program(argv: Sequence[str], env: Mapping[str, str], cwd: str, stdio: Sequence[int]) -> Iterator[Property]:
    """What is executed, where, and with which files.

    Raises:
        SetupError: there is no such program. systemd wants its path.
    """
    path = os.path.join(cwd, argv[0]) if "/" in argv[0] else argv[0]
    found = shutil.which(path, path=env.get("PATH", os.defpath))
    if found is None:
        raise SetupError("exec", errno.EACCES if os.path.exists(path) else errno.ENOENT, detail=f"({argv[0]})")
    yield "Type", ("s", "exec")  # its job is done once the program is executed
    yield "ExecStartEx", ("a(sasas)", [(os.path.abspath(found), list(argv), ["no-env-expand"])])
    yield "WorkingDirectory", ("s", cwd)
    # A name that systemd does not take is no name of a variable in its book: bash's exported functions.
    kept = [f"{name}={value}" for name, value in env.items() if _NAMES.fullmatch(name)]
    yield "Environment", ("as", kept)
    for name, fd in zip(("Input", "Output", "Error"), stdio, strict=True):
        yield f"Standard{name}FileDescriptor", ("h", fd)


def of_policy(policy: Policy) -> Iterator[Property]:
    """What is enforced.

    Raises:
        PolicyError: a source or target of the view that is not there.
    """
    yield "RemainAfterExit", ("b", True)  # how it ended can then be asked, and what it left is still there
    for namespace in sorted(policy.namespaces & _SWITCHES.keys()):
        yield _SWITCHES[namespace], ("b", True)
    if Namespace.NET in policy.namespaces:
        yield "PrivateNetwork", ("b", True)
    hardening = policy.hardening
    if hardening.capabilities is not None:
        yield "CapabilityBoundingSet", ("t", _mask(hardening.capabilities))
    if hardening.no_new_privs:
        yield "NoNewPrivileges", ("b", True)
    if hardening.umask is not None:
        yield "UMask", ("u", hardening.umask)
    yield from _limits(policy)
    yield from _view(policy)


def _mask(names: frozenset[str]) -> int:
    numbers = {name: number for number, name in enumerate(_CAPABILITIES)}
    if unknown := sorted(names - numbers.keys()):
        raise PolicyError("capabilities", f"{', '.join(unknown)} unknown", "write names of capabilities(7)")
    return sum(1 << numbers[name] for name in names)


def _limits(policy: Policy) -> Iterator[Property]:
    limits = dict(policy.limits.rlimits)
    if policy.limits.cpu_time_s:
        seconds = max(1, round(policy.limits.cpu_time_s))
        limits.setdefault("CPU", (seconds, seconds + 1))
    for name, (soft, hard) in limits.items():
        yield f"Limit{name}", ("t", _INFINITY if hard == UNLIMITED else hard)
        yield f"Limit{name}Soft", ("t", _INFINITY if soft == UNLIMITED else soft)


def _view(policy: Policy) -> Iterator[Property]:
    if Namespace.MOUNT not in policy.namespaces:
        return
    shown = places(policy)
    if any(place.kind == "devpts" for place in shown):
        yield (
            "PrivateDevices",
            ("b", True),
        )  # but for its terminals, which are the host's: mount_private_dev(), namespace.c
        shown = [place for place in shown if not (place.is_device)]
    if policy.filesystem.root == "readonly":
        yield "ReadOnlyPaths", ("as", ["/"])
        if writable := [place.target for place in shown if place.kind == "bind" and place.writable]:
            yield "ReadWritePaths", ("as", writable)
    for name, wanted in (("BindPaths", True), ("BindReadOnlyPaths", False)):
        binds = [
            (place.source, place.target, False, _MS_REC if place.recursive else 0)
            for place in shown
            if place.kind == "bind" and place.writable is wanted
        ]
        if binds:
            yield name, ("a(ssbt)", binds)
    if tmpfs := [place for place in shown if place.kind == "tmpfs"]:
        yield (
            "TemporaryFileSystem",
            ("a(ss)", [(place.target, _options(place.mode, place.size_bytes)) for place in tmpfs]),
        )
    if masks := [place.target for place in shown if place.kind == "mask"]:
        yield "InaccessiblePaths", ("as", masks)


def _options(mode: int, size_bytes: int | None) -> str:
    """``nr_inodes`` and ``size`` are systemd's own, and small, where nothing is said. Source: TMPFS_LIMITS_ in mount-util.h."""
    return f"mode={mode:o},size={'50%' if size_bytes is None else size_bytes},nr_inodes=0,nosuid,nodev"


#: By number. Source: linux/capability.h.
_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
        "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
        "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
        "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
]
