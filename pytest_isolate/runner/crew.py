"""The processes that run tests, as lanes: started, told what to run, listened to, and ended.

Owns: what is said to a process and when it may be said ahead, and the reasons for which tests run one by one.
Refuses: to choose whose turn it is (turns.py) and what runs before its turn (ahead.py), and how a process is made (workers.py).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.runner import compat, interrupts, reporter, threads
from pytest_isolate.runner.conversation import Conversation
from pytest_isolate.runner.host import Host
from pytest_isolate.runner.lanes import Lane, Listening
from pytest_isolate.runner.lookahead import Order, debugs
from pytest_isolate.runner.process import TestProcess, Verdict
from pytest_isolate.runner.reruns import Attempts
from pytest_isolate.runner.settings import Settings
from pytest_isolate.runner.workers import EXIT_S, Entry, Serve, Workers

#: What a new interpreter may take until it begins the test, besides the test's own time; a loaded machine under ptrace is slow.
_START_S = 60.0
#: Told when an item of the lane is over.
Over = Callable[[Lane, Conversation], None]


class Crew:
    """All lanes of a run.

    ``ours`` is the plugin object, whose hooks are not a stranger's; ``serve`` is what a new child does, for ever;
    ``deadline_s`` is the time that the item whose turn it is has, of these settings.
    """

    def __init__(
        self,
        config: pytest.Config,
        host: Host,
        order: Order,
        ours: object,
        serve: Serve,
        deadline_s: Callable[[Settings], float | None],
    ) -> None:
        self._config = config
        self.order = order
        self.deadline_s = deadline_s
        self._ours = ours
        self._serve = serve
        self._workers = Workers(host, self._serve_there)
        self._shared_with = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        self._threads = threads.Watch()
        self.listening = Listening(host.networks)
        self.interrupts = interrupts.Hold()

    def close(self) -> None:
        """End whoever is left."""
        self._workers.close()

    # -- starting --------------------------------------------------------------------------------------------------

    def start(self, item: pytest.Item, following: pytest.Item | None, settings: Settings, entry: Entry) -> Lane:
        """Fork a process for ``item`` and, in a group, those after it; a gated one waits for open().

        Raises:
            IsolateError: the sandbox could not be made.
        """
        self._threads.look(item)
        compat.make_base_temp(self._config)
        compat.flush(self._config)
        if settings.scope == "function":
            self._workers.expect((len(item.session.items) - self.order.place(item)) // self._shared_with)
        dump_stacks = self.deadline_s(settings) is not None
        self.order.look(item.session.items)
        serial = self.order.is_serial(item)
        worker = self._workers.start(item, following, settings, entry, dump_stacks=dump_stacks, serial=serial)
        worker.places = self.order.places
        worker.group = self.order.group_of(item)[0]
        lane = Lane(worker, settings, item, following, gated=entry.gated)
        if not entry.gated:
            self._order_ahead(lane, following)
        return lane

    def start_fresh(self, item: pytest.Item, settings: Settings) -> Lane:
        """Start a new interpreter for ``item``; raises as start(), and where a debugger is asked for: it has no terminal."""
        if debugs(self._config):
            why = "a new interpreter has no terminal for a debugger"
            raise PolicyError("mode fresh", why, "leave out --pdb and --trace, or use --isolate-mode=fork")
        return Lane(self._workers.start_fresh(item, settings, serial=self.order.is_serial(item)), settings, item)

    def _serve_there(self, item: pytest.Item, following: pytest.Item | None, link: reporter.Link) -> NoReturn:
        self.interrupts.restore()
        interrupts.heard()
        self._serve(item, following, link)

    # -- told what to run ------------------------------------------------------------------------------------------

    def open(self, lane: Lane, following: pytest.Item | None) -> bool:
        """Let a gated child run its item, and then ``following``; False when it died at the gate, and is buried."""
        lane.gated = False
        try:
            lane.worker.orders.open_gate()
        except OSError:
            self.bury(lane, Verdict(died=True))
            return False
        self._order_ahead(lane, following)
        return True

    def tell(self, lane: Lane, item: pytest.Item, following: pytest.Item | None) -> bool:
        """Let the living child of a group run ``item``.

        False when it died while it waited, was told of another, or does not know the item: it is to be ended then.
        """
        worker, orders = lane.worker, lane.worker.orders
        ordered = orders.queued[0] if orders.queued else None
        if ordered is not item and (ordered is not None or id(item) not in worker.places):
            return False
        try:
            orders.go_on()
            if ordered is None:
                orders.run(_places(worker, [item], following))
            else:
                orders.queued.popleft()
        except OSError:
            return False
        worker.last = item
        self._order_ahead(lane, following)
        return True

    def _order_ahead(self, lane: Lane, following: pytest.Item | None) -> None:
        """Order what comes next, so that a child whose test passed need not wait until we have told of it.

        Not where somebody would see or count the difference: output that is not captured, a debugger, a cgroup, a
        network policy, a plugin's hook, a strange wrapper around each item; and not where somebody else chooses the next.
        """
        worker, orders = lane.worker, lane.worker.orders
        if following is None or not (room := orders.room()):
            return
        if any((worker.cgroup, worker.network, worker.life)) or not self.order.is_known or self.strange_wrapper:
            return
        last = orders.queued[-1] if orders.queued else worker.last
        coming, beyond = self.order.coming(last, worker.group, room)
        if not coming or (orders.queued or coming)[0] is not following or worker.places is not self.order.places:
            return
        with contextlib.suppress(OSError):  # it has died: whoever listens to it hears that
            orders.run(_places(worker, coming, beyond))
            orders.queued += coming

    # -- one by one, or side by side -------------------------------------------------------------------------------

    @functools.cached_property
    def strange_wrapper(self) -> str:
        """The plugin that does something around each item, by name; empty where there is none."""
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
        if name := self.strange_wrapper:
            return f"the plugin {name} wraps pytest_runtest_protocol"
        if self._config.getoption("max_suite_reruns", None) is not None:
            return "--max-suite-reruns counts from test to test"
        return ""

    # -- listened to -----------------------------------------------------------------------------------------------

    def talk(
        self,
        lane: Lane,
        item: pytest.Item,
        following: pytest.Item | None,
        attempts: Attempts | None,
        timeout_s: float | None,
        over: Over,
    ) -> Conversation:
        """Listen to ``item``, which the lane runs now."""
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
            idle=self.listening.idle,
            start_s=_START_S if lane.settings.mode == "fresh" else 0.0,
        )
        self.listening.add(talk, lambda talk: over(lane, talk))
        return talk

    def end_group(self, lane: Lane) -> Verdict:
        """Let a child tear down what it kept for items that will not come, and hear it out; it is buried then."""
        verdict = Verdict(died=True)
        with contextlib.suppress(OSError):
            lane.worker.orders.end()
            verdict = self._heard_out(lane.worker, tells=not lane.dropped)
        self.bury(lane, verdict)
        return verdict

    def abandon(self, lane: Lane) -> None:
        """End the child of a group that others go on with: it died, or a hook has changed what comes. Nothing of it is told."""
        lane.dropped = True
        self.end_group(lane)

    def _heard_out(self, worker: TestProcess, *, tells: bool) -> Verdict:
        """What a child has yet to say that was told to end: nothing of items that it ran ahead; its end, if it ``tells``."""
        ahead = () if worker.orders.held else worker.orders.queued
        for item in (*ahead, worker.last):  # one of these talks hears no more than that it ends
            talk = self._last_words(worker, item)
            if talk.verdict.over:
                return talk.verdict
            if talk.verdict.evidence.get("ends"):
                break
            worker.last = item
        talk = self._last_words(worker, worker.last)
        if tells:
            talk.telling.begin()
            talk.telling.finish(None, [])
        return talk.verdict

    def _last_words(self, worker: TestProcess, item: pytest.Item) -> Conversation:
        talk = Conversation(item, worker, timeout_s=EXIT_S, grace_s=1.0, slow_s=EXIT_S, may_end=True)
        self.listening.add(talk, lambda _: None)
        self.listening.until(talk)
        return talk

    # -- ended -----------------------------------------------------------------------------------------------------

    def bury(self, lane: Lane, verdict: Verdict) -> None:
        """Its process has said its last word, or is to be killed."""
        lane.alive = False
        self._workers.bury(lane.worker, verdict)

    def drop(self, lanes: list[Lane]) -> None:
        """End what runs in vain and tell nothing of it; what has begun may tear its fixtures down, for a while."""
        for lane in lanes:
            lane.dropped = True
            if lane.alive and not lane.talks:
                self.bury(lane, Verdict(died=True))
        for talk in (talk for lane in lanes for talk in lane.talks):
            talk.telling.mute()
        running = [lane.talks[-1] for lane in lanes if lane.alive and not lane.talks[-1].over]
        try:
            for talk in running:
                if not talk.verdict.interrupted:
                    talk.interrupt()
            for talk in running:
                self.listening.until(talk)
            for lane in lanes:
                if lane.alive:  # between two of its items
                    self.end_group(lane)
        except KeyboardInterrupt:
            for talk in running:
                talk.worker.kill()
            for talk in running:
                self.listening.until(talk)
            raise


def _places(
    worker: TestProcess, items: list[pytest.Item], beyond: pytest.Item | None
) -> Iterator[tuple[int, int | None]]:
    """Of each item its place in the worker, and that of the one after it: ``beyond`` after the last."""
    places = [worker.places[id(item)] for item in items]
    return zip(places, (*places[1:], worker.places.get(id(beyond))), strict=True)
