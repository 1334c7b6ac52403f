"""Targets of mounts in a directory that belongs to the attacker: a symlink there, also one that comes and goes, leads nowhere outside."""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import MountKind, MountOp, Plan
from tests.conftest import require
from tests.kernel.launching import LIMIT_S, PRIVATE, plan

MS_BIND = 4096
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_libc = ctypes.CDLL(None)
RACES = 200
#: What is mounted on the target at last: a file system by its path, or a tree by a descriptor (move_mount).
both_ways = pytest.mark.parametrize(
    "last",
    [
        MountOp(kind=MountKind.MOUNT, source="tmpfs", target="", fstype="tmpfs"),
        MountOp(kind=MountKind.BIND, source="/usr/lib", target="", flags=MS_BIND),
    ],
    ids=["tmpfs", "bind"],
)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    require("root", os.geteuid() == 0, "mounts without a user namespace")
    for name in ("theirs", "theirs/real", "stage", "outside"):
        (tmp_path / name).mkdir()
    return tmp_path / "outside"


def into_theirs(base: Path, last: MountOp) -> Plan:
    """A new root with the attacker's directory in it, and a directory to be made, and mounted on, below that."""
    stage = str(base / "stage")
    target = f"{stage}/theirs/link/made"
    return plan(
        "pid",
        "mnt",
        mounts=(
            PRIVATE,
            MountOp(kind=MountKind.MOUNT, source="tmpfs", target=stage, fstype="tmpfs"),
            MountOp(kind=MountKind.MKDIR, target=f"{stage}/theirs"),
            MountOp(kind=MountKind.MKDIR, target=f"{stage}/usr"),
            MountOp(kind=MountKind.BIND, source="/usr", target=f"{stage}/usr", flags=MS_BIND),
            *(
                MountOp(kind=MountKind.SYMLINK, source=f"usr/{n}", target=f"{stage}/{n}")
                for n in ("bin", "lib", "lib64")
            ),
            MountOp(kind=MountKind.BIND, source=str(base / "theirs"), target=f"{stage}/theirs", flags=MS_BIND),
            MountOp(kind=MountKind.MKDIR, target=target),
            replace(last, target=target),
            MountOp(kind=MountKind.PIVOT, target=stage),
        ),
    )


def start(base: Path, last: MountOp) -> str:
    """``started``, or the step that failed."""
    try:
        child = native.spawn(into_theirs(base, last), ["/usr/bin/true"])
    except SetupError as error:
        return error.step
    with child:
        child.wait(LIMIT_S)
    return "started"


@both_ways
def test_a_planted_symlink_leads_nowhere_outside(outside: Path, last: MountOp) -> None:
    base, link = outside.parent, outside.parent / "theirs" / "link"
    link.symlink_to("real")
    assert start(base, last) == "started"
    assert (base / "theirs/real/made").is_dir()  # the control: links are followed, inside
    link.unlink()
    link.symlink_to(outside)
    os.mkdir(link / "control")  # and this one does lead outside
    assert start(base, last) in ("started", "mounts")
    assert os.listdir(outside) == ["control"]


@both_ways
def test_a_symlink_that_comes_and_goes_leads_nowhere_outside(outside: Path, last: MountOp) -> None:
    base, link = outside.parent, outside.parent / "theirs" / "link"
    planted = base / "theirs/planted"
    link.mkdir()
    planted.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            _libc.renameat2(_AT_FDCWD, bytes(link), _AT_FDCWD, bytes(planted), _RENAME_EXCHANGE)

    racer = threading.Thread(target=swap, daemon=True)
    racer.start()
    try:
        ends = [start(base, last) for _ in range(RACES)]
    finally:
        stop.set()
        racer.join(LIMIT_S)
    assert os.listdir(outside) == []
    assert "started" in ends, "the control: nothing was started at all"
    assert {"started", "mounts"} >= set(ends)
