"""Calls the hooks of hookspecs.py: with pytest's plugins, or without pytest those of a PluginManager of one's own.

Owns: which plugins are in force in this process, and whom to blame when a hook raises.
Refuses: to import pytest, and to cost anything where nobody implements a hook: who does is looked up once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from pytest_isolate import hookspecs
from pytest_isolate.errors import IsolateError, PluginError
from pytest_isolate.kernel import forks
from pytest_isolate.kernel.keeping import keep

if TYPE_CHECKING:
    from pytest_isolate.backend import Backend, Launch, Process
    from pytest_isolate.outcome import Outcome
    from pytest_isolate.policy import Policy

PREFIX = "pytest_isolate_"
#: Installed packages are found by this group of entry points; they are loaded when the first sandbox is chosen for.
ENTRY_POINTS = "pytest_isolate"
NAMES = tuple(name for name in vars(hookspecs) if name.startswith(PREFIX))
_OF_A_LIFE = frozenset(f"{PREFIX}{name}" for name in ("guards", "prepare", "spawned", "finished"))


def plugin_manager() -> pluggy.PluginManager:
    """A manager that knows the hooks, for use without pytest: register plugins, then ``Sandbox(hooks=Hooks(manager))``."""
    manager = pluggy.PluginManager("pytest")
    manager.add_hookspecs(hookspecs)
    return manager


class Hooks:
    """The hooks of one plugin manager. ``config`` is what pytest_isolate_backends is called with."""

    def __init__(self, manager: pluggy.PluginManager, config: Any = None, *, installed: bool = False) -> None:
        self._manager = manager
        self._config = config
        self._installed = installed
        self.offered: dict[str, tuple[str, Backend]] | None = None  # kept here by registry.offered()

    def look_again(self) -> None:
        """Forget who implements what: conftests below the first directory are read by the collection only."""
        before = self.__dict__.pop("implemented", None)
        if before is not None and f"{PREFIX}backends" in self.implemented:
            self.offered = None

    @functools.cached_property
    def implemented(self) -> frozenset[str]:
        """The names that somebody implements; looked up at the first launch, when every conftest has been read."""
        if self._installed:
            _load_installed(self._manager)
        return frozenset(name for name in NAMES if getattr(self._manager.hook, name).get_hookimpls())

    @property
    def takes_part(self) -> bool:
        """True when some plugin has a hook of a sandbox's life: lives then do not overlap without need."""
        return not _OF_A_LIFE.isdisjoint(self.implemented)

    @property
    def selects(self) -> bool:
        return f"{PREFIX}select" in self.implemented

    def offers(self) -> Iterator[tuple[str, Backend]]:
        """(plugin, backend) of every backend that is offered.

        Raises:
            PluginError: the hook raised, or gave something else than backends.
        """
        if f"{PREFIX}backends" not in self.implemented:
            return
        for plugin, offered in _each(self._manager.hook, f"{PREFIX}backends", config=self._config):
            for backend in offered or ():
                if not (isinstance(getattr(backend, "name", None), str) and hasattr(backend, "lacks")):
                    raise PluginError(
                        plugin, f"{PREFIX}backends", f"{backend!r} is no backend: it lacks name or lacks()"
                    )
                yield plugin, backend

    def select(self, item: Any, policy: Policy, candidates: Sequence[Backend]) -> Backend:
        """The plugins' choice, else the first candidate. Raises PluginError."""
        if not self.selects:
            return candidates[0]
        name = f"{PREFIX}select"
        chosen = _called(self._relay(item), name, item=item, policy=policy, candidates=list(candidates))
        if chosen is not None and chosen not in candidates:
            raise PluginError("a plugin", name, f"it chose {chosen!r}, which is none of the candidates")
        return candidates[0] if chosen is None else candidates[list(candidates).index(chosen)]

    def begin(self, launch: Launch) -> Life | None:
        """Enter the guards and say prepare; None where no plugin takes part in a sandbox's life.

        Raises:
            PluginError: a hook or a guard raised; the guards are left again.
        """
        if not self.takes_part:
            return None
        life = Life(self._relay(launch.item), launch)
        try:
            life.prepare()
        except BaseException:
            life.close()
            raise
        return life

    def _relay(self, item: Any) -> Any:
        """Of an item: without the conftests that are not on its path."""
        return self._manager.hook if item is None else item.ihook


