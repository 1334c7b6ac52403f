"""The limits of a program that runs: which of them can change, and to what.

Owns: the words of ``Running.update``, the policy they make of the one in force, and LiveLimits, by which a user reads and
writes them. Refuses: to write them into a cgroup (running.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from pytest_isolate.errors import BackendUnavailable, PolicyError
from pytest_isolate.policy import Limits, Policy
from pytest_isolate.profile import vary

#: Words that ``Running.update`` takes: those a cgroup holds, each with its field of Limits. An rlimit belongs to each process
#: that has inherited it.
_WORDS = {
    "memory": "memory_bytes",
    "memory_high": "memory_high_bytes",
    "swap": "swap_bytes",
    "pids": "pids",
    "cpu": "cpu_cores",
    "cpu_weight": "cpu_weight",
    "cpuset": "cpuset",
    "io": "io",
    "hugetlb": "hugetlb_bytes",
}
#: The value of a word that lifts its limit.
_LIFTED = "unlimited"


def changed(policy: Policy, words: Mapping[str, Any]) -> Policy:
    """``policy`` with the limits that ``words`` change: None changes nothing, ``"unlimited"`` lifts one.

    Raises:
        PolicyError: a word that cannot change while a program runs, or a value without meaning.
        BackendUnavailable: memory, where an rlimit holds it.
    """
    for word in words:
        if word not in _WORDS:
            raise PolicyError(
                f"update({word}=...)", "it cannot change while the program runs", f"of use: {', '.join(_WORDS)}"
            )
    varied = vary(policy, **{word: value for word, value in words.items() if value != _LIFTED})
    new = _lifted(varied, words)
    if new.limits.memory_fallback == "rlimit" and new.limits.memory_bytes != policy.limits.memory_bytes:
        raise BackendUnavailable(
            "update(memory=...)", "RLIMIT_DATA holds it here, which each process has inherited", "start it anew"
        )
    return new


def _lifted(policy: Policy, words: Mapping[str, Any]) -> Policy:
    """``policy`` without the limits that ``words`` lift.

    Raises:
        PolicyError: swap beside a memory limit, for which the lack of the word means none.
    """
    nothing = Limits()
    fields = {field: getattr(nothing, field) for word, field in _WORDS.items() if words.get(word) == _LIFTED}
    if "memory_bytes" in fields and words.get("swap") is None:
        fields["swap_bytes"] = None
    limits = replace(policy.limits, **fields)
    if "swap_bytes" in fields and limits.memory_bytes:
        raise PolicyError(
            "update(swap='unlimited')", "a memory limit without a word on swap means no swap", "write a size"
        )
    return replace(policy, limits=limits)


class Limited(Protocol):
    """What runs under limits: a Running."""

    policy: Policy

    def update(self, **words: Any) -> None: ...


class LiveLimits:
    """The limits of a running program: attributes as those of Limits; ``update`` changes them."""

    __slots__ = ("_running",)

    def __init__(self, running: Limited) -> None:
        self._running = running

    def __getattr__(self, name: str) -> Any:
        return getattr(self._running.policy.limits, name)

    def update(self, **words: Any) -> None:
        """As ``Running.update``: ``update(memory="unlimited")`` lifts a limit."""
        self._running.update(**words)
