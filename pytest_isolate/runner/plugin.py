"""What pytest loads: options, hooks and fixtures. Everything else is imported when the first test is isolated.

Owns: the registration with pytest. Refuses: to import anything heavy; every pytest run pays for this module.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_isolate import hooks, hookspecs
from pytest_isolate.runner.fixtures import net_policy, sandbox, sandbox_capabilities, sandbox_session
from pytest_isolate.runner.options import (
    MARKER_HELP,
    NETPOLICY_HELP,
    add_options,
    asks_for_network,
    configured,
    is_asked_for,
    without_effect,
)

if TYPE_CHECKING:
    from pytest_isolate.runner.protocol import Isolation
    from pytest_isolate.runner.settings import Resolver

__all__ = [
    "net_policy",
    "sandbox",
    "sandbox_capabilities",
    "sandbox_session",
]  # pytest finds fixtures in the module it loads

_NAME = "isolate-runner"
_resolver_key = pytest.StashKey[Any]()
_inside_key = pytest.StashKey[bool]()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_plugin_registered(plugin: object) -> None:
    """A hook of ours that is misspelt would never be called: refused here, where pytest would say INTERNALERROR."""
    for name, meant in hooks.misspelt(plugin):
        place = getattr(plugin, "__file__", plugin)
        raise pytest.UsageError(f"pytest-isolate: {place}: there is no hook {name}; did you mean {meant}?")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    _refuse_namesake(pluginmanager)
    add_options(parser)


def _refuse_namesake(pluginmanager: pytest.PytestPluginManager) -> None:
    """The distribution `pytest-isolate` has our import name and owns --isolate too; only one can be installed."""
    namesake = os.path.join(os.path.dirname(os.path.dirname(__file__)), "plugin.py")
    if os.path.exists(namesake) or pluginmanager.hasplugin("pytest_isolate"):
        raise pytest.UsageError(
            "pytest-isolate-sandbox: the distribution pytest-isolate is installed too, and both are called "
            "pytest_isolate. Run: pip uninstall -y pytest-isolate && "
            "pip install --force-reinstall --no-deps pytest-isolate-sandbox"
        )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.add_cleanup(hooks.use(hooks.Hooks(config.pluginmanager, config, installed=True)))
    config.addinivalue_line("markers", MARKER_HELP)
    config.addinivalue_line("markers", NETPOLICY_HELP)
    channel = os.environ.pop("PYTEST_ISOLATE_CHANNEL", None)
    if channel is not None:  # we are the new interpreter of one isolated test
        from pytest_isolate.runner.fresh import Fresh

        config.stash[_inside_key] = True
        config.pluginmanager.register(Fresh(config, channel), _NAME)
        return
    _count_costs(config)
    if is_asked_for(config):
        _activate(config)


def _count_costs(config: pytest.Config) -> None:
    """--isolate-durations and --isolate-record: where the reports of all workers arrive."""
    count, file = configured(config, "durations"), configured(config, "record")
    if (count is None and file is None) or hasattr(config, "workerinput"):
        return
    from pytest_isolate.runner.costs import Costs

    config.pluginmanager.register(Costs(config, count, file), "isolate-costs")


def _resolver(config: pytest.Config) -> Resolver:
    """The run's resolver; made at the first need, for it brings the whole vocabulary of policies with it."""
    found: Resolver | None = config.stash.get(_resolver_key, None)
    if found is None:
        from pytest_isolate.runner.settings import Resolver

        found = config.stash[_resolver_key] = Resolver(config)
    return found


def _activate(config: pytest.Config) -> Isolation:
    """Register the runner; with --isolate, find out at once whether this host can do what is asked."""
    runner: Isolation | None = config.pluginmanager.get_plugin(_NAME)
    if runner is None:
        resolver = _resolver(config)
        from pytest_isolate.runner.protocol import Isolation

        runner = Isolation(config, resolver)
        config.pluginmanager.register(runner, _NAME)
        if resolver.all_by_name and resolver.default.mode != "inprocess":
            runner.host.check(resolver.default)
    return runner


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check every item's settings before the first test runs: a typing error is not found an hour later."""
    hooks.of_this_process().look_again()
    if config.stash.get(_inside_key, False):
        return
    if not is_asked_for(config) and not any(
        item.get_closest_marker("isolate") or asks_for_network(item) for item in items
    ):
        return
    resolver = _resolver(config)
    for item in items:
        settings = resolver.item(item)
        if settings.enabled and settings.mode != "inprocess":
            where = "" if settings is resolver.default else f"markers of {item.nodeid}"
            reason = _activate(config).host.check(settings, where)
            if reason:
                item.add_marker(pytest.mark.skip(reason=f"pytest-isolate: {reason}"))
    resolver.look_again()


def pytest_report_header(config: pytest.Config) -> list[str]:
    runner = config.pluginmanager.get_plugin(_NAME)
    return [] if runner is None or _inside_key in config.stash else runner.header()


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """What holds for the sake of a marker, what was given up for one, and what has no effect for want of one: known only now."""
    runner = config.pluginmanager.get_plugin(_NAME)
    if runner is not None:
        return [] if _inside_key in config.stash else runner.collected()
    flags = without_effect(config)
    return [f"isolate: NO TEST IS ISOLATED: for {', '.join(flags)} to hold, add --isolate"] if flags else []


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Sandboxes that fixtures made in this process leave nothing behind them."""
    networks = sys.modules.get("pytest_isolate.networks")
    if networks is not None:
        networks.close_those_of_this_process()
    mountwatch = sys.modules.get("pytest_isolate.kernel.filesystem.mountwatch")
    if mountwatch is not None:
        mountwatch.MOUNTS.forget()


def pytest_report_teststatus(report: Any) -> tuple[str, str, str] | None:
    if not hasattr(report, "isolate_cause"):
        return None
    from pytest_isolate.runner.report import status

    return status(report)
