"""A forked function inherits its parent's descriptors: none that the sandbox itself opened leads out of its read-only view.

Control: what the caller has open is inherited with ``close_fds=False``, and by the same code leads to the host.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.policy import Filesystem, Overlay
from pytest_isolate.profile import STRICT
from pytest_isolate.sandbox import Sandbox
from tests.kernel.filesystem.asking import host_mount


@pytest.fixture
def place(require: Any) -> Iterator[Path]:
    """On a disk: what lies on an overlay cannot keep an overlay's changes."""
    require("overlay-upper", host_mount("/var/tmp").fstype != "overlay", "/var/tmp on a disk")
    with tempfile.TemporaryDirectory(prefix="isolate-escape-", dir="/var/tmp") as folder:
        (Path(folder) / "work").mkdir()
        yield Path(folder)


def write_beside_what_is_open() -> list[str]:
    """Make a file next to whatever directory an open descriptor leads to; the directories beside which there is one now."""
    took = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            made = os.open("../escaped", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd)
        except OSError:
            continue
        os.close(made)
        took.append(os.readlink(f"/proc/self/fd/{fd}"))
    return took


@pytest.mark.parametrize("given", [False, True], ids=["strict", "control"])
def test_a_function_has_no_descriptor_of_what_its_changes_are_kept_in(place: Path, given: bool) -> None:
    view = Filesystem(root="readonly", overlays=(Overlay(target=str(place / "work"), keep=str(place / "kept")),))
    policy = replace(STRICT, filesystem=view, hardening=replace(STRICT.hardening, close_fds=False))
    (place / "given").mkdir()
    fd = os.open(place / "given", os.O_RDONLY | os.O_DIRECTORY) if given else -1
    try:
        with Sandbox(policy) as box:
            took = box.python(write_beside_what_is_open)
    finally:
        if given:
            os.close(fd)
    assert (place / "escaped").exists() == given
    assert took == ([str(place / "given")] if given else [])


def test_nor_of_what_those_of_a_neighbour_are_kept_in(place: Path) -> None:
    overlay = Overlay(target=str(place / "work"), keep=str(place / "kept"))
    policy = replace(STRICT, hardening=replace(STRICT.hardening, close_fds=False))
    with Sandbox(policy) as box, Sandbox(policy) as neighbour:
        program = neighbour.spawn(
            ["sh", "-c", "touch new; echo ready; exec sleep 60"], fs=Filesystem(overlays=(overlay,)), cwd=place / "work"
        )
        assert box.python(write_beside_what_is_open) == []
        program.wait_for_line("ready")
        assert program.terminate().files_changed.added == (str(place / "work" / "new"),), "it is its parent's as before"
