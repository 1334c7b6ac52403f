"""--isolate-jobs=N: tests run side by side, and are told of one after the other, as if they had run so."""

from __future__ import annotations

import os
import pathlib
import re
import resource
import signal
import textwrap
import xml.etree.ElementTree as ET

import pytest

from tests.conftest import require

from .conftest import Run
from .test_fixtures import _DIARY, diary, words
from .test_stopping import living, start, wait_for

JOBS = "--isolate-jobs=2"

#: A test that waits for another one to have begun passes only where both run at once.
MEETING = """
    import os, pathlib, time

    def here(name):
        pathlib.Path(name).touch()

    def waits_for(name, patience_s=20):
        end = time.monotonic() + patience_s
        while not pathlib.Path(name).exists():
            assert time.monotonic() < end, f"{name} did not come"
            time.sleep(0.01)

    def meets(mine, other):
        here(mine)
        waits_for(other)
"""


@pytest.fixture(autouse=True)
def meeting(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(meeting=MEETING, diarist=_DIARY)


def passed(result: pytest.RunResult) -> list[str]:
    """The tests in the order in which -v told of them."""
    return [
        line.split("::")[-1].split()[0] for line in result.outlines if re.search(r"::\S+ (PASSED|FAILED|XPASS)", line)
    ]


# -- side by side ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [(), ("--isolate-mode=fresh",), ("--isolate-mem-limit=512M",)], ids=["fork", "fresh", "limit"]
)
def test_two_tests_run_at_once_and_are_told_in_order(
    pytester: pytest.Pytester, isolated: Run, args: tuple[str, ...]
) -> None:
    pytester.makepyfile(
        test_it="""
        from meeting import *
        def test_1(): meets("1", "2")
        def test_2(): meets("2", "1")
        def test_3(): pass
        """
    )
    result = isolated("-v", JOBS, *args)
    result.assert_outcomes(passed=3)
    assert passed(result) == ["test_1", "test_2", "test_3"]
    result.stdout.fnmatch_lines(["isolate: profile*, 2 at once"])


def test_one_job_runs_one_test_at_a_time(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        from meeting import *
        def test_1(): here("1"); waits_for("2", 0.5)
        def test_2(): here("2")
        """
    )
    isolated("--isolate-jobs=1").assert_outcomes(passed=1, failed=1)


def test_no_more_run_at_once_than_were_asked_for(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import os, pathlib, time, pytest
        @pytest.mark.parametrize("number", range(8))
        def test_it(number):
            mine = pathlib.Path(f"run-{number}")
            mine.touch()
            time.sleep(0.1)
            seen = len(list(pathlib.Path().glob("run-*")))
            mine.unlink()
            pathlib.Path(f"seen-{number}").write_text(str(seen))
        """
    )
    isolated("--isolate-jobs=3").assert_outcomes(passed=8)
    assert max(int(seen.read_text()) for seen in pytester.path.glob("seen-*")) in (2, 3)


