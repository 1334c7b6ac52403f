"""What runs before its turn, and what waits for its turn at a gate.

Owns: the lanes whose turn has not come, in the order of their items; how many run at once, and when the next begins.
Refuses: to say which item needs nothing set up (lookahead.py), and what is done at a turn (turns.py).
"""

from __future__ import annotations

import contextlib

import pytest
from _pytest.scope import Scope

from pytest_isolate.errors import IsolateError
from pytest_isolate.runner import compat
from pytest_isolate.runner.conversation import Conversation
from pytest_isolate.runner.crew import Crew
from pytest_isolate.runner.host import Host
from pytest_isolate.runner.lanes import MAX_KEPT_ITEMS, Lane
from pytest_isolate.runner.lookahead import WIDEST, Lookahead, debugs
from pytest_isolate.runner.reruns import Attempts
from pytest_isolate.runner.settings import Resolver
from pytest_isolate.runner.workers import Entry


class Ahead:
    """The lanes ahead of the one whose turn it is. ``turn``: what is listened to at its turn."""

    def __init__(self, config: pytest.Config, resolver: Resolver, host: Host, crew: Crew) -> None:
        self._config = config
        self._resolver = resolver
        self._host = host
        self._crew = crew
        self._order = crew.order
        self._lookahead = Lookahead(resolver, crew.order)
        self._lanes: list[Lane] = []
        self._jobs = 1
        self._may_begin: bool | None = None
        self.turn: Conversation | None = None

    def has(self, item: pytest.Item) -> bool:
        """True when ``item`` is the next of those that run or wait here."""
        return bool(self._lanes) and self._lanes[0].has(item)

    def stop(self) -> None:
        """The run ends here: what has run ahead is forgotten, what runs is ended."""
        self._lookahead.stop()
        self._drop(self._lanes)

    def begin_no_more(self) -> None:
        """Ctrl-C: what runs may end, and nothing begins any more."""
        self._lookahead.stop()
        for lane in self._lanes:
            lane.dropped = True

    def taken(self, item: pytest.Item, attempts: Attempts | None) -> Lane | None:
        """The item's lane, if it has one; lanes of items whose turn will not come any more are dropped."""
        place = self._order.place(item) if self._lanes else 0
        items = item.session.items
        passed = [lane for lane in self._lanes if not place <= self._order.place(lane.item) < len(items)]
        if passed:
            self._drop(passed)
        if attempts is not None and self._jobs == 1:  # a crash was counted here: who was forked before has not seen it
            self._drop(self._lanes)
        return self._lanes.pop(0) if self.has(item) else None

    def look_from(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """What is set up here is what ``item`` needs; unless others ran ahead of it, and nothing has changed since."""
        if self._may_begin is None:
            self._jobs = 1 if self._crew.why_one_by_one() else self._resolver.jobs
            alone = self._jobs > 1 or not self._host.hooks.takes_part
            nests = not (debugs(self._config) or self._crew.strange_wrapper)
            self._may_begin = alone and nests
        if self._may_begin and not self._lanes:
            self._lookahead.begin(item, nextitem)

    def fill(self) -> None:
        """Let as many run as may, and fork the one that waits at the gate, where nothing has to change here before its turn."""
        while True:
            may_run = self._jobs > 1 and len(self._crew.listening) < self._jobs
            last = self._lanes[-1] if self._lanes else None
            if last is not None and last.dropped:
                return
            if last is None or not last.gated:
                if not self._started(may_run):
                    return
            elif not may_run:
                return
            elif self._crew.open(last, last.following):
                self._run(last, last.item)
            else:
                self._lanes.remove(last)
                self._lookahead.stop()

    def _started(self, may_run: bool) -> bool:
        """False when there is nothing to start, or no room to keep what it tells."""
        if self._kept_items() >= MAX_KEPT_ITEMS or (item := self._lookahead.next(fresh=may_run)) is None:
            return False
        settings = self._host.admitted(self._resolver.item(item))
        try:
            if settings.mode == "fresh":
                self._lanes.append(self._crew.start_fresh(item, settings))
                self._run(self._lanes[-1], item)
                return True
            group, _ = self._order.group_of(item)
            widest = Scope.Function if group is None else WIDEST[settings.scope]
            with contextlib.suppress(*compat.FIXTURE_FAILURES):  # all made: this only links them to the item
                compat.set_up_wide_fixtures(item, widest)
            self._lanes.append(self._crew.start(item, self._order.after(item, group), settings, Entry(gated=True)))
        except IsolateError:  # tried again, and reported, at its turn
            self._lookahead.stop()
            return False
        return True

    def _kept_items(self) -> int:
        return sum(len(lane.talks) for lane in self._lanes)

    def _run(self, lane: Lane, item: pytest.Item) -> None:
        """Listen to ``item``, which its lane runs before its turn."""
        following = self._order.after(item, lane.worker.group)
        lane.talks.append(self._crew.talk(lane, item, following, None, lane.settings.policy.timeout_s, self.over))

    def over(self, lane: Lane, talk: Conversation) -> None:
        """An item is done: bury its process or let it run the next of its group, and let others begin."""
        self._crew.interrupts.hold()
        try:
            if talk.verdict.over:
                self._crew.bury(lane, talk.verdict)
            elif lane.dropped or talk.following is None:
                pass  # it knows of another, whose turn will not come: whoever drops it, or the next turn, tells it to end
            elif talk is not self.turn and self._kept_items() < MAX_KEPT_ITEMS:
                if self._crew.tell(lane, talk.following, self._order.after(talk.following, lane.worker.group)):
                    self._run(lane, talk.following)
                else:  # it died, or a hook has changed the items: the rest of the group begins at its turn
                    self._crew.abandon(lane)
            self.fill()
        finally:
            self._crew.interrupts.release()

    def _drop(self, lanes: list[Lane]) -> None:
        self._lanes = [lane for lane in self._lanes if lane not in lanes]
        self._crew.drop(lanes)
