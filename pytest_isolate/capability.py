"""What a policy can ask of a backend, one word for each: the rows of the backend table.

Owns: Capability, and ``needs``: which of them a policy asks for. Refuses: to know who can do them (registry.py).
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterator

from pytest_isolate.policy import Namespace, Policy


class Capability(str, enum.Enum):
    """One thing that a backend enforces, or does not. Time-outs, output and group limits are held outside of it."""

    SESSION = "session"
    NAMESPACE_PID = "namespace_pid"
    NAMESPACE_USER = "namespace_user"
    NAMESPACE_UTS = "namespace_uts"
    NAMESPACE_CGROUP = "namespace_cgroup"
    NAMESPACE_IPC = "namespace_ipc"
    NAMESPACE_MNT = "namespace_mnt"
    NAMESPACE_NET = "namespace_net"
    NAMESPACE_TIME = "namespace_time"
    HOSTNAME = "hostname"
    ROOT_READONLY = "root_readonly"
    ROOT_MINIMAL = "root_minimal"
    BINDS = "binds"
    OVERLAYS = "overlays"
    TMPFS = "tmpfs"
    MASKS = "masks"
    FRESH_PROC = "fresh_proc"
    NETWORK_NONE = "network_none"
    NETWORK_LOOPBACK = "network_loopback"
    NETWORK_PRIVATE = "network_private"
    NETWORK_RULES = "network_rules"
    RLIMITS = "rlimits"
    GROUP_LIMITS = "group_limits"
    CAPABILITIES = "capabilities"
    NO_NEW_PRIVS = "no_new_privs"
    SECCOMP = "seccomp"
    LANDLOCK = "landlock"
    CLOSE_FDS = "close_fds"
    SECUREBITS = "securebits"
    UMASK = "umask"
    ENVIRONMENT = "environment"

    def __str__(self) -> str:
        return self.value


#: What every engine of containers gives: namespaces, a root put together from the host's directories, fewer privileges.
CONTAINER = frozenset(
    {
        Capability.NAMESPACE_PID,
        Capability.NAMESPACE_UTS,
        Capability.NAMESPACE_CGROUP,
        Capability.NAMESPACE_IPC,
        Capability.NAMESPACE_MNT,
        Capability.NAMESPACE_NET,
        Capability.HOSTNAME,
        Capability.ROOT_READONLY,
        Capability.ROOT_MINIMAL,
        Capability.BINDS,
        Capability.TMPFS,
        Capability.MASKS,
        Capability.FRESH_PROC,
        Capability.NETWORK_LOOPBACK,
        Capability.CAPABILITIES,
        Capability.NO_NEW_PRIVS,
    }
)

#: What a process can have or give up alone: no namespace, no mount.
WITHOUT_NAMESPACES = frozenset(
    {
        Capability.SESSION,
        Capability.NETWORK_RULES,
        Capability.RLIMITS,
        Capability.GROUP_LIMITS,
        Capability.CAPABILITIES,
        Capability.NO_NEW_PRIVS,
        Capability.SECCOMP,
        Capability.LANDLOCK,
        Capability.CLOSE_FDS,
        Capability.SECUREBITS,
        Capability.UMASK,
        Capability.ENVIRONMENT,
    }
)


def needs(policy: Policy) -> Iterator[Capability]:
    """What ``policy`` asks for, each once, in the order of Capability."""
    asked = set(_asked(policy))
    return (capability for capability in Capability if capability in asked)


def beyond(policy: Policy, able: Container[Capability], name: str) -> list[str]:
    """What ``policy`` asks for and the backend ``name``, able to do this much, does not enforce: a line, or none."""
    lacking = [asked.value for asked in needs(policy) if asked not in able]
    return [f"{', '.join(lacking)}: {name} does not enforce {'it' if len(lacking) == 1 else 'them'}"] if lacking else []


def _asked(policy: Policy) -> Iterator[Capability]:
    for namespace in policy.namespaces:
        yield Capability(f"namespace_{namespace.value}")
    limits, hardening = policy.limits, policy.hardening
    chosen = {
        Capability.SESSION: policy.session,
        Capability.HOSTNAME: policy.hostname,
        Capability.RLIMITS: limits.rlimits or limits.cpu_time_s or limits.memory_fallback == "rlimit",
        Capability.GROUP_LIMITS: limits.needs_cgroup and limits.memory_fallback != "rlimit",
        Capability.CAPABILITIES: hardening.capabilities is not None,
        Capability.NO_NEW_PRIVS: hardening.no_new_privs,
        Capability.SECCOMP: hardening.seccomp != "none",
        Capability.LANDLOCK: hardening.landlock is not None,
        Capability.CLOSE_FDS: hardening.close_fds,
        Capability.SECUREBITS: hardening.securebits,
        Capability.UMASK: hardening.umask is not None,
        Capability.ENVIRONMENT: hardening.environment != "keep",
    }
    yield from (capability for capability, wanted in chosen.items() if wanted)
    yield from _of_filesystem(policy)
    yield from _of_network(policy)


def _of_filesystem(policy: Policy) -> Iterator[Capability]:
    view = policy.filesystem
    chosen = {
        Capability.ROOT_READONLY: view.root == "readonly",
        Capability.ROOT_MINIMAL: view.root == "minimal" or view.programs,
        Capability.BINDS: view.binds,
        Capability.OVERLAYS: view.overlays,
        Capability.TMPFS: view.tmpfs,
        Capability.MASKS: view.masks,
        Capability.FRESH_PROC: view.proc and {Namespace.PID, Namespace.MOUNT} <= policy.namespaces,
    }
    yield from (capability for capability, wanted in chosen.items() if wanted)


def _of_network(policy: Policy) -> Iterator[Capability]:
    match policy.network.mode:
        case "none":
            yield Capability.NETWORK_NONE
        case "loopback":
            yield Capability.NETWORK_LOOPBACK
        case "private":
            yield Capability.NETWORK_PRIVATE
    if policy.network.counted:
        yield Capability.NETWORK_RULES
