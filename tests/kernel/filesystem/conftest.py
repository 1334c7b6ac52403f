"""What the views are tried on: a directory of the host, by root and by a plain user; the host's mounts stay as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.kernel.filesystem.context import has_mount_setattr, kernel_release
from tests.kernel.filesystem.asking import place_in
from tests.kernel.throwaway import mount_table


@pytest.fixture(autouse=True)
def _host_mounts_stay() -> Iterator[None]:
    before = mount_table()
    yield
    assert mount_table() == before


@pytest.fixture
def drops_to_a_plain_user(require: Any) -> None:
    require("root", os.geteuid() == 0, "the tests drop to a plain user themselves")


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
    yield from place_in(request.param, who)


@pytest.fixture
def outside_tmp(who: str) -> Iterator[Path]:
    yield from place_in("/var/tmp", who)
