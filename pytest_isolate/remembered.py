"""What was worked out for a value, found again by the value's identity.

Owns: Remembered, and Recent for what may change in the long run. Refuses: to compare values: a hash of a policy or a plan
would touch all of its pages, each of which is copied again after every fork.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")
_GENERATION = 32
_MOST_RECENT = 16


class Remembered(Generic[Value]):
    """Answers, each with the value it is for, whose id is its own while it lives.

    At most 64, in two generations: when the young one is full, it is the old one, and what was old and not asked for since is
    forgotten. What is asked for again and again stays, however many come once.
    """

    __slots__ = ("_old", "_young")

    def __init__(self) -> None:
        self._young: dict[tuple[int, Hashable], tuple[object, Value]] = {}
        self._old: dict[tuple[int, Hashable], tuple[object, Value]] = {}

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    def of(self, asked: object, make: Callable[[], Value], more: Hashable = None) -> Value:
        """The answer for ``asked``, and ``more`` if it depends on that; made by ``make`` where it is not known."""
        key = id(asked), more
        known = self._young.get(key)
        if known is None:
            known = self._old.get(key) or (asked, make())
            if len(self._young) >= _GENERATION:
                self._old, self._young = self._young, {}
            self._young[key] = known
        return known[1]


class Recent(Generic[Value]):
    """The last answers: of the item that runs, and of those that are looked at while it does."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: tuple[tuple[object, Value], ...] = ()

    def of(self, asked: object, make: Callable[[], Value]) -> Value:
        """The answer for ``asked``; made by ``make`` where it is not known any more."""
        for known, answer in self._known:
            if known is asked:
                return answer
        answer = make()
        self._known = ((asked, answer), *self._known[: _MOST_RECENT - 1])
        return answer

    def forget(self, asked: object = None) -> None:
        """``asked`` may have changed; None: whatever was asked."""
        self._known = () if asked is None else tuple(pair for pair in self._known if pair[0] is not asked)
