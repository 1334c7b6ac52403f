"""The facts about host and launch that a view is compiled by, as a value: whoever tests can make them up.

Owns: Context, and how the facts are found. Refuses: to decide anything.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
from dataclasses import dataclass

from pytest_isolate.kernel import devnull
from pytest_isolate.kernel.filesystem import mountinfo
from pytest_isolate.kernel.filesystem.tree import Lookup, host_lookup

_SYS_MOUNT_SETATTR = 442  # the same on every architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Facts compile() decides by.

    Attributes:
        user_namespace: the child gets a new one, with its mount namespace in it: host mounts are locked there.
        root_outside: the child runs as the host's uid 0, to which /proc/sys obeys even without capabilities.
        pid_namespace: the child gets a new one, so that a fresh /proc is of use.
        mount_setattr: the kernel has mount_setattr(2) (Linux 5.12).
        userxattr: overlays can be mounted in a user namespace (Linux 5.11).
        makes_devices: the child may make device nodes.
    """

    mounts: tuple[mountinfo.Mount, ...]
    lookup: Lookup = host_lookup
    user_namespace: bool = False
    root_outside: bool = True
    pid_namespace: bool = True
    mount_setattr: bool = True
    userxattr: bool = True
    makes_devices: bool = False

    @classmethod
    def of_this_host(cls, *, user_namespace: bool, pid_namespace: bool = True) -> Context:
        """The facts as they are now."""
        return cls(
            mounts=mountinfo.read(),
            user_namespace=user_namespace,
            root_outside=_outside(os.geteuid()) == 0,
            pid_namespace=pid_namespace,
            mount_setattr=has_mount_setattr(),
            userxattr=kernel_release() >= (5, 11),
            makes_devices=not user_namespace and devnull.makes_devices(),
        )


def kernel_release() -> tuple[int, int]:
    """(6, 1) of "6.1.0-13-amd64": for what no call can be asked about."""
    numbers = re.findall(r"\d+", os.uname().release)
    return int(numbers[0]), int(numbers[1])


@functools.cache
def has_mount_setattr() -> bool:
    """Ask with arguments that no kernel takes: only one without the call, or a seccomp profile, does not say EINVAL."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(_SYS_MOUNT_SETATTR, -1, None, 0, None, ctypes.c_size_t(0))
    return ctypes.get_errno() == errno.EINVAL


def _outside(uid: int) -> int:
    """What the parent user namespace calls our uid; -1 where it has no name. Source: user_namespaces(7)."""
    with open("/proc/self/uid_map") as lines:
        for line in lines:
            inside, outside, count = map(int, line.split())
            if inside <= uid < inside + count:
                return uid - inside + outside
    return -1
