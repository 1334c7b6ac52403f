"""A policy as the configuration of an OCI runtime: what runc, crun and runsc are told.

Owns: ``bundle``: config.json and a root made of the host's directories. Refuses: to know which runtime reads it.
Source: https://github.com/opencontainers/runtime-spec, config.md and config-linux.md, version 1.0.2.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_isolate.kernel import capabilities
from pytest_isolate.kernel.rlimits import compile_rlimits, number_of
from pytest_isolate.policy import RLIMIT_UNITS, Namespace, Policy
from pytest_isolate.tool import Place, Run, places

_TYPES = {
    Namespace.PID: "pid",
    Namespace.USER: "user",
    Namespace.UTS: "uts",
    Namespace.CGROUP: "cgroup",
    Namespace.IPC: "ipc",
    Namespace.MOUNT: "mount",
    Namespace.NET: "network",
    Namespace.TIME: "time",
}
_CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
_UNLIMITED = 2**64 - 1


def bundle(policy: Policy, argv: Sequence[str], run: Run, *, own_kernel: bool = False) -> str:
    """Write config.json and the root into the directory of ``run``; return that.

    ``own_kernel``: the runtime is a kernel itself: its /dev, /proc and /sys are shown, and capabilities are its own.
    """
    root = os.path.join(run.directory, "root")
    os.mkdir(root)
    shown = places(policy)
    if own_kernel:  # what is hidden of the host's /proc is not in its own, and its devices are its own
        shown = [place for place in shown if not (place.is_device or (place.implied and _in_proc(place)))]
    for place in shown:
        if place.kind == "link":
            link = root + place.target
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(place.source, link)
    config = {
        "ociVersion": "1.0.2",
        "process": _process(policy, argv, run, own_kernel),
        "root": {"path": root, "readonly": policy.filesystem.root != "minimal"},
        "mounts": [
            *_root(policy, root, own_kernel, {place.target for place in shown}),
            *(_mount(place) for place in shown if _is_mounted(place)),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in sorted(_namespaces(policy))],
            "maskedPaths": [place.target for place in shown if _is_masked(place)],
            "readonlyPaths": [place.target for place in shown if _is_sealed(place)],
            **_ownership(run),
        },
    }
    if policy.hostname:
        config["hostname"] = policy.hostname
    with open(os.path.join(run.directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return run.directory


def _in_proc(place: Place) -> bool:
    """A runtime mounts nothing below /proc: it hides and seals there by lists of its own."""
    return place.target.startswith("/proc/")


def _is_masked(place: Place) -> bool:
    return _in_proc(place) and place.kind == "mask"


def _is_sealed(place: Place) -> bool:
    return _in_proc(place) and place.kind == "bind" and place.source == place.target and not place.writable


def _is_mounted(place: Place) -> bool:
    return place.kind != "link" and not _is_masked(place) and not _is_sealed(place)


def _namespaces(policy: Policy) -> set[str]:
    """A root of one's own is always in a mount namespace; a plain user's in a user namespace, who may make it there alone."""
    own = {"mount"} if os.geteuid() == 0 else {"mount", "user"}
    return {_TYPES[namespace] for namespace in policy.namespaces} | own


def _ownership(run: Run) -> dict[str, Any]:
    """Root's containers have a cgroup; a plain user's have the one id that he may map, as 0: runc takes no container without."""
    if os.geteuid() == 0:
        return {"cgroupsPath": os.path.basename(run.directory)}
    ids = {"uidMappings": os.geteuid(), "gidMappings": os.getegid()}
    return {name: [{"containerID": 0, "hostID": number, "size": 1}] for name, number in ids.items()}


def _process(policy: Policy, argv: Sequence[str], run: Run, own_kernel: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "terminal": False,
        "user": _user(policy),
        "args": list(argv),
        "env": [f"{name}={value}" for name, value in run.env.items()],
        "cwd": run.cwd,
        "noNewPrivileges": policy.hardening.no_new_privs,
        "rlimits": list(_rlimits(policy)),
    }
    kept = policy.hardening.capabilities
    found["capabilities"] = dict.fromkeys(_CAPABILITY_SETS, sorted(_held(own_kernel) if kept is None else kept))
    return found


def _user(policy: Policy) -> dict[str, Any]:
    """Ourselves; a runtime sets a umask of its own where none is given."""
    ourselves: dict[str, Any] = {"uid": 0, "gid": 0}
    if os.geteuid() == 0:
        ourselves = {"uid": 0, "gid": os.getegid(), "additionalGids": os.getgroups()}
    if policy.hardening.umask is None:
        return ourselves
    return {**ourselves, "umask": policy.hardening.umask}


def _held(own_kernel: bool) -> set[str]:
    """The capabilities of this process. A runtime that is a kernel refuses those newer than it: gVisor has the first 38."""
    newest = capabilities.NUMBERS["CAP_AUDIT_READ"] if own_kernel else 63
    return {name for name, number in capabilities.NUMBERS.items() if number <= newest and capabilities.has(name)}


def _rlimits(policy: Policy) -> Iterator[Mapping[str, Any]]:
    names = {number_of(name): name for name in RLIMIT_UNITS}
    for number, soft, hard in compile_rlimits(policy.limits):
        yield {"type": f"RLIMIT_{names[number]}", "soft": soft & _UNLIMITED, "hard": hard & _UNLIMITED}


def _root(policy: Policy, root: str, own_kernel: bool, covered: set[str]) -> Iterator[dict[str, Any]]:
    """The host's directories, each bound, but for what is ``covered``; its links, made anew. A minimal root is empty.

    Of two mounts at one place gVisor shows now the first and now the second.
    """
    view = policy.filesystem
    if view.root == "minimal":
        return
    option = "ro" if view.root == "readonly" else "rw"
    for name in sorted(os.listdir("/")):
        path = f"/{name}"
        if os.path.islink(path):
            os.symlink(os.readlink(path), os.path.join(root, name))
        elif path in covered:
            continue
        elif os.path.isdir(path) and not (own_kernel and name in ("dev", "proc", "sys")):
            yield {
                "destination": path,
                "type": "bind",
                "source": path,
                "options": ["rbind", _whole(option, own_kernel)],
            }
    if own_kernel:
        yield {"destination": "/proc", "type": "proc", "source": "proc"}


def _whole(option: str, own_kernel: bool) -> str:
    """``rro`` is read-only with all that is mounted below; a kernel of its own has no mounts of the host below."""
    return "rro" if option == "ro" and not own_kernel else option


def _mount(place: Place) -> dict[str, Any]:
    match place.kind:
        case "tmpfs":
            size = [] if place.size_bytes is None else [f"size={place.size_bytes}"]
            return {
                "destination": place.target,
                "type": "tmpfs",
                "source": "tmpfs",
                "options": [f"mode={place.mode:o}", *size],
            }
        case "proc":
            return {"destination": place.target, "type": "proc", "source": "proc"}
        case "devpts":
            options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
            return {"destination": place.target, "type": "devpts", "source": "devpts", "options": options}
        case "mask" if place.directory:
            options = ["mode=0", "size=4096", "ro"]
            return {"destination": place.target, "type": "tmpfs", "source": "tmpfs", "options": options}
        case "mask":
            return {"destination": place.target, "type": "bind", "source": "/dev/null", "options": ["bind", "ro"]}
    kind = "rbind" if place.recursive else "bind"
    options = [kind, "rw" if place.writable else "ro"]
    return {"destination": place.target, "type": "bind", "source": place.source, "options": options}


def runtime_fault(run: Run) -> str:
    """The first error in the runtime's log, ``log`` in the directory of ``run`` and in JSON; empty without one."""
    try:
        with open(os.path.join(run.directory, "log"), encoding="utf-8", errors="replace") as file:
            lines = [json.loads(line) for line in file if line.startswith("{")]
    except (OSError, ValueError):
        return ""
    return next((str(line.get("msg", "")) for line in lines if line.get("level") in ("error", "fatal")), "")
