"""A limit that was reached is told of a test that passed, and names no failure that it does not explain. Nothing fails for it.

Owns: what is said beside an outcome. Refuses: limits that are the failure (test_limits.py).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_isolate import groups
from tests.conftest import require

from .conftest import Run
from .limited import HELD, cgroups_of_this_process_closed, controller
from .test_limits import properties

__all__ = ["cgroups_of_this_process_closed"]
pytestmark = pytest.mark.usefixtures("cgroups_of_this_process_closed")

_PASSES = """
    from limited import *

    def hog():
        subprocess.run([sys.executable, "-S", "-c", "b = b'x' * (90 << 20)"])

    @pytest.mark.isolate(memory="60M")
    def test_oom(): hog()

    @pytest.mark.isolate(pids=5)
    def test_pids():
        with pytest.raises(RuntimeError):
            threads(9)

    @pytest.mark.isolate(memory="60M", pids=20)
    def test_calm(): threads(2)
"""


def _an_oom_spares_the_test() -> None:
    """v2 kills the group as a whole: there no test outlives its child's."""
    controller("memory")
    version = groups.of_this_process().manager().version_of["memory"]
    require("cgroup1", version == 1, f"the memory controller is in cgroup v{version}")


def _record(pytester: pytest.Pytester) -> dict[str, dict[str, Any]]:
    tests = json.loads((pytester.path / "record.json").read_text())["tests"]
    return {nodeid.rpartition("::")[2]: test for nodeid, test in tests.items()}


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_test_that_passed_has_reached_is_a_word_beside_it(
    pytester: pytest.Pytester, isolated: Run, jobs: int
) -> None:
    _an_oom_spares_the_test()
    controller("pids")
    pytester.makepyfile(limited=HELD, test_it=_PASSES)
    pytester.makeconftest(
        """
        def pytest_isolate_report(item, report, cause, outcome):
            print("told", item.name, report.when, report.outcome, cause, outcome.detail[0].split(":")[0], file=open("hooks", "a"))

        def pytest_isolate_finished(sandbox, outcome):
            print("ended", sandbox.name, *[cause.value for cause in outcome.causes], file=open("hooks", "a"))
        """
    )
    result = isolated(
        "--junitxml=junit.xml",
        "--isolate-record=record.json",
        f"--isolate-jobs={jobs}",
        "-o",
        "console_output_style=classic",
    )
    result.assert_outcomes(passed=3)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "test_it.py .O.P.",
            "*limits reached besides*",
            "test_it.py::test_oom",
            "    OOM-killed: peak 60 MiB of 60 MiB*",
            "test_it.py::test_pids",
            "    1 fork refused: the limit of 5 processes and threads was reached",
        ]
    )
    found, record = properties(pytester.path / "junit.xml"), _record(pytester)
    for name, cause in (("test_oom", "OOM"), ("test_pids", "PIDS")):
        assert (found[name]["isolate_cause"], record[name]["cause"]) == (cause, cause)
        assert found[name]["isolate_detail"] == record[name]["detail"]
        assert record[name]["outcome"] == "passed"
    assert "isolate_cause" not in found["test_calm"]
    assert "isolate_detail" not in found["test_calm"]
    assert sorted((pytester.path / "hooks").read_text().splitlines()) == [
        "ended test_calm",
        "ended test_oom OOM",
        "ended test_pids PIDS",
        "told test_oom teardown passed OOM OOM-killed",
        "told test_pids teardown passed PIDS 1 fork refused",
    ]
    isolated("-v").stdout.fnmatch_lines(["*::test_oom PASSED*", "*::test_oom OOM*", "*::test_calm PASSED*"])


def test_of_tests_that_share_a_process_it_is_told_at_the_last(pytester: pytest.Pytester, isolated: Run) -> None:
    controller("pids")
    pytester.makepyfile(
        limited=HELD,
        test_it="""
        from limited import *

        def refused():
            gate, started = threading.Event(), []
            with pytest.raises(RuntimeError):
                for _ in range(99):
                    started.append(threading.Thread(target=gate.wait))
                    started[-1].start()
            gate.set()
            for thread in started[:-1]:
                thread.join()

        class TestPasses:
            def test_before(self): threads(2)
            def test_reaches(self): refused()
            def test_last(self): threads(2)

        class TestIsTold:
            def test_fails(self): threads(99)
            def test_last_of_it(self): pass

        class TestCalm:
            def test_calm(self): threads(2)
            def test_fails_alone(self): assert 0
        """,
    )
    pytester.makeini("[pytest]\nisolate_profiles = few: standard, pids=12")
    result = isolated("--isolate-profile=few", "--isolate-scope=class", "--isolate-record=record.json")
    result.assert_outcomes(passed=5, failed=2)
    words = "1 fork refused: the limit of 12 processes and threads was reached"
    told = {name: test["detail"] for name, test in _record(pytester).items() if "detail" in test}
    assert told == {
        "test_last": f"a test of this class, which ran in one process: {words}",
        "test_fails": words,
    }


