"""Every private name of pytest that the runner touches, each guarded, in one place. pytest 7.4 to main.

Owns: the answer to "where does pytest keep X"; CI runs it against pytest's main branch.
Refuses: to decide anything about isolation.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, cast

import pytest
from _pytest import runner as _runner
from _pytest.fixtures import FixtureDef
from _pytest.outcomes import OutcomeException
from _pytest.scope import Scope
from _pytest.skipping import evaluate_skip_marks, evaluate_xfail_marks
from _pytest.unittest import TestCaseFunction

try:
    from _pytest.junitxml import xml_key
except ImportError:  # named differently in a pytest to come
    xml_key = None  # type: ignore[assignment]
try:
    from _pytest.subtests import SubtestReport, failed_subtests_key
except ImportError:  # before pytest 9.0
    SubtestReport = None  # type: ignore[assignment,misc]
    failed_subtests_key = None  # type: ignore[assignment]
try:
    from _pytest.faulthandler import fault_handler_stderr_fd_key
except ImportError:  # named differently in a pytest to come
    fault_handler_stderr_fd_key = None  # type: ignore[assignment]

__all__ = ["evaluate_xfail_marks"]

# pytest-asyncio keeps one event loop per scope in fixtures of these names; a loop cannot be shared over a fork.
_LOOP_FIXTURE = re.compile(r"_(class|module|package|session)_scoped_runner|.*event_loop")


def protocol_owners(item: pytest.Item, ours: object) -> Iterator[Any]:
    """The implementations of pytest_runtest_protocol that may run the item, in call order: not ours, no wrappers.

    The last one is pytest's own; one before it (rerunfailures, flaky, pytest-retry) repeats the test as it likes.
    """
    for impl in reversed(item.ihook.pytest_runtest_protocol.get_hookimpls()):
        if impl.plugin is ours or impl.hookwrapper or getattr(impl, "wrapper", False):
            continue
        yield impl


#: Whose wrappers around the protocol may run once more inside themselves, and whose threads no test misses.
KNOWN_PLUGINS = frozenset(
    "_pytest pytest_isolate pytest_timeout pytest_cov pytest_asyncio anyio xdist pytest_randomly pytest_rerunfailures "
    "_hypothesis_pytestplugin".split()
)


def module_root(function: object) -> str:
    """The top-level package that a function was defined in; empty for what has none."""
    return str(getattr(function, "__module__", "")).partition(".")[0]


def strange_wrapper(config: pytest.Config, ours: object) -> str:
    """The name of a plugin that wraps the protocol and is not known to bear nesting: it may count, lock or print."""
    for impl in config.hook.pytest_runtest_protocol.get_hookimpls():
        wraps = impl.hookwrapper or getattr(impl, "wrapper", False)
        if wraps and impl.plugin is not ours and module_root(impl.function) not in KNOWN_PLUGINS:
            return str(impl.plugin_name)
    return ""


def junit_log(config: pytest.Config) -> Any:
    """pytest's LogXML, where this process writes a junit file; else None."""
    return config.stash.get(xml_key, None) if xml_key is not None else None  # type: ignore[redundant-expr]


def strange_loop(config: pytest.Config) -> str:
    """The package that runs the tests by a loop of its own; empty where pytest's goes through session.items one by one."""
    for impl in config.hook.pytest_runtestloop.get_hookimpls():
        wraps = impl.hookwrapper or getattr(impl, "wrapper", False)
        if not wraps and module_root(impl.function) != "_pytest":
            return module_root(impl.function)
    return ""


def shows_prints(config: pytest.Config) -> bool:
    """True when what a test prints is seen as it comes."""
    return config.getoption("capture", "fd") in ("no", "tee-sys")


def shows_output(config: pytest.Config) -> bool:
    """True when what a test prints or logs is seen as it comes."""
    live = shows_prints(config) or config.getoption("log_cli_level", None)
    return bool(live) or (config.pluginmanager.hasplugin("logging") and config.getini("log_cli") is True)


#: In a child: lists of the parent's that were put aside. Dropped, they would write to every page that one of their members
#: lies in, and end what is the parent's.
_inherited: list[Any] = []


def keep_only(config: pytest.Config, plugin: object, hooks: tuple[str, ...]) -> None:
    """Leave ``plugin`` as the only implementation of ``hooks``: in a child, the other listeners are the parent's."""
    for name in hooks:
        caller = getattr(config.hook, name)
        kept = next((impl for impl in reversed(caller._hookimpls) if impl.plugin is plugin), None)
        _inherited.append(caller._hookimpls)
        caller._hookimpls = [] if kept is None else [kept]


