"""A group's child whose test passed goes on to the next one while its parent still tells of the last. After anything else it waits."""

from __future__ import annotations

import pytest

from .conftest import Run
from .test_fixtures import _DIARY, diary, words

MODULE = "--isolate-scope=module"

#: The parent is slow to tell of test_1: it waits until something of test_2 stands in the diary, or its patience ends.
_SLOW_PARENT = """
    import time
    from diarist import *

    SESSION = []
    def pytest_sessionstart(session):
        SESSION.append(session)

    def begun():
        return DIARY.exists() and "make of_2" in DIARY.read_text()

    def pytest_runtest_logreport(report):
        if report.nodeid.endswith("test_1") and report.when == "teardown":
            end = time.monotonic() + {patience_s}
            while not begun() and time.monotonic() < end:
                time.sleep(0.01)
            note("2 has begun" if begun() else "2 has not begun")
            {then}

    of_module = wide("of_module", "module")
    of_2 = wide("of_2", "function")
"""


_STOP = "SESSION[0].shouldstop = 'enough'"


def with_slow_parent(pytester: pytest.Pytester, test_1: str, test_2: str, patience_s: float, then: str = "") -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makeconftest(_SLOW_PARENT.format(patience_s=patience_s, then=then))
    pytester.makepyfile(
        test_it=f"""
        import os, time
        from diarist import note
        def test_1(of_module, request): {test_1}
        def test_2(of_module, of_2): {test_2}
        def test_3(of_module): note("3")
        """
    )


def test_a_child_goes_on_by_itself_after_a_test_that_passed(pytester: pytest.Pytester, isolated: Run) -> None:
    with_slow_parent(pytester, "pass", "note('2')", patience_s=20)
    isolated(MODULE).assert_outcomes(passed=3)
    told = words(diary(pytester))
    told.remove("2 has begun")
    assert told == ["make of_module", "make of_2", "2", "end of_2", "3", "end of_module"]


@pytest.mark.parametrize("args", [(), ("-x",)], ids=["go on", "-x"])
def test_a_child_waits_for_the_word_after_a_test_that_failed(
    pytester: pytest.Pytester, isolated: Run, args: tuple[str, ...]
) -> None:
    with_slow_parent(pytester, "assert 0", "note('2')", patience_s=0.3)
    result = isolated(MODULE, *args)
    goes_on = [] if args else ["make of_2", "2", "end of_2", "3"]
    result.assert_outcomes(failed=1, passed=0 if args else 2)
    told = words(diary(pytester))
    told.remove("2 has not begun")
    assert told == ["make of_module", *goes_on, "end of_module"]


@pytest.mark.parametrize("args", [("-s",), ("--isolate-mem-limit=512M",)], ids=["output is seen", "a cgroup counts"])
def test_a_child_waits_where_the_difference_would_be_seen(
    pytester: pytest.Pytester, isolated: Run, args: tuple[str, ...]
) -> None:
    with_slow_parent(pytester, "pass", "note('2')", patience_s=0.3)
    isolated(MODULE, *args).assert_outcomes(passed=3)
    assert "2 has not begun" in words(diary(pytester))


def test_a_crash_of_a_test_that_was_begun_ahead_is_its_own(pytester: pytest.Pytester, isolated: Run) -> None:
    with_slow_parent(pytester, "pass", "os.abort()", patience_s=20, then="time.sleep(0.2)")
    result = isolated(MODULE)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*killed by SIGABRT during call*", "FAILED test_it.py::test_2*"])
    assert words(diary(pytester)).count("make of_2") == 1, "it is not tried again"


def test_a_run_that_stops_lets_what_was_begun_ahead_finish_and_tells_nothing_of_it(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    with_slow_parent(pytester, "pass", "time.sleep(0.3); note('2')", patience_s=20, then=_STOP)
    result = isolated(MODULE, "-v")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*test_2*")
    assert words(diary(pytester))[-3:] == ["2", "end of_2", "end of_module"]
    assert "3" not in words(diary(pytester))


def test_a_run_that_stops_tells_nothing_of_the_last_of_a_group_that_was_run_ahead(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    with_slow_parent(pytester, "pass", "note('2')", patience_s=20, then=_STOP)
    module = pytester.path / "test_it.py"
    module.write_text(module.read_text().partition("def test_3")[0])
    result = isolated(MODULE, "-v")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*test_2*")
    result.stdout.no_fnmatch_line("*orted*")
    assert {"2", "end of_2", "end of_module"} <= set(words(diary(pytester)))


def test_many_are_ordered_ahead_and_each_is_told_at_its_turn(pytester: pytest.Pytester, isolated: Run) -> None:
    """More than fit into the queue, a failure and a crash among them."""
    pytester.makeconftest(
        """
        import pytest, time
        def pytest_runtest_logreport(report):
            if report.when == "teardown":
                time.sleep(0.005)
        """
    )
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.mark.parametrize("number", range(40))
        def test(number):
            assert number not in (9, 10, 23)
            if number == 17:
                os.abort()
        """
    )
    result = isolated(MODULE, "-v")
    result.assert_outcomes(passed=36, failed=4)
    told = [
        line.split("[")[1].split("]")[0] for line in result.outlines if line.startswith("test_many") and "::" in line
    ]
    assert told == [str(number) for number in range(40)]
    result.stdout.fnmatch_lines(["*SIGABRT*"])
