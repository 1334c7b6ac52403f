"""A Sandbox outlives the mounts it began with: what is mounted on the host since is seen, sealed and resolved as it is."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_isolate.kernel.filesystem.mountwatch import MOUNTS, MountWatch
from pytest_isolate.policy import Bind, Filesystem, Overlay
from pytest_isolate.sandbox import Sandbox
from tests.kernel.filesystem.asking import place_in
from tests.kernel.throwaway import mount, throwaway

pytestmark = pytest.mark.usefixtures("drops_to_a_plain_user")

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def outside() -> object:
    yield from place_in("/var/tmp", "root")


def umount(path: str) -> None:
    if _libc.umount2(path.encode(), 0):
        raise OSError(ctypes.get_errno(), path)


def mounted_later(place: Path, view: Filesystem, body: Callable[[Sandbox, str], None]) -> None:
    """``body`` with a sandbox that has been used, and a file on a tmpfs that the host has put on a directory since."""

    def inside() -> None:
        point = str(place / "old")
        with Sandbox() as sandbox:
            assert sandbox.run(["true"], fs=view).ok
            assert sandbox.resolve(point, fs=view).mountpoint != point
            mount("later", point, "tmpfs")
            try:
                (place / "old" / "later").write_text("later")
                body(sandbox, f"{point}/later")
            finally:
                umount(point)
            assert sandbox.resolve(f"{point}/inner", fs=view).exists

    throwaway(inside)


@pytest.mark.parametrize("view", ["readonly", "overlay", "bind"])
def test_a_mount_made_after_the_first_use_is_part_of_the_view(outside: Path, view: str) -> None:
    views = {
        "readonly": Filesystem(root="readonly"),
        "overlay": Filesystem(overlays=(Overlay(target=str(outside)),)),
        "bind": Filesystem(binds=(Bind(source=str(outside), target=str(outside)),)),
    }

    def body(sandbox: Sandbox, path: str) -> None:
        asked = views[view]
        seen = sandbox.run(["cat", path], fs=asked)
        assert seen.stdout == "later", seen.stderr
        written = sandbox.run(["sh", "-c", f": > {path}"], fs=asked)
        assert written.ok == (view == "overlay")
        assert Path(path).read_text() == "later"
        found = sandbox.resolve(path, fs=asked)
        assert (found.exists, found.mountpoint, found.writable) == (True, os.path.dirname(path), view == "overlay")
        if view == "overlay":
            assert written.files_changed.modified == (path,)

    mounted_later(outside, views[view], body)


def test_the_watch_tells_of_each_change_and_of_nothing_else(outside: Path) -> None:
    def body() -> None:
        watch, point = MountWatch(), str(outside / "old")
        first = watch.version()
        assert watch.version() == first
        mount("watched", point, "tmpfs")
        second = watch.version()
        assert second != first
        assert watch.version() == second
        umount(point)
        assert watch.version() not in (first, second)
        third = watch.version()
        mount("watched", point, "tmpfs")
        umount(point)
        assert watch.version() == third  # it came and went
        watch.forget()

    throwaway(body)


def test_a_watch_whose_descriptor_was_taken_away_opens_another(outside: Path) -> None:
    def body() -> None:
        watch, point = MountWatch(), str(outside / "old")
        first = watch.version()
        taken = watch._fd
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, taken)
        mount("watched", point, "tmpfs")
        assert watch.version() != first
        umount(point)
        os.fstat(taken)  # not ours any more, and not closed

    throwaway(body)


def test_a_forked_child_neither_keeps_the_table_of_its_parent_nor_takes_its_news(outside: Path) -> None:
    def body() -> None:
        point = str(outside / "old")
        first, kept = MOUNTS.version(), MOUNTS._fd
        mount("watched", point, "tmpfs")
        pid = os.fork()
        if pid == 0:
            opened = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
            os._exit(any(path.endswith(f"/{os.getppid()}/mountinfo") for path in opened) or MOUNTS.version() == first)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert MOUNTS._fd == kept
        assert MOUNTS.version() != first
        umount(point)

    throwaway(body)


def test_of_two_threads_that_ask_at_once_none_misses_a_change(outside: Path) -> None:
    def body() -> None:
        watch, point = MountWatch(), str(outside / "old")
        for _ in range(20):
            before = watch.version()
            mount("watched", point, "tmpfs")
            with ThreadPoolExecutor(4) as threads:
                answers = list(threads.map(lambda _: watch.version(), range(8)))
            umount(point)
            assert before not in answers

    throwaway(body)
