"""What travels from the test to the reporters: types, subtests, warnings, durations, junit, the cache. Traps 1, 3, 15."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tests.conftest import require

from .conftest import Run
from .test_fixtures import summary

_HAS_SUBTESTS = pytest.version_tuple >= (9, 0)


def test_skips_xfails_and_failures_are_told_as_plain_pytest_tells_them(
    pytester: pytest.Pytester, isolated: Run, plain: Run
) -> None:
    """Trap 1: a tuple that becomes a list breaks the summary of skips."""
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.fixture(autouse=True)
        def ends_badly(request):
            yield
            if request.node.name == "test_ends_badly":
                raise RuntimeError

        def test_ends_badly(): pass
        def test_skips(): pytest.skip("inside")
        @pytest.mark.skip(reason="by mark")
        def test_skipped(): pass
        @pytest.mark.skipif("1 == 1", reason="by condition")
        def test_skipif(): pass
        @pytest.mark.skipif("not python")
        def test_bad_condition(): pass
        @pytest.mark.xfail(reason="known")
        def test_xfails(): assert 0
        @pytest.mark.xfail
        def test_xpasses(): pass
        @pytest.mark.xfail(strict=True)
        def test_strict(): pass
        def test_imperative(): pytest.xfail("in the middle")
        def test_fails(): assert [1, 2] == [1, 3]
        def test_nested():
            try: 1 / 0
            except ZeroDivisionError as e: raise ValueError("outer") from e
        def test_unprintable():
            class Evil(Exception):
                def __str__(self): raise RuntimeError
            raise Evil
        def test_surrogate(record_property):
            record_property("name", "\\udc80")
            assert "\\udc80"
        def test_group(): raise BaseExceptionGroup("many", [ValueError(1), SystemExit(2)])
        @pytest.mark.parametrize("x", [float("nan"), b"\\xff", (1,), {1: 2}, "ü€"])
        def test_parameters(x, record_property):
            record_property("x", x)
            assert not isinstance(x, tuple)
        """
    )
    expected, found = plain("-rA"), isolated("-rA")
    assert found.parseoutcomes() == expected.parseoutcomes()
    assert summary(found) == summary(expected)
    assert found.parseoutcomes()["failed"] >= 6


def test_failing_subtests_fail_their_test(pytester: pytest.Pytester, isolated: Run, plain: Run) -> None:
    require("subtests", _HAS_SUBTESTS, "pytest before 9.0 has no subtests fixture")
    pytester.makepyfile(
        test_it="""
        def test_some_fail(subtests):
            for i in range(4):
                with subtests.test("message", i=i, word="a b"):
                    print("printed by", i)
                    assert i % 2 == 0

        def test_all_pass(subtests):
            with subtests.test("good"):
                pass

        def test_after(): pass
        """
    )
    found, expected = isolated("-rA"), plain("-rA")
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    assert found.parseoutcomes() == expected.parseoutcomes()
    assert summary(found) == summary(expected)
    found.stdout.fnmatch_lines(["*test_some_fail*contains 2 failed subtests*"])
    titles = [[line for line in run.outlines if "_ test_some_fail [message]" in line] for run in (found, expected)]
    assert titles[0] == titles[1]
    assert len(titles[0]) == 2


def test_subtests_before_a_crash_are_kept(pytester: pytest.Pytester, isolated: Run) -> None:
    require("subtests", _HAS_SUBTESTS, "pytest before 9.0 has no subtests fixture")
    pytester.makepyfile(
        test_it="""
        import os
        def test_it(subtests):
            with subtests.test("first"):
                assert False, "first subtest failed"
            os.abort()
        """
    )
    result = isolated()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*first subtest failed*", "*killed by SIGABRT during call*"])


def test_output_of_every_phase_and_log_records_are_reported_once(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import logging, pytest

        @pytest.fixture(scope="module")
        def wide():
            print("wide setup")
            yield
            print("wide teardown")

        @pytest.fixture
        def narrow():
            print("narrow setup")
            logging.warning("logged in setup")
            yield
            print("narrow teardown")

        def test_fails(wide, narrow, capsys):
            print("captured by the fixture")
            logging.warning("logged in call")
            assert capsys.readouterr().out
            print("in call")
            assert False
        """
    )
    result = isolated()
    text = str(result.stdout)
    for words in ("wide setup", "narrow setup", "in call", "narrow teardown", "wide teardown"):
        assert text.splitlines().count(words) == 1, words
    assert text.count("WARNING  root:test_it.py:12 logged in setup") == 1
    assert text.count("WARNING  root:test_it.py:18 logged in call") == 1
    result.stdout.fnmatch_lines(
        [
            "wide setup",
            "narrow setup",
            "*Captured stdout call*",
            "in call",
            "*Captured stdout teardown*",
            "narrow teardown",
            "wide teardown",
        ]
    )


def test_live_log_and_log_file_hold_the_records_of_children(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import logging
        def test_one(): logging.warning("from the first")
        def test_two(): logging.warning("from the second")
        """
    )
    result = isolated("-o", "log_cli=true", "--log-file=log.txt")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*from the first*", "*from the second*"])
    log = (pytester.path / "log.txt").read_text()
    assert log.count("from the first") == log.count("from the second") == 1


