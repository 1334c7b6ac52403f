"""A sandbox per test, and no cgroup left behind by a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_isolate import groups
from pytest_isolate.sandbox import Sandbox


@pytest.fixture(scope="module", autouse=True)
def cgroups_of_this_process_closed() -> Iterator[None]:
    yield
    groups.of_this_process().close()


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(name="limits") as made:
        yield made
