"""Hooks without pytest, the registry that asks them, and its words for why not."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pluggy
import pytest

from pytest_isolate import MINIMAL, BackendUnavailable, PluginError, Policy, PolicyError, Sandbox, hooks, registry
from pytest_isolate.backends.native import NativeBackend

impl = pluggy.HookimplMarker("pytest")


class Named(NativeBackend):
    """The native backend under another name."""

    runs = frozenset({"programs"})

    def __init__(self, name: str, lacking: Iterable[str] = (), quality: int = 50) -> None:
        super().__init__()
        self.name, self.quality, self._lacking = name, quality, list(lacking)

    def lacks(self, policy: Policy) -> list[str]:
        return self._lacking


class Offering:
    def __init__(self, *backends: Any) -> None:
        self.backends = backends

    @impl
    def pytest_isolate_backends(self, config: Any) -> Any:
        assert config is None
        return self.backends


def with_plugins(*plugins: Any) -> hooks.Hooks:
    manager = hooks.plugin_manager()
    for plugin in plugins:
        manager.register(plugin)
    return hooks.Hooks(manager)


def test_a_plugin_of_ones_own_manager_takes_part_without_pytest() -> None:
    seen: list[str] = []

    class Watching:
        @impl
        def pytest_isolate_prepare(self, sandbox: Any) -> None:
            seen.append(f"{sandbox.kind} {sandbox.backend} {sandbox.item}")

        @impl
        def pytest_isolate_finished(self, outcome: Any) -> None:
            seen.append(str(outcome.status))

    with Sandbox(MINIMAL, hooks=with_plugins(Watching(), Offering(Named("mine"))), backends=["mine"]) as sandbox:
        assert sandbox.run(["true"]).ok
    assert seen == ["programs mine None", "exited with status 0"]


def test_without_hooks_a_launch_asks_nobody() -> None:
    none = with_plugins()
    assert none.implemented == frozenset()
    assert none.begin(None) is None  # type: ignore[arg-type]  # the launch is not even looked at


def test_backends_are_asked_in_the_order_named_else_by_quality() -> None:
    found = with_plugins(Offering(Named("low", quality=1), Named("high", quality=99)))
    assert [backend.name for backend in registry.backends((), found)] == ["native", "high", "fork", "low"]
    assert [backend.name for backend in registry.backends(("low", "native"), found)] == ["low", "native"]
    assert registry.choose(MINIMAL, ("low", "native"), hooks=found).name == "low"


def test_a_plugin_selects_among_those_that_can() -> None:
    class Selecting:
        @impl
        def pytest_isolate_select(self, candidates: Any) -> Any:
            assert [backend.name for backend in candidates] == ["native", "able"]
            return candidates[-1]

    found = with_plugins(Selecting(), Offering(Named("able"), Named("unable", ["a leg: it has none"])))
    assert registry.choose(MINIMAL, hooks=found).name == "able"


def test_a_choice_outside_of_the_candidates_is_the_plugins_fault() -> None:
    class Selecting:
        @impl
        def pytest_isolate_select(self) -> Any:
            return Named("stranger")

    with pytest.raises(PluginError, match="none of the candidates"):
        registry.choose(MINIMAL, hooks=with_plugins(Selecting()))


def test_when_nobody_can_each_says_what_it_lacks() -> None:
    found = with_plugins(Offering(Named("one", ["a: b. C"]), Named("two", ["d: e"])))
    with pytest.raises(BackendUnavailable) as raised:
        registry.choose(MINIMAL, ("one", "two"), hooks=found)
    assert raised.value.why == "one lacks a: b. C | two lacks d: e"


def test_a_typing_error_is_told_the_nearest_name() -> None:
    with pytest.raises(PolicyError, match=r"Did you mean 'bubblewrap'\?$"):
        registry.choose(MINIMAL, ("bublewrap",), hooks=with_plugins(Offering(Named("bubblewrap"))))


@pytest.mark.parametrize("other", ["twin", "native"])
def test_two_plugins_may_not_offer_one_name(other: str) -> None:
    found = with_plugins(Offering(Named("twin")), Offering(Named(other)))
    with pytest.raises(PluginError, match=f"the backend '{other}' is already offered by"):
        registry.choose(MINIMAL, ("twin",), hooks=found)


def test_a_backend_that_starts_no_test_functions_says_so() -> None:
    with pytest.raises(
        BackendUnavailable, match="mine lacks test functions: it starts none. Use it for programs, by sandbox.run"
    ):
        registry.choose(MINIMAL, ("mine",), kind="tests", hooks=with_plugins(Offering(Named("mine"))))


def test_a_probe_that_hangs_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Hanging(Named):
        def lacks(self, policy: Policy) -> list[str]:
            release.wait(60)
            return []

    monkeypatch.setattr(registry, "PROBE_S", 0.1)
    try:
        with pytest.raises(BackendUnavailable, match=r"slow lacks an answer: its probe has not answered within 0.1 s"):
            registry.choose(MINIMAL, ("slow",), hooks=with_plugins(Offering(Hanging("slow"))))
    finally:
        release.set()


def test_a_probe_that_crashes_is_told_with_its_line_and_the_next_is_asked() -> None:
    class Crashing(Named):
        def lacks(self, policy: Policy) -> list[str]:
            raise KeyError("version")

    found = with_plugins(Offering(Crashing("broken"), Named("good")))
    assert registry.choose(MINIMAL, ("broken", "good"), hooks=found).name == "good"
    with pytest.raises(
        BackendUnavailable, match=r"broken lacks an answer: KeyError: 'version' \(.*test_hooks.py:\d+\)"
    ):
        registry.choose(MINIMAL, ("broken",), hooks=found)


def test_what_is_no_backend_is_refused() -> None:
    with pytest.raises(PluginError, match="'native' is no backend"):
        registry.choose(MINIMAL, ("x",), hooks=with_plugins(Offering("native")))


def test_misspelt_names_are_found_in_modules_and_objects() -> None:
    class Plugin:
        def pytest_isolate_preparre(self) -> None: ...
        @impl(optionalhook=True)
        def pytest_isolate_of_a_later_version(self) -> None: ...
        def pytest_isolate_child(self) -> None: ...

    assert list(hooks.misspelt(Plugin())) == [("pytest_isolate_preparre", "pytest_isolate_prepare")]
