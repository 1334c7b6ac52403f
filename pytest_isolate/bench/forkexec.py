"""Starting a program under each namespace, and in a new root: the floor in C, this package by each of its doors, and peers.

Owns: the twelve rows and who takes part in which. All execute the same program (isolate-tiny: 600 bytes, no libc), so that what
is compared is the start. The floor makes the same system calls without any error handling; where this package puts an init
(PID namespaces), so does the floor, and a row ``no init`` shows what that costs. A root that Sandbox makes has a /dev, and is
read-only: in the pivot rows it and bubblewrap, told to make one, too, are compared with a floor that does that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_isolate.bench.measure import Batch, Effort, bench, in_turns, lines_of
from pytest_isolate.bench.table import HEAD, Table, cells
from pytest_isolate.kernel import native
from pytest_isolate.kernel.library import find
from pytest_isolate.kernel.plan import CLONE_FLAGS, IdMap, MountKind, MountOp, Plan
from pytest_isolate.policy import Bind, Filesystem, Namespace, Policy
from pytest_isolate.sandbox import Sandbox

_ALL = frozenset(Namespace) - {Namespace.TIME}
_ROWS: Mapping[str, frozenset[Namespace]] = {
    "standard": frozenset(),
    "simple": frozenset(),
    **{kind.value: frozenset({kind}) for kind in (*list(Namespace)[:5],)},
    "mnt": frozenset({Namespace.MOUNT}),
    "net": frozenset({Namespace.NET}),
    "mnt+pivot": frozenset({Namespace.MOUNT}),
    "all": _ALL,
    "all+pivot": _ALL,
}
_BOUND = ("usr", "lib", "lib64", "bin")
_MS_RDONLY_NOSUID_BIND, _MS_REC_PRIVATE = 1 | 2 | 4096, 16384 | 1 << 18
_WHOLE = "C floor, with a /dev"
_WITH_DEVICES = (_WHOLE, "Sandbox.run (Python)", "bwrap")
_SLOW = {"runsc": 20, "crun": 2}  # how many times fewer operations


def measure(effort: Effort) -> list[Table]:
    """A table for each row that is asked for."""
    with tempfile.TemporaryDirectory(prefix="isolate-bench-") as place:
        return [_row(name, Path(place), effort) for name in _ROWS if effort.wants(name)]


def _row(name: str, place: Path, effort: Effort) -> Table:
    stage = place / "stage"
    stage.mkdir(exist_ok=True)
    found = in_turns(dict(competitors(name, place, stage)), effort)
    missing = [peer for peer in ("unshare", "bwrap", "crun", "runsc") if shutil.which(peer) is None]
    return Table(
        title=f"fork+exec: {name}",
        head=("who", *HEAD),
        rows=tuple((who, *cells(samples, found[floor_of(who, found)])) for who, samples in found.items()),
        notes=tuple(_notes(missing, [who for who, samples in found.items() if not samples.times_ns])),
    )


def floor_of(who: str, found: Mapping[str, Any]) -> str:
    """The floor that takes the same steps as ``who``."""
    return _WHOLE if who in _WITH_DEVICES and _WHOLE in found else "C floor"


def _notes(missing: list[str], failed: list[str]) -> Iterator[str]:
    if missing:
        yield f"Not installed: {', '.join(missing)}."
    if failed:
        yield f"Installed, and cannot do it on this machine: {', '.join(failed)}."


def competitors(name: str, place: Path, stage: Path) -> Iterator[tuple[str, Batch]]:
    """Who takes part in a row, and how; ``place`` is theirs, ``stage`` an empty directory in it."""
    where = (stage, find("isolate-tiny").parent)
    yield "C floor", lambda count: lines_of(bench("forkexec", "floor", name, count, *where))
    if Namespace.PID in _ROWS[name]:
        yield "C floor, no init", lambda count: lines_of(bench("forkexec", "bare", name, count, *where))
    if name.endswith("pivot"):
        yield _WHOLE, lambda count: lines_of(bench("forkexec", "whole", name, count, *where))
    yield "iso_spawn (C)", lambda count: lines_of(bench("forkexec", "library", name, count, *where))
    yield "native.spawn (Python)", _through_native(plan(name, stage))
    yield "Sandbox.run (Python)", _through_sandbox(policy(name))
    if name == "standard":
        yield "subprocess.run", _through_subprocess({})
        yield (
            "subprocess.run, output captured",
            _through_subprocess({"capture_output": True, "stdin": subprocess.DEVNULL}),
        )
    for who, command in peers(name, place).items():
        yield who, _through_command(who, command)


# ---- this package ----


def _namespaces(name: str) -> frozenset[Namespace]:
    """Only the owner of a user namespace may make the others: a plain user gets one with each."""
    asked = _ROWS[name]
    return asked | {Namespace.USER} if asked and os.geteuid() else asked


def plan(name: str, stage: Path) -> Plan:
    """A row, as this package's lowest Python floor takes it."""
    user = Namespace.USER in _namespaces(name)
    uid, gid = os.geteuid(), os.getegid()
    return Plan(
        namespaces=sum(CLONE_FLAGS[kind] for kind in _namespaces(name)),
        uid_map=(IdMap(inside=uid, outside=uid, count=1),) if user else (),
        gid_map=(IdMap(inside=gid, outside=gid, count=1),) if user else (),
        mounts=tuple(_new_root(str(stage))) if name.endswith("pivot") else (),
        new_session=False,
        pdeathsig=0,
    )


