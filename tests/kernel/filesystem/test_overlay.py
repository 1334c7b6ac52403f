"""Overlays take what is changed, list it and are thrown away or kept; by root and by a plain user."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.kernel import filesystem, native
from pytest_isolate.kernel.filesystem import mountinfo
from pytest_isolate.kernel.filesystem.context import kernel_release
from pytest_isolate.outcome import FilesChanged
from pytest_isolate.policy import Filesystem, Overlay, Tmpfs
from tests.kernel.filesystem.asking import attempt, flags_at, host_mount, place_in, write
from tests.kernel.throwaway import NOBODY, launch, launch_plan, mount, throwaway

pytestmark = pytest.mark.usefixtures("drops_to_a_plain_user")


@pytest.mark.usefixtures("overlays")
def test_an_overlay_takes_the_changes_and_lists_them(who: str, place: Path) -> None:
    def change() -> None:
        (place / "new").mkdir()
        (place / "new" / "leaf").write_text("leaf")
        (place / "file").write_text("changed")
        (place / "old" / "inner").unlink()
        (place / "script").chmod(0o700)
        os.symlink("nowhere", place / "link")
        os.mkfifo(place / "fifo")

    def body() -> None:
        inside = launch(Filesystem(overlays=(Overlay(target=str(place)),)), change)
        assert (place / "file").read_text() == "content"
        assert sorted(os.listdir(place)) == ["file", "old", "script"]
        assert inside.changed == FilesChanged(
            added=tuple(str(place / name) for name in ("fifo", "link", "new", "new/leaf")),
            modified=tuple(str(place / name) for name in ("file", "script")),
            deleted=(str(place / "old/inner"),),
        )

    throwaway(body, who=who)


@pytest.mark.usefixtures("overlays")
def test_what_was_only_opened_or_put_back_is_no_change(who: str, place: Path) -> None:
    def touch() -> None:
        os.close(os.open(place / "file", os.O_RDWR))
        (place / "stray").write_text("")
        (place / "stray").unlink()

    def body() -> None:
        assert not launch(Filesystem(overlays=(Overlay(target=str(place)),)), touch).changed

    throwaway(body, who=who)


@pytest.mark.usefixtures("overlays")
def test_a_same_sized_change_with_its_time_put_back_is_still_seen(who: str, place: Path) -> None:
    def forge() -> None:
        before = (place / "file").stat()
        (place / "file").write_text("c0ntent")
        os.utime(place / "file", ns=(before.st_atime_ns, before.st_mtime_ns))

    def body() -> None:
        changed = launch(Filesystem(overlays=(Overlay(target=str(place)),)), forge).changed
        assert changed == FilesChanged(modified=(str(place / "file"),))

    throwaway(body, who=who)


@pytest.mark.usefixtures("overlays")
def test_a_directory_replaced_by_a_new_one_shows_what_is_gone(who: str, place: Path) -> None:
    def replace() -> str:
        (place / "old" / "inner").unlink()
        removed = attempt((place / "old").rmdir)
        if removed != "ok":
            return removed
        (place / "old").mkdir()
        return write(place / "old" / "other")

    def body() -> None:
        inside = launch(Filesystem(overlays=(Overlay(target=str(place)),)), replace)
        if who == "user" and kernel_release() < (6, 6):
            assert inside.result == "EIO"
            assert "before Linux 6.6" in filesystem.explain(errno.EIO, str(place / "old"), inside.plan)
            return
        assert inside.result == "ok"
        assert str(place / "old/other") in inside.changed.added
        assert inside.changed.deleted == (str(place / "old/inner"),)

    throwaway(body, who=who)


@pytest.mark.usefixtures("overlays")
def test_a_renamed_directory_is_gone_here_and_new_there(who: str, place: Path) -> None:
    def body() -> None:
        inside = launch(
            Filesystem(overlays=(Overlay(target=str(place)),)),
            lambda: attempt(lambda: os.rename(place / "old", place / "moved")),
        )
        if who == "user":  # redirects need trusted xattrs; explain() has the words
            assert inside.result == "EXDEV"
            assert "Programs copy instead" in filesystem.explain(errno.EXDEV, str(place / "old"), inside.plan)
            return
        assert inside.result == "ok"
        assert inside.changed.added == (str(place / "moved"), str(place / "moved/inner"))
        assert inside.changed.deleted == (str(place / "old"),)

    throwaway(body, who=who)


@pytest.mark.usefixtures("overlays")
@pytest.mark.parametrize("root", ["host", "readonly"])
@pytest.mark.parametrize("name", ["/var/tmp/isolate-keep-", "/tmp/isolate-keep,:-"])
def test_a_kept_overlay_leaves_its_changes_in_the_directory_named(
    who: str, place: Path, root: Any, name: str, require: Any
) -> None:
    fstype = host_mount(os.path.dirname(name)).fstype
    require("overlay-upper", fstype != "overlay", f"{name}: a directory that is not on an overlay itself")
    keep = Path(tempfile.mkdtemp(prefix=os.path.basename(name), dir=os.path.dirname(name)))
    if who == "user":
        os.chown(keep, NOBODY, NOBODY)

    def body() -> None:
        view = Filesystem(
            root=root, overlays=(Overlay(target=str(place), keep=str(keep)),), tmpfs=(Tmpfs(target="/tmp"),)
        )
        changed = launch(view, lambda: write(place / "new", "kept")).changed
        assert changed.added == (str(place / "new"),)
        assert (keep / "upper" / "new").read_text() == "kept"
        assert not (place / "new").exists()

    try:
        throwaway(body, who=who)
    finally:
        shutil.rmtree(keep)


@pytest.mark.usefixtures("overlays")
def test_an_overlay_is_full_at_its_size(who: str, place: Path) -> None:
    def body() -> None:
        view = Filesystem(overlays=(Overlay(target=str(place), size_bytes=1 << 20),))
        inside = launch(view, lambda: [write(place / "small", "x" * 4096), write(place / "large", "x" * (2 << 20))])
        assert inside.result == ["ok", "ENOSPC"]
        assert "Raise its size_bytes" in filesystem.explain(errno.ENOSPC, str(place / "large"), inside.plan)

    throwaway(body, who=who)


@pytest.mark.usefixtures("overlays")
def test_an_overlay_keeps_the_mode_and_owner_of_its_directory(who: str, place: Path) -> None:
    place.chmod(0o1757)

    def body() -> None:
        seen = launch(
            Filesystem(overlays=(Overlay(target=str(place)),)), lambda: [place.stat().st_mode, place.stat().st_uid]
        )
        assert seen.result == [stat.S_IFDIR | 0o1757, place.stat().st_uid]

    throwaway(body, who=who)


@pytest.mark.parametrize(
    "name", ["with,comma", "with:colon", 'with"quote', "with\\backslash", "with space\n", "ü" * 40]
)
@pytest.mark.usefixtures("overlays")
def test_an_overlay_on_a_directory_with_an_awkward_name(outside_tmp: Path, who: str, name: str) -> None:
    place = outside_tmp / name
    place.mkdir()
    (place / "file").write_text("")
    place.chmod(0o777)

    def body() -> None:
        inside = launch(
            Filesystem(overlays=(Overlay(target=str(place)),)), lambda: [os.listdir(place), write(place / "new")]
        )
        assert inside.result == [["file"], "ok"]
        assert inside.changed.added == (str(place / "new"),)

    throwaway(body, who=who)


def test_a_mount_below_an_overlay_is_seen_through_an_overlay_of_its_own() -> None:
    def body(place: Path) -> None:
        sub = place / "old"
        (sub / "mounted").write_text("mounted")
        inside = launch(
            Filesystem(overlays=(Overlay(target=str(place)),)),
            lambda: [(sub / "mounted").read_text(), write(sub / "new"), write(place / "new")],
        )
        assert inside.result == ["mounted", "ok", "ok"]
        assert inside.changed.added == (str(place / "new"), str(sub / "new"))
        assert os.listdir(sub) == ["mounted"]

    for path in place_in("/var/tmp", "root"):
        throwaway(lambda path=path: body(path), prepare=lambda path=path: mount("t", str(path / "old"), "tmpfs"))


def test_an_overlay_of_the_whole_root(outside_tmp: Path) -> None:
    def body() -> None:
        inside = launch(
            Filesystem(overlays=(Overlay(target="/"),)),
            lambda: [
                write("/isolate-new"),
                write(outside_tmp / "new"),
                (outside_tmp / "file").read_text(),
                os.path.exists("/proc/self"),
            ],
        )
        assert inside.result == ["ok", "ok", "content", True]
        assert not os.path.exists("/isolate-new")
        assert inside.changed.added == ("/isolate-new", str(outside_tmp / "new"))

    throwaway(body)


@pytest.mark.usefixtures("overlays")
def test_the_layers_cannot_be_reached_from_inside(who: str, place: Path) -> None:
    def body() -> None:
        found = launch(
            Filesystem(overlays=(Overlay(target=str(place)),)), lambda: [m.mountpoint for m in mountinfo.read()]
        )
        stages = {op.target for op in found.plan.ops if op.fstype == "tmpfs"}
        assert stages
        assert not stages & set(found.result)

    throwaway(body, who=who)


@pytest.mark.usefixtures("overlays")
def test_a_working_directory_named_in_the_plan_is_on_the_overlay(who: str, place: Path) -> None:
    def body() -> None:
        os.chdir(place)
        view = Filesystem(overlays=(Overlay(target=str(place)),))
        inside = launch(view, lambda: write("relative"), cwd=str(place))
        assert inside.result == "ok"
        assert inside.changed.added == (str(place / "relative"),)
        assert not (place / "relative").exists()

    throwaway(body, who=who)


def test_an_overlay_allows_no_more_than_the_mount_below_it() -> None:
    flags = mountinfo.MS_NOSUID | mountinfo.MS_NOEXEC
    for place in place_in("/var/tmp", "root"):
        target = str(place / "old")

        def body(target: str = target) -> None:
            seen = launch(Filesystem(overlays=(Overlay(target=target),)), lambda: flags_at(target)).result
            assert seen & flags == flags

        throwaway(body, prepare=lambda target=target: mount("t", target, "tmpfs", flags))


@pytest.mark.usefixtures("overlays")
def test_a_hostile_layer_is_read_without_being_followed_or_waited_for(who: str, place: Path) -> None:
    (place / "secret").write_text("secret")

    def plant() -> None:
        folder = place / "deep"
        for _ in range(300):  # deeper than we look
            folder = folder / "d"
        folder.mkdir(parents=True)
        os.mkfifo(place / "fifo")
        os.symlink("/proc/self/fd/0", place / "fd")
        (place / "file").unlink()
        os.mkfifo(place / "file")
        (place / "old" / "inner").unlink()
        os.symlink(place / "secret", place / "old" / "inner")
        os.mkdir(place / "wide")
        for number in range(500):
            os.close(os.open(place / "wide" / str(number), os.O_CREAT | os.O_WRONLY))

    def body() -> None:
        changed = launch(Filesystem(overlays=(Overlay(target=str(place)),)), plant).changed
        assert changed.incomplete
        assert {str(place / "file"), str(place / "old/inner")} == set(changed.modified)
        assert {str(place / "fifo"), str(place / "fd"), str(place / "wide/499")} < set(changed.added)
        assert changed.deleted == ()

    throwaway(body, who=who)


@pytest.mark.usefixtures("overlays")
def test_listing_stops_at_its_limit_and_says_so(who: str, place: Path) -> None:
    def body() -> None:
        view = Filesystem(overlays=(Overlay(target=str(place)),))
        plan = filesystem.compile(view, context=filesystem.Context.of_this_host(user_namespace=who == "user"))
        with filesystem.Layers(plan) as layers:
            child = native.fork(launch_plan(layers))
            if child is None:
                for number in range(50):
                    write(place / str(number))
                os._exit(0)
            with child:
                child.wait(20)
                assert len(layers.changed(limit=20).added) == 20
                assert layers.changed(limit=20).incomplete
                assert len(layers.changed().added) == 50

    throwaway(body, who=who)
