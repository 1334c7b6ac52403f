"""Hooks without pytest, the registry that asks them, and its words for why not."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
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


class Leasing:
    """A guard that is a generator, as most are: a directory for as long as the sandbox lives; what is said of it is written down."""

    def __init__(self, place: Path) -> None:
        self.lease, self.log = place / "lease", place / "log"

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        self.lease.mkdir()
        try:
            yield
        finally:
            self.lease.rmdir()

    @impl
    def pytest_isolate_guards(self) -> Any:
        return [self._guard()]

    @impl
    def pytest_isolate_finished(self) -> None:
        with self.log.open("a") as file:
            file.write("finished\n")


@pytest.mark.parametrize("how", ["forgets", "closes", "says finished"])
def test_a_guard_is_left_by_the_process_that_entered_it_and_by_no_child(how: str, tmp_path: Path) -> None:
    plugin = Leasing(tmp_path)
    life = with_plugins(plugin).begin(hooks_launch())
    assert life is not None
    here = [life]  # by one name only, for the child to forget
    del life
    if (pid := os.fork()) == 0:
        try:
            signal.alarm(20)
            if how == "closes":
                here[0].close()
            elif how == "says finished":
                here[0].finished(None)  # type: ignore[arg-type]
            here.clear()
            gc.collect()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert plugin.lease.is_dir()
    assert not plugin.log.exists()
    here[0].finished(None)  # type: ignore[arg-type]
    assert not plugin.lease.exists()
    assert plugin.log.read_text() == "finished\n"


def hooks_launch() -> Any:
    """A launch that these hooks ask nothing but its policy and its item."""
    return types.SimpleNamespace(policy=MINIMAL, item=None)


ENDS = """
import os, sys
from pathlib import Path
from pytest_isolate import Sandbox
from tests.unit.test_hooks import Leasing, with_plugins
plugin = Leasing(Path(sys.argv[1]))
sandbox = Sandbox(hooks=with_plugins(plugin))
running = sandbox.spawn(["sleep", "60"])
if pid := os.fork():
    status = os.waitpid(pid, 0)[1]
    print(status, plugin.lease.is_dir())
    sandbox.close()
    print(plugin.lease.exists(), plugin.log.read_text().strip())
"""


def test_a_guard_outlives_a_child_whose_interpreter_ends(tmp_path: Path) -> None:
    """It ends as a script does, and not by os._exit: what modules hold is collected then."""
    found = subprocess.run(
        [sys.executable, "-c", ENDS, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.stdout.splitlines(), found.stderr) == (["0 True", "False finished"], "")
