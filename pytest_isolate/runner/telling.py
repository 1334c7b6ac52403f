"""What reporters hear of one item: at once when its turn has come; before that it is kept, in order.

Owns: the teardown report that is held back until all is known, what is added to it (a leak, a cause, costs), and the
decision to try again after a crash, which is made at the item's turn. Refuses: to listen to a process (conversation.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_isolate.endings import runaway
from pytest_isolate.errors import IsolateError
from pytest_isolate.hooks import call_report
from pytest_isolate.outcome import Cause, Leftover
from pytest_isolate.runner import compat, costs, crash, junit, network, refusals, verdict
from pytest_isolate.runner.process import COSTS, TestProcess, Verdict
from pytest_isolate.runner.report import LEAK_SECTION
from pytest_isolate.runner.reruns import Attempts

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import CgroupUsage


class Telling:
    """One item, as its reporters hear of it. Until ``begin`` nobody does: what is said is kept.

    ``before``: the cgroup's counters when the item began in a process that had run others; ``idle`` is how to wait for
    some seconds: other items may be running meanwhile.
    """

    def __init__(
        self,
        item: pytest.Item,
        worker: TestProcess,
        attempts: Attempts,
        *,
        before: CgroupUsage | None,
        traffic: network.Window,
        idle: Callable[[float], None] = time.sleep,
    ) -> None:
        self._item = item
        self._ihook = item.ihook
        self._worker = worker
        self._before = before
        self._traffic = traffic
        self._idle = idle
        self._kept: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = []
        self._muted = False
        self._held: pytest.TestReport | None = None
        self.attempts = attempts
        self.verdict = Verdict()

    def begin(self) -> None:
        """The item's turn has come: say what was kept; from now on nothing is."""
        kept, self._kept = self._kept, None
        for function, words in kept or ():
            function(*words)

    def mute(self) -> None:
        """Its turn will not come: forget what was kept, and keep nothing."""
        self._muted, self._kept = True, []

    def say(self, function: Callable[..., None], *words: Any) -> None:
        """Call ``function`` when it is the item's turn."""
        if self._kept is None:
            function(*words)
        elif not self._muted:
            self._kept.append((function, words))

    # -- said at its turn ------------------------------------------------------------------------------------------

    def report(self, report: pytest.TestReport) -> None:
        """Log it; that of the teardown is held back: the parent's own may have something to add."""
        refusals.explain(report, self._worker.view)
        if compat.count_failed_subtest(self._item.config, self._item, report):
            self._log(report)
            return
        self.flush()
        if report.when == "teardown":
            self._held = report
        else:
            self._log(report)

    def warning(self, found: dict[str, Any]) -> None:
        """Announce a child's warning as pytest would have announced it here."""
        self._ihook.pytest_warning_recorded.call_historic(kwargs=found)

    def addition(self, data: Any) -> None:
        """What the test adds to the junit file."""
        junit.add(self._item, data)

    def restart(self) -> None:
        """The protocol's owner repeats an item that it had finished: reporters hear of it as without us."""
        self.flush()
        self._ihook.pytest_runtest_logfinish(nodeid=self._item.nodeid, location=self._item.location)
        self._ihook.pytest_runtest_logstart(nodeid=self._item.nodeid, location=self._item.location)

    def blame(self, report: pytest.TestReport, tries: int) -> None:
        """The process ended early in its ``tries``-th try: log the report of that, or try again."""
        self.verdict.again = self.attempts.again(tries, report, self._idle)
        self.flush()
        if report.when == "teardown":
            self._held = report
            return
        self._log(report)
        self._held = crash.passed(self._item, "teardown", sections=report.sections)

    def stop(self, done: dict[str, Any]) -> None:
        """What the item wants of the session, and how often it was tried."""
        session = self._item.session
        for name in ("shouldstop", "shouldfail"):
            reason = done.get(name)
            if reason and not getattr(session, name):
                setattr(session, name, reason if isinstance(reason, str) else True)
        if done.get("execution_count") is not None:
            self._item.execution_count = done["execution_count"]  # type: ignore[attr-defined]
            self.attempts.succeeded(done["execution_count"])

    def _log(self, report: pytest.TestReport) -> None:
        cause = getattr(report, "isolate_cause", None)
        if cause is not None:
            self._tell_plugins(report, cause)
        self._ihook.pytest_runtest_logreport(report=report)

    def _tell_plugins(self, report: pytest.TestReport, cause: str) -> None:
        """A hook that raises is an error of the item's teardown; told now where this is the report of it."""
        try:
            call_report(self._ihook, item=self._item, report=report, cause=cause, outcome=verdict.outcome_of(report))
        except IsolateError as error:
            if report.when == "teardown" and report.passed:
                report.outcome, report.longrepr = "failed", f"pytest-isolate: {error}"
            else:
                self.verdict.complaint = self.verdict.complaint or error

    def flush(self) -> None:
        """Log the teardown report that was held back."""
        if self._held is not None:
            held, self._held = self._held, None
            self._log(held)

    # -- added to the last report ----------------------------------------------------------------------------------

    def finish(self, outcome: pytest.TestReport | None, sections: list[tuple[str, str]]) -> None:
        """Add what the parent's own teardown found, log what is held, close the item."""
        if self._held is not None:
            self._held.sections.extend(sections)
            if outcome is not None and self._held.passed:
                outcome.sections = self._held.sections
                outcome.user_properties = self._held.user_properties
                self._held, outcome = outcome, None
        self.flush()
        if outcome is not None:
            self._log(outcome)

    def leaked(self, leftovers: list[Leftover], *, fail: bool, scope: str) -> None:
        """Name what the test left behind on its teardown report; with ``fail`` that is the outcome.

        Of the tests of one process it is told at the last: which of them it was, nobody saw.
        """
        whose = "the test" if scope == "function" else f"a test of this {scope}, which ran in one process,"
        text = f"LEAK: {whose} left processes behind; they were killed\n" + "\n".join(map(str, leftovers))
        if self._held is None:
            return
        if fail and self._held.passed:
            self._held.outcome = "failed"
            self._held.longrepr = text
        else:
            self._held.sections.append((LEAK_SECTION, text))
        if not hasattr(self._held, "isolate_cause"):
            self._held.isolate_cause = Cause.LEAK.value  # type: ignore[attr-defined]
        self._explain(Cause.LEAK.value, "; ".join(text.splitlines()))

    def unheld(self) -> None:
        """A test that left its cgroup ran without its limits: that is no pass. Of a shared process nothing is told."""
        counted, evidence = self.verdict.counted, self.verdict.evidence
        if self._held is None or counted is None or self._before is not None:
            return
        used_s = sum(evidence.get(name, 0.0) for name in ("user_s", "system_s"))
        for cause, text in runaway(used_s, counted, self._worker.limits):
            if self._held.passed:
                self._held.outcome, self._held.longrepr = "failed", text
                self._held.isolate_cause = cause.value  # type: ignore[attr-defined]
            else:
                verdict.add_section(self._held, [(cause, text)])
            self._explain(cause.value, text)

    def reached(self, scope: str) -> None:
        """Name the limits of its group that were reached and of which nothing was told: a fact, and no outcome.

        Of a test that failed by itself it is no cause either. Of tests that share a process, which runs ahead of what we hear of
        it, it is told at the last, as a leak is.
        """
        counted, cgroup = self.verdict.counted, self._worker.cgroup
        if self._held is None or counted is None or cgroup is None or not (scope == "function" or self.verdict.over):
            return
        whose = "" if scope == "function" else f"a test of this {scope}, which ran in one process: "
        told = self._worker.told
        found = [
            (cause, whose + text) for cause, text in cgroup.verdicts(usage=counted, surely=True) if cause not in told
        ]
        if not found:
            return
        verdict.add_section(self._held, found)
        cause, line = found[0]
        if self.verdict.failed or self._held.failed:
            self.verdict.beside = self.verdict.beside or line
            return
        if not hasattr(self._held, "isolate_cause"):
            self._held.isolate_cause = cause.value  # type: ignore[attr-defined]
        self._explain(cause.value, line)

    def _explain(self, cause: str, text: str) -> None:
        self.verdict.cause = self.verdict.cause or (cause, text)

    def _why(self) -> list[tuple[str, str]]:
        """Cause and line of the test; without a cause the line of a limit that was reached beside its failure."""
        if self.verdict.cause is not None:
            return list(zip(("isolate_cause", "isolate_detail"), self.verdict.cause, strict=True))
        return [("isolate_detail", self.verdict.beside)] if self.verdict.beside else []

    def note(self, wall_s: float) -> None:
        """Put cause and cost of the test on its last report, where junit and other reporters find them."""
        if self._held is None:
            return
        evidence = self.verdict.evidence
        self._held.user_properties = [
            *self._held.user_properties,
            ("isolate_wall_s", round(wall_s, 6)),
            *((f"isolate_{name}", evidence[name]) for name in COSTS if name in evidence),
            *costs.of_group(self.verdict.counted, self._before),
            *self._why(),
            *self._traffic.properties(),
        ]