class Life:
    """The hooks around one sandbox, from prepare to the last guard. ``close`` leaves the guards; fine twice.

    All of it is for the process that began it: a forked child says nothing and leaves no guard.
    """

    def __init__(self, relay: Any, launch: Launch) -> None:
        self._relay = relay
        self.launch = launch
        self._guards = contextlib.ExitStack()
        self._owner = forks.here
        _open.add(self)

    def prepare(self) -> None:
        name = f"{PREFIX}guards"
        for plugin, guards in _each(self._relay, name, policy=self.launch.policy):
            with blaming(plugin, name):
                for guard in guards or ():
                    self._guards.enter_context(guard)
        _called(self._relay, f"{PREFIX}prepare", sandbox=self.launch, policy=self.launch.policy)

    def spawned(self, process: Process) -> None:
        """Say so; where a plugin objects, the process is ended and collected first."""
        try:
            _called(self._relay, f"{PREFIX}spawned", sandbox=self.launch, process=process)
        except BaseException:
            process.kill()
            process.reap(block=True)
            process.close()
            raise

    def finished(self, outcome: Outcome) -> None:
        """Say so, and leave the guards. Raises PluginError."""
        if self._owner is not forks.here:
            return
        try:
            _called(self._relay, f"{PREFIX}finished", sandbox=self.launch, outcome=outcome)
        finally:
            self.close()

    def close(self) -> None:
        if self._owner is not forks.here:
            return
        _open.discard(self)
        with blaming("a guard", f"{PREFIX}guards"):
            self._guards.close()


#: Begun and not closed.
_open: weakref.WeakSet[Life] = weakref.WeakSet()


def _keep_open() -> None:
    """In a forked child: a guard that is a generator would be left there as soon as nobody knows it any more."""
    for life in tuple(_open):
        keep(life)


os.register_at_fork(after_in_child=_keep_open)


def call_report(relay: Any, **words: Any) -> None:
    """Call pytest_isolate_report. Raises PluginError."""
    _called(relay, f"{PREFIX}report", **words)


# ---- who to blame ----


def _called(relay: Any, name: str, **words: Any) -> Any:
    caller = getattr(relay, name)
    try:
        return caller(**words)
    except IsolateError:
        raise
    except Exception as error:
        raise _blame(name, caller.get_hookimpls(), error) from error


def _each(relay: Any, name: str, **words: Any) -> Iterator[tuple[str, Any]]:
    """(plugin, result) of each implementation, last registered first, as pluggy calls them."""
    for found in reversed(getattr(relay, name).get_hookimpls()):
        try:
            result = found.function(*(words[argument] for argument in found.argnames))
            given = None if result is None else list(result)
        except IsolateError:
            raise
        except Exception as error:
            raise _blame(name, [found], error) from error
        yield found.plugin_name, given


def _blame(name: str, implementations: Iterable[Any], error: Exception) -> PluginError:
    """The implementation on the way to where ``error`` was raised, with the line it was at."""
    codes = {getattr(found.function, "__code__", None): found.plugin_name for found in implementations}
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code in codes:
            place = f"{frame.f_code.co_filename}:{line}"
            return PluginError(codes[frame.f_code], name, f"{type(error).__name__}: {error}", place)
    return PluginError(", ".join(map(str, codes.values())), name, f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def blaming(plugin: str, name: str) -> Iterator[None]:
    """What is raised, but for errors of ours, becomes a PluginError that names the plugin and the last line."""
    try:
        yield
    except IsolateError:
        raise
    except Exception as error:
        frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
        place = f"{frame.f_code.co_filename}:{line}"
        raise PluginError(plugin, name, f"{type(error).__name__}: {error}", place) from error


def misspelt(plugin: object) -> Iterator[tuple[str, str]]:
    """(name, what was meant) of each function of ``plugin`` that is called like a hook of ours and is none."""
    for name in vars(plugin) if isinstance(plugin, type(sys)) else dir(plugin):
        if name.startswith(PREFIX) and name not in NAMES and _is_hook(getattr(plugin, name, None)):
            import difflib

            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
            yield name, near[0] if near else " or ".join(NAMES)


def _is_hook(found: Any) -> bool:
    return callable(found) and not getattr(found, "pytest_impl", {}).get("optionalhook")


# ---- the plugins in force ----

_in_force: list[Hooks] = []


def use(hooks: Hooks) -> Callable[[], None]:
    """Make ``hooks`` those of this process; call the result to go back to those before."""
    _in_force.append(hooks)
    return functools.partial(_in_force.remove, hooks)


def of_this_process() -> Hooks:
    """Those in force; without pytest, those of the installed packages."""
    return _in_force[-1] if _in_force else _of_installed()


@functools.cache
def _of_installed() -> Hooks:
    return Hooks(plugin_manager(), installed=True)


def _load_installed(manager: pluggy.PluginManager) -> None:
    """Register the packages that ENTRY_POINTS names; one that pytest has blocked (``-p no:NAME``) is left out.

    Raises:
        PluginError: a package cannot be imported, or two are called the same.
    """
    if os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        return
    from importlib import metadata

    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if manager.is_blocked(entry.name):
            continue
        with blaming(entry.name, f"entry point {entry.value}"):
            plugin = entry.load()
        if manager.is_registered(plugin):
            continue
        if manager.has_plugin(entry.name):
            why = f"another plugin is called {entry.name}, too: {manager.get_plugin(entry.name)}"
            raise PluginError(entry.name, f"entry point {entry.value}", why)
        for wrong, meant in misspelt(plugin):
            raise PluginError(entry.name, wrong, f"there is no such hook; did you mean {meant}?")
        manager.register(plugin, entry.name)
