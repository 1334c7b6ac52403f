"""Beside the plugins that people have installed, alone and together. Traps 11, 12, 13, 14."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import time
from collections.abc import Callable

import pytest

from tests.conftest import require

from .conftest import Run
from .test_fixtures import _DIARY, diary, words

Need = Callable[[str, str], None]
ASYNCIO = ("-p", "asyncio", "-o", "asyncio_default_fixture_loop_scope=function")
COV = ("-p", "pytest_cov")
RERUNS = ("-p", "rerunfailures")
TIMEOUT = ("-p", "timeout")
XDIST = ("-p", "xdist")
# Plugins are named by their entry points, as pytest loads them for users.

_FLAKY = """
    import os, pathlib, time, pytest

    def tries(name):
        path = pathlib.Path(__file__).with_name(f"tries of {name}")
        with path.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        return len(path.read_text().split())
"""


def test_rerunfailures_repeats_failing_tests(pytester: pytest.Pytester, isolated: Run, need: Need) -> None:
    """Trap 13: it owns the protocol hook, too."""
    need("rerunfailures", "pytest_rerunfailures")
    pytester.makepyfile(flaky=_FLAKY)
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
    pytester.makepyfile(flaky=_FLAKY)
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
    pytester.makepyfile(flaky=_FLAKY)
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


def test_coverage_counts_what_children_ran(pytester: pytest.Pytester, isolated: Run, plain: Run, need: Need) -> None:
    """Trap 14."""
    need("cov", "pytest_cov")
    pytester.makepyfile(
        covered="""
        def one(x):
            if x:
                return 1
            return 2

        def two():
            return 3

        def never():
            return 4
        """,
        test_it="""
        import covered, pytest

        @pytest.fixture(scope="session")
        def wide(): return covered.two()

        def test_true(wide): assert covered.one(True) == 1
        def test_false(wide): assert covered.one(False) == 2
        def test_fails(): assert covered.one(False) == 1
        """,
    )

    def measured(run: Run, *args: str) -> dict[str, object]:
        run(*COV, "--cov=.", "--cov-branch", "--cov-report=json", *args).assert_outcomes(passed=2, failed=1)
        files = json.loads((pytester.path / "coverage.json").read_text())["files"]
        return {
            name: (file["executed_lines"], file["missing_lines"], file["missing_branches"])
            for name, file in files.items()
        }

    expected = measured(plain)
    assert measured(isolated) == expected
    assert measured(isolated, "--isolate-scope=module") == expected
    assert expected["covered.py"] == ([1, 2, 3, 4, 6, 7, 9], [10], [])
    assert not list(pytester.path.glob(".coverage.*")), "data of children that was not combined"


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
    pytester.makepyfile(flaky=_FLAKY)
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


def test_asyncio_tests_and_fixtures_of_every_loop_scope_run(
    pytester: pytest.Pytester, isolated: Run, need: Need
) -> None:
    """Trap 11: a loop of wide scope would share its epoll descriptor over the fork."""
    need("asyncio", "pytest_asyncio")
    version = importlib.metadata.version("pytest-asyncio")
    require("asyncio", int(version.split(".")[0]) >= 1, f"pytest-asyncio {version} has other loop scopes")
    pytester.makepyfile(
        test_it="""
        import asyncio, os, pytest, pytest_asyncio

        @pytest_asyncio.fixture
        async def narrow():
            await asyncio.sleep(0)
            yield asyncio.get_running_loop()

        @pytest_asyncio.fixture(scope="session", loop_scope="session")
        async def wide():
            loop = asyncio.get_running_loop()
            event = asyncio.Event()
            loop.call_later(0.01, event.set)
            await event.wait()
            yield loop, os.getpid()

        @pytest.fixture(scope="session")
        def on_top(wide):
            return wide

        @pytest.mark.asyncio
        async def test_function(narrow):
            assert narrow is asyncio.get_running_loop()
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
            server.close()

        @pytest.mark.asyncio(loop_scope="session")
        @pytest.mark.parametrize("i", range(3))
        async def test_session(i, wide):
            assert wide[0] is asyncio.get_running_loop()
            assert wide[1] == os.getpid()
            await asyncio.sleep(0.01)

        @pytest.mark.asyncio(loop_scope="session")
        async def test_on_top(on_top):
            assert on_top[0] is asyncio.get_running_loop()

        @pytest.mark.asyncio(loop_scope="module")
        async def test_module(narrow):
            await asyncio.sleep(0.01)

        @pytest.mark.asyncio
        async def test_fails():
            await asyncio.sleep(0)
            assert False

        @pytest.mark.asyncio
        async def test_crashes():
            os.abort()
        """
    )
    for scope in ("function", "module"):
        result = isolated(*ASYNCIO, "-W", "error", f"--isolate-scope={scope}")
        result.assert_outcomes(passed=6, failed=2)


def test_anyio_tests_run_on_both_loops(pytester: pytest.Pytester, isolated: Run, need: Need) -> None:
    need("anyio", "anyio")
    need("trio", "trio")
    pytester.makepyfile(
        test_it="""
        import anyio, os, pytest

        @pytest.fixture(scope="module", params=["asyncio", "trio"])
        def anyio_backend(request): return request.param

        @pytest.fixture(scope="module")
        async def wide(anyio_backend):
            await anyio.sleep(0.01)
            yield os.getpid()
            await anyio.sleep(0)

        @pytest.mark.anyio
        async def test_one(wide):
            await anyio.sleep(0.01)

        @pytest.mark.anyio
        async def test_two(wide):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0.01)

        @pytest.mark.anyio
        async def test_fails():
            assert False
        """
    )
    for scope in ("function", "module"):
        isolated("-p", "anyio", f"--isolate-scope={scope}").assert_outcomes(passed=4, failed=2)


def test_hypothesis_finds_and_shrinks_and_keeps_its_examples(
    pytester: pytest.Pytester, isolated: Run, need: Need
) -> None:
    need("hypothesis", "hypothesis")
    pytester.makepyfile(
        test_it="""
        from hypothesis import given, settings, strategies as st
        from hypothesis.database import DirectoryBasedExampleDatabase

        # Named, because hypothesis keeps no database by itself where CI is set.
        examples = DirectoryBasedExampleDatabase("examples")

        @given(st.integers())
        @settings(max_examples=30, deadline=None, database=examples)
        def test_good(x): assert x == x

        @given(st.integers())
        @settings(max_examples=300, deadline=None, database=examples)
        def test_bad(x): assert x < 100
        """
    )
    result = isolated("-p", "hypothesispytest", "--hypothesis-show-statistics")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*test_bad(*", "*x=100,*"])
    assert [path for path in (pytester.path / "examples").rglob("*") if path.is_file()]


def test_randomly_shuffles_the_same_way_with_and_without_isolation(
    pytester: pytest.Pytester, isolated: Run, plain: Run, need: Need
) -> None:
    """Trap 18: what is drawn depends on the seed alone, not on the process."""
    need("randomly", "pytest_randomly")
    pytester.makepyfile(
        test_it="""
        import pathlib, random, pytest

        @pytest.mark.parametrize("i", range(8))
        def test_it(i):
            with open("order", "a") as file:
                file.write(f"{i} {random.random()}\\n")
        """
    )

    def order(run: Run, *args: str) -> list[str]:
        run("-p", "randomly", *args).assert_outcomes(passed=8)
        lines = (pytester.path / "order").read_text().splitlines()
        (pytester.path / "order").unlink()
        return lines

    shuffled = order(plain, "--randomly-seed=7")
    assert order(isolated, "--randomly-seed=7") == shuffled
    assert order(isolated, "--randomly-seed=7", "--isolate-scope=module") == shuffled
    assert [line[0] for line in shuffled] != sorted(line[0] for line in shuffled)


def test_all_of_them_together(pytester: pytest.Pytester, isolated: Run, need: Need) -> None:
    """xdist, cov, timeout, rerunfailures, asyncio, anyio, randomly and hypothesis in one run."""
    loaded: list[str] = []
    for feature, module, name in (
        ("xdist", "xdist", "xdist"),
        ("cov", "pytest_cov", "pytest_cov"),
        ("timeout", "pytest_timeout", "timeout"),
        ("rerunfailures", "pytest_rerunfailures", "rerunfailures"),
        ("asyncio", "pytest_asyncio", "asyncio"),
        ("anyio", "anyio", "anyio"),
        ("randomly", "pytest_randomly", "randomly"),
        ("hypothesis", "hypothesis", "hypothesispytest"),
    ):
        need(feature, module)
        loaded += ["-p", name]
    pytester.makepyfile(flaky=_FLAKY)
    pytester.makepyfile(
        test_it="""
        import asyncio, unittest
        from hypothesis import given, strategies as st
        from flaky import *

        @pytest.mark.asyncio
        async def test_async(): await asyncio.sleep(0)
        @pytest.mark.anyio
        async def test_anyio(anyio_backend): pass
        @given(st.integers())
        def test_given(x): pass
        def test_crashes_once():
            if tries("crash") == 1: os.abort()
        def test_fails_once():
            if tries("fail") == 1: assert 0
        @pytest.mark.timeout(1)
        @pytest.mark.flaky(reruns=0)
        def test_hangs(): time.sleep(60)
        class TestIt(unittest.TestCase):
            def test_it(self): pass
            def test_bad(self): self.fail()
        """
    )
    began = time.monotonic()
    result = isolated(
        *loaded,
        "-n2",
        "--cov=.",
        "--timeout=30",
        "--reruns=1",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "-k",
        "not trio",
    )
    assert result.parseoutcomes() == {"passed": 6, "failed": 2, "rerun": 3}
    result.stdout.fnmatch_lines(["TOTAL *"])
    assert time.monotonic() - began < 50
