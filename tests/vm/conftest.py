"""Tests marked ``vm`` boot a machine: they run when asked for, and a plain ``pytest tests`` does not collect them.

Owns: the marker, what counts as asking, and the kernel the tests share.
Refuses: a skip: who asks for machines on a host that cannot run them gets the reason as an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_isolate.testing import required_features

from . import kernels

if TYPE_CHECKING:
    from .kernels import Kernel


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: boots a virtual machine; asked for by -m vm or ISOLATE_REQUIRE=vm")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "vm" in config.getoption("markexpr") or "vm" in required_features():
        return
    booting = [item for item in items if item.get_closest_marker("vm")]
    if booting:
        config.hook.pytest_deselected(items=booting)
        items[:] = [item for item in items if item not in booting]


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """Debian 12's kernel: what CI boots."""
    return kernels.fetch("bookworm")
