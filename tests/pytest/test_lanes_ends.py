"""--isolate-jobs=N: how a run ends in the middle of tests at once, and what plugins that count tests then know."""

from __future__ import annotations

import os
import pathlib
import signal

import pytest

from .conftest import Run
from .meeting import JOBS, passed
from .test_fixtures import diary, words
from .test_stopping import living, start, wait_for

pytestmark = pytest.mark.usefixtures("meeting")


@pytest.mark.parametrize("option", ["-x", "--maxfail=1"])
@pytest.mark.parametrize("ignored", [False, True], ids=["at a terminal", "SIGINT ignored"])
def test_after_a_stop_what_ran_ahead_is_not_told_of_and_its_processes_are_ended(
    pytester: pytest.Pytester, isolated: Run, option: str, ignored: bool
) -> None:
    if ignored:  # as in the background of a shell
        pytester.makeconftest("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)")
    pytester.makepyfile(
        test_it="""
        import subprocess, time, pytest
        from diarist import *
        from meeting import *
        of_module = wide("of_module", "module")
        of_test = wide("of_test", "function")
        def test_1(of_module): waits_for("2"); waits_for("3"); assert 0
        def test_2(of_module): here("2"); assert 0, "told too early"
        def test_3(of_module, of_test):
            subprocess.Popen(["setsid", "sleep", "9873"])
            here("3")
            time.sleep(60)
        def test_4(of_module): pass
        """
    )
    result = isolated("-v", option, JOBS)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*stopping after 1 failures*"])
    result.stdout.no_re_match_line(".*test_[234].*")
    result.stdout.no_fnmatch_line("*told too early*")
    assert not living(b"sleep\x009873")
    told = words(diary(pytester))
    assert "end of_test" in told, "a running test may tear its fixtures down"
    assert told[-1] == "end of_module"


def test_pytest_exit_in_a_test_that_ran_ahead_ends_the_run_at_its_turn(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        from meeting import *
        def test_1(): waits_for("2")
        def test_2(): here("2"); pytest.exit("enough for today", returncode=42)
        def test_3(): pass
        """
    )
    result = isolated("-v", JOBS)
    assert result.ret == 42
    assert passed(result) == ["test_1"]
    result.stdout.fnmatch_lines(["*enough for today*"])


def test_ctrl_c_lets_every_running_test_tear_its_fixtures_down(pytester: pytest.Pytester, plain: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import pathlib, subprocess, time, pytest
        @pytest.fixture
        def narrow(request):
            yield
            pathlib.Path(request.node.name + " torn down").touch()
        @pytest.fixture(scope="module")
        def wide():
            yield
            pathlib.Path("module torn down").touch()
        @pytest.mark.parametrize("number", range(3))
        def test_it(wide, narrow, number):
            subprocess.Popen(["setsid", "sleep", "9874"])
            pathlib.Path(f"running {number}").touch()
            time.sleep(60)
        """
    )
    process = start(pytester, JOBS)
    for number in (0, 1):
        wait_for(pytester.path / f"running {number}")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert sorted(path.name for path in pytester.path.glob("* torn down")) == [
        "module torn down",
        "test_it[0] torn down",
        "test_it[1] torn down",
    ]
    assert not living(b"sleep\x009874")


def test_last_failed_and_durations_know_what_ran_in_lanes(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import time
        from meeting import *
        def test_1(): waits_for("2")
        def test_2(): time.sleep(0.3); here("2"); assert 0
        def test_3(): assert 0
        """
    )
    result = isolated(JOBS, "--durations=3", "-p", "cacheprovider")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.re_match_lines([r"0\.[3-9]\ds call +test_it.py::test_2"])
    isolated(JOBS, "--lf", "-p", "cacheprovider").assert_outcomes(failed=2)
    isolated(JOBS, "--sw", "-p", "cacheprovider").assert_outcomes(passed=1, failed=1)


def test_reruns_of_crashed_tests_happen_at_their_turn(pytester: pytest.Pytester, isolated: Run, need: object) -> None:
    need("rerunfailures", "pytest_rerunfailures")  # type: ignore[operator]
    pytester.makepyfile(
        test_it="""
        import os, pathlib
        from meeting import *
        def again(name, how):
            if not pathlib.Path(name).exists():
                here(name)
                how()
        def fail(): assert 0
        def test_1(): waits_for("2")
        def test_2(): again("2", os.abort)
        def test_3(): again("3", fail)
        def test_4(): pass
        """
    )
    result = isolated("-v", JOBS, "-p", "rerunfailures", "--reruns=1")
    result.stdout.fnmatch_lines(["*4 passed, 2 rerun*"])
    order = [line.split("::")[1].split()[:2] for line in result.outlines if "::test_" in line and "%" in line]
    assert [name for name, _ in order] == ["test_1", "test_2", "test_2", "test_3", "test_3", "test_4"]


def test_pytest_timeout_counts_from_a_tests_own_start(pytester: pytest.Pytester, isolated: Run, need: object) -> None:
    need("timeout", "pytest_timeout")  # type: ignore[operator]
    pytester.makepyfile(
        test_it="""
        import time, pytest
        from meeting import *
        @pytest.mark.timeout(30)
        def test_1(): waits_for("3")
        @pytest.mark.timeout(1)
        def test_2(): time.sleep(60)
        def test_3(): here("3")
        """
    )
    result = isolated("-v", JOBS, "-p", "pytest_timeout")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*TIMEOUT: the test's call was still running after 1 s*"])


def test_nothing_is_left_behind(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest, time
        @pytest.mark.parametrize("number", range(12))
        def test_it(number): time.sleep(0.01 * (number % 3))
        """
    )
    before = {pathlib.Path(entry).name for entry in os.listdir("/proc") if entry.isdigit()}
    isolated("--isolate-jobs=4", "--isolate-profile=strict").assert_outcomes(passed=12)
    mine = [
        pid for pid in os.listdir("/proc") if pid.isdigit() and pid not in before and _is_of(pid, str(pytester.path))
    ]
    assert not mine


def _is_of(pid: str, directory: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd").startswith(directory)
    except OSError:
        return False