def test_warnings_are_counted_and_shown_and_w_error_fails_the_test(
    pytester: pytest.Pytester, isolated: Run, plain: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import warnings, pytest

        class OwnWarning(UserWarning): pass

        @pytest.fixture(scope="session")
        def wide():
            warnings.warn("from the session fixture")

        def test_warns(wide):
            warnings.warn("from the test", OwnWarning)
            warnings.warn(DeprecationWarning("a deprecation"))

        def test_expects():
            with pytest.warns(UserWarning): warnings.warn("x")
        """
    )
    found, expected = isolated(), plain()
    assert found.parseoutcomes() == expected.parseoutcomes() == {"passed": 2, "warnings": 3}
    found.stdout.fnmatch_lines_random(
        [
            "*warnings summary*",
            "test_it.py::test_warns",
            "*test_it.py:7: UserWarning: from the session fixture",
            "*test_it.py:10: OwnWarning: from the test",
        ]
    )
    strict = isolated("-W", "error")
    strict.assert_outcomes(passed=1, errors=1)
    strict.stdout.fnmatch_lines(["E*UserWarning: from the session fixture"])


def test_junit_holds_outcomes_crashes_properties_and_costs(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import os
        def test_passes(record_property):
            record_property("colour", "red")
        def test_fails(): assert 0
        def test_crashes():
            print("last words")
            os.abort()
        """
    )
    isolated("--junitxml=out.xml", "-o", "junit_logging=all").assert_outcomes(passed=1, failed=2)
    suite = next(iter(ET.parse(pytester.path / "out.xml").getroot()))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "2", "0")
    cases = {case.get("name"): case for case in suite}
    properties = {p.get("name"): p.get("value") for p in cases["test_passes"].iter("property")}
    assert properties["colour"] == "red"
    assert float(properties["isolate_wall_s"]) > 0
    assert int(properties["isolate_max_rss_bytes"]) > 1_000_000
    crash = cases["test_crashes"].find("failure")
    assert crash is not None
    assert "SIGABRT" in (crash.get("message") or "")
    assert "last words" in (cases["test_crashes"].findtext("system-out") or "")


def test_last_failed_durations_and_stepwise_know_what_happened(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import os, time, pytest

        @pytest.fixture(scope="session")
        def wide(): time.sleep(0.3)

        def test_sleeps(wide): time.sleep(0.3)
        def test_fails(): assert 0
        def test_crashes(): os.abort()
        """
    )
    result = isolated("--durations=3", "--durations-min=0.2")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines_random(
        ["0.[3456]* call * test_it.py::test_sleeps", "0.[3456]* setup * test_it.py::test_sleeps"]
    )
    again = isolated("--lf", "-v")
    again.assert_outcomes(failed=2)
    again.stdout.no_fnmatch_line("*test_sleeps PASSED*")


def test_the_current_test_is_named_in_the_environment_of_its_own_process(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import os, pytest

        @pytest.fixture(scope="module")
        def wide(): return os.environ["PYTEST_CURRENT_TEST"]

        def test_it(wide):
            assert wide == "test_it.py::test_it (setup)"
            assert os.environ["PYTEST_CURRENT_TEST"] == "test_it.py::test_it (call)"
        """
    )
    isolated().assert_outcomes(passed=1)