def forget_finalizers(session: pytest.Session) -> None:
    """Empty every inherited finalizer list: what the parent set up is the parent's to tear down.

    The lists are put aside, not dropped: the last reference to a generator that is a fixture would run its `finally`.
    """
    stack = session._setupstate.stack
    for node, (finalizers, exception) in list(stack.items()):
        _inherited.append(finalizers)
        stack[node] = ([], exception)
    if hasattr(
        pytest.FixtureRequest, "_schedule_finalizers"
    ):  # to pytest 8.0: whoever asks for a fixture tears it down
        for definitions in session._fixturemanager._arg2fixturedefs.values():  # type: ignore[attr-defined]
            for definition in definitions:
                _inherited.append(definition._finalizers)
                definition._finalizers = []


def leave_collectors(item: pytest.Item) -> None:
    """In a child that was forked ahead: leave collectors that are not the item's. There is nothing to tear down in them."""
    if list(item.session._setupstate.stack) != item.listchain()[:-1]:
        teardown(item.session, item)


def teardown(session: pytest.Session, nextitem: pytest.Item | None) -> None:
    __tracebackhide__ = True
    session._setupstate.teardown_exact(nextitem)


def is_torn_down(session: pytest.Session, nextitem: pytest.Item | None) -> bool:
    """True when teardown_exact(nextitem) would find nothing to do."""
    stack = session._setupstate.stack
    return list(stack) == (nextitem.listchain() if nextitem is not None else [])[: len(stack)]


def is_set_up(item: pytest.Item) -> bool:
    """True when the collectors above the item and its wide fixtures are all made."""
    return list(item.session._setupstate.stack) == item.listchain()[:-1] and has_wide_fixtures(item, Scope.Function)


def has_wide_fixtures(item: pytest.Item, widest: Scope) -> bool:
    """True when the item's fixtures of scope wider than ``widest`` are all made, or bound to an event loop."""
    info = getattr(item, "_fixtureinfo", None)
    if info is None:
        return True
    callspec = getattr(item, "callspec", None)
    parameters = {} if callspec is None else callspec.params
    for name in info.names_closure:
        definitions = info.name2fixturedefs.get(name)
        if not definitions or fixture_scope(item, name, definitions[-1]) <= widest:
            continue
        made = definitions[-1].cached_result
        if made is not None and (made[2] is not None or (name in parameters and made[1] is not parameters[name])):
            return False  # it failed, and whoever asks for it gets the exception; or it has another parameter
        if made is None and not _bound_to_loop(name, info.name2fixturedefs, set()):
            return False
    return True


def set_up_now(session: pytest.Session) -> list[Any]:
    """The collectors that are set up, outermost first."""
    return list(session._setupstate.stack)


def left_for(stack: list[Any], item: pytest.Item) -> list[Any] | None:
    """What of the set-up collectors is the item's, too; None where tearing down the others would do something."""
    chain = item.listchain()
    common = 0
    while common < min(len(stack), len(chain)) and stack[common] is chain[common]:
        common += 1
    state = item.session._setupstate.stack
    for node in stack[common:]:
        if state.get(node) != ([node.teardown], None) or type(node).teardown is not pytest.Collector.teardown:
            return None
    return stack[:common]


def needs_no_setup(item: pytest.Item, made: int, limit: Any) -> bool:
    """True when the collectors above the item, from the ``made``-th to ``limit`` (None: all), do nothing when they are set up."""
    chain = item.listchain()[:-1]
    last = chain.index(limit) if limit in chain else len(chain)
    return all(type(node).setup is pytest.Collector.setup for node in chain[made:last])


def set_up_collectors(item: pytest.Item, limit: Any) -> None:
    """Set up the collectors above ``item`` down to, and without, ``limit`` (None: all of them)."""
    chain = item.listchain()[:-1]
    last = chain[: chain.index(limit)][-1] if limit in chain else chain[-1]
    if last not in item.session._setupstate.stack:  # a test that is not isolated has set up more, which is still there
        item.session._setupstate.setup(last)  # type: ignore[arg-type]


def _is_async(definition: FixtureDef[Any]) -> bool:
    function = inspect.unwrap(definition.func)
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _bound_to_loop(name: str, definitions: dict[str, Any], seen: set[str]) -> bool:
    """True when the fixture, or one that it asks for, is async or holds an event loop."""
    if name in seen:
        return False
    seen.add(name)
    for definition in definitions.get(name) or ():
        if _LOOP_FIXTURE.fullmatch(name) and definition._scope > Scope.Function:
            return True
        if _is_async(definition) or any(_bound_to_loop(arg, definitions, seen) for arg in definition.argnames):
            return True
    return False


