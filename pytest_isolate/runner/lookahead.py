"""Which item may begin before its turn: one for which nothing has to change in pytest's own process first.

Owns: the place up to which was looked, and what would be left of the set-up collectors there.
Refuses: to start anything (ahead.py), and to guess: a fixture or a collector that might do something is waited for.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
from _pytest.scope import Scope

from pytest_isolate.remembered import Recent
from pytest_isolate.runner import compat
from pytest_isolate.runner.settings import Resolver, Settings

_SCOPE_NODES: dict[str, type[pytest.Collector]] = {"class": pytest.Class, "module": pytest.Module}
WIDEST = {"function": Scope.Function, "class": Scope.Class, "module": Scope.Module}


def debugs(config: pytest.Config) -> bool:
    """True when a person sits at the debugger: no deadline holds, and nothing runs ahead."""
    return bool(config.getoption("usepdb") or config.getoption("trace", False))


def runs_isolated(settings: Settings) -> bool:
    return settings.enabled and settings.mode != "inprocess"


class Order:
    """The items as they will run, and which of them follow one another in one child.

    ``places`` in session.items, which a forked child shares, by id: another value when a change of that list was found.
    """

    def __init__(self, config: pytest.Config, resolver: Resolver) -> None:
        self._config = config
        self._resolver = resolver
        self._items: list[pytest.Item] = []
        self.places: dict[int, int] = {}
        self._last_group: tuple[Any, range] = (None, range(0))
        self._serial: dict[Any, bool] = {}
        self._groups = Recent[tuple[Any, Any]]()

    @functools.cached_property
    def is_known(self) -> bool:
        """False where somebody else chooses the next item, as xdist does, or a person watches."""
        return not (debugs(self._config) or compat.shows_output(self._config) or compat.strange_loop(self._config))

    def group_of(self, item: pytest.Item) -> tuple[Any, Any]:
        """Which items may share the item's child, and the collector that is set up inside it; (None, None): none.

        Two items of one class or module still differ where a wider fixture has another parameter, or the policy differs.
        """
        return self._groups.of(item, lambda: self._found_group(item))

    def look_again(self, item: pytest.Item) -> None:
        """Its turn has come, and markers may have been added to it."""
        self._groups.forget(item)
        self._resolver.look_again(item)

    def _found_group(self, item: pytest.Item) -> tuple[Any, Any]:
        settings = self._resolver.item(item)
        kind = _SCOPE_NODES.get(settings.scope) if settings.mode == "fork" else None
        node: pytest.Collector | None = item.getparent(kind) if kind is not None else None
        if node is None or not runs_isolated(settings):
            return None, None
        alike = self._resolver.but_for_serial(settings)
        return (id(node), compat.wide_parameters(item, WIDEST[settings.scope]), id(alike)), node

    def is_serial(self, item: pytest.Item) -> bool:
        """True when no other test may run beside ``item``, or beside one of its group: they share a process, and its turn."""
        group, _ = self.group_of(item)
        if group is None:
            return self._resolver.item(item).serial
        if group not in self._serial:
            self._serial[group] = any(self._resolver.item(member).serial for member in self.members(item, group))
        return self._serial[group]

    def look(self, items: list[pytest.Item]) -> None:
        """Find ``places`` anew where a hook has changed the session's items."""
        if self._items != items:
            self._items = items.copy()
            self.places = {id(item): place for place, item in enumerate(items)}
            self._last_group = (None, range(0))
            self._serial.clear()

    def place(self, item: pytest.Item) -> int:
        """The item's place in session.items; their number for one that is not among them any more."""
        items = item.session.items
        place = self.places.get(id(item), len(items))
        if place >= len(items) or items[place] is not item:
            self.look(items)
            place = self.places.get(id(item), len(items))
        return place

    def same_group(self, item: pytest.Item, group: Any) -> bool:
        return group is not None and self.group_of(item)[0] == group

    def rest(self, item: pytest.Item, group: Any) -> range:
        """The places of ``item`` and, in a group, of those that follow it in the same child."""
        items = item.session.items
        self.look(items)
        place = self.place(item)
        if group is None or place == len(items):
            return range(place, place + 1)
        known, places = self._last_group
        if known != group or place not in places:
            end = place + 1
            while end < len(items) and self.same_group(items[end], group):
                end += 1
            self._last_group = group, range(place, end)
        return range(place, self._last_group[1].stop)

    def members(self, item: pytest.Item, group: Any) -> list[pytest.Item]:
        """``item`` and, in a group, those that follow it in the same child."""
        places = self.rest(item, group)
        return [item, *item.session.items[places.start + 1 : places.stop]]

    def after(self, item: pytest.Item, group: Any) -> pytest.Item | None:
        """The next item of the group."""
        items, place = item.session.items, self.place(item) + 1
        return items[place] if place < len(items) and self.same_group(items[place], group) else None

    def coming(self, item: pytest.Item, group: Any, most: int) -> tuple[list[pytest.Item], pytest.Item | None]:
        """The next items of the group, at most so many, and what follows those in it."""
        found: list[pytest.Item] = []
        beyond = self.after(item, group)
        while beyond is not None and len(found) < most:
            found.append(beyond)
            beyond = self.after(beyond, group)
        return found, beyond


