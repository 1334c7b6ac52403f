"""/dev in sealed views: the devices that programs count on, none of the machine's; by root and by a plain user."""

from __future__ import annotations

import errno
import os
import pty
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.kernel import filesystem
from pytest_isolate.kernel.filesystem.entries import DEVICE_LINKS, DEVICES
from pytest_isolate.policy import Bind, Filesystem, Overlay, Tmpfs
from pytest_isolate.profile import STRICT
from tests.kernel.filesystem.asking import attempt, write
from tests.kernel.throwaway import launch, throwaway

pytestmark = pytest.mark.usefixtures("drops_to_a_plain_user")

#: All that is there.
NAMES = {*DEVICES, *DEVICE_LINKS, "ptmx", "pts", "shm"}
WHOLE = (Bind(source="/", target="/"),)
VIEWS = {
    "strict": STRICT.filesystem,
    "readonly": Filesystem(root="readonly"),
    "readonly, no proc": Filesystem(root="readonly", proc=False),
    "minimal": Filesystem(root="minimal", programs=("/bin/sh",)),
    "the host bound": Filesystem(root="minimal", binds=WHOLE),
}
every_view = pytest.mark.parametrize("name", VIEWS)


@pytest.fixture
def node(outside_tmp: Path) -> Iterator[str]:
    """A device node outside of /dev, as the directory of a container has them: /dev/null, by another name."""
    path = outside_tmp / "node"
    os.mknod(path, stat.S_IFCHR, os.stat("/dev/null").st_rdev)
    path.chmod(0o666)
    yield str(path)
    path.unlink()


def opened(path: str) -> str:
    return attempt(lambda: os.close(os.open(path, os.O_WRONLY)))


def survey() -> dict[str, object]:
    """What is there, and what can be done with it; a terminal is used in full."""
    master_fd, slave_fd = pty.openpty()
    name = os.ttyname(slave_fd)
    os.write(slave_fd, b"x")
    return {
        "names": sorted(os.listdir("/dev")),
        "terminals": [name, sorted(os.listdir("/dev/pts")), os.read(master_fd, 1).decode()],
        "used": [write(f"/dev/{path}") for path in ("null", "shm/new", "new")],
        "zero": Path("/dev/zero").open("rb").read(3).hex(),
        "mode": attempt(lambda: os.chmod("/dev/null", 0o666)),
    }


@pytest.mark.parametrize("facts", [{}, {"makes_devices": False}], ids=["as-it-can", "bound"])
@every_view
def test_a_sealed_view_has_the_devices_of_every_program_and_no_other(name: str, facts: Any, who: str) -> None:
    def body() -> None:
        assert set(os.listdir("/dev")) - NAMES  # the control: the host has more
        found = launch(VIEWS[name], survey, cwd="/", **facts).result
        assert set(found["names"]) == NAMES
        assert found["terminals"] == ["/dev/pts/0", ["0", "ptmx"], "x"]
        assert found["used"] == ["ok", "ok", "EROFS"]
        assert found["zero"] == "000000"
        assert found["mode"] == "EROFS"  # root of the host owns it
        assert not os.path.exists("/dev/shm/new")

    throwaway(body, who=who)


@pytest.mark.parametrize("facts", [{}, {"makes_devices": False}], ids=["as-it-can", "bound"])
def test_an_overlay_of_the_whole_root_has_them_too(facts: Any) -> None:
    def body() -> None:
        found = launch(Filesystem(overlays=(Overlay(target="/"),)), survey, cwd="/", **facts).result
        assert set(found["names"]) == NAMES
        assert found["used"] == ["ok", "ok", "EROFS"]
        assert found["mode"] == "EROFS"

    throwaway(body)


@every_view
def test_a_device_node_elsewhere_on_the_host_is_none_inside(
    name: str, who: str, node: str, mount_setattr: bool
) -> None:
    def body() -> None:
        assert opened(node) == "ok"  # the control
        inside = launch(VIEWS[name], lambda: opened(node), cwd="/", mount_setattr=mount_setattr)
        assert inside.result == ("ENOENT" if name == "minimal" else "EACCES")
        if inside.result == "EACCES":
            assert "Bind this one to use it" in filesystem.explain(errno.EACCES, node, inside.plan)

    throwaway(body, who=who)


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("root", ["readonly", "minimal"])
def test_a_directory_that_is_bound_has_no_devices_in_it(
    root: str, writable: bool, who: str, node: str, mount_setattr: bool
) -> None:
    folder = os.path.dirname(node)
    view = Filesystem(root=root, binds=(Bind(source=folder, target=folder, writable=writable),))  # type: ignore[arg-type]

    def body() -> None:
        inside = launch(view, lambda: [opened(node), write(f"{folder}/new")], cwd="/", mount_setattr=mount_setattr)
        assert inside.result == ["EACCES", "ok" if writable else "EROFS"]

    throwaway(body, who=who)


def test_who_asks_for_a_device_gets_it(who: str, node: str, mount_setattr: bool) -> None:
    """By its path wherever it is, or all of /dev."""
    node_at = "/dev/mine/node"
    one = Filesystem(root="readonly", binds=(Bind(source=node, target=node_at), Bind(source=node, target=node)))
    whole = Filesystem(root="readonly", binds=(Bind(source="/dev", target="/dev"),))

    def body() -> None:
        inside = launch(one, lambda: [opened(node_at), opened(node)], cwd="/", mount_setattr=mount_setattr)
        assert inside.result == ["ok", "ok"]
        there = sorted(os.listdir("/dev"))
        found = launch(whole, lambda: [sorted(os.listdir("/dev")), opened("/dev/null"), opened("/dev/full")], cwd="/")
        assert found.result == [there, "ok", "ok"]

    throwaway(body, who=who)


@pytest.mark.parametrize("facts", [{}, {"makes_devices": False}], ids=["as-it-can", "bound"])
def test_a_masked_file_takes_and_gives_nothing_in_every_view(facts: Any, who: str, outside_tmp: Path) -> None:
    """And is no way to the mode of the host's /dev/null."""
    secret = outside_tmp / "file"
    masks = (str(secret),)

    def tried() -> list[object]:
        mode = attempt(lambda: secret.chmod(0o666))
        return [secret.read_text(), write(secret), mode, secret.stat().st_dev]

    def body() -> None:
        of_the_host = os.stat("/dev/null").st_dev
        for view in (
            Filesystem(masks=masks),
            Filesystem(root="readonly", masks=masks),
            Filesystem(root="readonly", masks=masks, tmpfs=(Tmpfs(target="/dev"),)),
            Filesystem(root="minimal", masks=masks, binds=WHOLE),
        ):
            content, written, mode, device = launch(view, tried, **facts).result
            assert (content, written) == ("", "ok")
            assert mode in ("EROFS", "EPERM") or device != of_the_host

    throwaway(body, who=who)
