"""Which backend runs a policy, and why the others do not.

Owns: the list of known backends in order of preference, and the choice.
Refuses: to weaken the policy: who can enforce all of it, or an error that says what each one lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_isolate.backend import Backend
from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.policy import Policy, unknown


def _native() -> Backend:
    from pytest_isolate.backends.native import NativeBackend

    return NativeBackend()


def _fork() -> Backend:
    from pytest_isolate.backends.fork import ForkBackend

    return ForkBackend()


#: In order of preference; each is made when it is first asked.
_BUILT_IN: dict[str, Callable[[], Backend]] = {"native": _native, "fork": _fork}
_made: dict[str, Backend] = {}


def backends(names: Sequence[str] = ()) -> list[Backend]:
    """The backends called ``names``, in that order; all of them, best first, without names.

    Raises:
        PolicyError: a name that no backend has; the nearest one is suggested.
    """
    for name in names:
        if name not in _BUILT_IN:
            raise unknown("backend", name, _BUILT_IN)
    for name in names or _BUILT_IN:
        if name not in _made:
            _made[name] = _BUILT_IN[name]()
    return [_made[name] for name in names or _BUILT_IN]


def choose(policy: Policy, names: Sequence[str] = ()) -> Backend:
    """The first backend that enforces all of ``policy``.

    Raises:
        BackendUnavailable: none does; the text says what each lacks.
    """
    reasons = []
    for backend in backends(names):
        lacking = backend.lacks(policy)
        if not lacking:
            return backend
        reasons.append(f"{backend.name} lacks {'; '.join(lacking)}")
    raise BackendUnavailable(
        "no backend on this host can enforce the policy",
        " | ".join(reasons),
        "run `pytest-isolate doctor`, ask for less (--isolate-profile=minimal), or choose --isolate-missing=skip|warn",
    )