def test_temporary_directories_are_one_tree_and_cached_values_reach_the_next_test(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        def test_one(tmp_path, tmp_path_factory, cache):
            (tmp_path_factory.getbasetemp() / "seen").touch()
            cache.set("a/b", str(tmp_path))
        def test_two(tmp_path, tmp_path_factory, cache):
            assert (tmp_path_factory.getbasetemp() / "seen").exists()
            assert cache.get("a/b", None) != str(tmp_path)
            assert cache.get("a/b", None).startswith(str(tmp_path_factory.getbasetemp()))
        """
    )
    isolated().assert_outcomes(passed=2)


def test_a_conftest_hears_of_isolated_tests_as_of_any_other(
    pytester: pytest.Pytester, isolated: Run, plain: Run
) -> None:
    pytester.makeconftest(
        """
        import pathlib, pytest

        def note(*words):
            with open("heard", "a") as file:
                print(*words, file=file)

        def pytest_runtest_logstart(nodeid, location): note("start", nodeid)
        def pytest_runtest_logreport(report): note(report.when, report.outcome, report.nodeid)
        def pytest_runtest_logfinish(nodeid, location): note("finish", nodeid)
        def pytest_warning_recorded(warning_message, when, nodeid, location): note("warning", when, nodeid)

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            report.extra = {"tuple": (1, 2), "bytes": b"x"}
            return report
        """
    )
    pytester.makepyfile(
        test_it="""
        import warnings, pytest
        def test_one(): warnings.warn("x")
        def test_two(): assert 0
        @pytest.mark.skip
        def test_three(): pass
        """
    )
    isolated().assert_outcomes(passed=1, failed=1, skipped=1)
    heard = (pytester.path / "heard").read_text()
    (pytester.path / "heard").unlink()
    plain()
    assert sorted(heard.splitlines()) == sorted((pytester.path / "heard").read_text().splitlines())
    assert heard.splitlines()[0] == "start test_it.py::test_one"


_REPORTS = """
import json, pytest

def pytest_runtest_logreport(report):
    # Times differ from run to run, and isolate_ properties are what isolation has to add.
    fields = {name: value for name, value in vars(report).items() if name not in ("duration", "start", "stop", "_id")}
    fields["nodeid"] = report.nodeid
    fields["user_properties"] = [pair for pair in report.user_properties if not pair[0].startswith("isolate_")]
    with open("reports", "a") as file:
        print(sorted((name, repr(value)) for name, value in fields.items()), file=file)
"""


@pytest.mark.parametrize(
    "hooks", ["", "def pytest_report_to_serializable(config, report): print('asked', report.when)"]
)
def test_every_field_of_every_report_is_as_it_is_plainly(
    pytester: pytest.Pytester, isolated: Run, plain: Run, hooks: str
) -> None:
    """What passed and says nothing is told in a few numbers; not where a plugin takes part in how reports are told."""
    pytester.makeconftest(_REPORTS + hooks)
    pytester.makepyfile(
        test_it="""
        import pytest

        def test_passes(): pass

        @pytest.mark.usefixtures("tmp_path")
        @pytest.mark.parametrize("x", [1, "a"])
        def test_marked(x): pass

        def test_marks_itself(request):
            request.node.add_marker("usefixtures")
            request.node.extra_keyword_matches.add("word")

        def test_prints(): print("a")
        def test_notes(record_property): record_property("key", (1, 2))

        class TestClass:
            @pytest.mark.xfail(strict=False)
            def test_method(self): pass

        @pytest.fixture
        def fails_late():
            yield
            assert 0

        def test_fails_late(fails_late): pass
        def test_skips(): pytest.skip("now")
        def test_moves(request): request.node.location = ("other.py", 3, "moved")
        """,
        test_wide="""
        import pytest

        @pytest.fixture(scope="module")
        def wide(request): request.node.add_marker("widemark")

        def test_first(wide): pass
        def test_second(wide): pass
        """,
    )
    if _HAS_SUBTESTS:
        pytester.makepyfile(
            test_parts="""
            def test_parts(subtests):
                for i in range(2):
                    with subtests.test("part", i=i):
                        pass
            """
        )
    results = {}
    for name, run in {
        "isolated": isolated,
        "group": lambda: isolated("--isolate-scope=module"),
        "plain": plain,
    }.items():
        result = run()
        assert result.parseoutcomes()["passed"] == 10 + _HAS_SUBTESTS
        reports = pytester.path / "reports"
        results[name] = reports.read_text().splitlines()
        reports.unlink()
    assert len(results["plain"]) == 12 * 3 + (3 + 2) * _HAS_SUBTESTS
    assert results["isolated"] == results["plain"]
    assert results["group"] == results["plain"]


def test_what_a_hook_adds_in_the_child_is_in_every_report(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makeconftest(_REPORTS + "def pytest_isolate_child(item): item.add_marker('inchild')")
    pytester.makepyfile("def test_it(): pass")
    isolated().assert_outcomes(passed=1)
    assert (pytester.path / "reports").read_text().count("'inchild': 1") == 3


def test_a_test_that_freezes_pytests_clock_has_the_outcome_it_has_plainly(
    pytester: pytest.Pytester, plain: Run, isolated: Run
) -> None:
    """As freezegun does: the teardown begins in the frozen time and ends in the real one, before it."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def frozen(monkeypatch):
            for name in ("perf_counter", "time"):
                monkeypatch.setattr(f"_pytest.timing.{name}", lambda: 4e9)

        def test_it(frozen): pass
        """
    )
    plain("-p", "no:isolate").assert_outcomes(passed=1)
    isolated().assert_outcomes(passed=1)


@pytest.mark.parametrize("args", [(), ("--isolate-scope=module",)], ids=["each", "module"])
def test_junit_holds_what_the_tests_add_by_fixtures(
    pytester: pytest.Pytester, isolated: Run, args: tuple[str, ...]
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="module", autouse=True)
        def of_module(record_testsuite_property):
            record_testsuite_property("made by", "a module's fixture")

        def test_1(record_testsuite_property, record_xml_attribute):
            record_testsuite_property("host", "first")
            record_xml_attribute("owner", "ann")

        def test_2(record_testsuite_property, record_xml_attribute):
            record_testsuite_property("host", "second")
            record_xml_attribute("owner", "bob")

        def test_3(): pass
        """
    )
    options = ("--junitxml=out.xml", "-o", "junit_family=xunit1", "-W", "ignore::pytest.PytestWarning")
    isolated(*options, *args).assert_outcomes(passed=3)
    suite = ET.parse(pytester.path / "out.xml").getroot()[0]
    properties = [(found.get("name"), found.get("value")) for found in suite.find("properties") or ()]
    assert properties == [("made by", "a module's fixture"), ("host", "first"), ("host", "second")]
    assert [case.get("owner") for case in suite.iter("testcase")] == ["ann", "bob", None]
