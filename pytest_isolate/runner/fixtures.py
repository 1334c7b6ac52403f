"""The fixtures: ``net_policy``, ``sandbox``, ``sandbox_session`` and ``sandbox_capabilities``.

Owns: their life: what a test started is ended with it. Refuses: to import the sandbox before one is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pytest

from pytest_isolate.runner.options import configured, listed

if TYPE_CHECKING:
    from pytest_isolate.kernel.probe import Feature
    from pytest_isolate.policy import Policy
    from pytest_isolate.runner.netpolicy import NetPolicy
    from pytest_isolate.sandbox import Sandbox


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Run programs in a sandbox: ``sandbox.run([...], memory="64M", net="none")``; ended with the test."""
    from pytest_isolate.sandbox import Sandbox

    names = _chosen(request)
    with Sandbox(_usual_policy(names), name=request.node.name, backends=names, item=request.node) as made:
        yield made


@pytest.fixture
def net_policy(request: pytest.FixtureRequest) -> NetPolicy:
    """The running test's network policy: ``net_policy.allow("10.0.0.0/8", tcp=[80])``; see docs/how-to/network.md."""
    from pytest_isolate.runner import netpolicy

    policy = netpolicy.of(getattr(request.config.pluginmanager.get_plugin("isolate-runner"), "reporter", None))
    policy.begin()
    return policy


@pytest.fixture(scope="session")
def sandbox_session(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """As ``sandbox``, for the whole session: servers that many tests use."""
    from pytest_isolate.sandbox import Sandbox

    names = _chosen(request)
    with Sandbox(_usual_policy(names), name="session", backends=names) as made:
        yield made


def _chosen(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What --isolate-backend names, but for ``fork``, which starts no programs."""
    return tuple(name for name in listed(configured(request.config, "backend")) if name != "fork")


def _usual_policy(names: tuple[str, ...]) -> Policy:
    """The profile `standard`, unless the backends named are for another."""
    from pytest_isolate.profile import PROFILES
    from pytest_isolate.registry import usual_profile

    return PROFILES[usual_profile(names) or "standard"]


@pytest.fixture(scope="session")
def sandbox_capabilities() -> Mapping[str, Feature]:
    """What this host gives, by feature: ``if not sandbox_capabilities["overlayfs"]: pytest.skip(...)``; see `doctor`."""
    from pytest_isolate.kernel.probe import capabilities

    return capabilities()
