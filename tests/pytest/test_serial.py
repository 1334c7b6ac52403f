"""A serial test: none runs beside it, and pytest's own process does nothing while it runs."""

from __future__ import annotations

import pytest

from .conftest import Run

#: A test that leaves word of when it ran, and looks at who else runs.
WATCHING = """
    import os, pathlib, time, pytest

    def runs(name, seconds=0.15):
        mine = pathlib.Path(f"run-{name}")
        mine.touch()
        time.sleep(seconds)
        beside = sorted(path.name for path in pathlib.Path().glob("run-*") if path != mine)
        mine.unlink()
        pathlib.Path(f"beside-{name}").write_text(" ".join(beside))
"""
MARKED = "@pytest.mark.isolate(serial=True)"


def beside(pytester: pytest.Pytester, name: str) -> list[str]:
    return (pytester.path / f"beside-{name}").read_text().split()


def makes_tests(pytester: pytest.Pytester, mark: str) -> None:
    pytester.makepyfile(watching=WATCHING)
    pytester.makepyfile(
        test_it=f"""
        from watching import *
        def test_1(): runs("1", 0.3)
        def test_2(): runs("2")
        {mark}
        def test_alone(): runs("alone", 0.3)
        def test_3(): runs("3")
        def test_4(): runs("4", 0.3)
        """
    )


@pytest.mark.parametrize(
    ("how", "args"),
    [
        ("marker", ()),
        ("test", ()),
        ("module", ()),
        ("marker", ("--isolate-mode=fresh",)),
        ("test", ("--isolate-profile=minimal", "--isolate-mem-limit=512M")),
    ],
    ids=str,
)
def test_none_runs_beside_it_and_the_others_run_at_once(
    pytester: pytest.Pytester, isolated: Run, how: str, args: tuple[str, ...]
) -> None:
    makes_tests(pytester, MARKED if how == "marker" else "")
    if how != "marker":
        pytester.makeini(f"[pytest]\nisolate_serial = {'test_it.py::test_alone' if how == 'test' else 'test_it.py'}")
    isolated("--isolate-jobs=3", *args).assert_outcomes(passed=5)
    assert beside(pytester, "alone") == []
    if how == "module":
        assert not any(beside(pytester, name) for name in "1234")
    elif not args:
        assert beside(pytester, "2") == ["run-1"]
        assert beside(pytester, "3") == ["run-4"]
    assert "run-alone" not in " ".join(name for number in "1234" for name in beside(pytester, number))


@pytest.mark.parametrize("scope", ["class", "module"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_in_a_group_it_stays_in_the_groups_process_and_no_other_group_runs_beside_that(
    pytester: pytest.Pytester, isolated: Run, scope: str, jobs: int
) -> None:
    pytester.makepyfile(watching=WATCHING)
    for name in "abc":
        pytester.makepyfile(
            **{
                f"test_{name}": f"""
            from watching import *
            class TestIt:
                seen = []
                def test_1(self): self.seen.append(1); runs("{name}1")
                def test_2(self): self.seen.append(2); runs("{name}2")
                def test_3(self): assert self.seen == [1, 2]; runs("{name}3")
            """
            }
        )
    args = (f"--isolate-scope={scope}", f"--isolate-jobs={jobs}", "-o", "isolate_serial=test_b.py::TestIt::test_2")
    isolated(*args).assert_outcomes(passed=9)
    assert not any(beside(pytester, f"b{number}") for number in "123")
    assert not any("run-b" in one for name in "ac" for number in "123" for one in beside(pytester, f"{name}{number}"))


@pytest.mark.parametrize("mode", ["fork", "fresh"])
def test_the_process_of_the_test_before_is_gone(pytester: pytest.Pytester, isolated: Run, mode: str) -> None:
    """A process takes a while to give back much memory, when all has been told of its test."""
    pytester.makepyfile(
        test_it=f"""
        import os, pathlib, pytest
        kept = []
        def test_1():
            kept.append(bytearray(300 << 20))
            pathlib.Path("pid").write_text(str(os.getpid()))
        {MARKED}
        def test_2():
            assert not os.path.exists("/proc/" + pathlib.Path("pid").read_text())
        """
    )
    isolated(f"--isolate-mode={mode}").assert_outcomes(passed=2)


def test_one_that_is_skipped_keeps_nobody_waiting(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(watching=WATCHING)
    pytester.makepyfile(
        test_it="""
        from watching import *
        def test_1(): runs("1", 0.5)
        @pytest.mark.skip
        @pytest.mark.isolate(serial=True)
        def test_2(): pass
        def test_3(): runs("3")
        """
    )
    isolated("--isolate-jobs=2").assert_outcomes(passed=2, skipped=1)
    assert beside(pytester, "3") == ["run-1"]


RUNNER = """
    import pathlib, time, pytest

    @pytest.fixture(scope="session")
    def runner():
        import os
        return pathlib.Path(f"/proc/{os.getpid()}")

    def states(runner, seconds=0.5):
        end, seen = time.monotonic() + seconds, set()
        while time.monotonic() < end:
            seen.add((runner / "stat").read_text().rpartition(")")[2].split()[0])
        return seen
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_runner_sleeps_while_it_runs(pytester: pytest.Pytester, isolated: Run, jobs: int) -> None:
    """psutil compares two looks at the process that its setUpClass took for the test's own."""
    pytester.makeconftest(RUNNER)
    pytester.makepyfile(
        test_it=f"""
        import pytest
        from conftest import states
        def test_0(runner): pass
        {MARKED}
        def test_it(runner): assert states(runner) == {{"S"}}
        @pytest.mark.parametrize("number", range(20))
        def test_others(number): pass
        """
    )
    isolated(f"--isolate-jobs={jobs}").assert_outcomes(passed=22)


def test_the_runner_works_beside_a_test_that_is_not(pytester: pytest.Pytester, isolated: Run) -> None:
    """The control of the test above."""
    pytester.makeconftest(RUNNER)
    pytester.makepyfile(
        test_it="""
        import pytest
        from conftest import states
        def test_0(runner): pass
        def test_it(runner): assert "R" in states(runner, 2.0)
        @pytest.mark.parametrize("number", range(100))
        def test_others(number): pass
        """
    )
    isolated("--isolate-jobs=2").assert_outcomes(passed=102)


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_next_one_is_forked_after_it(pytester: pytest.Pytester, isolated: Run, jobs: int) -> None:
    """What a child is forked with is what was there: of the serial test's time, nothing is."""
    pytester.makepyfile(
        test_it=f"""
        import os, pathlib, time, pytest
        def test_0(): pass
        {MARKED}
        def test_it():
            time.sleep(0.2)
            pathlib.Path("ended").write_text(str(time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
        def test_next():
            ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
            began_ns = ticks * 10**9 // os.sysconf("SC_CLK_TCK")
            assert began_ns >= int(pathlib.Path("ended").read_text()) - 10**9 // os.sysconf("SC_CLK_TCK")
        """
    )
    isolated(f"--isolate-jobs={jobs}").assert_outcomes(passed=3)


def test_a_value_without_meaning_stops_the_run_in_a_line(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="import pytest\n@pytest.mark.isolate(serial='maybe')\ndef test_it(): open('ran', 'w')\n"
    )
    result = isolated()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*marker isolate serial: 'maybe' is neither yes nor no*"])
    assert not (pytester.path / "ran").exists()
