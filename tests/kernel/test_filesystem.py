"""Views of the file system, mounted for real: as root, and as a plain user in a user namespace."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import PolicyError, SetupError
from pytest_isolate.kernel import filesystem, native
from pytest_isolate.kernel.filesystem import mountinfo
from pytest_isolate.kernel.filesystem.context import has_mount_setattr, kernel_release
from pytest_isolate.outcome import FilesChanged
from pytest_isolate.policy import Bind, Filesystem, Overlay, Tmpfs
from pytest_isolate.profile import STRICT
from tests.kernel.throwaway import NOBODY, launch, launch_plan, mount, mount_table, throwaway

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the tests drop to a plain user themselves")


@pytest.fixture(autouse=True)
def _host_mounts_stay() -> Iterator[None]:
    before = mount_table()
    yield
    assert mount_table() == before


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["mount_setattr", "remount"])
def mount_setattr(request: pytest.FixtureRequest, require: Any) -> bool:
    """Both ways to seal a host; the old one works on every kernel."""
    if request.param:
        require("mount_setattr", has_mount_setattr(), "Linux 5.12 has mount_setattr(2)")
    return bool(request.param)


@pytest.fixture
def overlays(who: str, require: Any) -> None:
    """For who needs a user namespace, overlays exist on some kernels only."""
    require("overlay", who == "root" or kernel_release() >= (5, 11), "Linux 5.11 has overlays in a user namespace")


@pytest.fixture(params=["/var/tmp", "/tmp"])
def place(request: pytest.FixtureRequest, who: str) -> Iterator[Path]:
    """A directory of the host that the one who runs the test owns, with some content."""
    yield from _place(request.param, who)


@pytest.fixture
def outside_tmp(who: str) -> Iterator[Path]:
    yield from _place("/var/tmp", who)


def _place(folder: str, who: str) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="isolate-fs-", dir=folder))
    (path / "old").mkdir()
    (path / "old" / "inner").write_text("inner")
    (path / "file").write_text("content")
    (path / "script").write_text("#!/bin/sh\necho script\n")
    (path / "script").chmod(0o755)
    if who == "user":
        for each in [path, *path.rglob("*")]:
            os.chown(each, NOBODY, NOBODY)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def host_mount(path: str) -> mountinfo.Mount:
    """The mount that answers for a path that is no symlink."""
    over = [m for m in mountinfo.read() if path == m.mountpoint or path.startswith(m.mountpoint.rstrip("/") + "/")]
    return max(over, key=lambda m: len(m.mountpoint))


def attempt(action: Callable[[], Any]) -> str:
    """``ok`` or the name of the errno."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def write(path: Path | str, text: str = "x") -> str:
    return attempt(lambda: Path(path).write_text(text))


# -- read-only host


def test_a_read_only_host_refuses_every_write_and_is_readable(who: str, place: Path, mount_setattr: bool) -> None:
    def body() -> None:
        assert write(place / "control") == "ok"
        inside = launch(
            Filesystem(root="readonly"),
            lambda: [write(place / "new"), write("/new"), write("/dev/shm/new"), (place / "file").read_text()],
            mount_setattr=mount_setattr,
        )
        assert inside.result == ["EROFS", "EROFS", "EROFS", "content"]
        assert not (place / "new").exists()

    throwaway(body, who=who)


def test_flags_of_the_host_survive_being_made_read_only(who: str, outside_tmp: Path, mount_setattr: bool) -> None:
    sub = outside_tmp / "old"

    def body() -> None:
        flags = launch(Filesystem(root="readonly"), lambda: flags_at(str(sub)), mount_setattr=mount_setattr).result
        assert flags == mountinfo.MS_RDONLY | mountinfo.MS_NOSUID | mountinfo.MS_NODEV | mountinfo.MS_NOEXEC

    def prepare() -> None:
        mount("t", str(sub), "tmpfs", mountinfo.MS_NOSUID | mountinfo.MS_NODEV | mountinfo.MS_NOEXEC)

    throwaway(body, who=who, prepare=prepare)


def flags_at(path: str) -> int:
    return next(mount.flags for mount in reversed(mountinfo.read()) if mount.mountpoint == path)


def test_a_writable_bind_is_a_hole_in_a_read_only_host(who: str, place: Path, mount_setattr: bool) -> None:
    view = Filesystem(
        root="readonly", binds=(Bind(source=str(place / "old"), target=str(place / "old"), writable=True),)
    )

    def body() -> None:
        inside = launch(view, lambda: [write(place / "old" / "new"), write(place / "new")], mount_setattr=mount_setattr)
        assert inside.result == ["ok", "EROFS"]
        assert (place / "old" / "new").read_text() == "x"

    throwaway(body, who=who)


