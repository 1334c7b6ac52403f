"""What pytest sees: an item, from the protocol's hook to the teardown of what the parent had set up for it.

Owns: the plugin object `isolate-runner`, and the order of one item's life. Refuses: to choose its process (turns.py), to
listen to it (conversation.py), and to word what it sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from pytest_isolate.errors import IsolateError
from pytest_isolate.outcome import Cause
from pytest_isolate.runner import child, compat, crash, deadline, refusals, report, reporter, verdict
from pytest_isolate.runner.crew import Crew
from pytest_isolate.runner.host import Host
from pytest_isolate.runner.lookahead import Order, debugs, runs_isolated
from pytest_isolate.runner.process import Verdict
from pytest_isolate.runner.reruns import Attempts
from pytest_isolate.runner.settings import Resolver, Settings
from pytest_isolate.runner.turns import Turns


class Isolation(reporter.Listener):
    """The plugin object: runs items in processes of their own. In a child it is the only reporter left."""

    def __init__(self, config: pytest.Config, resolver: Resolver) -> None:
        self._config = config
        self._resolver = resolver
        self.host = Host(config, resolver)
        self.reporter = None
        self._order = Order(config, resolver)
        self._crew = Crew(config, self.host, self._order, self, self._serve, self._deadline_s)
        self._turns = Turns(config, resolver, self.host, self._crew)
        self._timeout_s: float | None = None
        self.tally = report.Tally()
        self._told = 0
        self._costs_told = False
        self._said_why = False
        self._front_end_told = False

    def header(self) -> list[str]:
        """What is enforced, in a line; a second one for each thing given up."""
        default = self._resolver.default
        if default.enabled and default.mode == "inprocess":
            return ["isolate: NO TEST IS ISOLATED: by its mode, inprocess, each runs in pytest's own process"]
        if not runs_isolated(default):
            return []
        if self._config.getoption("usepdb"):
            return ["isolate: deadlines and leak checks are off while --pdb is on"]
        try:
            reason = self.host.check(default)
        except pytest.UsageError:
            if self._resolver.all_by_name:
                raise
            return []  # the tests, once they are collected, say whether one is to be isolated
        if reason:
            return [f"isolate: isolated tests are skipped, because {reason}"]
        given = self.host.admitted(default)
        line = f"isolate: profile {default.profile} ({report.describe(given.policy)}), backend {self.host.backends_of(given)}"
        scope = "" if default.scope == "function" else f", one sandbox per {default.scope}"
        if given.mode == "fresh":
            scope = ", a new interpreter for each test"
        if self._resolver.jobs > 1 and not self._crew.why_one_by_one():
            scope += f", {self._resolver.jobs} at once"
        if front_end := self._front_end():
            line += f", eBPF by {front_end}"
        return [line + scope, *self.given_up()]

    def given_up(self) -> list[str]:
        """Lines not told yet: what --isolate-missing=warn gave up, what holds rules instead of eBPF; costs nobody counts; why
        tests run one by one that were to run side by side.
        """
        texts = [f"isolate: {text}" for text in self.host.notes[self._told :]]
        if self._resolver.jobs > 1 and not self._said_why and (why := self._crew.why_one_by_one()):
            self._said_why = True
            texts.append(f"isolate: one test at a time, and not {self._resolver.jobs}, because {why}")
        groups, told = self.host.groups, self._costs_told
        self._costs_told = True
        if groups.account and not told and (why := groups.why_not_counted()):
            texts.append(f"isolate: costs are those of a test's largest process, no cgroup counts them: {why}")
        self._told = len(self.host.notes)
        return texts

    def _front_end(self) -> str:
        """What loaded the eBPF of network policies, the first time it is asked for after that."""
        front_end = "" if self._front_end_told else self.host.networks.in_use
        self._front_end_told = bool(front_end) or self._front_end_told
        return front_end

    def collected(self) -> list[str]:
        """What is known once every item's settings are: what was given up for one, and what markers and fixtures brought in."""
        front_end = self._front_end() if self._config.option.verbose >= 0 else ""
        return [*([f"isolate: network policies in eBPF by {front_end}"] if front_end else []), *self.given_up()]

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
        self._order.look_again(item)
        settings = self._resolver.item(item)
        if not runs_isolated(settings) or self._turns.skips_here(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        try:
            self._isolated(item, nextitem, self.host.admitted(settings))
        finally:
            compat.forget_item(item)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if item.session.shouldstop or item.session.shouldfail:  # a reporter's wish: nothing is to run ahead meanwhile
            self._turns.stop()
        return True

    @pytest.hookimpl(trylast=True)
    def pytest_keyboard_interrupt(self) -> None:
        if self.reporter is None:
            self._turns.stop()

    def pytest_sessionfinish(self) -> None:
        if self.reporter is None:
            self._turns.close()
            self.host.networks.close()
            self.host.groups.close()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        report.summarize(terminalreporter, self.tally)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Iterator[None]:
        """In the child: name the limit of ours that explains an exception, or the path that was refused."""
        if self.reporter is not None:
            self.reporter.leave_copy(call.excinfo.value if call.excinfo is not None else None)
        outcome: Any = yield
        if self.reporter is None or call.excinfo is None:
            return
        report = outcome.get_result()
        cause = verdict.of_exception(call.excinfo.value, self.reporter.link.limits)
        if cause is not None and report.failed:
            verdict.mark(report, [cause])
        elif report.failed:
            refusals.name(call.excinfo.value, report)
            verdict.say_fitting(call.excinfo.value, report)

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
        attempts = None
        while (attempts := self._tried(item, nextitem, settings, attempts)) is not None:
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)

    def _tried(
        self, item: pytest.Item, nextitem: pytest.Item | None, settings: Settings, attempts: Attempts | None
    ) -> Attempts | None:
        """Run the item in a process, once; its attempts when it is to be tried again in a new one."""
        group, _ = self._order.group_of(item)
        following = nextitem if nextitem is not None and self._order.same_group(nextitem, group) else None
        began = time.monotonic()
        try:
            talk = self._turns.take(item, following, settings, attempts)
        except IsolateError as error:
            self._crew.interrupts.release()
            self._refused(item, nextitem, error)
            return None
        talk.setup_s = time.monotonic() - began
        result = self._turns.listen(talk, nextitem)
        stop = bool(item.session.shouldfail or item.session.shouldstop or result.interrupted or result.control)
        if stop:
            self._turns.stop()
        telling = talk.telling
        if result.leftovers and settings.leaks != "ignore":
            telling.leaked(result.leftovers, fail=settings.leaks == "fail", scope=settings.scope)
        telling.unheld()
        telling.reached(settings.scope)
        telling.note(talk.wall_s)
        if result.again and not stop:
            telling.finish(None, [])
            return telling.attempts
        failure, sections = self._run_teardown(item, None if stop else nextitem)
        telling.finish(failure or _objection(item, result), sections)
        _continue_as(result)
        return None

    def _deadline_s(self, settings: Settings) -> float | None:
        """pytest-timeout's figure for the item, else ours; none while a person debugs."""
        if debugs(self._config):
            return None
        return self._timeout_s or settings.policy.timeout_s

    def _serve(self, item: pytest.Item, following: pytest.Item | None, link: reporter.Link) -> NoReturn:
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

    def _run_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> tuple[pytest.TestReport | None, list[tuple[str, str]]]:
        """Tear down here what was set up here; a finalizer's error becomes a teardown ERROR of the item."""
        if compat.is_torn_down(item.session, nextitem):
            return None, []
        before = len(item._report_sections)

        def tear_down() -> None:
            __tracebackhide__ = True
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
