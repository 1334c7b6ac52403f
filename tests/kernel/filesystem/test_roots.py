"""Roots built from nothing or given as a directory: what is in them, and that nothing leads out; views in views."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.kernel import filesystem
from pytest_isolate.kernel.filesystem import mountinfo
from pytest_isolate.policy import Bind, Filesystem, Tmpfs
from pytest_isolate.profile import STRICT
from tests.kernel.filesystem.asking import attempt, write
from tests.kernel.throwaway import launch, throwaway

pytestmark = pytest.mark.usefixtures("drops_to_a_plain_user")


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
            "ptmx",
            "pts",
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
            m for m in found["mounts"] if m in ("/", "/dev") or m.startswith(("/usr/", "/dev/", "/proc"))
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
