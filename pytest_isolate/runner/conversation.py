"""Parent side of one item: reads the frames of its process, keeps its deadline, and finds how it ended.

Owns: the deadline, which counts from the item's own start, and the verdict when the process ends early.
Refuses: to wait (lanes.py), to start processes (workers.py), to tell reporters (telling.py) and to word failures (crash.py).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_isolate import wire
from pytest_isolate.endings import cpu_text, hard_cpu_text, living, of_group, too_low_to_start
from pytest_isolate.errors import IsolateError
from pytest_isolate.outcome import Cause, ExitStatus
from pytest_isolate.runner import brief, compat, crash, frames, junit, network, reporter, trial, verdict
from pytest_isolate.runner.process import COSTS, TestProcess
from pytest_isolate.runner.report import say_slow
from pytest_isolate.runner.reruns import Attempts
from pytest_isolate.runner.telling import Telling
from pytest_isolate.units import format_seconds

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import CgroupUsage

#: How long the stacks of a timed-out test may take to be written, and an interrupted test to tear down.
_DUMP_S = 0.3
_INTERRUPT_S = 5.0
#: What a process that has said its last word may take to end before it counts as hanging.
_EXIT_S = 10.0
#: What a frame makes here at least: a report and its keywords.
_FRAME_BYTES = 1024
_PHASES: tuple[crash.When, ...] = ("setup", "call", "teardown")


class Conversation:
    """One item, from its first frame to its last. ``over`` when its verdict is known."""

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
        following: pytest.Item | None = None,
        idle: Callable[[float], None] = time.sleep,
        start_s: float = 0.0,
        may_end: bool = False,
    ) -> None:
        """``following``: what the process runs next; ``idle``: see Telling; ``may_end``: it was told to run nothing more.

        ``start_s``: what a new interpreter has, besides, until it says that the test begins; its time counts from then on.
        """
        self.item = item
        self.worker = worker
        self.following = following
        self._began = time.monotonic()
        self._ended: float | None = None
        self._phase_start = time.time()
        self._deadline = None if timeout_s is None else self._began + timeout_s + start_s
        self._start_s = start_s
        self._may_end = may_end
        self._timeout_s = timeout_s
        self._policy_timeout_s = policy_timeout_s
        self._grace_s = grace_s
        self._slow_s = slow_s
        self._slow_at: float | None = self._began + slow_s
        self._debugging = False
        self._phases = 0
        self._in_midst = False  # its setup was told of, its teardown not yet
        self._sections: list[tuple[str, str]] = []
        self._tries = 1
        self._done: dict[str, Any] | None = None
        self._eof = False
        self._garbage = ""
        self._timed_out = False
        #: What is yet to be done to a process whose time is over: (how long after the step before, signal).
        self._ending_steps: list[tuple[float, int]] = []
        self._received, self._frames = worker.reader.received, 0
        self._heard = brief.Heard(item)
        shared = worker.cgroup is not None and worker.item is not item
        before = self._counted() if shared else None
        self._events = before.events if before is not None else None
        self._traffic = network.Window(worker.network, whole=worker.item is item)
        self.setup_s = 0.0
        self.telling = Telling(
            item, worker, attempts or Attempts(item), before=before, traffic=self._traffic, idle=idle
        )
        self.verdict = self.telling.verdict
        self._take(worker.reader.received_frames())  # a group's child may be ahead of us

    # -- what lanes.py asks -------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self._ended is not None

    @property
    def wall_s(self) -> float:
        """From its start to its end, or to now."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def kept_bytes(self) -> int:
        """What its words take here, about: the shortest makes a report."""
        return self.worker.reader.received - self._received + self._frames * _FRAME_BYTES

    @property
    def next_at(self) -> float | None:
        """When keep_time has something to do; None: never."""
        if self._debugging:
            return None
        times = [at for at in (self._deadline, self._slow_at) if at is not None]
        return min(times) if times else None

    def read(self) -> bool:
        """Handle what arrived; False when nothing more is to be read."""
        if self._timed_out:
            return False
        self._take(self.worker.reader.frames())
        self._eof = self.worker.reader.eof
        return not self._eof and not self._garbage

    def process_ended(self) -> None:
        """What it had sent before is still in the channel."""
        if not self._read_all():
            self._died()

    def _read_all(self) -> bool:
        """Handle all that is in the channel now; True when the item's last word is in it."""
        os.set_blocking(self.worker.report_fd, False)
        while not self.over and not self._garbage:
            before = self.worker.reader.received
            if not self.read() or self.worker.reader.received == before:
                break
        return self.over

    def keep_time(self, now: float) -> None:
        """Say SLOW when it is; at the deadline end the test: stacks of all threads, SIGTERM, grace, SIGKILL of the whole tree."""
        if self._debugging or self.over:
            return
        if self._slow_at is not None and now >= self._slow_at:
            self._slow_at = None
            say_slow(self.item, now - self._began, self._deadline)
        if not self._is_due(now):
            return
        if not self._timed_out:
            if self._read_all() or not self._is_due(now):  # we may be late, and it was not
                return
            self._timed_out, self._slow_at = True, None
            self._ending_steps = [(_DUMP_S, reporter.DUMP_SIGNAL), (self._grace_s, signal.SIGTERM)]
        if self._ending_steps:
            wait_s, signum = self._ending_steps.pop(0)
            self.worker.process.signal(signum)
            self._deadline = now + wait_s
            return
        self._note_leftovers()
        self.worker.kill()
        self._died()

    def _is_due(self, now: float) -> bool:
        return self._deadline is not None and now >= self._deadline

    def hold_time(self, seconds: float) -> None:
        """It was not listened to for so long: that time is not the item's."""
        if self._deadline is not None:
            self._deadline += seconds

    def interrupt(self) -> None:
        """Ctrl-C: let the test tear its own fixtures down, for a while."""
        self.verdict.interrupted = True
        self._deadline, self._slow_at = time.monotonic() + _INTERRUPT_S, None
        self.worker.process.signal(signal.SIGINT)

    # -- frames -------------------------------------------------------------------------------------------------

    def _take(self, arrived: Iterator[tuple[str, Any]]) -> None:
        """Handle frames until the item is done: those after it are the next item's. After garbage nothing is believed."""
        if self._garbage:
            return
        try:
            for kind, data in arrived:
                self._frames += 1
                self._handle(kind, data)
                if self._done is not None:
                    self._complete(self._done)
                    return
        except wire.WireError as error:
            self._garbage = str(error)
            self.worker.kill()

    def _handle(self, kind: str, data: Any) -> None:
        match kind:
            case "passed":
                self._relay(frames.read_passed(self._heard, data))
            case "report":
                self._relay(frames.read_report(self.item, data))
            case "warning":
                self.telling.say(self.telling.warning, frames.read_warning(data))
            case "again":
                self._restart(finished=frames.read_again(data))
            case "phase":
                self._phases = frames.read_phase(data)
            case "junit":
                self.telling.say(self.telling.addition, junit.read(data))
            case "begun":
                self._begin()
            case "timer":
                self._set_timer(frames.read_timer(data))
            case "network":
                self._traffic.answer(data, self.worker.orders.fd)
            case "debugger":
                self._debugging = True
            case "done":
                done, self.verdict.leftovers = frames.read_done(data), frames.read_leftovers(data)
                if self._in_midst and done["control"] is None:
                    raise wire.WireError("an end before the report of its teardown")
                if done.get("ends") and not (self._may_end or self.verdict.interrupted):
                    raise wire.WireError("an end that nobody asked for")
                self._done = done
            case _:
                raise wire.WireError(f"a frame of kind {kind[:20]!r}")

    def _begin(self) -> None:
        """A new interpreter is about to run the test; said again, it counts for nothing."""
        if self._start_s and not self._timed_out and not self.verdict.interrupted:
            self._start_s, self._began, self._phase_start = 0.0, time.monotonic(), time.time()
            self._slow_at = self._began + self._slow_s
            self._deadline = None if self._timeout_s is None else self._began + self._timeout_s

    def _set_timer(self, timeout_s: float | None) -> None:
        """pytest-timeout, in the child, sets or cancels its timer; cancelled, the policy's own deadline holds."""
        if self._timed_out or self.verdict.interrupted:
            return
        if timeout_s is not None:
            self._timeout_s, self._deadline = timeout_s, time.monotonic() + timeout_s
        else:
            self._timeout_s = self._policy_timeout_s
            self._deadline = None if self._timeout_s is None else self._began + self._timeout_s

    def _relay(self, report: pytest.TestReport) -> None:
        if not compat.is_subtest(report):
            if report.when == "setup":
                self._phases = 0
                report.duration += self.setup_s
            self._phases += 1
            self._in_midst = report.when != "teardown"
            self._phase_start = time.time()
            self._sections = list(report.sections)
            if report.failed:
                self._explain(report)
            if hasattr(report, "isolate_cause"):
                self.verdict.cause = (report.isolate_cause, verdict.line_of(report))
            self._traffic.tell(report)
        self.verdict.failed = self.verdict.failed or report.failed
        self.telling.say(self.telling.report, report)

    def _explain(self, report: pytest.TestReport) -> None:
        """An exception of the test's, which it may have explained itself: what do the counters of its group say?"""
        cgroup = self.worker.cgroup
        usage = None if cgroup is None else cgroup.usage(current=False)
        verdict.add_quota(report, cgroup, self._events, usage)
        if hasattr(report, "isolate_cause"):
            self.worker.told.add(Cause(report.isolate_cause))
            return
        causes = [] if cgroup is None else cgroup.verdicts(self._events, usage)
        verdict.mark_failure(report, causes)
        self.worker.told.update(cause for cause, _ in causes)
        if causes and not hasattr(report, "isolate_cause"):
            self.verdict.beside = self.verdict.beside or verdict.line_of(report)

    def _restart(self, *, finished: bool) -> None:
        """The protocol's owner repeats the item: each try that it had finished before has the policy's time."""
        self._tries += 1
        if not finished:
            return
        if self._policy_timeout_s is not None and self._timeout_s == self._policy_timeout_s:
            self._deadline = time.monotonic() + self._policy_timeout_s
        self.telling.say(self.telling.restart)

    # -- endings ------------------------------------------------------------------------------------------------

    def _complete(self, done: dict[str, Any]) -> None:
        """The item's last word came."""
        self.verdict.evidence = done
        self.verdict.control = done["control"]
        self.verdict.last = bool(done.get("last", True))
        self.worker.orders.held = bool(done.get("held"))
        if not self.verdict.last:
            self._settle_counts()
        self.telling.say(self.telling.stop, done)
        self._ended = time.monotonic()

    def _settle_counts(self) -> None:
        """Its process goes on to another item: what it costs and sends from now on is that one's."""
        self._traffic.settle()
        self.verdict.counted = self._counted()

    def _counted(self) -> CgroupUsage | None:
        cgroup = self.worker.cgroup
        return None if cgroup is None else cgroup.usage(current=False, pressure=cgroup.accounts)

    def _note_leftovers(self) -> None:
        process = self.worker.process
        found = process.leftovers()
        self.verdict.leftovers = found + of_group(self.worker.cgroup, process, found)

    def _died(self) -> None:
        """The process ended, or was ended, before the item was done: blame the phase that was under way."""
        process = self.worker.process
        refusal: IsolateError | None = None
        try:
            exited = process.wait(_EXIT_S)
        except IsolateError as error:  # what ended is its backend's tool, which says so once
            refusal, exited = error, process.wait(0)
        if exited is None:
            self.worker.kill()
            exited = process.wait(_EXIT_S)
        self.verdict.died = True
        self._ended = time.monotonic()
        if exited is not None:
            self.verdict.evidence = {name: getattr(exited.rusage, name) for name in COSTS}
        if not self.verdict.leftovers and exited is not None:
            self.verdict.leftovers = living(process, self.worker.cgroup, exited.leftovers)
        if self.verdict.interrupted:
            return
        status = exited.status if exited is not None else ExitStatus(signal=signal.SIGKILL)
        when = _PHASES[min(self._phases, 2)]
        usage = None if self.worker.cgroup is None else self.worker.cgroup.usage(current=False)
        if refusal is not None and not self._timed_out:
            self._blame(when, crash.Ending(text=f"pytest-isolate: {refusal}", cause=Cause.SETUP), usage)
        else:
            ending = self._ending(status, when, usage)
            if self._start_s and ending.cause is None and not self._garbage:
                low = too_low_to_start(exited, self.worker.limits, self.wall_s)
                ending = crash.Ending(text=low[0], cause=Cause.SETUP) if low else crash.not_begun(status) or ending
            self._blame(when, ending, usage)

    def _ending(self, status: ExitStatus, when: crash.When, usage: CgroupUsage | None) -> crash.Ending:
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
            why = cpu_text(used_s, self.worker.limits).removeprefix("CPU: ")
            text = f"CPU: the test used up its CPU time during {when} ({status}): {why}"
            return crash.Ending(text=text, cause=Cause.CPU)
        if status.signal == signal.SIGXFSZ:
            text = f"FSIZE: a file grew over the limit on file size (SIGXFSZ), during {when}"
            return crash.Ending(text=text, cause=Cause.FSIZE)
        cgroup = self.worker.cgroup
        if cgroup is not None and (causes := cgroup.verdicts(self._events, usage)):
            self.worker.told.update(cause for cause, _ in causes)
            text = "\n".join(line for _, line in causes)
            return crash.Ending(text=f"{text}\n(the test's process was {status} during {when})", cause=causes[0][0])
        if status.signal == signal.SIGKILL and (text := hard_cpu_text(used_s, self.worker.limits)):
            return crash.Ending(text=f"{text}, during {when}", cause=Cause.CPU)
        mistake = self.worker.outputs.mistake()
        limited = trial.in_words(self.worker.limits)
        return crash.ended_early(status, when, garbage=self._garbage, mistake=mistake, limited=limited)

    def _blame(self, when: crash.When, ending: crash.Ending, usage: CgroupUsage | None) -> None:
        sections = [*(self._sections or compat.report_sections(self.item)), *self.worker.outputs.sections(when)]
        if (lost := compat.lost_output(self.item.config)) is not None:
            sections.append((f"Captured stdout {when}", lost))
        report = crash.report(self.item, when, ending, start=self._phase_start, sections=sections)
        verdict.add_quota(report, self.worker.cgroup, self._events, usage)
        self.verdict.failed = True
        if ending.cause is not None:
            self.verdict.cause = (ending.cause.value, ending.text.partition("\n")[0])
            self.worker.told.add(ending.cause)
        self._traffic.tell(report)
        self.telling.say(self.telling.blame, report, self._tries)
