"""Overlays whose changes are kept: where, for whom, and that a further run goes on from there; by root and by a plain user."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel import filesystem
from pytest_isolate.outcome import FilesChanged
from pytest_isolate.policy import Filesystem, Overlay
from tests.kernel.filesystem.asking import host_mount, place_in
from tests.kernel.throwaway import NOBODY, context, launch, mount, throwaway

pytestmark = pytest.mark.usefixtures("drops_to_a_plain_user")


@pytest.fixture
def holds(require: Any) -> None:
    """An overlay's changes can be kept in /var/tmp."""
    require("overlay-upper", host_mount("/var/tmp").fstype != "overlay", "/var/tmp on a disk or tmpfs")


@pytest.fixture
def disk(who: str, holds: None) -> Iterator[Path]:
    yield from place_in("/var/tmp", who)


def kept(place: Path, **more: Any) -> Filesystem:
    return Filesystem(overlays=(Overlay(target=str(place / "old"), keep=str(place / "kept"), **more),))


@pytest.mark.usefixtures("overlays")
def test_a_further_run_finds_the_directory_with_the_mode_that_was_kept(who: str, disk: Path) -> None:
    (disk / "old").chmod(0o755)

    def body() -> None:
        first = launch(kept(disk), lambda: (disk / "old").chmod(0o700))
        assert first.changed == FilesChanged(modified=(str(disk / "old"),))
        again = launch(kept(disk), lambda: stat.S_IMODE((disk / "old").stat().st_mode))
        assert again.result == 0o700
        assert stat.S_IMODE((disk / "old").stat().st_mode) == 0o755

    throwaway(body, who=who)


@pytest.mark.usefixtures("holds")
@pytest.mark.parametrize("linked", ["upper", "work"])
@pytest.mark.parametrize(("owner", "words"), [(NOBODY, f"belongs to user {NOBODY}"), (0, "not a directory")])
def test_root_is_not_led_elsewhere_by_a_symlink(linked: str, owner: int, words: str) -> None:
    for place in place_in("/var/tmp", "user"):
        victim = place / "victim"
        victim.mkdir(mode=0o700)
        (place / "kept").mkdir()
        os.chown(place / "kept", owner, owner)
        os.symlink(victim, place / "kept" / linked)

        def body(place: Path = place, victim: Path = victim) -> None:
            with pytest.raises(PolicyError, match=words):
                launch(kept(place), lambda: None)
            found = victim.stat()
            assert (found.st_uid, stat.S_IMODE(found.st_mode), os.listdir(victim)) == (0, 0o700, [])

        throwaway(body)


def test_root_keeps_nothing_in_a_directory_of_somebody_elses_but_makes_one_beside_his(disk: Path, who: str) -> None:
    def body() -> None:
        if who == "root":
            assert launch(kept(disk), (disk / "old" / "new").touch).changed.added == (str(disk / "old/new"),)
            return
        with pytest.raises(PolicyError, match=f"belongs to user {NOBODY}"):
            launch(kept(disk), lambda: None)

    (disk / "kept").mkdir()
    os.chown(disk / "kept", disk.stat().st_uid, -1)
    throwaway(body)
    if who == "user":
        (disk / "kept").rmdir()
        throwaway(lambda: launch(kept(disk), (disk / "old" / "new").touch) and None)
        assert (disk / "kept" / "upper" / "new").exists()


@pytest.mark.usefixtures("holds")
def test_a_mount_below_finds_its_own_changes_again_when_others_are_gone() -> None:
    for place in place_in("/var/tmp", "root"):
        mounted = [place / "old" / name for name in ("a", "upper", "z")]

        def prepare(gone: int, mounted: list[Path] = mounted) -> None:
            for folder in mounted[gone:]:
                mount("t", str(folder), "tmpfs")

        def found(place: Path = place, mounted: list[Path] = mounted) -> list[list[str]]:
            return launch(kept(place), lambda: [os.listdir(folder) for folder in mounted]).result  # type: ignore[no-any-return]

        def first(place: Path = place, mounted: list[Path] = mounted) -> None:
            launch(kept(place), lambda: [(folder / f"of-{folder.name}").touch() for folder in mounted] and None)

        for folder in mounted:
            folder.mkdir()
        throwaway(first, prepare=lambda: prepare(0))
        assert throwaway(found, prepare=lambda: prepare(0)) == [["of-a"], ["of-upper"], ["of-z"]]
        assert throwaway(found, prepare=lambda: prepare(1)) == [[], ["of-upper"], ["of-z"]]
        assert sorted(os.listdir(place / "kept")) == ["%2Fa", "%2Fupper", "%2Fz", "upper", "work"]


@contextlib.contextmanager
def forked(work: Callable[[], Any]) -> Iterator[None]:
    """A child that does ``work``, and then nothing for as long as the block lasts."""
    (done_r, done_w), (end_r, end_w) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        try:
            signal.alarm(20)
            os.close(end_w)
            work()
            os.write(done_w, b"x")
            os.read(end_r, 1)
        finally:
            os._exit(0)
    os.close(done_w)
    try:
        assert os.read(done_r, 1) == b"x"
        yield
    finally:
        for fd in (done_r, end_r, end_w):
            os.close(fd)
        os.waitpid(pid, 0)


@pytest.mark.usefixtures("overlays")
def test_a_directory_is_free_after_its_sandbox_whatever_was_forked_meanwhile(who: str, disk: Path) -> None:
    def body() -> None:
        with contextlib.ExitStack() as stack:
            with filesystem.Layers(filesystem.compile(kept(disk), context=context())):
                stack.enter_context(forked(lambda: None))  # it has the descriptors, as a pool's worker
            assert launch(kept(disk), (disk / "old" / "new").touch).changed.added == (str(disk / "old/new"),)

    throwaway(body, who=who)


@pytest.mark.usefixtures("overlays")
def test_a_forked_child_frees_no_directory_of_its_parents_sandbox(who: str, disk: Path) -> None:
    def body() -> None:
        with filesystem.Layers(filesystem.compile(kept(disk), context=context())) as layers:
            with (
                forked(layers.close),
                pytest.raises(PolicyError, match="another sandbox keeps its changes in"),
            ):
                launch(kept(disk), lambda: None)
            with pytest.raises(PolicyError, match="another sandbox keeps its changes in"):
                launch(kept(disk), lambda: None)

    throwaway(body, who=who)
