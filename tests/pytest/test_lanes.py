"""--isolate-jobs=N: tests run side by side, and are told of one after the other, as if they had run so."""

from __future__ import annotations

import os
import textwrap
import xml.etree.ElementTree as ET

import pytest

from tests.conftest import require

from .conftest import Run
from .meeting import JOBS, passed
from .test_fixtures import diary, words
from .test_stopping import living

pytestmark = pytest.mark.usefixtures("meeting")


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


def test_many_short_words_are_as_much_as_a_few_long_ones(pytester: pytest.Pytester, isolated: Run) -> None:
    """A report of forty bytes on the channel is a thousand in memory."""
    pytester.makepyfile(
        test_it="""
        import gc, time, pytest
        from meeting import *
        from pytest_isolate.runner import brief, reporter

        def test_1(): waits_for("2 begins"); time.sleep(4)

        def test_2(request):
            here("2 begins")
            teller = next(found for found in gc.get_objects() if type(found) is reporter.Reporter)
            call = pytest.CallInfo.from_call(lambda: None, "call")
            teller.report(pytest.TestReport.from_item_and_call(request.node, call))
            for number in range(40_000):
                teller.send("passed", ["call", [0.0] * len(brief._TIMES)])
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
    result = isolated(JOBS, "-qq")
    assert (pytester.path / "early").read_text() == "False", "all of it was read"
    assert result.ret == 0
