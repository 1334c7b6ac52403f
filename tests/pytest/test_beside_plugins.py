"""Beside the other plugins that people have installed, and beside all of them together. Traps 11, 14, 18."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import time

import pytest

from tests.conftest import require

from .beside import ASYNCIO, COV, FLAKY, Need
from .conftest import Run


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
    pytester.makepyfile(flaky=FLAKY)
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