def _new_root(stage: str) -> Iterator[MountOp]:
    yield MountOp(kind=MountKind.PROPAGATION, target="/", flags=_MS_REC_PRIVATE)
    yield MountOp(kind=MountKind.MOUNT, source="tmpfs", fstype="tmpfs", target=stage)
    for one in _BOUND:
        yield MountOp(kind=MountKind.MKDIR, target=f"{stage}/{one}")
        yield MountOp(kind=MountKind.BIND, source=f"/{one}", target=f"{stage}/{one}", flags=_MS_RDONLY_NOSUID_BIND)
    yield MountOp(kind=MountKind.PIVOT, target=stage)


def _through_native(plan: Plan) -> Batch:
    def batch(count: int) -> list[int]:
        program_fd = os.open(find("isolate-tiny"), os.O_PATH | os.O_CLOEXEC)
        try:
            return [_spawned(plan, program_fd) for _ in range(count)]
        finally:
            os.close(program_fd)

    return batch


def _spawned(plan: Plan, program_fd: int) -> int:
    begun = time.perf_counter_ns()
    with native.spawn(plan, ["tiny"], {}, executable_fd=program_fd) as child:
        exited = child.wait()
    assert exited is not None
    return time.perf_counter_ns() - begun if exited.status.code == 0 else -1


def policy(name: str) -> Policy:
    """A row, as Sandbox takes it."""
    beside = str(find("isolate-tiny").parent)
    binds = tuple(Bind(source=path, target=path) for path in (*(f"/{one}" for one in _BOUND), beside))
    pivot = name.endswith("pivot")
    return Policy(
        namespaces=_namespaces(name),
        filesystem=Filesystem(root="minimal", binds=binds, proc=False) if pivot else Filesystem(proc=False),
        session=False,
    )


def _through_sandbox(policy: Policy) -> Batch:
    program = str(find("isolate-tiny"))

    def batch(count: int) -> list[int]:
        with Sandbox(policy, name="bench") as sandbox:
            return [_ran(sandbox, program) for _ in range(count)]

    return batch


def _ran(sandbox: Sandbox, program: str) -> int:
    begun = time.perf_counter_ns()
    outcome = sandbox.run([program], env={})
    return time.perf_counter_ns() - begun if outcome.status.code == 0 else -1


def _through_subprocess(streams: dict[str, Any]) -> Batch:
    program = [str(find("isolate-tiny"))]

    def once() -> int:
        begun = time.perf_counter_ns()
        done = subprocess.run(program, **streams)
        return time.perf_counter_ns() - begun if done.returncode == 0 else -1

    return lambda count: [once() for _ in range(count)]


# ---- peers ----

_UNSHARE = {
    "pid": ["--pid", "--fork"],
    "user": ["--user"],
    "uts": ["--uts"],
    "cgroup": ["--cgroup"],
    "ipc": ["--ipc"],
    "mnt": ["--mount"],
    "net": ["--net"],
    "all": ["--user", "--pid", "--fork", "--uts", "--cgroup", "--ipc", "--mount", "--net"],
}


#: crun refuses to run where controllers are on v1 and a v2 hierarchy is mounted beside them, whatever it is told about cgroups:
#: it is shown a machine without that mount.
_WITHOUT_V2_BESIDE = '! mountpoint -q "$0" || umount "$0" && exec "$@"'


def _through_command(who: str, command: list[str]) -> Batch:
    def batch(count: int) -> list[int]:
        words = bench("command", max(1, count // _SLOW.get(who, 1)), *command)
        if who == "crun" and os.geteuid() == 0:
            shell = ["sh", "-c", _WITHOUT_V2_BESIDE, "/sys/fs/cgroup/unified"]
            words = ["unshare", "--mount", "--propagation", "private", *shell, *words]
        return lines_of(words)

    return batch


def peers(name: str, place: Path) -> dict[str, list[str]]:
    """Those that are installed and can do what the row asks, by their full path."""
    tiny = str(find("isolate-tiny"))
    wanted = {}
    if name in _UNSHARE:
        user = ["--user"] if os.geteuid() and "--user" not in _UNSHARE[name] else []
        wanted["unshare"] = ["unshare", *user, *_UNSHARE[name], tiny]
    if name.endswith("pivot"):
        binds = [word for one in _BOUND for word in ("--ro-bind", f"/{one}", f"/{one}")]
        binds += ["--ro-bind", os.path.dirname(tiny), os.path.dirname(tiny)]
        unshared = ["--unshare-all"] if name == "all+pivot" else []
        wanted["bwrap"] = ["bwrap", *unshared, "--dev", "/dev", *binds, "--remount-ro", "/", tiny]
    if name == "all+pivot":
        wanted["crun"] = ["crun", "--root", str(place / "crun"), "--cgroup-manager", "disabled", "run"]
        wanted["crun"] += ["--bundle", str(_bundle(place, tiny)), f"isolate-bench-{os.getpid()}"]
        wanted["runsc"] = ["runsc", "--root", str(place / "runsc"), "--platform=ptrace", "--network=none"]
        wanted["runsc"] += ["--ignore-cgroups", "do", tiny]
    found = {who: shutil.which(who) for who in wanted}
    return {who: [path, *wanted[who][1:]] for who, path in found.items() if path}


def _bundle(place: Path, tiny: str) -> Path:
    """An OCI bundle that does what the other rows do: all namespaces, a root with the program in it, no capabilities."""
    bundle = place / "bundle"
    for directory in ("root/dev", "root/proc"):
        (bundle / directory).mkdir(parents=True, exist_ok=True)
    shutil.copy(tiny, bundle / "root" / "tiny")
    kinds = ("pid", "mount", "ipc", "uts", "network", "cgroup", "user")
    config: dict[str, Any] = {
        "ociVersion": "1.0.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/tiny"], "cwd": "/", "env": []},
        "root": {"path": "root", "readonly": True},
        "mounts": [],
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "uidMappings": [{"containerID": 0, "hostID": 0, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": 0, "size": 1}],
        },
    }
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle
