"""Whose turn it is: which process runs the item whose turn has come, and what the parent sets up before.

Owns: the child that serves a group, and the moments in which Ctrl-C is held back. Refuses: pytest's hooks (protocol.py), what runs
before its turn (ahead.py), and all that is said to a process (crew.py).
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from _pytest.scope import Scope

from pytest_isolate.runner import compat, deadline
from pytest_isolate.runner.ahead import Ahead
from pytest_isolate.runner.conversation import Conversation
from pytest_isolate.runner.crew import Crew
from pytest_isolate.runner.host import Host
from pytest_isolate.runner.lanes import Lane
from pytest_isolate.runner.lookahead import WIDEST
from pytest_isolate.runner.process import Verdict
from pytest_isolate.runner.reruns import Attempts
from pytest_isolate.runner.settings import Resolver, Settings
from pytest_isolate.runner.workers import Entry


class Turns:
    """The processes of a run, as the items see them."""

    def __init__(self, config: pytest.Config, resolver: Resolver, host: Host, crew: Crew) -> None:
        self._host = host
        self._crew = crew
        self._ahead = Ahead(config, resolver, host, crew)
        self._lane: Lane | None = None

    def close(self) -> None:
        """End the living child of a group as it is to be ended, and all others."""
        self.stop()
        self._crew.close()

    def stop(self) -> None:
        """The run ends here: what has run ahead is forgotten, what runs is ended."""
        self._ahead.stop()
        self.retire()

    def skips_here(self, item: pytest.Item) -> bool:
        """A test that its marks skip runs no code of its own; a living child of its group skips it itself."""
        if self._ahead.has(item):
            return False  # looked at when it was forked
        lane = self._lane
        if lane is not None and ((lane.talks and lane.has(item)) or _serves(lane, self._crew.order.group_of(item)[0])):
            return False
        return compat.is_skipped(item)

    def take(
        self, item: pytest.Item, following: pytest.Item | None, settings: Settings, attempts: Attempts | None
    ) -> Conversation:
        """Its turn has come: the conversation with the process that runs it, begun before or now.

        Raises:
            IsolateError: the sandbox could not be made.
        """
        group, limit = self._crew.order.group_of(item)
        if (lane := self._lane) is not None:
            if lane.talks and lane.has(item):
                return lane.talks.popleft()
            if _serves(lane, group):
                self._crew.interrupts.hold()
                if self._crew.tell(lane, item, following):
                    return self._talk(lane, item, following, settings, attempts)
                self._crew.abandon(lane)
        self.retire()
        if (lane := self._ahead.taken(item, attempts)) is not None:
            self._lane = lane
            if lane.talks:
                return lane.talks.popleft()
            self._crew.interrupts.hold()
            if self._crew.open(lane, following):
                return self._talk(lane, item, following, settings, attempts)
        if settings.mode == "fresh":
            self._crew.interrupts.hold()
            self._lane = self._crew.start_fresh(item, settings)
        else:
            failure = None
            if not (
                settings.scope == "function" and compat.is_set_up(item)
            ):  # the usual case from a module's second test on
                with compat.phase(item, "setup"):
                    failure = self._set_up(item, settings, group, limit)
            self._crew.interrupts.hold()
            made = 0 if attempts is None else attempts.made
            self._lane = self._crew.start(item, following, settings, Entry(tries=made, failure=failure))
        return self._talk(self._lane, item, following, settings, attempts)

    def _talk(
        self,
        lane: Lane,
        item: pytest.Item,
        following: pytest.Item | None,
        settings: Settings,
        attempts: Attempts | None,
    ) -> Conversation:
        return self._crew.talk(lane, item, following, attempts, self._crew.deadline_s(settings), self._ahead.over)

    def _set_up(
        self, item: pytest.Item, settings: Settings, group: Any, limit: Any
    ) -> tuple[pytest.Item, BaseException] | None:
        """Set up, once and here, what is wider than the child's scope.

        A set-up that fails is kept by pytest, and fails in the child again; what else was raised is returned, with whose it is.
        """
        widest = WIDEST[settings.scope] if group is not None else Scope.Function
        member = item
        try:
            with deadline.at_most(self._crew.deadline_s(settings), "a fixture wider than the test"):
                compat.set_up_collectors(item, limit)
                for member in self._crew.order.members(item, group):
                    if member is item or not compat.is_skipped(member):
                        compat.set_up_wide_fixtures(member, widest)
        except (KeyboardInterrupt, pytest.exit.Exception):
            raise
        except BaseException as error:
            return None if compat.is_kept(member, error) else (member, error)
        return None

    def listen(self, talk: Conversation, nextitem: pytest.Item | None) -> Verdict:
        """Hear ``talk``, whose turn it is, to its end; meanwhile start and hear what may run beside it."""
        self._ahead.turn = talk
        try:
            try:
                self._ahead.look_from(talk.item, nextitem)
                self._ahead.fill()
                self._host.groups.tidy()
                self._host.networks.make_ready()
            finally:
                self._crew.interrupts.release()
            talk.telling.begin()
            self._crew.listening.until(talk)
        except KeyboardInterrupt:
            self._interrupt(talk)
        return talk.verdict

    def _interrupt(self, talk: Conversation) -> None:
        """Ctrl-C: what runs may tear its own fixtures down, for a while; a second Ctrl-C ends it at once."""
        self._ahead.begin_no_more()
        for end in (Conversation.interrupt, lambda running: running.worker.kill()):
            for running in self._crew.listening.live():
                end(running)
            try:
                talk.telling.begin()
                self._crew.listening.until(talk)
            except KeyboardInterrupt:
                continue
            return

    def retire(self) -> None:
        """Let the living child of a group, if there is one, tear down what it had set up for it, then end it."""
        lane, self._lane = self._lane, None
        if lane is None or not lane.alive:
            return
        if lane.talks:  # it ran ahead of a run that was stopped, or of items that a hook has changed
            self._crew.drop([lane])
            return
        verdict = self._crew.end_group(lane)
        if verdict.complaint is not None:  # its items have been told of: the reason is not lost
            warnings.warn(f"pytest-isolate: {verdict.complaint}", stacklevel=2)


def _serves(lane: Lane, group: Any) -> bool:
    """True when it may be told of an item: it is the group's, and has not run ahead to another one."""
    return lane.alive and group is not None and lane.worker.group == group and not lane.talks