_FAILS = """
    from limited import *

    @pytest.mark.isolate(pids=5)
    def test_another_reason():
        with pytest.raises(RuntimeError):
            threads(9)
        assert "this" == "that"

    @pytest.mark.isolate(pids=5)
    def test_the_reason():
        try:
            threads(9)
        except RuntimeError as error:
            raise KeyError("in the program's own words") from error

    BURN = "import time\\nwhile time.process_time() < 0.7: pass"

    @pytest.mark.isolate(cpu_limit=1, memory="200M")
    def test_none_of_them_used_too_much():
        for _ in range(2):
            subprocess.run([sys.executable, "-S", "-c", BURN], check=True)
        assert "this" == "that"

    @pytest.mark.isolate(cpu_limit=1, memory="200M")
    def test_a_program_used_too_much():
        subprocess.run([sys.executable, "-S", "-c", BURN], check=True)
        subprocess.run([sys.executable, "-S", "-c", BURN.replace("0.7", "70")], check=True)
"""


@pytest.mark.parametrize("mode", ["fork", "fresh"])
def test_a_limit_that_does_not_explain_a_failure_is_told_beside_it(
    pytester: pytest.Pytester, isolated: Run, mode: str
) -> None:
    for name in ("memory", "pids", "cpuacct"):
        controller(name)
    pytester.makepyfile(limited=HELD, test_it=_FAILS)
    result = isolated(
        f"--isolate-mode={mode}",
        "--junitxml=junit.xml",
        "--isolate-record=record.json",
        "-o",
        "console_output_style=classic",
    )
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(
        [
            "test_it.py FPFC*",
            "*Limits reached*",
            "1 fork refused: the limit of 5 processes and threads was reached",
            "FAILED test_it.py::test_another_reason*",
            "PIDS test_it.py::test_the_reason*",
            "FAILED test_it.py::test_none_of_them_used_too_much*",
            "CPU test_it.py::test_a_program_used_too_much*",
        ]
    )
    assert "limits reached besides" not in str(result.stdout), "each failure shows it"
    found, record = properties(pytester.path / "junit.xml"), _record(pytester)
    for name, words in (("test_another_reason", "1 fork refused"), ("test_none_of_them_used_too_much", "used ")):
        assert "isolate_cause" not in found[name]
        assert "cause" not in record[name]
        assert found[name]["isolate_detail"].startswith(words)
        assert found[name]["isolate_detail"] == record[name]["detail"]
    assert record["test_the_reason"]["cause"] == "PIDS"
    assert record["test_a_program_used_too_much"]["cause"] == "CPU"


def test_a_limit_reached_by_a_test_that_hangs_is_told_beside_the_time_out(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    _an_oom_spares_the_test()
    pytester.makepyfile(limited=HELD, test_it=_PASSES + _HANGS)
    result = isolated("--isolate-timeout=3", "--isolate-record=record.json", "-k", "hangs")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*limits reached besides*",
            "test_it.py::test_hangs",
            "    OOM-killed: peak 60 MiB*",
            "TIMEOUT test_it.py::test_hangs*",
        ]
    )
    assert _record(pytester)["test_hangs"]["cause"] == "TIMEOUT"


_HANGS = """
    @pytest.mark.isolate(memory="60M")
    def test_hangs():
        hog()
        time.sleep(60)
"""


def test_the_limit_of_a_sandbox_that_a_test_has_made_is_not_the_tests(pytester: pytest.Pytester, isolated: Run) -> None:
    controller("memory")
    controller("pids")
    pytester.makepyfile(
        """
        import sys, pytest

        @pytest.mark.isolate(memory="200M", pids=50)
        @pytest.mark.parametrize("fails", [False, True])
        def test_it(sandbox, fails):
            hog = sandbox.run([sys.executable, "-S", "-c", "b = b'x' * (90 << 20)"], memory="30M")
            assert [cause.value for cause in hog.causes] == ["OOM"]
            forks = sandbox.run(["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.1 & done; wait"], pids=5)
            assert [cause.value for cause in forks.causes] == ["PIDS"]
            assert not fails
        """
    )
    result = isolated("--isolate-record=record.json")
    result.assert_outcomes(passed=1, failed=1)
    assert "limits reached besides" not in str(result.stdout)
    record = _record(pytester)
    assert [test.get("cause") for test in record.values()] == [None, None]
    assert "detail" not in record["test_it[False]"]


def test_a_failure_under_a_cpu_quota_says_what_the_quota_took(pytester: pytest.Pytester, isolated: Run) -> None:
    controller("cpu")
    pytester.makepyfile(
        limited=HELD,
        test_it="""
        from limited import *

        def spin(seconds):
            end = time.process_time() + seconds
            while time.process_time() < end: pass

        @pytest.mark.isolate(cpu=0.1)
        def test_passes(): spin(0.05)

        @pytest.mark.isolate(cpu=0.1)
        def test_fails():
            spin(0.05)
            assert 0

        @pytest.mark.isolate(cpu=0.1, timeout=1)
        def test_hangs(): spin(60)

        @pytest.mark.isolate(cpu_weight=100)
        def test_fails_without():
            spin(0.05)
            assert 0
        """,
    )
    result = isolated("-rA", "-o", "console_output_style=classic")
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(["test_it.py .FTF*"])
    told = [line for line in result.outlines if line.startswith("CPU quota of 0.1 cores: throttled in ")]
    assert len(told) == 2, "of the two that failed under one"