def is_kept(item: pytest.Item, error: BaseException) -> bool:
    """True when a fixture or a collector of the item keeps ``error``, and raises it again for whoever asks for it next.

    Kept is what a set-up raises, if it is no SystemExit or the like; not what the tear-down of a fixture's last parameter raises.
    """
    info = getattr(item, "_fixtureinfo", None)
    definitions = [] if info is None else [one for found in info.name2fixturedefs.values() for one in found]
    results = [getattr(definition, "cached_result", None) for definition in definitions]
    kept = [result[2] for result in results if result is not None]
    kept += [exception for _, exception in item.session._setupstate.stack.values()]
    return any(value is error or (isinstance(value, tuple) and any(part is error for part in value)) for value in kept)


#: What a fixture may raise to say that it failed or skips, as pytest sees it; anything else ends the run.
FIXTURE_FAILURES = (Exception, OutcomeException)


def set_up_wide_fixtures(item: pytest.Item, widest: Scope) -> None:
    """Instantiate the item's fixtures of scope wider than ``widest``, except those bound to an event loop.

    A fixture that fails keeps its exception; whoever asks for it next, in whatever process, gets it again.
    """
    info = getattr(item, "_fixtureinfo", None)
    if info is None:
        return
    if not getattr(item, "_request", None):
        item._initrequest()  # type: ignore[attr-defined]
    try:
        _make_wide_fixtures(item, info, widest)
    except BaseException:
        forget_item(item)  # before 8.1, a request that has failed cannot ask for the same fixture again
        raise


def _make_wide_fixtures(item: pytest.Item, info: Any, widest: Scope) -> None:
    with _active(item), _bound(item):
        for name in info.names_closure:
            definitions = info.name2fixturedefs.get(name)
            if not definitions or fixture_scope(item, name, definitions[-1]) <= widest:
                continue
            if not _bound_to_loop(name, info.name2fixturedefs, set()):
                item._request._get_active_fixturedef(name)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _bound(item: pytest.Item) -> Iterator[None]:
    """Before pytest 8.2, setUpClass needs an instance that unittest's items have only from their own setup on."""
    if pytest.version_tuple >= (8, 2) or not isinstance(item, TestCaseFunction):
        yield
        return
    held = vars(item)
    held["_testcase"] = item.parent.obj(item.name)  # type: ignore[union-attr]
    try:
        yield
    finally:
        held["_testcase"] = None


@contextlib.contextmanager
def _active(item: pytest.Item) -> Iterator[None]:
    """Let the item count as set up while fixtures are made for it: pytest 9.1 on refuses them otherwise."""
    stack = item.session._setupstate.stack
    stack[item] = ([], None)
    try:
        yield
    finally:
        del stack[item]


def fixture_scope(item: pytest.Item, name: str, definition: FixtureDef[Any]) -> Scope:
    """The scope it has for this item: parametrize(scope=...) overrides the fixture's own."""
    callspec = getattr(item, "callspec", None)
    if callspec is not None and name in callspec.params:
        return cast(Scope, callspec._arg2scope.get(name, definition._scope))
    return definition._scope


def wide_parameters(item: pytest.Item, widest: Scope) -> tuple[tuple[str, int], ...]:
    """Which parameter of each wide fixture the item uses: two items may share a process only if these agree."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return ()
    scopes = callspec._arg2scope
    return tuple(sorted((n, i) for n, i in callspec.indices.items() if scopes.get(n, Scope.Function) > widest))


def forget_item(item: pytest.Item) -> None:
    """As runtestprotocol leaves it: a rerun makes a new request."""
    if hasattr(item, "_request"):
        item._request = False
        item.funcargs = None  # type: ignore[attr-defined]


def current_test(item: pytest.Item, when: Any) -> None:
    """Set or clear PYTEST_CURRENT_TEST."""
    with contextlib.suppress(KeyError):
        _runner._update_current_test_var(item, when)


@contextlib.contextmanager
def phase(item: pytest.Item, when: str) -> Iterator[None]:
    """What runs here on behalf of an item is named in the environment, captured and logged as a phase of it."""
    logs = item.config.pluginmanager.getplugin("logging-plugin")
    capture = item.config.pluginmanager.getplugin("capturemanager")
    error: BaseException | None = None
    with contextlib.ExitStack() as stack:
        current_test(item, when)
        stack.callback(current_test, item, None)
        if capture is not None:
            stack.enter_context(capture.item_capture(when, item))
        if logs is not None:
            stack.enter_context(_logged(logs, item, when))
        # pytest before 8.4 keeps no output of a phase that an exception leaves: it would appear in the next one.
        try:
            yield
        except BaseException as caught:
            error = caught
    if error is not None:
        raise error


@contextlib.contextmanager
def _logged(plugin: Any, item: pytest.Item, when: str) -> Iterator[None]:
    """Collect log records of one phase as a section, by pytest's own handler and formatter."""
    from _pytest.logging import catching_logs

    handler = plugin.report_handler
    with catching_logs(handler, level=plugin.log_level):
        handler.reset()
        try:
            yield
        finally:
            item.add_report_section(when, "log", handler.stream.getvalue().strip())


