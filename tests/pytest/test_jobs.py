"""How many tests run at once: what asks for it, what is refused, and what brings it down to one, said in a line."""

from __future__ import annotations

import os
import resource

import pytest

from .conftest import Run
from .meeting import JOBS

pytestmark = pytest.mark.usefixtures("meeting")


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("-s",), "what they print is shown as it comes (-s, --capture=tee-sys or log_cli)"),
        (("--log-cli-level=INFO",), "what they print is shown as it comes (-s, --capture=tee-sys or log_cli)"),
        (("--pdb",), "a person debugs (--pdb or --trace)"),
    ],
)
def test_where_a_person_watches_one_test_runs_at_a_time_and_a_line_says_so(
    pytester: pytest.Pytester, isolated: Run, args: tuple[str, ...], why: str
) -> None:
    pytester.makepyfile(
        test_it="""
        from meeting import *
        def test_1(): here("1"); time.sleep(0.3); here("1 is done")
        def test_2(): assert os.path.exists("1 is done")
        """
    )
    result = isolated(JOBS, *args)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"isolate: one test at a time, and not 2, because {why}"])


def test_workers_of_xdist_run_one_test_at_a_time_each(pytester: pytest.Pytester, isolated: Run, need: object) -> None:
    need("xdist", "xdist")  # type: ignore[operator]
    pytester.makepyfile(test_it="def test_1(): pass\ndef test_2(): pass\ndef test_3(): pass")
    result = isolated(JOBS, "-p", "xdist", "-n", "2")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["isolate: one test at a time, and not 2, because each worker of xdist runs one *"])


def test_a_plugin_that_wraps_the_protocol_keeps_tests_apart_and_a_line_says_so(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makeconftest("import pytest\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_protocol(item): yield")
    pytester.makepyfile(test_it="def test_1(): pass")
    result = isolated(JOBS)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["isolate: one test at a time, and not 2, because the plugin */conftest.py wraps *"])


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_number_of_jobs_without_meaning_is_refused_in_a_line(
    pytester: pytest.Pytester, isolated: Run, value: str
) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = isolated(f"--isolate-jobs={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--isolate-jobs: '{value}' is no number of tests. Write 1 or more, or auto*"])


def test_more_jobs_than_files_may_be_open_are_refused_in_a_line(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile("def test_it(): pass")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    result = isolated(f"--isolate-jobs={most}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"*--isolate-jobs: for {most} tests at once a limit of {most} open files is too low. *"]
    )


def test_as_many_jobs_as_are_allowed_run(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makeconftest("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))")
    pytester.makepyfile(
        test_it="""
        import pytest, time
        @pytest.mark.parametrize("number", range(16))
        def test_it(number): time.sleep(0.3)
        """
    )
    isolated("--isolate-jobs=12", "--isolate-profile=strict").assert_outcomes(passed=16)


def test_auto_is_as_many_as_this_process_may_use_cpus(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile("def test_it(): pass")
    cpus = len(os.sched_getaffinity(0))
    line = f"isolate: profile*, {cpus} at once" if cpus > 1 else "isolate: profile*native"
    isolated("--isolate-jobs=auto").stdout.fnmatch_lines([line])


def test_the_ini_file_and_the_environment_can_ask_for_jobs(
    pytester: pytest.Pytester, isolated: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("def test_it(): pass")
    pytester.makeini("[pytest]\nisolate_jobs = 3")
    isolated().stdout.fnmatch_lines(["isolate: profile*, 3 at once"])
    monkeypatch.setenv("PYTEST_ISOLATE_JOBS", "4")
    isolated().stdout.fnmatch_lines(["isolate: profile*, 4 at once"])


def test_a_test_that_is_not_isolated_runs_alone(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import os, pytest
        from meeting import *
        STATE = []
        def test_1(): time.sleep(0.3); here("1 is done")
        @pytest.mark.isolate(False)
        def test_2(): assert os.path.exists("1 is done"); assert not os.path.exists("3"); STATE.append(1)
        def test_3(): here("3"); assert STATE
        """
    )
    isolated(JOBS).assert_outcomes(passed=3)
