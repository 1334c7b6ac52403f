"""What would make a refused feature work, in the words of the place we are in.

Owns: the table from (step, errno, surroundings) to a remedy. Pure: no I/O.
Refuses: to guess. Where no row fits, the remedy is empty, and step and errno speak for themselves.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_isolate.kernel.surroundings import Surroundings

_DENIED = frozenset({errno.EPERM, errno.EACCES})
_LAUNCH = frozenset({"clone", "unshare", "maps"})

#: Docker's and podman's words for "let the processes inside make namespaces and mounts". Source: their run references.
CONTAINER_OPTIONS = (
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
)
_APPARMOR = (
    "AppArmor lets a plain user make a user namespace but nothing inside it: run "
    "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, install an AppArmor profile with `userns,` for this "
    "Python, or run pytest with sudo"
)
_UNMASK = (
    "the container covers parts of /proc, so the kernel refuses a fresh one: docker run --security-opt "
    "systempaths=unconfined, podman run --security-opt unmask=ALL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known when a remedy is looked for: the feature, where it failed, and the place."""

    feature: str
    step: str
    errno: int
    place: Surroundings

    @property
    def is_denied_launch(self) -> bool:
        return self.errno in _DENIED and (self.step in _LAUNCH or self.step.startswith("mounts"))

    @property
    def is_refused_launch(self) -> bool:
        return self.errno in _DENIED and self.step in _LAUNCH

    @property
    def is_cgroup_of_plain_user(self) -> bool:
        return self.feature.startswith("cgroup") and self.place.uid != 0

    @property
    def is_read_only_cgroup(self) -> bool:
        return self.feature.startswith("cgroup") and self.place.cgroup_read_only

    @property
    def needs_user_namespace(self) -> bool:
        """Asked by a plain user, or on a plain user's behalf."""
        return not self.place.can_admin or self.feature.endswith("_plain_user")


Row = tuple[Callable[[Case], bool], str]

#: The first row that fits gives the remedy. Order: the narrowest cause first.
ROWS: tuple[Row, ...] = (
    # namespaces
    (
        lambda c: c.step == "clone" and c.errno == errno.ENOSPC and c.place.max_user_namespaces == 0,
        "user namespaces are switched off: `sudo sysctl -w user.max_user_namespaces=10000`",
    ),
    (
        lambda c: c.step in _LAUNCH and c.errno == errno.ENOSPC,
        "raise user.max_*_namespaces, or nest fewer than 32 sandboxes",
    ),
    (
        lambda c: c.is_denied_launch and c.needs_user_namespace and c.place.userns_clone == 0,
        "Debian's switch is off: `sudo sysctl -w kernel.unprivileged_userns_clone=1`, or run pytest with CAP_SYS_ADMIN",
    ),
    (lambda c: c.is_denied_launch and c.needs_user_namespace and c.place.apparmor_userns == 1, _APPARMOR),
    (
        lambda c: c.is_refused_launch and c.place.seccomp and bool(c.place.container),
        f"the container's seccomp profile refuses namespaces: docker run {CONTAINER_OPTIONS} (or --privileged)",
    ),
    (
        lambda c: c.is_refused_launch and c.place.seccomp,
        "the seccomp filter that this process runs under refuses it: run pytest outside of it",
    ),
    (lambda c: c.is_denied_launch and c.place.confined and not c.is_refused_launch, _UNMASK),
    (
        lambda c: c.is_denied_launch and bool(c.place.container),
        f"the container refuses it: docker run --cap-add SYS_ADMIN {CONTAINER_OPTIONS} (or --privileged)",
    ),
    (
        lambda c: c.is_denied_launch and c.place.uid == 0 and not c.place.can_admin,
        (
            "this root has no CAP_SYS_ADMIN: start pytest with it (a service: CapabilityBoundingSet=), or where user "
            "namespaces may be made without"
        ),
    ),
    (lambda c: c.is_denied_launch, "run pytest as root, or allow user namespaces to plain users"),
    # file systems
    (
        lambda c: c.feature == "overlayfs" and c.errno in {errno.ENODEV, *_DENIED},
        "load the overlay module (`sudo modprobe overlay`); a plain user needs Linux 5.11",
    ),
    # calls
    (
        lambda c: c.feature == "rlimits_raise",
        "run with CAP_SYS_RESOURCE, or raise the hard limits before pytest starts (ulimit -H; docker run --ulimit)",
    ),
    (
        lambda c: c.step == "clone3" and c.errno == errno.ENOSYS,
        "nothing needs to be done: clone is used instead. A newer kernel or container engine has it",
    ),
    (
        lambda c: c.step == "clone3" and c.errno in _DENIED,
        "a seccomp profile older than clone3 answers EPERM: update the container engine",
    ),
    (lambda c: c.step == "landlock" and c.errno == errno.ENOSYS, "needs Linux 5.13 with CONFIG_SECURITY_LANDLOCK"),
    (lambda c: c.step == "landlock" and c.errno == errno.EOPNOTSUPP, "add landlock to lsm= on the kernel command line"),
    (
        lambda c: c.step == "seccomp" and c.errno in {errno.EINVAL, errno.ENOSYS},
        "needs a kernel with CONFIG_SECCOMP_FILTER",
    ),
    (
        lambda c: c.feature == "bpf" and c.errno in _DENIED,
        "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
    ),
    # control groups
    (
        lambda c: c.is_read_only_cgroup and bool(c.place.container),
        (
            "cgroups are read-only in this container: docker run --privileged, or --cgroupns=private with a writable "
            "/sys/fs/cgroup"
        ),
    ),
    (lambda c: c.is_read_only_cgroup, "mount the cgroup file system writable"),
    (
        lambda c: c.is_cgroup_of_plain_user and c.place.user_bus,
        "let systemd delegate: systemd-run --user --scope -p Delegate=yes pytest ...",
    ),
    (
        lambda c: c.is_cgroup_of_plain_user and c.place.systemd,
        (
            "give this user a systemd session (`sudo loginctl enable-linger $USER`), then "
            "systemd-run --user --scope -p Delegate=yes pytest ..."
        ),
    ),
    (
        lambda c: c.is_cgroup_of_plain_user,
        "run pytest as root, or have an administrator make a cgroup that this user owns",
    ),
    (lambda c: c.errno == errno.ENOSYS, "needs a newer kernel, or a seccomp profile that knows the call"),
)


def remedy(case: Case) -> str:
    """What to do, or an empty text."""
    return next((text for fits, text in ROWS if fits(case)), "")