def test_lanes_share_the_fixtures_that_the_parent_made_once(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makeconftest("from diarist import *\nof_session = wide('of_session', 'session')")
    pytester.makepyfile(
        test_it="""
        import pytest
        from diarist import *
        from meeting import *
        of_module = wide("of_module", "module")
        @pytest.mark.parametrize("number", range(4))
        def test_it(of_session, of_module, number): meets(str(number), str(number ^ 1))
        """
    )
    isolated(JOBS).assert_outcomes(passed=4)
    assert words(diary(pytester)) == ["make of_session", "make of_module", "end of_module", "end of_session"]


def test_wide_fixtures_are_torn_down_after_their_last_user_and_before_the_next_ones_are_made(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    for name in "ab":
        pytester.makepyfile(
            **{
                f"test_{name}": f"""
                import time, pytest
                from diarist import *
                of_module = wide("of_{name}", "module")
                @pytest.mark.parametrize("number", range(3))
                def test_it(of_{name}, number):
                    time.sleep(0.2 * (3 - number))
                    note("ran {name}")
                """
            }
        )
    isolated("--isolate-jobs=3").assert_outcomes(passed=6)
    told = [["make of_" + name, *["ran " + name] * 3, "end of_" + name] for name in "ab"]
    assert words(diary(pytester)) == told[0] + told[1]


def test_modules_with_nothing_to_set_up_run_side_by_side(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(test_a="from meeting import *\ndef test_1(): meets('1', '2')")
    pytester.makepyfile(test_b="from meeting import *\nclass TestIt:\n    def test_2(self): meets('2', '1')")
    result = isolated("-v", JOBS)
    result.assert_outcomes(passed=2)
    assert passed(result) == ["test_1", "test_2"]


@pytest.mark.parametrize(
    "first",
    [
        "def setup_module(): pass",
        "def teardown_module(): pass",
        "@pytest.fixture(scope='module', autouse=True)\ndef wide(): pass",
    ],
)
@pytest.mark.parametrize("which", ["a", "b"])
def test_a_module_that_sets_something_up_does_not_run_beside_another(
    pytester: pytest.Pytester, isolated: Run, first: str, which: str
) -> None:
    body = {"a": "here('1'); waits_for('2', 0.5)", "b": "here('2')"}
    for name, text in body.items():
        (pytester.path / f"test_{name}.py").write_text(
            f"import pytest\nfrom meeting import *\n{first if name == which else ''}\ndef test_{name}(): {text}\n"
        )
    isolated(JOBS).assert_outcomes(failed=1, passed=1)


@pytest.mark.parametrize("scope", ["class", "module"])
def test_groups_run_side_by_side_each_in_a_process_of_its_own(
    pytester: pytest.Pytester, isolated: Run, scope: str
) -> None:
    pytester.makeconftest("from diarist import *\nof_class = wide('of_class', 'class')")
    for name, other in ("ab", "ba"):
        text = f"""
            import os
            from meeting import *
            class Test{name}:
                def test_1(self, of_class): here(str(os.getpid()) + ".{name}")
                def test_2(self): meets("{name}", "{other}")
                def test_3(self): assert os.path.exists(str(os.getpid()) + ".{name}")
            """
        file = {"module": f"test_{name}", "class": "test_it"}[scope]
        path = pytester.path / f"{file}.py"
        path.write_text((path.read_text() if path.exists() else "") + textwrap.dedent(text))
    result = isolated("-v", JOBS, f"--isolate-scope={scope}")
    result.assert_outcomes(passed=6)
    assert passed(result) == ["test_1", "test_2", "test_3"] * 2
    assert sorted(words(diary(pytester))) == ["end of_class"] * 2 + ["make of_class"] * 2


def test_each_lane_has_a_network_of_its_own(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import socket
        from meeting import *
        def listens(mine, other):
            with socket.create_server(("127.0.0.1", 18765)):
                meets(mine, other)
        def test_1(): listens("1", "2")
        def test_2(): listens("2", "1")
        """
    )
    isolated(JOBS, "--isolate-net=loopback").assert_outcomes(passed=2)


def test_a_test_may_change_its_network_policy_before_its_turn(pytester: pytest.Pytester, isolated: Run) -> None:
    from tests.conftest import require

    require("bpf", os.geteuid() == 0, "network policies need root")
    pytester.makepyfile(
        test_it="""
        import socket, pytest
        from meeting import *
        def test_1(): waits_for("2 is done")
        def test_2(net_policy):
            server = socket.create_server(("127.0.0.1", 0))
            with pytest.raises(OSError):
                socket.create_connection(server.getsockname(), 2)
            net_policy.allow("127.0.0.1/32")
            socket.create_connection(server.getsockname(), 2)
            here("2 is done")
        """
    )
    isolated(JOBS).assert_outcomes(passed=2)


# -- verdicts of tests that end before their turn ------------------------------------------------------------------------


def test_the_deadline_of_a_test_counts_from_its_own_start(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import time, pytest
        from meeting import *
        @pytest.mark.isolate(timeout=30)
        def test_1(): waits_for("3")
        @pytest.mark.isolate(timeout=1)
        def test_2(): time.sleep(60)
        def test_3(): here("3")
        """
    )
    result = isolated("-v", JOBS)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*TIMEOUT: the test's call was still running after 1 s*"])


def test_a_test_that_ended_early_enough_passes_though_its_turn_came_late(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import time, pytest
        from meeting import *
        @pytest.mark.isolate(timeout=30)
        def test_1(): waits_for("2"); time.sleep(2)
        @pytest.mark.isolate(timeout=1.5)
        def test_2(): here("2")
        """
    )
    isolated(JOBS).assert_outcomes(passed=2)


def test_each_lane_has_its_own_verdict(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import os, subprocess, time, pytest
        from meeting import *
        def test_waits(): waits_for("all")
        def test_crashes(): print("before the crash"); os.abort()
        def test_leaves(): os._exit(0)
        @pytest.mark.isolate(mem_limit="128M")
        def test_eats(): bytearray(400 << 20)
        @pytest.mark.isolate(leaks="fail")
        def test_leaks(): subprocess.Popen(["setsid", "sleep", "9872"])
        @pytest.mark.xfail(strict=True)
        def test_dies_as_expected(): os.abort()
        @pytest.mark.skipif(True, reason="not today")
        def test_skipped(): pass
        def test_last(): here("all")
        """
    )
    result = isolated("-v", "-rA", "--isolate-jobs=2", "--junitxml=out.xml")
    result.assert_outcomes(passed=3, failed=3, errors=1, xfailed=1, skipped=1)
    result.stdout.fnmatch_lines(["*killed by SIGABRT during call*", "*before the crash*"])
    result.stdout.fnmatch_lines(["*exited with status 0 before reporting*", "*OOM*"])
    result.stdout.fnmatch_lines(["*LEAK: the test left processes behind*"])  # errors stand before failures
    assert not living(b"sleep\x009872")
    names = [case.get("name") for case in ET.parse(pytester.path / "out.xml").iter("testcase")]
    wanted = "waits crashes leaves eats leaks dies_as_expected skipped last".split()
    assert names == [f"test_{name}" for name in wanted]


def test_what_a_test_told_of_before_its_turn_is_all_told_at_its_turn(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import sys, warnings
        from meeting import *
        def test_1(record_testsuite_property): waits_for("2")
        def test_2(record_property, record_xml_attribute, record_testsuite_property):
            warnings.warn("a warning of test_2")
            record_property("mine", "value")
            record_xml_attribute("assertions", "7")
            record_testsuite_property("of the suite", "too")
            print("out of test_2")
            sys.stderr.write("err of test_2")
            here("2")
            assert 0
        """
    )
    result = isolated(JOBS, "--junitxml=out.xml", "-o", "junit_family=xunit1")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*out of test_2*", "*err of test_2*", "*a warning of test_2*"])
    text = (pytester.path / "out.xml").read_text()
    assert 'name="mine" value="value"' in text
    assert 'assertions="7"' in text
    assert 'name="of the suite" value="too"' in text


def test_failed_subtests_before_their_turn_fail_their_test(pytester: pytest.Pytester, isolated: Run) -> None:
    require("pytest9-subtests", hasattr(pytest, "Subtests"), "before pytest 9.0")
    pytester.makepyfile(
        test_it="""
        from meeting import *
        def test_1(): waits_for("2")
        def test_2(subtests):
            for number in range(3):
                with subtests.test(number=number):
                    assert number != 1
            here("2")
        """
    )
    isolated(JOBS).assert_outcomes(passed=1, failed=2)


def test_a_test_that_tells_more_than_is_kept_waits_and_its_time_stands_still(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    require("pytest9-subtests", hasattr(pytest, "Subtests"), "before pytest 9.0")
    pytester.makepyfile(
        test_it="""
        import time, pytest
        from meeting import *
        @pytest.mark.isolate(timeout=60)
        def test_1(): waits_for("2 begins"); time.sleep(4)
        @pytest.mark.isolate(timeout=3)
        def test_2(subtests):
            here("2 begins")
            for number in range(12):
                with subtests.test(number=number):
                    print("x" * (1 << 20))
                    assert 0
            here("2 ends")
        """
    )
    pytester.makeconftest(
        """
        import pathlib
        def pytest_runtest_logreport(report):
            if report.nodeid.endswith("test_1") and report.when == "call":
                pathlib.Path("early").write_text(str(pathlib.Path("2 ends").exists()))
        """
    )
    result = isolated(JOBS, "--tb=no", "-q", "--show-capture=no")
    assert (pytester.path / "early").read_text() == "False", "all of it was read"
    result.stdout.fnmatch_lines(["*13 failed*"])
    result.stdout.no_fnmatch_line("*TIMEOUT*")


# -- the end of a run ----------------------------------------------------------------------------------------------------


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


# -- beside plugins, and where it cannot hold --------------------------------------------------------------------------------


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
