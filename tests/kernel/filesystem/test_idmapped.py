"""Binds whose owner's files are ours inside: root leaves no files of root's on the host; who may not is told so."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import BackendUnavailable, IsolateError
from pytest_isolate.kernel import filesystem
from pytest_isolate.kernel.filesystem.context import has_mount_setattr, kernel_release
from pytest_isolate.policy import Bind, Filesystem
from pytest_isolate.profile import STANDARD, vary
from pytest_isolate.sandbox import Sandbox
from tests.kernel.filesystem.asking import host_mount, place_in
from tests.kernel.launching import open_fds
from tests.kernel.throwaway import NOBODY, throwaway

pytestmark = pytest.mark.usefixtures("drops_to_a_plain_user")

PLACE = "/var/tmp"
SHOW = 'stat -c %u:%g "$0/file" "$0/theirs"; echo x >"$0/made" && mkdir "$0/new"; stat -c %u:%g "$0/made"'


@pytest.fixture
def idmaps(require: Any) -> None:
    """Idmapped mounts are of Linux 5.12, and each file system came to have them at a time of its own. Source: mount_setattr(2)."""
    of_file_system = {"tmpfs": (6, 3), "overlay": (99, 0)}  # an overlay's own mount has none at all
    least = max((5, 12), of_file_system.get(host_mount(PLACE).fstype, (0, 0)))
    require("idmapped-mounts", kernel_release() >= least, f"a kernel with idmapped mounts of {PLACE}")


@pytest.fixture
def working_copy() -> Any:
    """A directory of a plain user's, with a file of a third one's."""
    for path in place_in(PLACE, "user"):
        (path / "theirs").write_text("")
        os.chown(path / "theirs", 4321, 4321)
        yield path
    filesystem.idmapped.forget()


def view(path: Path, *, owned: bool = True) -> Filesystem:
    return Filesystem(binds=(Bind(source=str(path), target=str(path), writable=True, owned=owned),), proc=False)


def owner(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


@pytest.mark.usefixtures("idmaps")
@pytest.mark.parametrize("namespaces", ["mnt", "mnt,pid", "mnt,user,pid"])
def test_what_is_made_inside_belongs_to_the_owner_outside(working_copy: Path, namespaces: str) -> None:
    with Sandbox(vary(STANDARD, namespaces=namespaces, fs=view(working_copy, owned=False))) as sandbox:
        assert sandbox.run(["true"], cwd="/").ok
    before = open_fds()  # among them what is kept for the next start of any kind
    with Sandbox(vary(STANDARD, namespaces=namespaces, fs=view(working_copy)), name="owned") as sandbox:
        for _ in range(2):
            outcome = sandbox.run(["sh", "-c", SHOW, str(working_copy)], cwd="/")
            nobody = "65534:65534"
            assert outcome.stdout == f"0:0\n{nobody}\n0:0\n", outcome
            assert (owner(working_copy / "made"), owner(working_copy / "new")) == ((NOBODY, NOBODY), (NOBODY, NOBODY))
            (working_copy / "new").rmdir()
    assert len(open_fds()) == len(before) + 1  # the carrier of this pair of owners is kept for the next time


def test_without_it_the_files_are_roots(working_copy: Path) -> None:
    """The control."""
    with Sandbox(vary(STANDARD, fs=view(working_copy, owned=False)), name="owned") as sandbox:
        outcome = sandbox.run(["sh", "-c", SHOW, str(working_copy)], cwd="/")
    assert outcome.stdout == f"{NOBODY}:{NOBODY}\n4321:4321\n0:0\n"
    assert owner(working_copy / "made") == (0, 0)


@pytest.mark.usefixtures("idmaps")
def test_a_function_sees_the_same(working_copy: Path) -> None:
    with Sandbox(vary(STANDARD, fs=view(working_copy)), name="owned") as sandbox:
        assert sandbox.python(os.stat, str(working_copy / "file")) is not None
        sandbox.python(Path.touch, working_copy / "touched")
    assert owner(working_copy / "touched") == (NOBODY, NOBODY)


def test_a_plain_user_is_told_why_not(working_copy: Path) -> None:
    def body() -> str:
        with Sandbox(vary(STANDARD, fs=view(working_copy)), name="owned") as sandbox:
            try:
                sandbox.run(["true"], cwd="/")
            except IsolateError as error:
                return str(error)
        return "ran"

    said = throwaway(body, who="user")
    assert "as its owner's" in said
    assert "this user may not" in said


def test_a_file_system_without_idmapped_mounts_is_named() -> None:
    why = "its file system, or this kernel, has no" if has_mount_setattr() else "Linux 5.12 has mount_setattr"
    with pytest.raises(BackendUnavailable, match=re.escape(f"bind of /proc as its owner's: {why}")):
        filesystem.idmapped.owned_tree("/proc")
    filesystem.idmapped.forget()
