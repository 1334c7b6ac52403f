"""Parent side: which process runs which item, what the parent sets up before it and tears down after it.

Owns: the plugin object `isolate-runner`, the child that serves a group and the one forked ahead of its turn.
Refuses: to start and end processes (workers.py), to listen to them (conversation.py), to word what it sees.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from _pytest.scope import Scope

from pytest_isolate.errors import IsolateError
from pytest_isolate.outcome import Cause
from pytest_isolate.runner import child, compat, crash, deadline, interrupts, report, reporter, threads, verdict
from pytest_isolate.runner.conversation import Conversation, TestProcess, Verdict
from pytest_isolate.runner.host import Host
from pytest_isolate.runner.reruns import Attempts
from pytest_isolate.runner.settings import Resolver, Settings
from pytest_isolate.runner.workers import EXIT_S, Workers

_SCOPE_NODES: dict[str, type[pytest.Collector]] = {"class": pytest.Class, "module": pytest.Module}
_WIDEST = {"function": Scope.Function, "class": Scope.Class, "module": Scope.Module}


class Isolation(reporter.Listener):
    """The plugin object: runs items in processes of their own. In a child it is the only reporter left."""

    def __init__(self, config: pytest.Config, resolver: Resolver) -> None:
        self._config = config
        self._resolver = resolver
        self.host = Host(config, resolver)
        self.reporter = None
        self._workers = Workers(self.host, self._serve)
        self._worker: TestProcess | None = None
        self._ahead: TestProcess | None = None
        self._may_fork_ahead: bool | None = None
        self._may_order_ahead: bool | None = None
        self._has_forked = False
        self._index: dict[int, int] = {}
        self._timeout_s: float | None = None
        self._held: interrupts.Held | None = None
        self._threads = threads.Watch()
        self.tally = report.Tally()
        self._told = 0
        self._costs_told = False

    def header(self) -> list[str]:
        """What is enforced, in a line; a second one for each thing given up."""
        default = self._resolver.default
        if not runs_isolated(default):
            return []
        if self._config.getoption("usepdb"):
            return ["isolate: deadlines and leak checks are off while --pdb is on"]
        if reason := self.host.check(default):
            return [f"isolate: isolated tests are skipped, because {reason}"]
        given = self.host.admitted(default)
        line = f"isolate: profile {default.profile} ({report.describe(given.policy)}), backend {self.host.backends_of(given)}"
        scope = "" if default.scope == "function" else f", one sandbox per {default.scope}"
        line += f", eBPF by {self.host.networks.front_end}" if self.host.networks.opened else ""
        return [line + scope, *self.given_up()]

    def given_up(self) -> list[str]:
        """Lines for what --isolate-missing=warn gave up and no line has told yet; and for costs nobody counts."""
        texts = [f"isolate: DEGRADED {text}" for text in self.host.degraded[self._told :]]
        groups, told = self.host.groups, self._costs_told
        self._costs_told = True
        if groups.account and not told and (why := groups.why_not_counted()):
            texts.append(f"isolate: costs are those of a test's largest process, no cgroup counts them: {why}")
        self._told = len(self.host.degraded)
        return texts

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        super().pytest_runtest_logreport(report)
        if self.reporter is None:
            self.tally.note(report)

    # -- the parent -----------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if self.reporter is not None:
            return None
        settings = self._resolver.item(item)
        if not runs_isolated(settings) or self._needs_no_process(item, settings):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        try:
            self._isolated(item, nextitem, self.host.admitted(settings))
        finally:
            compat.forget_item(item)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _needs_no_process(self, item: pytest.Item, settings: Settings) -> bool:
        """A test that its marks skip runs no code of its own; a living child of its group skips it itself."""
        if self._ahead is not None and self._ahead.item is item:
            return False  # looked at when it was forked
        if self._worker is not None and self._worker.group == group_of(item, settings)[0]:
            return False
        return compat.is_skipped(item)

    def pytest_sessionfinish(self) -> None:
        if self.reporter is None:
            self._retire()
            self._workers.close()
            self.host.networks.close()
            self.host.groups.close()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        report.summarize(terminalreporter, self.tally)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Iterator[None]:
        """In the child: name the limit of ours that explains an exception."""
        outcome: Any = yield
        if self.reporter is None or call.excinfo is None:
            return
        report = outcome.get_result()
        cause = verdict.of_exception(call.excinfo.value, self.reporter.link.limits)
        if cause is not None and report.failed:
            verdict.mark(report, [cause])

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool | None:
        """Take over pytest-timeout's timer for isolated items: its own would fire in the wrong process."""
        if not self._runs(item):
            return None
        if self.reporter is not None:
            reporter.dump_stacks_on_signal(self.reporter.link.trace_fd)
            self.reporter.send("timer", {"timeout_s": settings.timeout})
        else:
            self._timeout_s = settings.timeout
        return True

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_cancel_timer(self, item: pytest.Item) -> bool | None:
        if not self._runs(item):
            return None
        if self.reporter is not None:
            self.reporter.send("timer", {"timeout_s": None})
        self._timeout_s = None
        return True

    def _runs(self, item: pytest.Item) -> bool:
        return runs_isolated(self._resolver.item(item))

    # -- one item -------------------------------------------------------------------------------------------------

    def _isolated(self, item: pytest.Item, nextitem: pytest.Item | None, settings: Settings) -> None:
        attempts = Attempts(item)
        while self._tried(item, nextitem, settings, attempts):
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)

    def _tried(self, item: pytest.Item, nextitem: pytest.Item | None, settings: Settings, attempts: Attempts) -> bool:
        """Run the item in a process, once; True when it is to be tried again in a new one."""
        group, limit = group_of(item, settings)
        following = nextitem if nextitem is not None and self._same_group(nextitem, group) else None
        began = time.monotonic()
        try:
            worker = self._worker_for(item, following, settings, group, limit, attempts.made)
        except IsolateError as error:
            self._release_interrupts()
            self._refused(item, nextitem, error)
            return False
        talk = Conversation(
            item,
            worker,
            timeout_s=self._deadline_s(settings),
            policy_timeout_s=None if self._debugs() else settings.policy.timeout_s,
            grace_s=settings.policy.grace_s,
            slow_s=settings.slow_s,
            attempts=attempts,
        )
        talk.setup_s = time.monotonic() - began
        result = talk.run(lambda: self._meanwhile(item, nextitem, settings))
        stop = bool(item.session.shouldfail or item.session.shouldstop or result.interrupted or result.control)
        if result.over or following is None:
            self._bury(result)
        elif stop:
            self._retire()
        if stop:
            self._drop_ahead()
        self._judge(talk, result, settings)
        if result.again and not stop:
            talk.finish(None, [])
            return True
        failure, sections = self._run_teardown(item, None if stop else nextitem)
        talk.finish(failure or _objection(item, result), sections)
        _continue_as(result)
        return False

    def _hold_interrupts(self) -> None:
        self._held = self._held or interrupts.Held()

    def _release_interrupts(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _deadline_s(self, settings: Settings) -> float | None:
        """pytest-timeout's figure for the item, else ours; none while a person debugs."""
        if self._debugs():
            return None
        return self._timeout_s or settings.policy.timeout_s

    def _debugs(self) -> bool:
        return bool(self._config.getoption("usepdb") or self._config.getoption("trace", False))

    def _same_group(self, item: pytest.Item, group: Any) -> bool:
        if group is None:
            return False
        settings = self._resolver.item(item)
        return runs_isolated(settings) and group_of(item, settings)[0] == group

    def _worker_for(
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
            self._bury(Verdict(died=True))
        self._retire()
        if self._ahead is not None and self._ahead.item is item:
            self._hold_interrupts()
            self._worker, self._ahead = self._ahead, None
            with contextlib.suppress(OSError):  # it died at the gate: start another
                self._worker.orders.open_gate()
                return self._worker
            self._bury(Verdict(died=True))
        self._drop_ahead()
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
            self._may_order_ahead = not self._debugs() and compat.runs_in_order(self._config)
        items = following.session.items
        after = self._place(following) + 1
        if not self._may_order_ahead or items[after - 2] is not worker.last:
            return
        next_one = items[after] if after < len(items) and self._same_group(items[after], worker.group) else None
        with contextlib.suppress(OSError):  # it has died: whoever listens to it hears that
            worker.orders.run(*self._places(following, next_one))
            worker.orders.queued = following

    def _places(self, item: pytest.Item, following: pytest.Item | None) -> tuple[int, int | None]:
        return self._place(item), None if following is None else self._place(following)

    def _is_set_up(self, item: pytest.Item, settings: Settings) -> bool:
        """True when nothing is left to set up here: the usual case from a module's second test on."""
        return settings.scope == "function" and compat.is_set_up(item, item.parent, ())

    def _meanwhile(self, item: pytest.Item, nextitem: pytest.Item | None, settings: Settings) -> None:
        """What can be done while ``item`` runs: fork the next child, remove the cgroups of those before.

        Raises:
            KeyboardInterrupt: it came since the item's process was started, and was held back.
        """
        try:
            self._fork_ahead(item, nextitem, settings)
            self.host.groups.tidy()
        finally:
            self._release_interrupts()

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
            debugging = self._config.getoption("usepdb") or self._config.getoption("trace", False)
            self._may_fork_ahead = not (debugging or self.host.hooks.takes_part) and compat.wrappers_may_nest(
                item, self
            )
        return (
            self._may_fork_ahead
            and (settings.scope, settings.mode) == ("function", "fork")
            and self._resolver.item(nextitem) is self._resolver.item(item)
            and nextitem.parent is item.parent
            and not compat.is_skipped(nextitem)
            and compat.is_set_up(nextitem, item.parent, compat.wide_parameters(item, Scope.Function))
        )

    def _drop_ahead(self) -> None:
        """End a child whose turn did not come."""
        worker, self._ahead = self._ahead, None
        if worker is not None:
            self._workers.bury(worker, Verdict(died=True))

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
            if not self._same_group(other, group):
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

    def _serve(self, item: pytest.Item, following: pytest.Item | None, link: reporter.Link) -> NoReturn:
        if self._held is not None:
            self._held.restore()
        self.reporter = reporter.Reporter(self._config, link)
        child.serve(item, following, self.reporter, self)

    def _refused(self, item: pytest.Item, nextitem: pytest.Item | None, error: IsolateError) -> None:
        """The sandbox could not be made: an error of setup, not a failure of the test."""
        found = crash.report(
            item,
            "setup",
            crash.Ending(text=f"pytest-isolate: {error}", cause=Cause.SETUP),
            start=time.time(),
            sections=compat.report_sections(item),
        )
        item.ihook.pytest_runtest_logreport(report=found)
        held = crash.passed(item, "teardown", sections=[])
        failure, sections = self._run_teardown(item, nextitem)
        held.sections.extend(sections)
        item.ihook.pytest_runtest_logreport(report=failure or held)

    def _judge(self, talk: Conversation, result: Verdict, settings: Settings) -> None:
        if result.leftovers and settings.leaks != "ignore":
            talk.leaked(result.leftovers, fail=settings.leaks == "fail")
        talk.unheld()
        talk.note(result.evidence)

    def _run_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> tuple[pytest.TestReport | None, list[tuple[str, str]]]:
        """Tear down here what was set up here; a finalizer's error becomes a teardown ERROR of the item."""
        if compat.is_torn_down(item.session, nextitem):
            return None, []
        before = len(item._report_sections)

        def tear_down() -> None:
            timeout_s = self._deadline_s(self._resolver.item(item))
            with (
                compat.phase(item, "teardown"),
                deadline.at_most(timeout_s, "the teardown of a fixture wider than the test"),
            ):
                compat.teardown(item.session, nextitem)

        call = pytest.CallInfo.from_call(tear_down, when="teardown", reraise=(pytest.exit.Exception, KeyboardInterrupt))
        sections = compat.report_sections(item)[before:]
        if call.excinfo is None:
            return None, sections
        return pytest.TestReport.from_item_and_call(item, call), sections

    def _bury(self, verdict: Verdict) -> None:
        worker, self._worker = self._worker, None
        assert worker is not None
        self._workers.bury(worker, verdict)

    def _retire(self) -> None:
        """Let the living child of a group, if there is one, tear down what it had set up for it, then end it."""
        worker = self._worker
        if worker is None:
            return
        verdict = Verdict(died=True)
        with contextlib.suppress(OSError):
            worker.orders.end()
            verdict = self._heard_out(worker)
        self._bury(verdict)
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

    def _place(self, item: pytest.Item) -> int:
        """The item's place in session.items, which a forked child shares."""
        if not self._index:
            self._index = {id(other): place for place, other in enumerate(item.session.items)}
        return self._index[id(item)]


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


def _objection(item: pytest.Item, verdict: Verdict) -> pytest.TestReport | None:
    """What a plugin's hook found wrong with the sandbox at its end: an error of teardown, not a failure of the test."""
    if verdict.complaint is None:
        return None
    ending = crash.Ending(text=f"pytest-isolate: {verdict.complaint}", cause=Cause.SETUP)
    return crash.report(item, "teardown", ending, start=time.time(), sections=[])


def _continue_as(verdict: Verdict) -> None:
    """Raise here what ended the run there."""
    match verdict.control:
        case {"kind": "exit", "text": text, "returncode": returncode}:
            pytest.exit(text, returncode=returncode)
        case {"kind": "interrupt", "text": place}:
            raise KeyboardInterrupt(f"in the test's process, at {place}")
    if verdict.interrupted:
        raise KeyboardInterrupt