class Lookahead:
    """Goes through the items behind the one whose turn it is, as far as nothing has to be set up or torn down here."""

    def __init__(self, resolver: Resolver, order: Order) -> None:
        self._resolver = resolver
        self._order = order
        self._coming: list[pytest.Item] = []
        self._place = 0
        self._stack: list[Any] = []
        self._parent: Any = None

    def begin(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """``item`` runs, and what it needs is set up here: look at what comes after it and its group; not if it is serial."""
        if self._order.is_serial(item):
            self.stop()
            return
        self._stack = compat.set_up_now(item.session)
        self._parent = None
        group, _ = self._order.group_of(item)
        if self._order.is_known:
            self._coming = item.session.items
            self._place = self._order.rest(item, group).stop
        else:
            self._coming, self._place = ([] if nextitem is None or group is not None else [nextitem]), 0

    def stop(self) -> None:
        """What comes next has to wait for its turn."""
        self._coming = []

    def next(self, *, fresh: bool) -> pytest.Item | None:
        """The next item that may begin, alone or first of its group; None: what follows has to wait.

        ``fresh``: it may also be one for a new interpreter, which needs nothing of this process, and begins at once.
        """
        while self._place < len(self._coming):
            item = self._coming[self._place]
            settings = self._resolver.item(item)
            if not runs_isolated(settings) or not self._leaves_all(item):
                break
            if compat.is_skipped(item):  # at its turn, and here; it sets nothing up
                self._place += 1
                continue
            if self._order.is_serial(item):
                break
            if settings.mode == "fresh" and not fresh:
                return None
            group, limit = self._order.group_of(item)
            members = self._order.members(item, group)
            if settings.mode == "fork" and not self._has_all(members, settings, limit):
                break
            self._place += len(members)
            return item
        self.stop()
        return None

    def _leaves_all(self, item: pytest.Item) -> bool:
        """True when nothing happens here before the item's turn: what is set up, and not for it, has nothing to tear down."""
        if item.parent is not self._parent:
            left = compat.left_for(self._stack, item)
            if left is None:
                return False
            self._stack, self._parent = left, item.parent
        return True

    def _has_all(self, members: list[pytest.Item], settings: Settings, limit: Any) -> bool:
        """True when the child finds all that is wider than it, or makes it by doing nothing."""
        widest = Scope.Function if limit is None else WIDEST[settings.scope]
        return compat.needs_no_setup(members[0], len(self._stack), limit) and all(
            compat.has_wide_fixtures(member, widest) for member in members
        )
