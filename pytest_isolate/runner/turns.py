"""Whose turn it is: which process runs which item, and what is ready before the item's turn comes.

Owns: the child that serves a group, the one forked ahead of its turn, what the parent sets up before either, and the
moment in which Ctrl-C is held back. Refuses: pytest's hooks (protocol.py), to start and end processes (workers.py), and
to listen to them (conversation.py), but for the last words of a child whose group is over.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from _pytest.scope import Scope

from pytest_isolate.errors import IsolateError
from pytest_isolate.runner import compat, deadline, interrupts, reporter, threads
from pytest_isolate.runner.conversation import Conversation
from pytest_isolate.runner.host import Host
from pytest_isolate.runner.process import TestProcess, Verdict
from pytest_isolate.runner.settings import Resolver, Settings
from pytest_isolate.runner.workers import EXIT_S, Workers

_SCOPE_NODES: dict[str, type[pytest.Collector]] = {"class": pytest.Class, "module": pytest.Module}
_WIDEST = {"function": Scope.Function, "class": Scope.Class, "module": Scope.Module}
Serve = Callable[[pytest.Item, "pytest.Item | None", reporter.Link], NoReturn]


class Turns:
    """The processes of a run, as the items see them.

    ``ours`` is the plugin object, whose hooks are not a stranger's; ``serve`` is what a new child does, for ever;
    ``deadline_s`` is the time that an item of these settings has.
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
        self._worker: TestProcess | None = None
        self._ahead: TestProcess | None = None
        self._may_fork_ahead: bool | None = None
        self._may_order_ahead: bool | None = None
        self._has_forked = False
        self._index: dict[int, int] = {}
        self._held: interrupts.Held | None = None
        self._threads = threads.Watch()

    def close(self) -> None:
        """End the living child of a group as it is to be ended, and all others."""
        self.retire()
        self._workers.close()

    def skips_here(self, item: pytest.Item, settings: Settings) -> bool:
        """A test that its marks skip runs no code of its own; a living child of its group skips it itself."""
        if self._ahead is not None and self._ahead.item is item:
            return False  # looked at when it was forked
        if self._worker is not None and self._worker.group == group_of(item, settings)[0]:
            return False
        return compat.is_skipped(item)

    def take(
        self,
        item: pytest.Item,
        following: pytest.Item | None,
        settings: Settings,
        group: Any,
        limit: Any,
        tries: int,
    ) -> TestProcess:
        """The living child of the item's group, told to run it; else a new one."""
        if self._worker is not None and group is not None and self._worker.group == group:
            self._hold_interrupts()
            if self._was_told(self._worker, item, following):
                return self._worker
            self.bury(Verdict(died=True))
        self.retire()
        if self._ahead is not None and self._ahead.item is item:
            self._hold_interrupts()
            self._worker, self._ahead = self._ahead, None
            with contextlib.suppress(OSError):  # it died at the gate: start another
                self._worker.orders.open_gate()
                return self._worker
            self.bury(Verdict(died=True))
        self.drop_ahead()
        if settings.mode == "fresh":
            self._hold_interrupts()
            self._worker = self._workers.start_fresh(item, settings)
            return self._worker
        if not self._is_set_up(item, settings):
            with compat.phase(item, "setup"):
                self._set_up(item, settings, group, limit)
        self._hold_interrupts()
        self._worker = self._start(item, following, settings, gated=False, tries=tries)
        self._worker.group = group
        self._order_ahead(self._worker, following)
        return self._worker

    def _was_told(self, worker: TestProcess, item: pytest.Item, following: pytest.Item | None) -> bool:
        """Let the living child of a group run ``item``; False when it died while it waited, or was told of another."""
        orders, ordered = worker.orders, worker.orders.queued is item
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
        self._order_ahead(worker, following)
        return True

    def _order_ahead(self, worker: TestProcess, following: pytest.Item | None) -> None:
        """Order what comes next now, so that a child whose test passed need not wait until we have told of it.

        Not where somebody would see or count the difference: output that is not captured, a debugger, a cgroup, a
        network policy, a plugin's hook; and not where somebody else chooses the next item.
        """
        if following is None or any((worker.cgroup, worker.network, worker.life)):
            return
        if self._may_order_ahead is None:
            self._may_order_ahead = not debugs(self._config) and compat.runs_in_order(self._config)
        items = following.session.items
        after = self._place(following) + 1
        if not self._may_order_ahead or items[after - 2] is not worker.last:
            return
        next_one = items[after] if after < len(items) and self.same_group(items[after], worker.group) else None
        with contextlib.suppress(OSError):  # it has died: whoever listens to it hears that
            worker.orders.run(*self._places(following, next_one))
            worker.orders.queued = following

    def _places(self, item: pytest.Item, following: pytest.Item | None) -> tuple[int, int | None]:
        return self._place(item), None if following is None else self._place(following)

    def _place(self, item: pytest.Item) -> int:
        """The item's place in session.items, which a forked child shares."""
        if not self._index:
            self._index = {id(other): place for place, other in enumerate(item.session.items)}
        return self._index[id(item)]

    def same_group(self, item: pytest.Item, group: Any) -> bool:
        if group is None:
            return False
        settings = self._resolver.item(item)
        return runs_isolated(settings) and group_of(item, settings)[0] == group

    def _is_set_up(self, item: pytest.Item, settings: Settings) -> bool:
        """True when nothing is left to set up here: the usual case from a module's second test on."""
        return settings.scope == "function" and compat.is_set_up(item, item.parent, ())

    def _set_up(self, item: pytest.Item, settings: Settings, group: Any, limit: Any) -> None:
        """Set up, once and here, what is wider than the child's scope. What fails is cached and fails there again."""
        widest = _WIDEST[settings.scope] if group is not None else Scope.Function
        try:
            with deadline.at_most(self._deadline_s(settings), "a fixture wider than the test"):
                compat.set_up_collectors(item, limit)
                for member in self._members(item, group):
                    compat.set_up_wide_fixtures(member, widest)
        except (KeyboardInterrupt, pytest.exit.Exception):
            raise
        except BaseException:
            # The child asks for the same fixture, gets the same exception and reports it as a setup error.
            return

    def _members(self, item: pytest.Item, group: Any) -> Iterator[pytest.Item]:
        """``item`` and, in a group, those that will follow it in the same child."""
        yield item
        if group is None:
            return
        for other in item.session.items[self._place(item) + 1 :]:
            if not self.same_group(other, group):
                return
            if not compat.is_skipped(other):
                yield other

    def _start(
        self,
        item: pytest.Item,
        following: pytest.Item | None,
        settings: Settings,
        *,
        gated: bool,
        tries: int = 0,
    ) -> TestProcess:
        self._threads.look(item)
        compat.make_base_temp(self._config)
        compat.flush(self._config)
        if not self._has_forked:
            self._has_forked = True
            if settings.scope == "function":
                shared_with = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
                self._workers.expect((len(item.session.items) - self._place(item)) // shared_with)
        return self._workers.start(
            item, following, settings, gated=gated, tries=tries, dump_stacks=self._deadline_s(settings) is not None
        )

    def meanwhile(self, item: pytest.Item, nextitem: pytest.Item | None, settings: Settings) -> None:
        """What can be done while ``item`` runs: fork the next child, remove the cgroups of those before.

        Raises:
            KeyboardInterrupt: it came since the item's process was started, and was held back.
        """
        try:
            self._fork_ahead(item, nextitem, settings)
            self._host.groups.tidy()
        finally:
            self.release_interrupts()

    def _fork_ahead(self, item: pytest.Item, nextitem: pytest.Item | None, settings: Settings) -> None:
        """While ``item`` runs, fork the child of the next one, where nothing has to change here before its turn."""
        if nextitem is None or not self._can_go_ahead(item, nextitem, settings):
            return
        with contextlib.suppress(*compat.FIXTURE_FAILURES):  # all made, or failed: this only links them to the item
            compat.set_up_wide_fixtures(nextitem, Scope.Function)
        with contextlib.suppress(IsolateError):  # tried again, and reported, at its turn
            self._ahead = self._start(nextitem, None, settings, gated=True)

    def _can_go_ahead(self, item: pytest.Item, nextitem: pytest.Item, settings: Settings) -> bool:
        if self._may_fork_ahead is None:
            debugging = debugs(self._config)
            alone = not (debugging or self._host.hooks.takes_part)
            self._may_fork_ahead = alone and compat.wrappers_may_nest(item, self._ours)
        return (
            self._may_fork_ahead
            and (settings.scope, settings.mode) == ("function", "fork")
            and self._resolver.item(nextitem) is self._resolver.item(item)
            and nextitem.parent is item.parent
            and not compat.is_skipped(nextitem)
            and compat.is_set_up(nextitem, item.parent, compat.wide_parameters(item, Scope.Function))
        )

    def drop_ahead(self) -> None:
        """End a child whose turn did not come."""
        worker, self._ahead = self._ahead, None
        if worker is not None:
            self._workers.bury(worker, Verdict(died=True))

    def bury(self, verdict: Verdict) -> None:
        worker, self._worker = self._worker, None
        assert worker is not None
        self._workers.bury(worker, verdict)

    def retire(self) -> None:
        """Let the living child of a group, if there is one, tear down what it had set up for it, then end it."""
        worker = self._worker
        if worker is None:
            return
        verdict = Verdict(died=True)
        with contextlib.suppress(OSError):
            worker.orders.end()
            verdict = self._heard_out(worker)
        self.bury(verdict)
        if verdict.complaint is not None:  # its items have been told of: the reason is not lost
            warnings.warn(f"pytest-isolate: {verdict.complaint}", stacklevel=2)

    def _heard_out(self, worker: TestProcess) -> Verdict:
        """What a child has yet to say that was told to end; first of an item that it ran ahead of a run that was stopped."""
        if worker.orders.runs_ahead:
            worker.last = worker.orders.queued or worker.last
            verdict = self._last_talk(worker, quiet=True).run()
            if verdict.over:
                return verdict
        talk = self._last_talk(worker)
        verdict = talk.run()
        talk.finish(None, [])
        return verdict

    def _last_talk(self, worker: TestProcess, *, quiet: bool = False) -> Conversation:
        return Conversation(worker.last, worker, timeout_s=EXIT_S, grace_s=1.0, slow_s=EXIT_S, quiet=quiet)

    def _hold_interrupts(self) -> None:
        self._held = self._held or interrupts.Held()

    def release_interrupts(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _serve_there(self, item: pytest.Item, following: pytest.Item | None, link: reporter.Link) -> NoReturn:
        if self._held is not None:
            self._held.restore()
        self._serve(item, following, link)


def debugs(config: pytest.Config) -> bool:
    """True when a person sits at the debugger: no deadline holds, and nothing runs ahead."""
    return bool(config.getoption("usepdb") or config.getoption("trace", False))


def runs_isolated(settings: Settings) -> bool:
    return settings.enabled and settings.mode != "inprocess"


def group_of(item: pytest.Item, settings: Settings) -> tuple[Any, Any]:
    """Which items may share the item's child, and the collector that is set up inside it; (None, None): none.

    Two items of one class or module still differ where a wider fixture has another parameter, or the policy differs.
    """
    kind = _SCOPE_NODES.get(settings.scope) if settings.mode == "fork" else None
    node: pytest.Collector | None = item.getparent(kind) if kind is not None else None
    if node is None:
        return None, None
    return (id(node), compat.wide_parameters(item, _WIDEST[settings.scope]), id(settings)), node
