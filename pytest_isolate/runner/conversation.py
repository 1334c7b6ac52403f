"""Parent side of one item: reads the frames of its process, re-logs its reports, keeps its deadline.

Owns: the order in which reporters hear of an item, the deadline, and the verdict when the process ends early.
Refuses: to start processes (workers.py) and to word failures (crash.py).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_isolate import wire
from pytest_isolate.endings import cpu_text, hard_cpu_text, living, of_group, runaway
from pytest_isolate.errors import IsolateError
from pytest_isolate.hooks import call_report
from pytest_isolate.outcome import Cause, ExitStatus, Leftover
from pytest_isolate.runner import compat, costs, crash, frames, junit, network, reporter, verdict
from pytest_isolate.runner.process import TestProcess, Verdict
from pytest_isolate.runner.report import LEAK_SECTION, say_slow
from pytest_isolate.runner.reruns import Attempts
from pytest_isolate.units import format_seconds

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import CgroupUsage

#: How long the stacks of a timed-out test may take to be written, and an interrupted test to tear down.
_DUMP_S = 0.3
_INTERRUPT_S = 5.0
#: What a process that has said its last word may take to end before it counts as hanging.
_EXIT_S = 10.0
_COSTS = ("user_s", "system_s", "max_rss_bytes")
_PHASES: tuple[crash.When, ...] = ("setup", "call", "teardown")


class Conversation:
    """One item, from its first frame to its last."""

    def __init__(
        self,
        item: pytest.Item,
        worker: TestProcess,
        *,
        timeout_s: float | None,
        policy_timeout_s: float | None = None,
        grace_s: float,
        slow_s: float,
        attempts: Attempts | None = None,
        quiet: bool = False,
        start_s: float = 0.0,
    ) -> None:
        """``quiet``: nobody is to hear of the item, whose process ran ahead of a run that was stopped.

        ``start_s``: what a new interpreter has, besides, until it says that the test begins; its time counts from then on.
        """
        self._item = item
        self._ihook = item.ihook
        self._worker = worker
        self._began = time.monotonic()
        self._phase_start = time.time()
        self._deadline = None if timeout_s is None else self._began + timeout_s + start_s
        self._start_s = start_s
        self._timeout_s = timeout_s
        self._policy_timeout_s = policy_timeout_s
        self._attempts = attempts or Attempts(item)
        self._quiet = quiet
        self._grace_s = grace_s
        self._slow_s = slow_s
        self._slow_at: float | None = self._began + slow_s
        self._debugging = False
        self._phases = 0
        self._sections: list[tuple[str, str]] = []
        self._held: pytest.TestReport | None = None
        self._tries = 1
        self._done: dict[str, Any] | None = None
        self._left: list[Leftover] = []
        self._eof = False
        self._garbage = ""
        self._timed_out = False
        shared = worker.cgroup is not None and worker.item is not item
        self._before = worker.cgroup.usage(current=False) if worker.cgroup is not None and shared else None
        self._events = self._before.events if self._before is not None else None
        self._cause: tuple[str, str] | None = None
        self._traffic = network.Window(worker.network, whole=worker.item is item)
        self.setup_s = 0.0
        self.verdict = Verdict()

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self, meanwhile: Callable[[], None] | None = None) -> Verdict:
        """Listen until the item is done or its process has ended; ``meanwhile`` is done first, while it starts.

        It may raise a KeyboardInterrupt that was held back.
        """
        try:
            if meanwhile is not None:
                meanwhile()
            self._listen()
        except KeyboardInterrupt:
            self._interrupt()
        if self._done is None:
            self._died()
        else:
            self.verdict.evidence = self._done
            self.verdict.control = self._done["control"]
            self.verdict.leftovers = self._left
            self._worker.orders.held = bool(self._done.get("held"))
            self._apply_stop()
        self.verdict.cause = self._cause
        return self.verdict

    def _listen(self) -> None:
        poller = select.poll()
        poller.register(self._worker.report_fd, select.POLLIN)
        poller.register(self._worker.process.pidfd, select.POLLIN)
        self._take(self._worker.reader.received_frames())  # a group's child may be ahead of us
        while self._done is None:
            ready = dict(poller.poll(self._wait_ms()))
            if self._worker.report_fd in ready and not self._read():
                poller.unregister(self._worker.report_fd)
            elif self._worker.process.pidfd in ready:
                self._drain()
                return
            if not self._keep_time():
                return

    def _wait_ms(self) -> int | None:
        times = [at for at in (self._deadline, self._slow_at) if at is not None]
        if not times or self._debugging:
            return None
        return max(0, int((min(times) - time.monotonic()) * 1000) + 1)

    def _read(self) -> bool:
        """Handle what arrived; False at the end of the stream."""
        self._take(self._worker.reader.frames())
        self._eof = self._worker.reader.eof
        return not self._eof and not self._garbage

    def _take(self, arrived: Iterator[tuple[str, Any]]) -> None:
        """Handle frames until the item is done: those after it are the next item's."""
        try:
            for kind, data in arrived:
                self._handle(kind, data)
                if self._done is not None:
                    return
        except wire.WireError as error:
            self._garbage = str(error)
            self._worker.kill()

    def _drain(self) -> None:
        """The process has ended: what it had sent before is still in the channel."""
        os.set_blocking(self._worker.report_fd, False)
        while not self._eof and not self._garbage and self._done is None:
            before = self._worker.reader.received
            if not self._read() or self._worker.reader.received == before:
                return

    def _keep_time(self) -> bool:
        """Say SLOW when it is; at the deadline end the test. False when it was ended."""
        now = time.monotonic()
        if self._debugging or self._done is not None:
            return True
        if self._slow_at is not None and now >= self._slow_at:
            self._slow_at = None
            say_slow(self._item, now - self._began, self._deadline)
        if self._deadline is None or now < self._deadline:
            return True
        self._time_out()
        return False

    def _time_out(self) -> None:
        """Stacks of all threads, then SIGTERM, grace, SIGKILL of the whole tree."""
        self._timed_out = True
        process = self._worker.process
        process.signal(reporter.DUMP_SIGNAL)
        process.wait(_DUMP_S)
        process.signal(signal.SIGTERM)
        process.wait(self._grace_s)
        found = process.leftovers()
        self.verdict.leftovers = found + of_group(self._worker.cgroup, process, found)
        self._worker.kill()

    def _interrupt(self) -> None:
        """Ctrl-C: let the test tear its own fixtures down, for a while; a second Ctrl-C ends it at once."""
        self.verdict.interrupted = True
        self._deadline, self._slow_at = time.monotonic() + _INTERRUPT_S, None
        self._worker.process.signal(signal.SIGINT)
        try:
            self._listen()
        except KeyboardInterrupt:
            self._worker.kill()

    # -- frames -------------------------------------------------------------------------------------------------

    def _handle(self, kind: str, data: Any) -> None:
        match kind:
            case "report":
                self._relay(frames.read_report(self._item, data))
            case "warning":
                if not self._quiet:
                    relay_warning(self._item, frames.read_warning(data))
            case "again":
                self._restart(finished=frames.read_again(data))
            case "phase":
                self._phases = frames.read_phase(data)
            case "junit":
                junit.add(self._item, data)
            case "begun":
                self._begin()
            case "timer":
                self._set_timer(frames.read_timer(data))
            case "network":
                self._traffic.answer(data, self._worker.orders.fd)
            case "debugger":
                self._debugging = True
            case "done":
                self._done, self._left = frames.read_done(data), frames.read_leftovers(data)
            case _:
                raise wire.WireError(f"a frame of kind {kind[:20]!r}")

    def _begin(self) -> None:
        """A new interpreter is about to run the test; said again, it counts for nothing."""
        if self._start_s:
            self._start_s, self._began, self._phase_start = 0.0, time.monotonic(), time.time()
            self._slow_at = self._began + self._slow_s
            self._deadline = None if self._timeout_s is None else self._began + self._timeout_s

    def _set_timer(self, timeout_s: float | None) -> None:
        """pytest-timeout, in the child, sets or cancels its timer; cancelled, the policy's own deadline holds."""
        if timeout_s is not None:
            self._timeout_s, self._deadline = timeout_s, time.monotonic() + timeout_s
        else:
            self._timeout_s = self._policy_timeout_s
            self._deadline = None if self._timeout_s is None else self._began + self._timeout_s

    def _relay(self, report: pytest.TestReport) -> None:
        if compat.count_failed_subtest(self._item.config, self._item, report):
            self._log(report)
            return
        if report.when == "setup":
            self._phases = 0
            report.duration += self.setup_s
        self._phases += 1
        self._phase_start = time.time()
        self._sections = list(report.sections)
        if report.failed and not hasattr(report, "isolate_cause"):
            verdict.mark(report, verdict.of_group(self._worker.cgroup, self._events))
        if hasattr(report, "isolate_cause"):
            self._cause = (report.isolate_cause, verdict.line_of(report))
        self._traffic.tell(report)
        self.flush()
        if report.when == "teardown":
            self._held = report  # the parent's own teardown may have something to add
        else:
            self._log(report)

    def _log(self, report: pytest.TestReport) -> None:
        if self._quiet:
            return
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

    def _restart(self, *, finished: bool) -> None:
        """The protocol's owner repeats the item: where it finished it before, its reporters hear of it as without us."""
        self._tries += 1
        if not finished:
            return
        self.flush()
        self._ihook.pytest_runtest_logfinish(nodeid=self._item.nodeid, location=self._item.location)
        if self._policy_timeout_s is not None and self._timeout_s == self._policy_timeout_s:
            self._deadline = time.monotonic() + self._policy_timeout_s  # each try has the policy's time
        self._ihook.pytest_runtest_logstart(nodeid=self._item.nodeid, location=self._item.location)

    def flush(self) -> None:
        """Log the teardown report that was held back."""
        if self._held is not None:
            held, self._held = self._held, None
            self._log(held)

    # -- endings ------------------------------------------------------------------------------------------------

    def _apply_stop(self) -> None:
        assert self._done is not None
        session = self._item.session
        for name in ("shouldstop", "shouldfail"):
            reason = self._done.get(name)
            if reason and not getattr(session, name):
                setattr(session, name, reason if isinstance(reason, str) else True)
        if self._done.get("execution_count") is not None:
            self._item.execution_count = self._done["execution_count"]  # type: ignore[attr-defined]
            self._attempts.succeeded(self._done["execution_count"])

    def _died(self) -> None:
        """The process ended, or was ended, before the item was done: blame the phase that was under way."""
        process = self._worker.process
        exited = process.wait(_EXIT_S)
        if exited is None:
            self._worker.kill()
            exited = process.wait(_EXIT_S)
        self.verdict.died = True
        if exited is not None:
            self.verdict.evidence = {name: getattr(exited.rusage, name) for name in _COSTS}
        if not self.verdict.leftovers and exited is not None:
            self.verdict.leftovers = living(process, self._worker.cgroup, exited.leftovers)
        if self.verdict.interrupted:
            return
        status = exited.status if exited is not None else ExitStatus(signal=signal.SIGKILL)
        when = _PHASES[min(self._phases, 2)]
        self._blame(when, self._ending(status, when))

    def _ending(self, status: ExitStatus, when: crash.When) -> crash.Ending:
        if self._timed_out:
            assert self._timeout_s is not None
            if self._start_s:
                text = f"TIMEOUT: the new interpreter had not begun the test after {format_seconds(self._start_s)}"
                return crash.Ending(text=text, cause=Cause.TIMEOUT)
            return crash.Ending(
                text=f"TIMEOUT: the test's {when} was still running after {format_seconds(self._timeout_s)}; "
                "it was ended with all it had started",
                cause=Cause.TIMEOUT,
            )
        used_s = sum(self.verdict.evidence.get(name, 0.0) for name in ("user_s", "system_s"))
        if status.signal == signal.SIGXCPU:
            why = cpu_text(used_s, self._worker.limits).removeprefix("CPU: ")
            text = f"CPU: the test used up its CPU time during {when} ({status}): {why}"
            return crash.Ending(text=text, cause=Cause.CPU)
        if status.signal == signal.SIGXFSZ:
            text = f"FSIZE: a file grew over the limit on file size (SIGXFSZ), during {when}"
            return crash.Ending(text=text, cause=Cause.FSIZE)
        if causes := verdict.of_group(self._worker.cgroup, self._events):
            text = "\n".join(line for _, line in causes)
            return crash.Ending(text=f"{text}\n(the test's process was {status} during {when})", cause=causes[0][0])
        if status.signal == signal.SIGKILL and (text := hard_cpu_text(used_s, self._worker.limits)):
            return crash.Ending(text=f"{text}, during {when}", cause=Cause.CPU)
        return crash.ended_early(status, when, garbage=self._garbage)

    def _blame(self, when: crash.When, ending: crash.Ending) -> None:
        sections = [*(self._sections or compat.report_sections(self._item)), *self._worker.outputs.sections(when)]
        if (lost := compat.lost_output(self._item.config)) is not None:
            sections.append((f"Captured stdout {when}", lost))
        report = crash.report(self._item, when, ending, start=self._phase_start, sections=sections)
        if ending.cause is not None:
            self._cause = (ending.cause.value, ending.text.partition("\n")[0])
        self._traffic.tell(report)
        self.verdict.again = self._attempts.again(self._tries, report)
        self.flush()
        if when == "teardown":
            self._held = report
            return
        self._log(report)
        self._held = crash.passed(self._item, "teardown", sections=sections)

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

    def leaked(self, leftovers: list[Leftover], *, fail: bool) -> None:
        """Name what the test left behind on its teardown report; with ``fail`` that is the outcome."""
        text = "LEAK: the test left processes behind; they were killed\n" + "\n".join(map(str, leftovers))
        if self._held is None:
            return
        if fail and self._held.passed:
            self._held.outcome = "failed"
            self._held.longrepr = text
        else:
            self._held.sections.append((LEAK_SECTION, text))
        if not hasattr(self._held, "isolate_cause"):
            self._held.isolate_cause = Cause.LEAK.value  # type: ignore[attr-defined]
        self._cause = self._cause or (Cause.LEAK.value, "; ".join(text.splitlines()))

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
                self._held.sections.append(("Limits", text))
            self._cause = self._cause or (cause.value, text)

    def _counted(self) -> CgroupUsage | None:
        if self.verdict.counted is None and self._worker.cgroup is not None:
            return self._worker.cgroup.usage(current=False)
        return self.verdict.counted

    def note(self, evidence: dict[str, Any]) -> None:
        """Put cause and cost of the test on its last report, where junit and other reporters find them."""
        if self._held is None:
            return
        wall_s = round(time.monotonic() - self._began, 6)
        self._held.user_properties = [
            *self._held.user_properties,
            ("isolate_wall_s", wall_s),
            *((f"isolate_{name}", evidence[name]) for name in _COSTS if name in evidence),
            *costs.of_group(self._counted(), self._before),
            *zip(("isolate_cause", "isolate_detail"), self._cause or (), strict=False),
            *self._traffic.properties(),
        ]


def relay_warning(item: pytest.Item, found: dict[str, Any]) -> None:
    """Announce a child's warning as pytest would have announced it here."""
    item.ihook.pytest_warning_recorded.call_historic(kwargs=found)
