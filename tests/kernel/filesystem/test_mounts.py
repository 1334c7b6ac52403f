"""Binds, private tmpfs and masks; what a table does to the host (nothing) and says of a source that is gone."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import PolicyError, SetupError
from pytest_isolate.kernel import filesystem, native
from pytest_isolate.policy import Bind, Filesystem, Overlay, Tmpfs
from tests.kernel.filesystem.asking import place_in, write
from tests.kernel.throwaway import launch, launch_plan, mount, throwaway

pytestmark = pytest.mark.usefixtures("drops_to_a_plain_user")


def test_binds_are_writable_only_when_asked(who: str, place: Path) -> None:
    view = Filesystem(
        tmpfs=(Tmpfs(target="/mnt"),),
        binds=(
            Bind(source=str(place), target="/mnt/ro"),
            Bind(source=str(place / "old"), target="/mnt/rw", writable=True),
            Bind(source=str(place / "file"), target="/mnt/deep/er/file"),
        ),
    )

    def body() -> None:
        inside = launch(
            view, lambda: [write("/mnt/ro/new"), write("/mnt/rw/new"), write("/mnt/deep/er/file"), write("/mnt/new")]
        )
        assert inside.result == ["EROFS", "ok", "EROFS", "ok"]
        assert sorted(os.listdir(place / "old")) == ["inner", "new"]

    throwaway(body, who=who)


@pytest.mark.parametrize("recursive", [True, False])
def test_a_bind_takes_the_mounts_below_it_along_only_when_recursive(recursive: bool) -> None:
    for place in place_in("/var/tmp", "root"):
        sub = place / "old"

        def body(place: Path = place, sub: Path = sub) -> None:
            (sub / "mounted").write_text("")
            view = Filesystem(
                tmpfs=(Tmpfs(target="/mnt"),), binds=(Bind(source=str(place), target="/mnt/b", recursive=recursive),)
            )
            inside = launch(view, lambda: [os.listdir("/mnt/b/old"), write("/mnt/b/old/new")])
            assert inside.result == [["mounted"] if recursive else ["inner"], "EROFS"]

        throwaway(body, prepare=lambda sub=sub: mount("t", str(sub), "tmpfs"))


def test_a_private_tmpfs_has_its_size_and_mode(who: str) -> None:
    view = Filesystem(tmpfs=(Tmpfs(target="/tmp", size_bytes=1 << 20, mode=0o750),))

    def body() -> None:
        inside = launch(
            view,
            lambda: [
                os.stat("/tmp").st_mode,
                os.listdir("/tmp"),
                write("/tmp/a", "x" * 4096),
                write("/tmp/b", "x" * (2 << 20)),
            ],
        )
        assert inside.result == [stat.S_IFDIR | 0o750, [], "ok", "ENOSPC"]

    throwaway(body, who=who)


def test_masks_hide_a_file_and_a_directory_but_not_what_is_put_back(who: str, place: Path) -> None:
    (place / "old" / "kept").mkdir()
    view = Filesystem(
        masks=(str(place / "file"), str(place / "old")),
        binds=(Bind(source=str(place / "old" / "kept"), target=str(place / "old" / "kept"), writable=True),),
    )

    def body() -> None:
        inside = launch(
            view,
            lambda: [
                (place / "file").read_text(),
                os.listdir(place / "old"),
                write(place / "old" / "new"),
                write(place / "old/kept/x"),
            ],
        )
        assert inside.result == ["", ["kept"], "EROFS", "ok" if who == "root" else "EACCES"]

    throwaway(body, who=who)


@pytest.mark.parametrize("root", ["host", "readonly", "minimal"])
def test_a_mask_hides_what_only_the_view_has_at_its_path(root: Any, who: str, place: Path) -> None:
    shown = () if root == "minimal" else (Tmpfs(target="/mnt"),)
    plain = Filesystem(root=root, tmpfs=shown, binds=(Bind(source=str(place), target="/mnt/b"),))
    masked = replace(plain, masks=("/mnt/b/file", "/mnt/b/old"))

    def look() -> list[Any]:
        return [Path("/mnt/b/file").read_text(), os.listdir("/mnt/b/old")]

    def body() -> None:
        assert launch(plain, look).result == ["content", ["inner"]]
        assert launch(masked, look).result == ["", []]

    throwaway(body, who=who)


def test_a_mask_of_what_is_not_in_the_view_is_refused(who: str, place: Path) -> None:
    def body() -> None:
        for view in (
            Filesystem(masks=(str(place / "absent"),)),
            Filesystem(masks=(str(place / "file"),), tmpfs=(Tmpfs(target=str(place)),)),
            Filesystem(root="minimal", masks=(str(place / "file"),)),
        ):
            with pytest.raises(PolicyError, match="nothing in the view"):
                launch(view, lambda: None)

    throwaway(body, who=who)


@pytest.mark.parametrize("root", ["host", "readonly"])
def test_what_covers_dev_or_proc_keeps_nothing_else_from_being_mounted(root: Any, who: str, place: Path) -> None:
    masks = (str(place / "file"),)
    views = {
        "/dev": Filesystem(root=root, masks=masks, tmpfs=(Tmpfs(target="/dev"),)),
        "/dev masked": Filesystem(root=root, masks=(*masks, "/dev")),
        "/proc": Filesystem(root=root, masks=masks, tmpfs=(Tmpfs(target="/proc"),)),
        "/proc masked": Filesystem(root=root, masks=(*masks, "/proc")),
        "/proc bound": Filesystem(
            root=root,
            masks=masks,
            binds=(Bind(source=str(place), target="/proc"),),
            tmpfs=(Tmpfs(target="/proc/old"),),
        ),
    }

    def body() -> None:
        for name, view in views.items():
            inside = launch(
                view, lambda name=name: [sorted(os.listdir(name.split()[0])), (place / "file").read_text()], cwd="/"
            )
            assert inside.result == [sorted(os.listdir(place)) if name == "/proc bound" else [], ""], name

    throwaway(body, who=who)


def test_nothing_of_the_views_own_is_put_back_below_a_mask(place: Path) -> None:
    def body() -> None:
        plain = Filesystem(overlays=(Overlay(target="/"),))
        control = launch(plain, lambda: os.path.exists(place / "old" / "mounted"), cwd="/")
        masked = replace(plain, masks=(str(place),))
        assert (control.result, launch(masked, lambda: os.listdir(place), cwd="/").result) == (True, [])

    def prepare() -> None:
        mount("t", str(place / "old"), "tmpfs")
        (place / "old" / "mounted").touch()

    throwaway(body, prepare=prepare)


def test_the_table_creates_nothing_on_the_host(who: str, place: Path) -> None:
    def body() -> None:
        view = Filesystem(binds=(Bind(source=str(place / "old"), target=str(place / "absent")),))
        with pytest.raises(PolicyError, match="creating it would change the host"):
            launch(view, lambda: None)
        assert not (place / "absent").exists()

    throwaway(body, who=who)


def test_a_source_that_vanishes_after_the_compilation_is_named(who: str, place: Path) -> None:
    gone = place / "gone"
    gone.mkdir()

    def lookup_and_remove() -> None:
        view = Filesystem(binds=(Bind(source=str(gone), target=str(place / "old")),))
        plan = filesystem.compile(view, context=filesystem.Context.of_this_host(user_namespace=who == "user"))
        index = next(i for i, op in enumerate(plan.ops) if op.source == str(gone))
        shutil.rmtree(gone)
        with pytest.raises(SetupError) as caught:
            start(plan)
        assert (caught.value.step, caught.value.errno, caught.value.index) == ("mounts", errno.ENOENT, index)
        assert plan.words[index] == f"bind of {gone}, read-only"

    throwaway(lookup_and_remove, who=who)


def start(plan: filesystem.MountPlan) -> None:
    with filesystem.Layers(plan) as layers:
        child = native.fork(launch_plan(layers))
        if child is None:
            os._exit(0)
        with child:
            child.wait(20)
