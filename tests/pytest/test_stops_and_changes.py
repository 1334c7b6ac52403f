"""The parent's hooks stop a run, or change what is to come, while a group's process is ahead of what was told.

Owns: what was reported is compared with plain pytest, report by report. Refuses: tests that fail or stop by themselves (test_order_ahead.py).
"""

from __future__ import annotations

import gc

import pytest

from pytest_isolate.runner import garbage
from pytest_isolate.runner.orders import MOST_QUEUED

from .conftest import Run
from .test_fixtures import _DIARY, diary, words

MODULE = "--isolate-scope=module"

_CONFTEST = """
    import pytest
    from diarist import *

    SESSION = []
    def pytest_sessionstart(session):
        SESSION.append(session)

    mod = wide("mod", "module")

    @pytest.fixture(scope="module")
    def fails():
        yield
        raise RuntimeError("in a tear-down")

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(report):
        items = SESSION[0].items
        told = report.nodeid.rpartition("[")[2].rstrip("]")
        with open("told", "a") as file:
            print(report.nodeid, report.when, report.outcome, file=file)
        if report.when == "teardown" and told == "3" and "test_a" in report.nodeid:
            {change}

    def pytest_runtest_logfinish(nodeid):
        if nodeid.endswith("test_a.py::test[5]"):
            {stop}
"""
_MODULE = """
    import time, pytest
    from diarist import note

    @pytest.mark.parametrize("number", range(12))
    def test(number, mod{more}):
        time.sleep(0.01)
        note(__name__ + f" {{number}}")
        assert number != 8 or __name__ != "test_b"
"""


def told_by(run: Run, pytester: pytest.Pytester, *args: str) -> tuple[list[str], int, list[str]]:
    """The reports of a run in their order, its exit status and its diary; a fresh start for the next run."""
    status = int(run(*args).ret)
    told, notes = pytester.path / "told", pytester.path / "diary"
    found = told.read_text().splitlines(), status, words(diary(pytester))
    told.unlink()
    notes.unlink()
    return found


def suite(pytester: pytest.Pytester, *, change: str = "pass", stop: str = "pass", more: str = "") -> None:
    module = _MODULE.format(more=more)
    pytester.makepyfile(diarist=_DIARY, test_a=module, test_b=module)
    pytester.makeconftest(_CONFTEST.format(change=change, stop=stop))


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize(
    "change",
    [
        "del items[4]",
        "del items[6]",
        "del items[9]",
        "del items[15]",
        "del items[8:]",
        "items[6], items[7] = items[7], items[6]",
        "items[5], items[11] = items[11], items[5]",
        "items.insert(6, items.pop())",
    ],
)
def test_items_that_a_hook_changes_are_told_of_as_plainly(
    pytester: pytest.Pytester, plain: Run, isolated: Run, change: str, jobs: str
) -> None:
    suite(pytester, change=change)
    expected, status, _ = told_by(plain, pytester)
    found, found_status, notes = told_by(isolated, pytester, MODULE, f"--isolate-jobs={jobs}")
    assert (found, found_status) == (expected, status)
    assert notes.count("make mod") == notes.count("end mod"), notes


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("place", [6, 18])
def test_the_teardown_of_a_process_that_is_given_up_is_not_told(
    pytester: pytest.Pytester, plain: Run, isolated: Run, place: int, jobs: str
) -> None:
    suite(pytester, change=f"items[{place}], items[{place + 1}] = items[{place + 1}], items[{place}]", more=", fails")
    expected, status, _ = told_by(plain, pytester)
    found, found_status, _ = told_by(isolated, pytester, MODULE, f"--isolate-jobs={jobs}")
    assert (found, found_status) == (expected, status)


@pytest.mark.parametrize("scope", ["module", "function"])
@pytest.mark.parametrize("change", ["session.items.clear()", "del session.items[::2]"])
def test_a_loop_of_its_own_may_empty_the_list(
    pytester: pytest.Pytester, plain: Run, isolated: Run, change: str, scope: str
) -> None:
    suite(pytester)
    conftest = pytester.path / "conftest.py"
    loop = f"""
def pytest_runtestloop(session):
    items = list(session.items)
    {change}
    for item, following in zip(items, [*items[1:], None]):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return True
"""
    conftest.write_text(conftest.read_text() + loop)
    expected, status, _ = told_by(plain, pytester)
    assert told_by(isolated, pytester, f"--isolate-scope={scope}")[:2] == (expected, status)


@pytest.mark.parametrize("stop", ["SESSION[0].shouldstop = 'enough'", "SESSION[0].shouldfail = 'enough'"])
def test_a_stop_lets_no_more_go_on_than_may_be_ahead(
    pytester: pytest.Pytester, plain: Run, isolated: Run, stop: str
) -> None:
    suite(pytester, stop=stop)
    expected, status, _ = told_by(plain, pytester)
    found, found_status, notes = told_by(isolated, pytester, MODULE)
    assert (found, found_status) == (expected, status)
    begun = [note for note in notes if note.startswith("test_a")]
    assert begun[:6] == [f"test_a {number}" for number in range(6)]
    assert len(begun) <= 6 + MOST_QUEUED, "of 12: what was ahead of the parent when it stopped"
    assert notes[-1] == "end mod"


@pytest.mark.parametrize(
    ("stop", "args"),
    [
        ("pass", ["-x"]),
        ("pass", ["--maxfail=1"]),
        ("SESSION[0].shouldstop = 'enough'", []),
        ("pytest.exit('enough', returncode=7)", []),
        ("raise KeyboardInterrupt", []),
    ],
)
def test_a_stop_with_two_lanes_is_told_as_plainly(
    pytester: pytest.Pytester, plain: Run, isolated: Run, stop: str, args: list[str]
) -> None:
    """Both lanes have told much before their turn: what is over at once when it is begun was not let go of."""
    suite(pytester, stop=stop)
    expected, status, _ = told_by(plain, pytester, *args)
    for _ in range(3):
        found, found_status, notes = told_by(isolated, pytester, MODULE, "--isolate-jobs=2", *args)
        assert (found, found_status) == (expected, status)
        assert notes.count("make mod") == notes.count("end mod"), notes


def test_an_end_that_nobody_asked_for_is_the_tests_fault(pytester: pytest.Pytester, isolated: Run) -> None:
    """A test that cuts the pipe of its orders: the tests after it must not vanish."""
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.parametrize("number", range(6))
        def test(number):
            if number == 2:
                for name in os.listdir("/proc/self/fd"):
                    path = f"/proc/self/fd/{name}"
                    if os.path.exists(path) and os.readlink(path).startswith("pipe:") and int(name) > 2:
                        with open(f"/proc/self/fdinfo/{name}") as info:
                            flags = int(next(line for line in info if line.startswith("flags")).split()[1], 8)
                        if flags & os.O_ACCMODE == os.O_RDONLY:
                            os.dup2(os.open("/dev/null", os.O_RDONLY), int(name))
        """
    )
    result = isolated(MODULE)
    outcomes = result.parseoutcomes()
    assert sum(outcomes.values()) >= 6
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*an end that nobody asked for*"])


def test_a_heap_that_somebody_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        garbage.age()
        assert gc.get_freeze_count() >= before > 0
    finally:
        gc.unfreeze()
    garbage.age()
    assert gc.get_freeze_count() == 0