@pytest.mark.usefixtures("overlays")
def test_strict_gives_a_private_tmp_home_and_working_copy_and_the_shared_base(who: str, place: Path) -> None:
    base, home = place / "old", place
    view = filesystem.for_tests(STRICT.filesystem, home=str(home), working_copy=str(home), writable=(str(base),))

    def body() -> None:
        assert write("/tmp/isolate-control") == "ok"
        os.unlink("/tmp/isolate-control")
        inside = launch(
            view,
            lambda: [
                write("/tmp/isolate-private"),
                write("/dev/shm/isolate-private"),
                write(place / "file", "changed"),
                write(base / "report"),
                write("/usr/isolate"),
                sorted(set(os.listdir("/tmp")) - {place.name}),
            ],
        )
        assert inside.result == ["ok", "ok", "ok", "ok", "EROFS", ["isolate-private"]]
        assert not os.path.exists("/tmp/isolate-private")
        assert not os.path.exists("/dev/shm/isolate-private")
        assert (place / "file").read_text() == "content"
        assert (base / "report").read_text() == "x"
        assert inside.changed.modified == (str(place / "file"),)
        assert inside.changed.added == ()

    throwaway(body, who=who)


def test_strict_as_root_protects_the_machine_behind_proc() -> None:
    def body() -> None:
        opened = lambda path: attempt(lambda: os.close(os.open(path, os.O_WRONLY)))  # noqa: E731
        path = "/proc/sys/kernel/core_pattern"
        assert launch(Filesystem(), lambda: opened(path)).result == "ok"
        assert launch(STRICT.filesystem, lambda: opened(path)).result == "EROFS"
        assert launch(STRICT.filesystem, lambda: Path("/proc/timer_list").read_text()).result == ""

    throwaway(body)


def test_proc_is_fresh(who: str) -> None:
    def body() -> None:
        pids = launch(Filesystem(), lambda: [name for name in os.listdir("/proc") if name.isdigit()]).result
        assert str(os.getpid()) in os.listdir("/proc")
        assert sorted(pids) == ["1", "2"]

    throwaway(body, who=who)


# -- overlays


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
    require("overlay upper", fstype != "overlay", f"{name}: a directory that is not on an overlay itself")
    keep = Path(tempfile.mkdtemp(prefix=os.path.basename(name), dir=os.path.dirname(name)))
    if who == "user":
        os.chown(keep, NOBODY, NOBODY)

    def body() -> None:
        view = Filesystem(root=root, overlays=(Overlay(target=str(place), keep=True),), tmpfs=(Tmpfs(target="/tmp"),))
        changed = launch(view, lambda: write(place / "new", "kept"), keep_directory=str(keep)).changed
        assert changed.added == (str(place / "new"),)
        assert (keep / "0" / "upper" / "new").read_text() == "kept"
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

    for path in _place("/var/tmp", "root"):
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
    for place in _place("/var/tmp", "root"):
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


# -- binds, tmpfs, masks


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
    for place in _place("/var/tmp", "root"):
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


# -- minimal roots


def test_a_minimal_root_runs_a_program_and_has_nothing_else(who: str) -> None:
    def body() -> None:
        assert os.path.exists("/etc/passwd")
        inside = launch(Filesystem(root="minimal", programs=("/bin/sh", "/bin/ls")), survey)
        found = inside.result
        assert found["run"] == "hello\n"
        assert found["root"] == ["bin", "dev", "lib", "lib64", "proc", "usr"]
        assert found["dev"] == [
            "fd",
            "full",
            "null",
            "random",
            "shm",
            "stderr",
            "stdin",
            "stdout",
            "tty",
            "urandom",
            "zero",
        ]
        assert found["passwd"] == "ENOENT"
        assert found["write"] == ["EROFS", "EROFS", "ok", "ok"]
        assert found["mounts"] == sorted(
            m for m in found["mounts"] if m == "/" or m.startswith(("/usr/", "/dev/", "/proc"))
        )

    throwaway(body, who=who)


def survey() -> dict[str, Any]:
    return {
        "run": subprocess.run(["/bin/sh", "-c", "echo hello"], stdout=subprocess.PIPE, text=True).stdout,
        "root": sorted(os.listdir("/")),
        "dev": sorted(os.listdir("/dev")),
        "passwd": attempt(lambda: os.stat("/etc/passwd")),
        "write": [write("/new"), write("/usr/bin/new"), write("/dev/shm/new"), write("/dev/null")],
        "mounts": sorted(m.mountpoint for m in mountinfo.read()),
    }


