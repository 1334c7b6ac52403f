"""Binds, private tmpfs and masks; what a table does to the host (nothing) and says of a source that is gone."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from pytest_isolate.errors import PolicyError, SetupError
from pytest_isolate.kernel import filesystem, native
from pytest_isolate.policy import Bind, Filesystem, Tmpfs
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
        masks=(str(place / "file"), str(place / "old"), str(place / "absent")),
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
        assert inside.plan.skipped == (f"mask {place / 'absent'}: the host has nothing there",)

    throwaway(body, who=who)


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
