"""Which backend runs a policy, and why the others do not.

Owns: the backends of this process, built in and offered by plugins, in order of preference, and the choice.
Refuses: to weaken the policy: who can enforce all of it, or an error that says what each one lacks.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

from pytest_isolate.backend import Backend, Kind, Process
from pytest_isolate.backends.forked import give_up
from pytest_isolate.errors import BackendUnavailable, PluginError, PolicyError
from pytest_isolate.hooks import Hooks, blaming, of_this_process
from pytest_isolate.policy import Policy, unknown
from pytest_isolate.remembered import Remembered


def _native() -> Backend:
    from pytest_isolate.backends.native import NativeBackend

    return NativeBackend()


def _fork() -> Backend:
    from pytest_isolate.backends.fork import ForkBackend

    return ForkBackend()


_BUILT_IN: dict[str, Callable[[], Backend]] = {"native": _native, "fork": _fork}
_QUALITY = {"native": 100, "fork": 10}
#: What a plugin's ``lacks`` may take before it counts as hanging.
PROBE_S = 10.0
_KINDS = {"tests": "test functions", "fresh": "fresh interpreters", "programs": "programs"}

_made: dict[str, Backend] = {}


def backends(names: Sequence[str] = (), hooks: Hooks | None = None) -> list[Backend]:
    """The backends called ``names``, in that order; without names all of them, best first.

    Plugins are asked for theirs only where a name or the absence of names calls for it.

    Raises:
        PolicyError: a name that no backend has; the nearest one is suggested. PluginError: see offered().
    """
    if names and all(name in _BUILT_IN for name in names):
        return [_built_in(name) for name in names]
    plugins = offered(hooks)
    quality = {**_QUALITY, **{name: getattr(backend, "quality", 50) for name, (_, backend) in plugins.items()}}
    for name in names:
        if name not in quality:
            raise unknown("backend", name, quality)
    order = names or sorted(quality, key=lambda name: -quality[name])
    return [plugins[name][1] if name in plugins else _built_in(name) for name in order]


def _built_in(name: str) -> Backend:
    if name not in _made:
        _made[name] = _BUILT_IN[name]()
    return _made[name]


def offered(hooks: Hooks | None = None) -> dict[str, tuple[str, Backend]]:
    """name -> (plugin, backend) of what plugins offer; asked once, and once more after the collection.

    Raises:
        PluginError: two offer one name (both are named), or the hook raised.
    """
    hooks = hooks or of_this_process()
    if hooks.offered is None:
        found: dict[str, tuple[str, Backend]] = {}
        for plugin, backend in hooks.offers():
            holder = "pytest-isolate itself" if backend.name in _BUILT_IN else found.get(backend.name, ("",))[0]
            if holder:
                why = (
                    f"the backend {backend.name!r} is already offered by {holder}; rename one, or block it with -p no:"
                )
                raise PluginError(plugin, "pytest_isolate_backends", why)
            found[backend.name] = plugin, Offered(plugin, backend)
        hooks.offered = found
    return hooks.offered


class Offered:
    """A plugin's backend. Whatever it raises when it is to start something is told as the plugin's fault; equal to the backend."""

    def __init__(self, plugin: str, backend: Backend) -> None:
        self.plugin = plugin
        self.backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.backend

    def __hash__(self) -> int:
        return id(self.backend)

    def fork(self, *args: Any, **words: Any) -> Process | None:
        parent = os.getpid()
        try:
            return self._started("fork", args, words)
        except BaseException as error:
            if os.getpid() != parent:
                give_up(error)
            raise

    def spawn(self, *args: Any, **words: Any) -> Process:
        process = self._started("spawn", args, words)
        assert process is not None
        return process

    def _started(self, how: str, args: Any, words: Any) -> Process | None:
        parent = os.getpid()
        with blaming(self.plugin, f"backend {self.backend.name}, {how}"):
            process = getattr(self.backend, how)(*args, **words)
        if _is_process(process) or (process is None and how == "fork" and os.getpid() != parent):
            return process
        why = f"it gave {process!r}, which is no process: see pytest_isolate.backend.Process"
        raise PluginError(self.plugin, f"backend {self.backend.name}, {how}", why)


_process_types: set[type] = set()


def _is_process(found: object) -> TypeGuard[Process]:
    """Looked at once for each type: a protocol's isinstance() takes as long as a start does elsewhere."""
    if type(found) not in _process_types and isinstance(found, Process):
        _process_types.add(type(found))
    return type(found) in _process_types


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backend can run a policy: ``lacking`` is empty, or says what it cannot, why, and what would help."""

    backend: Backend
    lacking: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.lacking


def verdicts(
    policy: Policy, names: Sequence[str] = (), *, kind: Kind = "programs", hooks: Hooks | None = None
) -> Iterator[Verdict]:
    """What each backend says of ``policy``, asked one after the other, best first. Raises as backends()."""
    for backend in _in_order(names, hooks):
        yield Verdict(backend, tuple(_lacking(backend, policy, kind)))


def starts(names: Sequence[str], kind: Kind, hooks: Hooks | None = None) -> bool:
    """True where one of the backends of these names starts ``kind``, on whatever host. Raises PolicyError, PluginError."""
    return any(kind in _runs(backend) for backend in backends(names, hooks))


def usual_profile(names: Sequence[str], hooks: Hooks | None = None) -> str:
    """The profile that all of these backends are for; empty without names, and where one is for any. Raises as backends()."""
    found = {str(getattr(backend, "profile", "")) for backend in backends(names, hooks)} if names else {""}
    return found.pop() if len(found) == 1 else ""


def _runs(backend: Backend) -> frozenset[Kind]:
    return getattr(backend, "runs", frozenset({"programs"}))


def _in_order(names: Sequence[str], hooks: Hooks | None) -> Iterator[Backend]:
    """Without names the native backend is first: where it suffices no plugin is loaded or asked."""
    if names:
        yield from backends(names, hooks)
        return
    yield _built_in("native")
    yield from (backend for backend in backends((), hooks) if backend.name != "native")


def _lacking(backend: Backend, policy: Policy, kind: Kind) -> list[str]:
    if kind not in _runs(backend):
        return [f"{_KINDS[kind]}: it starts none. {_instead(backend, kind)}"]
    if backend.name in _BUILT_IN:
        return backend.lacks(policy)
    return _answer_in_time(backend, policy)


_answers: Remembered[list[str]] = Remembered()


def _instead(backend: Backend, kind: Kind) -> str:
    """What else may be asked of it."""
    others = _runs(backend)
    if kind == "tests" and "fresh" in others:
        return "Use --isolate-mode=fresh"
    return "Use it for programs, by sandbox.run" if "programs" in others else "Use the native backend"


def _answer_in_time(backend: Backend, policy: Policy) -> list[str]:
    """A plugin's answer, remembered for this policy."""
    return _answers.of(policy, lambda: _asked_in_time(backend, policy), cast(Hashable, backend))


