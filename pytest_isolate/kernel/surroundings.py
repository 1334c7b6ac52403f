"""What surrounds this process: user, container, sysctls, cgroup mounts, service manager, CI runner.

Owns: Surroundings, a value, and observe(), which only reads files. These facts choose a remedy's words (remedies.py);
whether a feature works is never concluded from them, only from having done it (attempts.py).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_isolate.kernel import capabilities

#: Environment variable -> the CI service that sets it. Source: the services' documentation of default variables.
RUNNERS = {
    "GITHUB_ACTIONS": "github",
    "GITLAB_CI": "gitlab",
    "JENKINS_URL": "jenkins",
    "CIRCLECI": "circleci",
    "BUILDKITE": "buildkite",
}
#: A file that a container manager leaves in the root of what it starts -> its name.
_CONTAINER_MARKS = {"/.dockerenv": "docker", "/run/.containerenv": "podman"}
_CONTAINER_PATHS = ("kubepods", "docker", "lxc", "containerd", "libpod")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """None or an empty text: not known, or not there.

    Attributes:
        can_admin: CAP_SYS_ADMIN is in effect.
        container: the manager's name; ``container_sign`` is how it was noticed.
        seccomp: a filter is in force on this very process.
        apparmor_userns, userns_clone, max_user_namespaces: kernel.apparmor_restrict_unprivileged_userns,
            kernel.unprivileged_userns_clone, user.max_user_namespaces.
        cgroup_read_only: a cgroup file system is mounted, and none can be written.
        user_bus: a systemd user session answers on D-Bus: it can delegate cgroups.
        runner: one of RUNNERS' values.
    """

    kernel: str = ""
    uid: int = 0
    can_admin: bool = False
    container: str = ""
    container_sign: str = ""
    seccomp: bool = False
    apparmor_userns: int | None = None
    userns_clone: int | None = None
    max_user_namespaces: int | None = None
    cgroup_read_only: bool = False
    systemd: bool = False
    user_bus: bool = False
    runner: str = ""

    @property
    def confined(self) -> bool:
        """Someone else's filter or container decides, besides the kernel."""
        return bool(self.container) or self.seccomp

    def __str__(self) -> str:
        who = "root" if self.uid == 0 else f"uid {self.uid}"
        parts = [f"Linux {self.kernel}", who if self.can_admin or self.uid else "root without CAP_SYS_ADMIN"]
        if self.container:
            parts.append(f"in {self.container} (noticed by {self.container_sign})")
        if self.seccomp:
            parts.append("under a seccomp filter")
        return ", ".join(parts)


def observe(root: str = "/", environ: Mapping[str, str] | None = None) -> Surroundings:
    """Read the facts. ``root``: where /proc, /sys and /run are looked for."""
    place = Path(root)
    environ = os.environ if environ is None else environ
    container, sign = _container(place, environ)
    uid = os.geteuid()
    return Surroundings(
        kernel=platform.release(),
        uid=uid,
        can_admin=capabilities.has("CAP_SYS_ADMIN"),
        container=container,
        container_sign=sign,
        seccomp=_status_field(place, "Seccomp") == "2",
        apparmor_userns=_sysctl(place, "kernel/apparmor_restrict_unprivileged_userns"),
        userns_clone=_sysctl(place, "kernel/unprivileged_userns_clone"),
        max_user_namespaces=_sysctl(place, "user/max_user_namespaces"),
        cgroup_read_only=_cgroups_are_read_only(place),
        systemd=(place / "run/systemd/system").is_dir(),
        user_bus=(place / "run/user" / str(uid) / "bus").exists(),
        runner=next((name for variable, name in RUNNERS.items() if environ.get(variable)), ""),
    )


def _text(path: Path) -> str:
    """A file's text; empty where it is masked or missing, which is a fact of its own."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(root: Path, name: str) -> int | None:
    text = _text(root / "proc/sys" / name).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _status_field(root: Path, name: str) -> str:
    for line in _text(root / "proc/self/status").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def _container(root: Path, environ: Mapping[str, str]) -> tuple[str, str]:
    """(manager, the sign it was noticed by). Source: systemd-detect-virt(1), the managers' documentation."""
    if manager := _text(root / "run/systemd/container").strip():
        return manager, "/run/systemd/container"
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes", "KUBERNETES_SERVICE_HOST"
    for mark, manager in _CONTAINER_MARKS.items():
        if (root / mark.lstrip("/")).exists():
            return manager, mark
    if manager := environ.get("container", ""):
        return manager, "$container"
    for word in _CONTAINER_PATHS:
        if word in _text(root / "proc/1/cgroup"):
            return word, "/proc/1/cgroup"
    return "", ""


def _cgroups_are_read_only(root: Path) -> bool:
    """True when cgroup file systems are mounted and each of them is read-only. Source: proc_pid_mountinfo(5)."""
    writable = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup"):
            options = {*left.split()[5].split(","), *right.split()[-1].split(",")}  # the mount's, the file system's
            writable.append("ro" not in options)
    return bool(writable) and not any(writable)