def test_nothing_leads_out_of_a_minimal_root(who: str, place: Path) -> None:
    (place / "secret").write_text("secret")

    def leads() -> dict[str, str]:
        os.chdir("/")
        return {
            path: attempt(lambda path=path: os.stat(path))  # type: ignore[misc]
            for path in (
                f"/../../..{place}/secret",
                f"/proc/1/root{place}/secret",
                f"/proc/self/root{place}/secret",
                f"/proc/self/cwd{place}/secret",
                f"/data/link{place}/secret",
                f"/data/up{place}/secret",
            )
        }

    os.symlink("/", place / "old" / "link")
    os.symlink("../../../../..", place / "old" / "up")
    view = Filesystem(root="minimal", binds=(Bind(source=str(place / "old"), target="/data"),))

    def body() -> None:
        assert (place / "secret").read_text() == "secret"
        found = launch(view, lambda: [leads(), os.path.exists("/data/inner")]).result
        assert found[1] is True
        assert set(found[0].values()) == {"ENOENT"}, found

    throwaway(body, who=who)


def test_a_symlinked_target_does_not_lead_out_of_a_minimal_root(who: str, place: Path) -> None:
    """The tree below the target is the attacker's: its absolute symlink must mean the new root, not the host's."""
    target = place / "victim"
    target.mkdir()
    os.symlink(str(place), place / "old" / "escape")
    view = Filesystem(
        root="minimal",
        binds=(Bind(source=str(place / "old"), target="/data"),),
        tmpfs=(Tmpfs(target="/data/escape/victim"),),
    )

    def body() -> None:
        inside = launch(view, lambda: [m.mountpoint for m in mountinfo.read() if m.mountpoint.endswith("victim")])
        assert inside.result == [f"{place}/victim"]  # inside the new root, made there
        assert not os.path.ismount(target)

    throwaway(body, who=who)


def test_a_root_file_system_given_as_a_directory(outside_tmp: Path, who: str) -> None:
    rootfs = outside_tmp / "rootfs"
    for name in ("bin", "proc", "dev/shm", "tmp"):
        (rootfs / name).mkdir(parents=True)
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        (rootfs / "dev" / name).touch()
    (rootfs / "mark").write_text("mark")
    view = Filesystem(root="minimal", binds=(Bind(source=str(rootfs), target="/"),), tmpfs=(Tmpfs(target="/tmp"),))

    def body() -> None:
        links = [f"/dev/{name}" for name in ("fd", "stdin", "stdout", "stderr")]
        found = launch(
            view,
            lambda: [Path("/mark").read_text(), write("/new"), write("/tmp/new"), [os.path.lexists(p) for p in links]],
        )
        assert found.result[:3] == ["mark", "EROFS", "ok"]

    throwaway(body, who=who)


def test_a_view_of_a_thousand_mounts(who: str, place: Path) -> None:
    view = Filesystem(
        tmpfs=(Tmpfs(target="/mnt"),),
        binds=tuple(Bind(source=str(place / "old"), target=f"/mnt/{n}") for n in range(1000)),
    )

    def body() -> None:
        inside = launch(view, lambda: [len(mountinfo.read()), write("/mnt/999/new"), os.listdir("/mnt/500")])
        assert inside.result == [len(mountinfo.read()) + 1002, "EROFS", ["inner"]]

    throwaway(body, who=who)


@pytest.mark.parametrize("depth", [1, 2, 10])
def test_a_view_inside_a_view(who: str, place: Path, depth: int) -> None:
    """Each level sees a private /tmp of its own, and the innermost is as sealed as the first."""

    package = os.path.dirname(os.path.dirname(filesystem.__path__[0]))
    view = filesystem.for_tests(STRICT.filesystem, readable=[package])  # a checkout below /tmp would be hidden by it

    def level(left: int) -> list[Any]:
        (Path("/tmp") / f"level{left}").touch()
        if left:
            return list(launch(view, lambda: level(left - 1)).result)
        return [
            [name for name in os.listdir("/tmp") if name.startswith("level")],
            write("/usr/new"),
            attempt(lambda: os.stat(place)),
        ]

    def body() -> None:
        hidden = "ENOENT" if str(place).startswith("/tmp/") else "ok"
        assert launch(view, lambda: level(depth)).result == [["level0"], "EROFS", hidden]

    throwaway(body, who=who)
