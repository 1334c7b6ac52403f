"""The host as it is but read-only, with holes, a fresh /proc and the private places of `strict`; by root and by a plain user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_isolate.kernel import filesystem
from pytest_isolate.kernel.filesystem import mountinfo
from pytest_isolate.policy import Bind, Filesystem
from pytest_isolate.profile import STRICT
from tests.kernel.filesystem.asking import attempt, flags_at, write
from tests.kernel.throwaway import launch, mount, throwaway

pytestmark = pytest.mark.usefixtures("drops_to_a_plain_user")


def test_a_read_only_host_refuses_every_write_and_is_readable(who: str, place: Path, mount_setattr: bool) -> None:
    def body() -> None:
        assert write(place / "control") == "ok"
        inside = launch(
            Filesystem(root="readonly"),
            lambda: [write(place / "new"), write("/new"), write("/dev/new"), (place / "file").read_text()],
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
