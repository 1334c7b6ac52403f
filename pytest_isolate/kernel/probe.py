"""What this host gives: for each feature yes or no, and for a no: the failing step, its errno, why, and what would help.

Owns: Feature, the table of features, capabilities() with its cache per process.
Refuses: to answer from a file; every yes was done once in a throw-away child (attempts.py).
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pytest_isolate.kernel import attempts
from pytest_isolate.kernel.remedies import Case, remedy
from pytest_isolate.kernel.surroundings import observe
from pytest_isolate.kernel.throwaway import Act, Refused
from pytest_isolate.policy import Namespace, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """An answer. True in a boolean context when available.

    Attributes:
        meaning: what the feature is, in a line.
        step: where it failed: a step of the child (``clone``, ``maps``, ``mounts[1]``, ...) or the call that was tried.
        errno: the kernel's answer; 0 where it gave none.
        reason: why not; for an available feature, what was found (``ABI 7``), often nothing.
        remedy: what would make it available here; empty when nothing is known to.
    """

    name: str
    available: bool
    meaning: str = ""
    step: str = ""
    errno: int = 0
    reason: str = ""
    remedy: str = ""

    def __bool__(self) -> bool:
        return self.available

    def __str__(self) -> str:
        """``name: reason. remedy``, as an error of this package reads."""
        if self.available:
            return f"{self.name}: available{f' ({self.reason})' if self.reason else ''}"
        place = f" at {self.step}" if self.step else ""
        advice = f". {self.remedy[:1].upper()}{self.remedy[1:]}" if self.remedy else ""
        return f"{self.name}: refused{place}: {self.reason or 'no reason given'}{advice}"


_NAMESPACE_MEANINGS = {
    Namespace.PID: "processes of its own; all of them end with it",
    Namespace.USER: "users of its own: how a plain user makes the others",
    Namespace.UTS: "a hostname of its own",
    Namespace.CGROUP: "a view of cgroups of its own",
    Namespace.IPC: "System V IPC and message queues of its own",
    Namespace.MOUNT: "mounts of its own",
    Namespace.NET: "network interfaces and ports of its own",
    Namespace.TIME: "clocks of its own",
}
_CONTROLLERS = {
    "memory": "limit and count the memory of a whole process tree",
    "pids": "limit the number of processes",
    "cpu": "share of CPU, and a ceiling",
    "cpuacct": "count CPU time",
    "cpuset": "which CPUs",
    "io": "limit and count disk traffic",
    "hugetlb": "limit huge pages",
    "freezer": "stop a tree at once, to kill it whole",
}

#: name -> (meaning, act). Order: as the doctor shows them.
_ACTS: Mapping[str, tuple[str, Act]] = {
    "sandbox": ("all that the profile standard does, start to end", attempts.sandbox),
    "sandbox_plain_user": ("the same for a plain user", attempts.sandbox_plain_user),
    **{
        f"namespace_{kind.value}": (_NAMESPACE_MEANINGS[kind], functools.partial(attempts.namespace, kind))
        for kind in Namespace
    },
    "namespaces": ("all but time, in one step", attempts.namespaces_together),
    "proc": ("a fresh /proc, which shows the sandbox alone", attempts.proc),
    "readonly_root": ("the host's file systems, read-only", attempts.readonly_root),
    "overlayfs": ("a directory whose changes are thrown away", attempts.overlayfs),
    "pivot_root": ("a root of its own", attempts.pivot_root),
    "network_loopback": ("a network of its own, with 127.0.0.1", attempts.network_loopback),
    "rlimits": ("limits for each process", attempts.rlimits),
    "rlimits_raise": ("hard limits above our own", attempts.rlimits_raise),
    "pidfd": ("processes held by a descriptor: no mix-up of pids", attempts.pidfd),
    "clone3": ("the newer clone", attempts.clone3),
    "close_range": ("close every other descriptor at once", attempts.close_range),
    "no_new_privs": ("setuid programs give nothing", attempts.no_new_privs),
    "capabilities_drop": ("privileges given up for good", attempts.capabilities_drop),
    "seccomp": ("filters for system calls", attempts.seccomp),
    "seccomp_default": ("the profile default", attempts.seccomp_default),
    "landlock": ("write access by path, without privilege", attempts.landlock),
    "landlock_tcp": ("TCP ports by number, without privilege", attempts.landlock_tcp),
    "securebits": ("user 0 without privileges, for good", attempts.securebits),
    "bpf": ("network policies, enforced and counted by eBPF", attempts.bpf),
}


def names() -> tuple[str, ...]:
    """Every feature there is a question for."""
    return tuple(meanings())


def meanings() -> dict[str, str]:
    """What each feature is, in a line."""
    acts = {name: meaning for name, (meaning, _) in _ACTS.items()}
    return acts | {f"cgroup_{name}": meaning for name, meaning in _CONTROLLERS.items()}


#: (pid, feature): a forked child may be in another place than its parent.
_known: dict[tuple[int, str], Feature] = {}


def feature(name: str) -> Feature:
    """Answer for one feature; tried at the first call in this process.

    Raises:
        PolicyError: there is no feature of this name; the nearest one is suggested.
    """
    if name not in names():
        raise unknown("feature", name, names())
    key = os.getpid(), name
    if key not in _known:
        answers = [_tried(name, *_ACTS[name])] if name in _ACTS else _cgroup_answers()
        _known.update({(os.getpid(), answer.name): answer for answer in answers})
    return _known[key]


def capabilities() -> Mapping[str, Feature]:
    """Every feature by name, each tried once in this process: what the fixture ``sandbox_capabilities`` gives.

    It takes some tenths of a second the first time. Raises nothing: what cannot be tried is not available.
    """
    return MappingProxyType({name: feature(name) for name in names()})


def _tried(name: str, meaning: str, act: Act) -> Feature:
    try:
        _require_linux()
        return Feature(name=name, available=True, meaning=meaning, reason=act())
    except Refused as refused:
        return _refusal(name, meaning, refused)
    except OSError as error:
        return _refusal(name, meaning, Refused("probe", error.errno or 0, str(error)))


def _require_linux() -> None:
    if platform.system() != "Linux":
        raise Refused(
            "platform", 0, f"{platform.system()} is not Linux", "run the tests in a Linux machine or container"
        )


def _refusal(name: str, meaning: str, refused: Refused) -> Feature:
    case = Case(feature=name, step=refused.step, errno=refused.errno, place=observe())
    return Feature(
        name=name,
        available=False,
        meaning=meaning,
        step=refused.step,
        errno=refused.errno,
        reason=refused.why,
        remedy=remedy(case) or refused.remedy,
    )


def _cgroup_answers() -> list[Feature]:
    try:
        _require_linux()
        rows = attempts.cgroups()
    except Refused as refused:
        return [_refusal(f"cgroup_{name}", meaning, refused) for name, meaning in _CONTROLLERS.items()]
    return [_cgroup_answer(f"cgroup_{name}", meaning, *rows[name]) for name, meaning in _CONTROLLERS.items()]


def _cgroup_answer(name: str, meaning: str, available: bool, reason: str, advice: str) -> Feature:
    if available:
        return Feature(name=name, available=True, meaning=meaning, reason=reason)
    return _refusal(name, meaning, _cgroup_refusal(reason, advice))


#: As kernel/cgroups words a refusal of the kernel: ``cgroup mkdir (DIRECTORY): EACCES (Permission denied)``.
_KERNEL_SAID = re.compile(r"(?P<step>cgroup [\w.]+)(?: \(.*?\))?: (?P<name>E[A-Z0-9]+) \(")


def _cgroup_refusal(reason: str, advice: str) -> Refused:
    said = _KERNEL_SAID.match(reason)
    if said is None:
        return Refused("cgroup", 0, reason, advice)
    return Refused(said["step"], getattr(errno, said["name"], 0), "", advice)
