"""Child side: this code runs in the test's own process, after the fork. It reports over the channel, then leaves.

Owns: what a forked pytest must forget (finalizers, reporters, capture offsets), and how an item is run in it.
Refuses: to return: the child leaves by os._exit, so that nothing of the parent's (atexit, locks, trackers) runs here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from pytest_isolate.runner import compat, garbage, reruns
from pytest_isolate.runner.orders import Inbox
from pytest_isolate.runner.reporter import (
    ENDED_BY,
    EXIT_OUR_FAULT,
    REPORTING_HOOKS,
    Reporter,
    control_of,
    dump_stacks_on_signal,
    evidence,
)


def serve(item: pytest.Item, nextitem: pytest.Item | None, reporter: Reporter, ours: object) -> NoReturn:
    """Run ``item``, then whatever the parent names, then leave. Never returns, whatever happens."""
    status = EXIT_OUR_FAULT
    try:
        _become_child(item, reporter, ours)
        _work(item, nextitem, reporter, ours)
        status = 0
    except BaseException as error:
        with contextlib.suppress(Exception):
            os.write(reporter.link.trace_fd, told(error))
    finally:
        os._exit(status)


def told(error: BaseException) -> bytes:
    """What it is, and its traceback; without frames where the test has changed even what formats one."""
    name = error.__class__.__name__
    with contextlib.suppress(BaseException):
        name = f"{name}: {error}".partition("\n")[0]
    try:
        trace = traceback.format_exc()
    except BaseException:
        trace = "(its frames cannot be told)"
    return f"{ENDED_BY}{name}\n{trace}".encode("utf-8", "backslashreplace")


def _become_child(item: pytest.Item, reporter: Reporter, ours: object) -> None:
    """Forget what is the parent's."""
    garbage.age()
    config, link = item.config, reporter.link
    take_outputs(config, link.out_fd, link.err_fd, link.trace_fd)
    if link.dump_stacks:
        dump_stacks_on_signal(link.trace_fd)
    compat.forget_finalizers(item.session)
    if link.gated:
        compat.leave_collectors(item)
    compat.keep_only(config, ours, REPORTING_HOOKS)
    reporter.tells_phases = next(compat.protocol_owners(item, ours)).plugin_name != "runner"
    reruns.resume(item, link.tries)
    try:
        item.ihook.pytest_isolate_child(item=item)
    except Exception as error:
        reporter.refusal = error


def take_outputs(config: pytest.Config, out_fd: int, err_fd: int, trace_fd: int) -> None:
    """What the test writes, and its stacks at a crash, go into files of the parent's. Raises OSError: no descriptor to be had."""
    compat.redirect_capture(config, out_fd, err_fd)
    fault_fd = compat.faulthandler_fd(config)
    if fault_fd >= 0:
        os.dup2(trace_fd, fault_fd)


def _work(item: pytest.Item, nextitem: pytest.Item | None, reporter: Reporter, ours: object) -> None:
    orders = Inbox(reporter.link.command_fd)
    if reporter.link.gated and not orders.await_gate():
        return
    ending = None
    with contextlib.suppress(KeyboardInterrupt):  # between two items: nothing more is to be run
        ending = _run_all(item, nextitem, orders, reporter, ours)
    if ending is None:
        reporter.send("done", {"control": None, "last": False, "ends": True})
        ending = _end_group(reporter.item or item, reporter)
    _leave_tidily(reporter)
    known = evidence(reporter.link)
    reporter.send("done", {**ending, "last": True, **known})
    if known["alone"]:
        _close_sandboxes()


def _run_all(
    item: pytest.Item, nextitem: pytest.Item | None, orders: Inbox, reporter: Reporter, ours: object
) -> dict[str, Any] | None:
    """Run ``item`` and all that is ordered; how the last one ended, None when more was expected than was ordered."""
    run = _run_inside if not reporter.link.gated else _run_whole
    while True:
        reporter.begins(item)
        ending = _run_one(item, nextitem, run, ours, reporter)
        if nextitem is None or ending["control"] is not None:
            return ending
        held = bool(reporter.failed or ending["shouldstop"] or ending["shouldfail"])
        reporter.send("done", {**ending, "last": False, "held": held})
        if (command := orders.next(held=held)) is None:
            return None
        item, nextitem = _named(item.session, command)
        run = _run_whole


def _named(session: pytest.Session, command: dict[str, Any]) -> tuple[pytest.Item, pytest.Item | None]:
    following = command["next"]
    return session.items[command["item"]], None if following is None else session.items[following]


def _end_group(item: pytest.Item, reporter: Reporter) -> dict[str, Any]:
    """Tear down what was kept for items that will not come; an error is the last item's."""

    def tear_down() -> None:
        __tracebackhide__ = True
        compat.teardown(item.session, None)

    call = pytest.CallInfo.from_call(tear_down, when="teardown")
    if call.excinfo is not None:
        reporter.report(pytest.TestReport.from_item_and_call(item, call))
    return {"control": None}


_Run = Callable[[pytest.Item, "pytest.Item | None", object], None]


def _run_one(
    item: pytest.Item, nextitem: pytest.Item | None, run: _Run, ours: object, reporter: Reporter
) -> dict[str, Any]:
    """Run one item by whoever owns the protocol; report how the run is to go on."""
    control = None
    session = item.session
    try:
        run(item, nextitem, ours)
    except (pytest.exit.Exception, KeyboardInterrupt) as error:
        reporter.leave_copy(error)
        control = control_of(error)
    if control is not None:
        with contextlib.suppress(BaseException):  # the run ends; the first reason is the one to tell
            compat.teardown(session, None)
    return {
        "control": control,
        "shouldstop": session.shouldstop,
        "shouldfail": session.shouldfail,
        "execution_count": getattr(item, "execution_count", None),
    }


def _run_whole(item: pytest.Item, nextitem: pytest.Item | None, _ours: object) -> None:
    """The protocol with its wrappers: for an item whose turn had not come when this process was forked."""
    item.ihook.pytest_runtest_protocol(item=item, nextitem=nextitem)


def _run_inside(item: pytest.Item, nextitem: pytest.Item | None, ours: object) -> None:
    """The protocol without its wrappers: this process was forked inside them, their filters and hooks are in force."""
    known = {"item": item, "nextitem": nextitem}
    with compat.caught_warnings(item):
        for owner in compat.protocol_owners(item, ours):
            if owner.function(*(known[name] for name in owner.argnames)) is not None:
                return


def _leave_tidily(reporter: Reporter) -> None:
    """What an ordinary exit would have written out, and os._exit does not."""
    if (coverage := sys.modules.get("coverage")) is not None:
        _save_coverage(coverage)
    if (logging := sys.modules.get("logging")) is not None:
        for reference in list(logging._handlerList):
            handler = reference()
            if handler is not None and type(handler).__module__ != "_pytest.logging":  # those write to memory
                with contextlib.suppress(OSError, ValueError):
                    handler.flush()
    compat.flush(reporter._config)


def _close_sandboxes() -> None:
    """Remove what the test's own sandboxes were held by; the parent goes on meanwhile. Whoever is left in one is the parent's to
    find and to name."""
    if (networks := sys.modules.get("pytest_isolate.networks")) is not None:
        with contextlib.suppress(Exception):  # all is said; what does not go now is swept by the next run
            networks.close_those_of_this_process()


def _save_coverage(coverage: Any) -> None:
    current = coverage.Coverage.current() if hasattr(coverage, "Coverage") else None
    if current is not None:
        current.stop()
        current.save()
