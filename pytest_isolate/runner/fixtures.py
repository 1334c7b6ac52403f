"""The fixtures: ``sandbox``, ``sandbox_session`` and ``sandbox_capabilities``.

Owns: their life: what a test started is ended with it. Refuses: to import the sandbox before one is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_isolate.kernel.probe import Feature
    from pytest_isolate.sandbox import Sandbox


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Run programs in a sandbox: ``sandbox.run([...], memory="64M", net="none")``; ended with the test."""
    from pytest_isolate.sandbox import Sandbox

    with Sandbox(name=request.node.name) as made:
        yield made


@pytest.fixture(scope="session")
def sandbox_session() -> Iterator[Sandbox]:
    """As ``sandbox``, for the whole session: servers that many tests use."""
    from pytest_isolate.sandbox import Sandbox

    with Sandbox(name="session") as made:
        yield made


@pytest.fixture(scope="session")
def sandbox_capabilities() -> Mapping[str, Feature]:
    """What this host gives, by feature: ``if not sandbox_capabilities["overlayfs"]: pytest.skip(...)``; see `doctor`."""
    from pytest_isolate.kernel.probe import capabilities

    return capabilities()
