"""Beside pytest-xdist: a worker is the parent of its tests' processes. Trap 20."""

from __future__ import annotations

import pytest

from .beside import FLAKY, RERUNS, XDIST, Need
from .conftest import Run
from .test_fixtures import _DIARY, diary, words


def test_xdist_runs_isolated_tests_with_session_fixtures_crashes_and_time_outs(
    pytester: pytest.Pytester, isolated: Run, need: Need
) -> None:
    need("xdist", "xdist")
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        import os, subprocess, time, warnings, pytest
        from diarist import note, wide

        of_session = wide("of_session", "session")

        @pytest.mark.parametrize("i", range(10))
        def test_good(i, of_session, worker_id):
            assert worker_id in ("gw0", "gw1")
            assert os.getpid() != of_session

        def test_crashes():
            print("last words")
            os.abort()

        def test_hangs(): time.sleep(60)
        def test_fails(): assert 0
        def test_warns(): warnings.warn("from a child of a worker")
        def test_leaks(): subprocess.Popen(["setsid", "sleep", "6790"])
        """
    )
    result = isolated(*XDIST, "-n2", "--isolate-timeout=2", "-rA")
    result.assert_outcomes(passed=12, failed=3, warnings=1)
    result.stdout.fnmatch_lines_random(
        [
            "FAILED test_it.py::test_crashes*",
            "TIMEOUT test_it.py::test_hangs*",
            "*UserWarning: from a child of a worker*",
            "last words",
            "    pid * old): sleep 6790",
        ]
    )
    lines = words(diary(pytester))
    assert lines.count("make of_session") == lines.count("end of_session") <= 2
    assert "node down" not in str(result.stdout)


def test_xdist_with_loadgroup_and_with_isolate_scope_module(
    pytester: pytest.Pytester, isolated: Run, need: Need
) -> None:
    """Trap 20: loadgroup appends @group to the node ids."""
    need("xdist", "xdist")
    pytester.makepyfile(
        test_it="""
        import os, pytest

        @pytest.mark.xdist_group("one")
        @pytest.mark.parametrize("i", range(3))
        def test_grouped(i): assert os.environ["PYTEST_CURRENT_TEST"].startswith("test_it.py::test_grouped")

        @pytest.mark.xdist_group("one")
        def test_crashes(): os.abort()

        def test_free():
            assert 0
        """
    )
    for args in (("--dist=loadgroup",), ("--dist=loadfile", "--isolate-scope=module")):
        result = isolated(*XDIST, "-n2", *args)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        outcomes = result.parseoutcomes()
        assert outcomes["passed"] == 3
        assert "node down" not in str(result.stdout)


def test_xdist_with_rerunfailures_repeats_crashes_without_losing_the_worker(
    pytester: pytest.Pytester, isolated: Run, need: Need
) -> None:
    need("xdist", "xdist")
    need("rerunfailures", "pytest_rerunfailures")
    pytester.makepyfile(flaky=FLAKY)
    pytester.makepyfile(
        test_it="""
        from flaky import *

        def test_crashes_once():
            if tries("crash") == 1: os.abort()

        def test_fails_once():
            if tries("fail") == 1: assert 0

        def test_always(): os.abort()
        """
    )
    result = isolated(*XDIST, *RERUNS, "-n2", "--reruns=2")
    assert result.parseoutcomes() == {"passed": 2, "failed": 1, "rerun": 4}
    assert "node down" not in str(result.stdout)
