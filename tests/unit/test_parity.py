"""The parity harness must see what differs: its comparison on values, its recorder on real runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from pytest_isolate.profile import parse_profiles
from tests.conftest import require
from tests.parity import __main__ as parity
from tests.parity import compare
from tests.parity.plugin import parity_recorder

Reports = list[dict[str, object]]


def reports(*phases: str, subtests: str = "") -> Reports:
    """``reports("setup passed", "call failed", subtests="passed failed")``."""
    found: Reports = [{"when": "call", "outcome": outcome, "subtest": True, "why": ""} for outcome in subtests.split()]
    for phase in phases:
        when, outcome = phase.split()
        found.append({"when": when, "outcome": outcome, "subtest": False, "why": f"{outcome} in {when}"})
    return found


PASSED = ("setup passed", "call passed", "teardown passed")


def run(exitstatus: int = 0, collect_errors: dict[str, str] | None = None, **tests: Reports) -> compare.Run:
    return compare.Run(
        exitstatus=exitstatus, collected=len(tests), wall_s=1.0, tests=tests, collect_errors=collect_errors or {}
    )


def test_equal_runs_do_not_differ() -> None:
    assert compare.differences(run(a=reports(*PASSED)), run(a=reports(*PASSED))) == []


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(reports("setup passed", "call failed", "teardown passed"), id="failed"),
        pytest.param(reports("setup skipped", "teardown passed"), id="skipped"),
        pytest.param(reports("setup passed", "call passed", "teardown failed"), id="error in teardown"),
        pytest.param(reports("setup passed", "call xfailed", "teardown passed"), id="xfailed"),
        pytest.param(reports("setup passed", "call passed"), id="no teardown"),
        pytest.param(reports(*PASSED, subtests="failed"), id="failed subtest"),
        pytest.param([], id="not run"),
    ],
)
def test_each_other_outcome_differs(other: Reports) -> None:
    (difference,) = compare.differences(run(a=reports(*PASSED)), run(a=other))
    assert difference.nodeid == "a"


def test_a_lost_subtest_differs() -> None:
    before = run(a=reports(*PASSED, subtests="passed failed"))
    (difference,) = compare.differences(before, run(a=reports(*PASSED, subtests="passed")))
    assert "1 subtests failed" in difference.plain


def test_a_test_that_did_not_run_and_one_that_was_not_there_differ() -> None:
    found = compare.differences(run(a=reports(*PASSED)), run(b=reports(*PASSED)))
    assert [(difference.nodeid, difference.plain, difference.other) for difference in found] == [
        ("a", "setup passed, call passed, teardown passed", "not run"),
        ("b", "not run", "setup passed, call passed, teardown passed"),
    ]


def test_exit_status_and_collection_errors_differ() -> None:
    found = compare.differences(run(), run(exitstatus=1, collect_errors={"test_x.py": "ImportError"}))
    assert {difference.nodeid for difference in found} == {"test_x.py", "<the run>"}


def test_a_flaky_test_is_named_and_left_out_of_the_verdict() -> None:
    failed = reports("setup passed", "call failed", "teardown passed")
    result = parity.Result(
        suite=parity.SUITES[0], plain=[run(a=reports(*PASSED), b=reports(*PASSED)), run(a=failed, b=reports(*PASSED))]
    )
    result.other = run(a=failed, b=failed)
    assert result.flaky == {"a"}
    assert [difference.nodeid for difference in result.verdict] == ["b"]
    assert "attrs: flaky plainly: a" in list(parity.details(result, 10))


@pytest.mark.parametrize(("exitstatus", "collected"), [(2, 1), (3, 1), (4, 1), (5, 0), (0, 2)])
def test_a_run_that_pytest_did_not_finish_is_incomplete(exitstatus: int, collected: int) -> None:
    tests = {"a": reports(*PASSED)} if collected else {}
    assert compare.incomplete(
        compare.Run(exitstatus=exitstatus, collected=collected, wall_s=1.0, tests=tests, collect_errors={})
    )


def test_a_finished_run_is_complete_with_failures_too() -> None:
    assert compare.incomplete(run(exitstatus=1, a=reports("setup passed", "call failed", "teardown passed"))) == ""


def test_args_may_start_with_dashes() -> None:
    assert parity.parse(["--args", "--isolate --isolate-profile=strict"]).args == "--isolate --isolate-profile=strict"
    assert parity.parse(["--args", "--forked"]).args == "--forked"


SUITE = """
import pytest
def test_passes(): pass
def test_fails(): assert 0, "because"
def test_skips(): pytest.skip("why not")
@pytest.mark.xfail
def test_xfails(): assert 0
@pytest.mark.xfail(strict=False)
def test_xpasses(): pass
@pytest.fixture
def broken(): raise RuntimeError("broken")
def test_errors(broken): pass
"""


def test_the_recorder_writes_what_happened(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(parity_recorder.__file__).parent))
    monkeypatch.setenv("PARITY_RECORD", str(pytester.path / "record.json"))
    pytester.makepyfile(test_it=SUITE)
    pytester.runpytest("-p", "parity_recorder")
    content = json.loads((pytester.path / "record.json").read_text())
    outcomes = {nodeid.partition("::")[2]: compare.outcome_of(found) for nodeid, found in content["tests"].items()}
    assert outcomes == {
        "test_passes": "passed",
        "test_fails": "failed",
        "test_skips": "skipped",
        "test_xfails": "xfailed",
        "test_xpasses": "xpassed",
        "test_errors": "error",
    }
    assert content["exitstatus"] == 1
    assert content["collected"] == 6
    assert "because" in content["tests"]["test_it.py::test_fails"][1]["why"]


def test_the_recorder_counts_failed_subtests(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(parity_recorder.__file__).parent))
    monkeypatch.setenv("PARITY_RECORD", str(pytester.path / "record.json"))
    require("subtests", int(pytest.__version__.partition(".")[0]) >= 9, "pytest 9 brings them, pytest-subtests before")
    pytester.makepyfile(
        test_it="def test_subs(subtests):\n    for n in range(3):\n        with subtests.test(n=n):\n            assert n != 1\n"
    )
    pytester.runpytest("-p", "parity_recorder")
    found = json.loads((pytester.path / "record.json").read_text())["tests"]["test_it.py::test_subs"]
    assert "1 subtests failed" in compare.phases_of(found)


def test_the_generous_limits_are_a_profile_that_limits_every_kind_of_group() -> None:
    words = shlex.split(parity.other_args(parity.parse(["--limits"])))
    profile = words[words.index("-o") + 1].partition("=")[2]
    limits = parse_profiles([profile])["limited"].limits
    assert words[0] == "--isolate"
    assert None not in (limits.memory_bytes, limits.pids, limits.cpu_cores, limits.cpu_time_s)