def redirect_capture(config: pytest.Config, out_fd: int, err_fd: int) -> None:
    """Let global fd capture write into files of the parent's: after a crash they hold the phase that crashed."""
    capture = config.pluginmanager.getplugin("capturemanager")
    streams = getattr(capture, "_global_capturing", None)
    for stream, fd in ((getattr(streams, "out", None), out_fd), (getattr(streams, "err", None), err_fd)):
        if stream is not None and hasattr(stream, "targetfd_save"):
            os.dup2(fd, stream.tmpfile.fileno())


def faulthandler_fd(config: pytest.Config) -> int:
    """The descriptor that faulthandler writes to, or -1."""
    key = fault_handler_stderr_fd_key
    return -1 if key is None else config.stash.get(key, -1)  # type: ignore[redundant-expr]


def lost_output(config: pytest.Config) -> str | None:
    """What to say of a crashed test's output where pytest captures it in the memory of the process that is gone."""
    method = config.getoption("capture", "fd")
    if method not in ("sys", "tee-sys"):
        return None
    return (
        f"(what was printed is lost: --capture={method} keeps it in the test's memory; --capture=fd keeps it in a file)"
    )


@contextlib.contextmanager
def caught_warnings(item: pytest.Item) -> Iterator[None]:
    """Announce each warning by pytest_warning_recorded; the filters in force are those of pytest's own protocol."""
    if not item.config.pluginmanager.has_plugin("warnings"):
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        finally:
            for message in caught or ():
                item.ihook.pytest_warning_recorded.call_historic(
                    kwargs={"warning_message": message, "nodeid": item.nodeid, "when": "runtest", "location": None}
                )


def is_subtest(report: Any) -> bool:
    """True for the report of a part of a test."""
    return SubtestReport is not None and isinstance(report, SubtestReport)


def restore_subtest(report: Any, data: Any) -> None:
    """pytest makes texts of a subtest's words, and texts of these texts when it reads them: i='0' for i=0."""
    if is_subtest(report):
        words = data["_subtest.context"]["kwargs"]
        object.__setattr__(report.context, "kwargs", {str(name): value for name, value in words.items()})


def count_failed_subtest(config: pytest.Config, item: pytest.Item, report: Any) -> bool:
    """True for the report of a subtest; a failed one of the fixture ``subtests`` is counted, so that its test fails.

    That of a unittest is reported, and its test passes: _pytest/unittest.py counts none.
    """
    if not is_subtest(report):
        return False
    if report.failed and not isinstance(item, TestCaseFunction):
        config.stash[failed_subtests_key][getattr(item, "id", item.nodeid)] += 1  # type: ignore[arg-type]
    return True


def base_temp(config: pytest.Config) -> str:
    """The run's base temporary directory; made now if need be."""
    factory = getattr(config, "_tmp_path_factory", None)
    return str(factory.getbasetemp()) if factory is not None else tempfile.gettempdir()


def make_base_temp(config: pytest.Config) -> None:
    """Create the run's base temporary directory now: each child would make one of its own, and --basetemp is emptied."""
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is not None:
        factory.getbasetemp()


def is_skipped(item: pytest.Item) -> bool:
    """True when a mark of the item skips it; a condition that cannot be evaluated is the child's to report."""
    try:
        return evaluate_skip_marks(item) is not None
    except BaseException:
        return False


def verbosity(config: pytest.Config) -> int:
    """-1 with -q, 1 with -v. Config.get_verbosity() is new in pytest 8.0."""
    return int(config.getoption("verbose"))


def flush(config: pytest.Config) -> None:
    """Write out what is buffered: a fork would otherwise print it twice, an _exit lose it."""
    terminal = config.pluginmanager.getplugin("terminalreporter")
    for stream in (sys.stdout, sys.stderr, getattr(getattr(terminal, "_tw", None), "_file", None)):
        if stream is not None:
            with contextlib.suppress(ValueError, OSError):
                stream.flush()


def report_sections(item: pytest.Item) -> list[tuple[str, str]]:
    """What was captured for the item in this process so far, titled as in a report."""
    return [(f"Captured {key} {when}", content) for when, key, content in item._report_sections]