def _asked_in_time(backend: Backend, policy: Policy) -> list[str]:
    """Its answer, or that it hangs, or how it failed: one bad plugin leaves the others to be chosen."""
    answers: list[list[str]] = []
    mistakes: list[PolicyError] = []

    def ask() -> None:
        try:
            found: Any = backend.lacks(policy)
            answers.append([str(text).rstrip(".") for text in ([found] if isinstance(found, str) else found)])
        except PolicyError as error:
            mistakes.append(error)
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            answers.append([f"an answer: {type(error).__name__}: {error} ({last.filename}:{last.lineno})"])

    thread = threading.Thread(target=ask, name=f"probe of {backend.name}", daemon=True)
    thread.start()
    thread.join(PROBE_S)
    if mistakes:  # of who wrote the policy, whoever is to enforce it
        raise mistakes[0]
    return answers[0] if answers else [f"an answer: its probe has not answered within {PROBE_S:g} s"]


def candidates(
    policy: Policy, names: Sequence[str] = (), *, kind: Kind = "programs", hooks: Hooks | None = None
) -> list[Backend]:
    """The backends that enforce all of ``policy``, best first: only the first, unless a plugin wants to choose.

    Raises:
        BackendUnavailable: none does; the text says what each lacks. PolicyError, PluginError: see backends().
    """
    hooks = hooks or of_this_process()
    found, reasons = [], []
    for verdict in verdicts(policy, names, kind=kind, hooks=hooks):
        if verdict:
            found.append(verdict.backend)
            if not hooks.selects:
                break
        else:
            reasons.append(f"{verdict.backend.name} lacks {'; '.join(verdict.lacking)}")
    if found:
        return found
    if _confined:
        raise BackendUnavailable(
            f"no backend can enforce the policy inside this test's own sandbox, which {_confined}",
            " | ".join(reasons),
            "let the test run under another profile, or ask for less inside: namespaces=[], say",
        )
    raise BackendUnavailable(
        "no backend on this host can enforce the policy",
        " | ".join(reasons),
        "run `pytest-isolate doctor`, ask for less (--isolate-profile=minimal), or choose --isolate-missing=skip|warn",
    )


_confined = ""


def enter(policy: Policy) -> None:
    """This process is inside a sandbox of ``policy`` now: what cannot be had here may be its doing, and not the host's."""
    global _confined
    hardening = policy.hardening
    taken = {
        "drops capabilities": hardening.capabilities is not None,
        "filters system calls": hardening.seccomp != "none",
        "governs files by Landlock": hardening.landlock is not None,
    }
    _confined = " and ".join(words for words, holds in taken.items() if holds)


def choose(
    policy: Policy,
    names: Sequence[str] = (),
    *,
    kind: Kind = "programs",
    hooks: Hooks | None = None,
    item: Any = None,
) -> Backend:
    """The backend for ``policy``: the first that enforces all of it, or which of these a plugin selects.

    Raises: as candidates().
    """
    hooks = hooks or of_this_process()
    return hooks.select(item, policy, candidates(policy, names, kind=kind, hooks=hooks))
