"""Beside pytest-rerunfailures and pytest-timeout: who repeats, and whose clock holds. Traps 12, 13."""

from __future__ import annotations

import importlib
import importlib.metadata

import pytest

from .beside import FLAKY, RERUNS, TIMEOUT, Need
from .conftest import Run
from .test_fixtures import _DIARY, diary, words


def test_rerunfailures_repeats_failing_tests(pytester: pytest.Pytester, isolated: Run, need: Need) -> None:
    """Trap 13: it owns the protocol hook, too."""
    need("rerunfailures", "pytest_rerunfailures")
    pytester.makepyfile(flaky=FLAKY)
    pytester.makepyfile(
        test_it="""
        import pytest
        from flaky import *

        def test_twice(): assert tries("twice") == 2
        @pytest.mark.flaky(reruns=3)
        def test_four_times(): assert tries("four") == 4
        def test_always(): assert tries("always") < 0
        def test_good(): pass
        """
    )
    result = isolated(*RERUNS, "--reruns=1", "-rR")
    outcomes = result.parseoutcomes()
    assert outcomes == {"passed": 3, "failed": 1, "rerun": 5}


def test_rerunfailures_repeats_crashes_and_time_outs_in_a_fresh_process(
    pytester: pytest.Pytester, isolated: Run, need: Need
) -> None:
    need("rerunfailures", "pytest_rerunfailures")
    pytester.makepyfile(flaky=FLAKY)
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        from flaky import *
        from diarist import wide

        of_module = wide("of_module", "module")

        def test_crashes_once(of_module):
            if tries("once") == 1:
                print("words of the first try")
                os.abort()

        def test_crashes_then_fails_then_passes():
            match tries("mixed"):
                case 1: os.abort()
                case 2: assert False

        def test_fails_then_crashes():
            match tries("fails first"):
                case 1: assert False
                case _: os.abort()

        def test_hangs_once():
            if tries("hangs") == 1: time.sleep(60)

        def test_always(of_module):
            tries("always")
            os.abort()

        @pytest.mark.flaky(reruns=0)
        def test_never_repeated():
            os.abort()
        """
    )
    result = isolated(*RERUNS, "--reruns=2", "--isolate-timeout=5", "-rR", "-v")
    assert result.parseoutcomes() == {"passed": 3, "failed": 3, "rerun": 8}
    pids = (pytester.path / "tries of always").read_text().split()
    assert len(pids) == len((pytester.path / "tries of fails first").read_text().split()) == 3
    result.stdout.fnmatch_lines(
        [
            "*::test_crashes_once RERUN*",
            "*::test_crashes_once PASSED*",
            "*killed by SIGABRT during call*",
            "RERUN *::test_crashes_once*",
        ]
    )
    assert words(diary(pytester)) == ["make of_module", "end of_module"]


def test_rerunfailures_options_hold_for_crashes(pytester: pytest.Pytester, isolated: Run, need: Need) -> None:
    need("rerunfailures", "pytest_rerunfailures")
    pytester.makepyfile(
        test_it="""
        import os, pytest
        def test_1(): os.abort()
        def test_2(): assert 0
        """
    )

    def reruns(*args: str) -> int:
        return isolated(*RERUNS, "--reruns=2", *args).parseoutcomes().get("rerun", 0)

    assert reruns() == 4
    assert reruns("--only-rerun=SIGABRT") == 2
    assert reruns("--rerun-except=SIGABRT") == 2
    if hasattr(importlib.import_module("pytest_rerunfailures").StatusDB, "try_increment_suite_reruns"):
        assert reruns("--max-suite-reruns=3") == 3


def test_rerunfailures_repeats_the_crashing_test_of_a_group_and_the_group_goes_on(
    pytester: pytest.Pytester, isolated: Run, need: Need
) -> None:
    need("rerunfailures", "pytest_rerunfailures")
    pytester.makepyfile(flaky=FLAKY)
    pytester.makepyfile(
        test_it="""
        from flaky import *
        def test_1(): pass
        def test_2():
            if tries("second") == 1: os.abort()
        def test_3(): pass
        """
    )
    result = isolated(*RERUNS, "--reruns=1", "--isolate-scope=module")
    assert result.parseoutcomes() == {"passed": 3, "rerun": 1}


def test_the_timer_of_pytest_timeout_is_taken_over(pytester: pytest.Pytester, isolated: Run, need: Need) -> None:
    """Trap 12: its timers fire in the parent. With the thread method it would end the whole run."""
    need("timeout", "pytest_timeout")
    pytester.makepyfile(
        test_it="""
        import time, pytest

        def test_hangs(): time.sleep(60)

        @pytest.mark.timeout(30)
        def test_marked(): time.sleep(1.5)

        @pytest.mark.timeout(0)
        def test_unlimited(): time.sleep(1.5)

        @pytest.fixture
        def slow(): time.sleep(1.5)

        @pytest.mark.timeout(1, func_only=True)
        def test_slow_fixture(slow): pass

        @pytest.mark.timeout(1, func_only=True)
        def test_hangs_in_the_function(slow): time.sleep(60)

        @pytest.mark.timeout(1)
        def test_slow_setup(slow): pass

        def test_after(): pass
        """
    )
    for method in ("signal", "thread"):
        result = isolated(*TIMEOUT, "--timeout=1.0", f"--timeout-method={method}", "-v")
        result.assert_outcomes(passed=4, failed=2, errors=1)
        result.stdout.fnmatch_lines(
            [
                "*::test_hangs TIMEOUT*",
                "*::test_slow_fixture PASSED*",
                "*::test_hangs_in_the_function TIMEOUT*",
                "*::test_slow_setup TIMEOUT*",
                "*::test_after PASSED*",
                "TIMEOUT: the test's call was still running after 1 s*",
                "*in test_hangs",
            ]
        )


def test_a_failure_that_cancels_the_timer_of_pytest_timeout_leaves_our_own_deadline(
    pytester: pytest.Pytester, isolated: Run, need: Need
) -> None:
    need("timeout", "pytest_timeout")
    pytester.makepyfile(
        test_it="""
        import time, pytest

        @pytest.fixture
        def hangs_at_teardown():
            yield
            time.sleep(60)

        def test_fails(hangs_at_teardown): assert False
        """
    )
    result = isolated(*TIMEOUT, "--isolate-timeout=1", "--timeout=20")
    result.assert_outcomes(failed=1, errors=1)
