"""Whose turn it is: which process runs which item, what runs before its turn, and what waits for it at a gate.

Owns: the child that serves a group, the lanes ahead of it, what the parent sets up before either, and the moment in which
Ctrl-C is held back. Refuses: pytest's hooks (protocol.py), to start and end processes (workers.py), to listen to them
(lanes.py), and to say which item needs nothing set up (lookahead.py).
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from _pytest.scope import Scope

from pytest_isolate.errors import IsolateError
from pytest_isolate.runner import compat, deadline, interrupts, reporter, threads
from pytest_isolate.runner.conversation import Conversation
from pytest_isolate.runner.host import Host
from pytest_isolate.runner.lanes import MAX_KEPT_ITEMS, Lane, Listening
from pytest_isolate.runner.lookahead import WIDEST, Lookahead, Order, debugs
from pytest_isolate.runner.process import TestProcess, Verdict
from pytest_isolate.runner.reruns import Attempts
from pytest_isolate.runner.settings import Resolver, Settings
from pytest_isolate.runner.workers import EXIT_S, Workers

#: What a new interpreter may take until it begins the test, besides the test's own time; a loaded machine under ptrace is slow.
_START_S = 60.0
Serve = Callable[[pytest.Item, "pytest.Item | None", reporter.Link], NoReturn]


class Turns:
    """The processes of a run, as the items see them.

    ``ours`` is the plugin object, whose hooks are not a stranger's; ``serve`` is what a new child does, for ever;
    ``deadline_s`` is the time that the item whose turn it is has, of these settings.
    """

    def __init__(
        self,
        config: pytest.Config,
        resolver: Resolver,
        host: Host,
        ours: object,
        serve: Serve,
        deadline_s: Callable[[Settings], float | None],
    ) -> None:
        self._config = config
        self._resolver = resolver
        self._host = host
        self._ours = ours
        self._serve = serve
        self._deadline_s = deadline_s
        self._workers = Workers(host, self._serve_there)
        self._listening = Listening()
        self.order = Order(config, resolver)
        self._lookahead = Lookahead(resolver, self.order)
        self._lane: Lane | None = None
        self._turn: Conversation | None = None
        self._ahead: list[Lane] = []
        self._jobs = 1
        self._may_go_ahead: bool | None = None
        self._shared_with = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        self._held: interrupts.Held | None = None
        self._threads = threads.Watch()

    def close(self) -> None:
        """End the living child of a group as it is to be ended, and all others."""
        self.stop()
        self._workers.close()

    def stop(self) -> None:
        """The run ends here: what has run ahead is forgotten, what runs is ended."""
        self._lookahead.stop()
        self._drop(self._ahead)
        self.retire()

    def skips_here(self, item: pytest.Item) -> bool:
        """A test that its marks skip runs no code of its own; a living child of its group skips it itself."""
        if any(lane.has(item) for lane in self._ahead[:1]):
            return False  # looked at when it was forked
        lane = self._lane
        if lane is not None and ((lane.talks and lane.has(item)) or self._serves(lane, self.order.group_of(item)[0])):
            return False
        return compat.is_skipped(item)

    def _serves(self, lane: Lane, group: Any) -> bool:
        return lane.alive and group is not None and lane.worker.group == group

    # -- an item's turn --------------------------------------------------------------------------------------------

    def take(
        self, item: pytest.Item, following: pytest.Item | None, settings: Settings, attempts: Attempts | None
    ) -> Conversation:
        """Its turn has come: the conversation with the process that runs it, begun before or now.

        Raises:
            IsolateError: the sandbox could not be made.
        """
        group, limit = self.order.group_of(item)
        if (lane := self._lane) is not None:
            if lane.talks and lane.has(item):
                return lane.talks.popleft()
            if self._serves(lane, group):
                self._hold_interrupts()
                if self._was_told(lane, item, following):
                    return self._talk(lane, item, following, attempts, self._deadline_s(settings))
                self._bury(lane, Verdict(died=True))
        self.retire()
        if (talk := self._taken_from_ahead(item, following, settings, attempts)) is not None:
            return talk
        if settings.mode == "fresh":
            self._hold_interrupts()
            self._lane = self._start_fresh(item, settings)
        else:
            failure = None
            if not self._is_set_up(item, settings):
                with compat.phase(item, "setup"):
                    failure = self._set_up(item, settings, group, limit)
            self._hold_interrupts()
            made = 0 if attempts is None else attempts.made
            self._lane = self._start(item, following, settings, gated=False, tries=made, failure=failure)
            self._order_ahead(self._lane, following)
        return self._talk(self._lane, item, following, attempts, self._deadline_s(settings))

    def _taken_from_ahead(
        self, item: pytest.Item, following: pytest.Item | None, settings: Settings, attempts: Attempts | None
    ) -> Conversation | None:
        """The item's lane, if it has one; lanes of items whose turn will not come any more are dropped."""
        place = self.order.place(item) if self._ahead else 0
        passed = [lane for lane in self._ahead if self.order.place(lane.item) < place]
        if passed:
            self._drop(passed)
        if attempts is not None and self._jobs == 1:  # a crash was counted here: who was forked before has not seen it
            self._drop(self._ahead)
        if not self._ahead or not self._ahead[0].has(item):
            return None
        lane = self._lane = self._ahead.pop(0)
        if lane.talks:
            return lane.talks.popleft()
        self._hold_interrupts()
        if not self._opened(lane):
            return None
        self._order_ahead(lane, following)
        return self._talk(lane, item, following, attempts, self._deadline_s(settings))

    def listen(self, talk: Conversation, nextitem: pytest.Item | None) -> Verdict:
        """Hear ``talk``, whose turn it is, to its end; meanwhile start and hear what may run beside it."""
        self._turn = talk
        try:
            try:
                self._look_ahead_from(talk.item, nextitem)
                self._fill()
                self._host.groups.tidy()
                self._host.networks.make_ready()
            finally:
                self.release_interrupts()
            talk.telling.begin()
            self._listening.until(talk)
        except KeyboardInterrupt:
            self._interrupt(talk)
        return talk.verdict

    def _interrupt(self, talk: Conversation) -> None:
        """Ctrl-C: what runs may tear its own fixtures down, for a while; a second Ctrl-C ends it at once."""
        self._lookahead.stop()
        for lane in self._ahead:
            lane.dropped = True
        for end in (Conversation.interrupt, lambda running: running.worker.kill()):
            for running in self._listening.live():
                end(running)
            with contextlib.suppress(KeyboardInterrupt):
                talk.telling.begin()
                self._listening.until(talk)
                return

    # -- a group's child -------------------------------------------------------------------------------------------

    def _was_told(self, lane: Lane, item: pytest.Item, following: pytest.Item | None) -> bool:
        """Let the living child of a group run ``item``; False when it died while it waited, or was told of another."""
        worker, orders = lane.worker, lane.worker.orders
        ordered = orders.queued is item
        if orders.queued is not None and not ordered:
            return False
        if orders.held or not ordered:
            try:
                orders.go_on()
                if not ordered:
                    orders.run(*self._places(item, following))
            except OSError:
                return False
        orders.queued, worker.last = None, item
        self._order_ahead(lane, following)
        return True

    def _order_ahead(self, lane: Lane, following: pytest.Item | None) -> None:
        """Order what comes next now, so that a child whose test passed need not wait until we have told of it.

        Not where somebody would see or count the difference: output that is not captured, a debugger, a cgroup, a
        network policy, a plugin's hook, a strange wrapper around each item; and not where somebody else chooses the next.
        """
        worker = lane.worker
        if following is None or any((worker.cgroup, worker.network, worker.life)) or not self.order.is_known:
            return
        if self._strange_wrapper:
            return
        if following.session.items[self.order.place(following) - 1] is not worker.last:
            return
        with contextlib.suppress(OSError):  # it has died: whoever listens to it hears that
            worker.orders.run(*self._places(following, self.order.after(following, worker.group)))
            worker.orders.queued = following

    def _places(self, item: pytest.Item, following: pytest.Item | None) -> tuple[int, int | None]:
        return self.order.place(item), None if following is None else self.order.place(following)

    def retire(self) -> None:
        """Let the living child of a group, if there is one, tear down what it had set up for it, then end it."""
        lane, self._lane = self._lane, None
        if lane is None or not lane.alive:
            return
        if lane.talks and not lane.talks[-1].over:  # it ran ahead of a run that was stopped
            self._drop([lane])
            return
        verdict = Verdict(died=True)
        with contextlib.suppress(OSError):
            lane.worker.orders.end()
            verdict = self._heard_out(lane.worker)
        self._bury(lane, verdict)
        if verdict.complaint is not None:  # its items have been told of: the reason is not lost
            warnings.warn(f"pytest-isolate: {verdict.complaint}", stacklevel=2)

    def _heard_out(self, worker: TestProcess) -> Verdict:
        """What a child has yet to say that was told to end; first of an item that it ran ahead of a run that was stopped."""
        if worker.orders.runs_ahead:
            worker.last = worker.orders.queued or worker.last
            talk = self._last_words(worker)
            if talk.verdict.over:
                return talk.verdict
        talk = self._last_words(worker)
        talk.telling.begin()
        talk.telling.finish(None, [])
        return talk.verdict

    def _last_words(self, worker: TestProcess) -> Conversation:
        talk = Conversation(worker.last, worker, timeout_s=EXIT_S, grace_s=1.0, slow_s=EXIT_S)
        self._listening.add(talk, lambda _: None)
        self._listening.until(talk)
        return talk

    # -- setting up ------------------------------------------------------------------------------------------------

    def _is_set_up(self, item: pytest.Item, settings: Settings) -> bool:
        """True when nothing is left to set up here: the usual case from a module's second test on."""
        return settings.scope == "function" and compat.is_set_up(item)

    def _set_up(
        self, item: pytest.Item, settings: Settings, group: Any, limit: Any
    ) -> tuple[pytest.Item, BaseException] | None:
        """Set up, once and here, what is wider than the child's scope.

        A set-up that fails is kept by pytest, and fails in the child again; what else was raised is returned, with whose it is.
        """
        widest = WIDEST[settings.scope] if group is not None else Scope.Function
        member = item
        try:
            with deadline.at_most(self._deadline_s(settings), "a fixture wider than the test"):
                compat.set_up_collectors(item, limit)
                for member in self.order.members(item, group):
                    if member is item or not compat.is_skipped(member):
                        compat.set_up_wide_fixtures(member, widest)
        except (KeyboardInterrupt, pytest.exit.Exception):
            raise
        except BaseException as error:
            return None if compat.is_kept(member, error) else (member, error)
        return None

    def _start(
        self,
        item: pytest.Item,
        following: pytest.Item | None,
        settings: Settings,
        *,
        gated: bool,
        tries: int = 0,
        failure: tuple[pytest.Item, BaseException] | None = None,
    ) -> Lane:
        self._threads.look(item)
        compat.make_base_temp(self._config)
        compat.flush(self._config)
        if settings.scope == "function":
            self._workers.expect((len(item.session.items) - self.order.place(item)) // self._shared_with)
        worker = self._workers.start(
            item,
            following,
            settings,
            gated=gated,
            tries=tries,
            dump_stacks=self._deadline_s(settings) is not None,
            failure=failure,
        )
        worker.group = self.order.group_of(item)[0]
        return Lane(worker, settings, item, following, gated=gated)

    def _start_fresh(self, item: pytest.Item, settings: Settings) -> Lane:
        return Lane(self._workers.start_fresh(item, settings), settings, item)

    # -- ahead of their turn ---------------------------------------------------------------------------------------

    @functools.cached_property
    def _strange_wrapper(self) -> str:
        return compat.strange_wrapper(self._config, self._ours)

    def why_one_by_one(self) -> str:
        """What keeps tests from running side by side; empty where nothing does."""
        if debugs(self._config):
            return "a person debugs (--pdb or --trace)"
        if compat.shows_output(self._config):
            return "what they print is shown as it comes (-s, --capture=tee-sys or log_cli)"
        if (package := compat.strange_loop(self._config)) == "xdist":
            return "each worker of xdist runs one at a time (-n 0 switches xdist off)"
        if package:
            return f"{package} runs the tests by a loop of its own"
        if name := self._strange_wrapper:
            return f"the plugin {name} wraps pytest_runtest_protocol"
        if self._config.getoption("max_suite_reruns", None) is not None:
            return "--max-suite-reruns counts from test to test"
        return ""

    def _look_ahead_from(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """What is set up here is what ``item`` needs; unless others ran ahead of it, and nothing has changed since."""
        if self._may_go_ahead is None:
            self._jobs = 1 if self.why_one_by_one() else self._resolver.jobs
            alone = self._jobs > 1 or not self._host.hooks.takes_part
            nests = not (debugs(self._config) or self._strange_wrapper)
            self._may_go_ahead = alone and nests
        if self._may_go_ahead and not self._ahead:
            self._lookahead.begin(item, nextitem)

    def _fill(self) -> None:
        """Let as many run as may, and fork the one that waits at the gate, where nothing has to change here before its turn."""
        while True:
            may_run = self._jobs > 1 and len(self._listening) < self._jobs
            last = self._ahead[-1] if self._ahead else None
            if last is not None and last.dropped:
                return
            if last is None or not last.gated:
                if not self._started_ahead(may_run):
                    return
            elif not may_run:
                return
            elif self._opened(last):
                self._order_ahead(last, last.following)
                self._run_ahead(last, last.item)
            else:
                self._ahead.remove(last)
                self._lookahead.stop()

    def _started_ahead(self, may_run: bool) -> bool:
        """False when there is nothing to start, or no room to keep what it tells."""
        if self._kept_items() >= MAX_KEPT_ITEMS or (item := self._lookahead.next(fresh=may_run)) is None:
            return False
        settings = self._host.admitted(self._resolver.item(item))
        try:
            if settings.mode == "fresh":
                self._ahead.append(self._start_fresh(item, settings))
                self._run_ahead(self._ahead[-1], item)
                return True
            group, _ = self.order.group_of(item)
            widest = Scope.Function if group is None else WIDEST[settings.scope]
            with contextlib.suppress(*compat.FIXTURE_FAILURES):  # all made: this only links them to the item
                compat.set_up_wide_fixtures(item, widest)
            self._ahead.append(self._start(item, self.order.after(item, group), settings, gated=True))
        except IsolateError:  # tried again, and reported, at its turn
            self._lookahead.stop()
            return False
        return True

    def _kept_items(self) -> int:
        return sum(len(lane.talks) for lane in self._ahead)

    def _run_ahead(self, lane: Lane, item: pytest.Item) -> None:
        """Listen to ``item``, which its lane runs before its turn."""
        following = self.order.after(item, lane.worker.group)
        lane.talks.append(self._talk(lane, item, following, None, lane.settings.policy.timeout_s))

    def _opened(self, lane: Lane) -> bool:
        """Let a gated child run its item; False when it died at the gate, and is buried."""
        lane.gated = False
        try:
            lane.worker.orders.open_gate()
        except OSError:
            self._bury(lane, Verdict(died=True))
            return False
        return True

    def _talk(
        self,
        lane: Lane,
        item: pytest.Item,
        following: pytest.Item | None,
        attempts: Attempts | None,
        timeout_s: float | None,
    ) -> Conversation:
        policy = lane.settings.policy
        talk = Conversation(
            item,
            lane.worker,
            timeout_s=timeout_s,
            policy_timeout_s=None if debugs(self._config) else policy.timeout_s,
            grace_s=policy.grace_s,
            slow_s=lane.settings.slow_s,
            attempts=attempts,
            following=following,
            idle=self._listening.idle,
            start_s=_START_S if lane.settings.mode == "fresh" else 0.0,
        )
        self._listening.add(talk, lambda talk: self._over(lane, talk))
        return talk

    def _over(self, lane: Lane, talk: Conversation) -> None:
        """An item is done: bury its process or let it run the next of its group, and let others begin."""
        self._hold_interrupts()
        try:
            if talk.verdict.over or talk.following is None:
                self._bury(lane, talk.verdict)
            elif lane.dropped:
                self._bury(lane, Verdict(died=True))
            elif talk is not self._turn and self._kept_items() < MAX_KEPT_ITEMS:
                if self._was_told(lane, talk.following, self.order.after(talk.following, lane.worker.group)):
                    self._run_ahead(lane, talk.following)
                else:  # it died: the rest of the group begins at its turn
                    self._bury(lane, Verdict(died=True))
            self._fill()
        finally:
            self.release_interrupts()

    # -- endings ---------------------------------------------------------------------------------------------------

    def _drop(self, lanes: list[Lane]) -> None:
        """End what runs in vain and tell nothing of it; running tests may tear their fixtures down, for a while."""
        self._ahead = [lane for lane in self._ahead if lane not in lanes]
        for lane in lanes:
            lane.dropped = True
            if lane.alive and (not lane.talks or lane.talks[-1].over):
                self._bury(lane, Verdict(died=True))
        for talk in (talk for lane in lanes for talk in lane.talks):
            talk.telling.mute()
        running = [lane.talks[-1] for lane in lanes if lane.alive]
        try:
            for talk in running:
                if not talk.verdict.interrupted:
                    talk.interrupt()
            for talk in running:
                self._listening.until(talk)
        except KeyboardInterrupt:
            for talk in running:
                talk.worker.kill()
            for talk in running:
                self._listening.until(talk)
            raise

    def _bury(self, lane: Lane, verdict: Verdict) -> None:
        lane.alive = False
        self._workers.bury(lane.worker, verdict)

    def _hold_interrupts(self) -> None:
        self._held = self._held or interrupts.Held()

    def release_interrupts(self) -> None:
        """Let Ctrl-C act again, and what came of it meanwhile.

        Raises:
            KeyboardInterrupt: it came.
        """
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _serve_there(self, item: pytest.Item, following: pytest.Item | None, link: reporter.Link) -> NoReturn:
        if self._held is not None:
            self._held.restore()
        interrupts.heard()
        self._serve(item, following, link)
