"""Fixtures wider than a test are made once, in the parent; the others in the child. Incumbents' table, row 3 and 5."""

from __future__ import annotations

import pytest

from .conftest import Run

_DIARY = """
    import os, pathlib, uuid, pytest

    DIARY = pathlib.Path(__file__).with_name("diary")
    process = [uuid.uuid4().hex]
    # In PID namespaces numbers repeat; a name drawn at each fork does not.
    os.register_at_fork(after_in_child=lambda: process.__setitem__(0, uuid.uuid4().hex))

    def note(text):
        with DIARY.open("a") as diary:
            diary.write(f"{text} {process[0]}\\n")

    def wide(name, scope, **more):
        @pytest.fixture(scope=scope, name=name, **more)
        def fixture():
            note(f"make {name}")
            yield os.getpid()
            note(f"end {name}")
        return fixture
"""


def diary(pytester: pytest.Pytester) -> list[str]:
    return (pytester.path / "diary").read_text().splitlines()


def words(lines: list[str]) -> list[str]:
    return [line.rpartition(" ")[0] for line in lines]


def summary(result: pytest.RunResult) -> list[str]:
    """The lines of the short test summary."""
    return [line for line in result.outlines if line.startswith(("FAILED", "ERROR ", "SKIPPED", "XFAIL", "XPASS"))]


def test_wide_fixtures_are_made_and_torn_down_once_in_the_parent(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makeconftest(
        """
        from diarist import note, wide

        of_session = wide("of_session", "session")
        of_package = wide("of_package", "package")
        of_module = wide("of_module", "module")
        of_class = wide("of_class", "class")
        of_function = wide("of_function", "function")

        def pytest_unconfigure():
            note("unconfigure")
        """
    )
    body = """
        from diarist import note

        class TestIt:
            def test_one(self, of_session, of_package, of_module, of_class, of_function):
                note("test")

            def test_two(self, of_session, of_package, of_module, of_class, of_function):
                note("test")
        """
    pytester.makepyfile(test_a=body, test_b=body)
    isolated().assert_outcomes(passed=4)
    lines = diary(pytester)
    a_test = ["make of_function", "test", "end of_function"]
    module = ["make of_module", "make of_class", *a_test, *a_test, "end of_class", "end of_module"]
    assert words(lines) == [
        "make of_session",
        "make of_package",
        *module,
        *module,
        "end of_package",
        "end of_session",
        "unconfigure",
    ]
    parent = lines[-1].rpartition(" ")[2]
    where = {line.rpartition(" ")[0]: line.rpartition(" ")[2] == parent for line in lines}
    assert where == {
        **dict.fromkeys(
            [f"{verb} of_{scope}" for verb in ("make", "end") for scope in ("session", "package", "module", "class")],
            True,
        ),
        **dict.fromkeys([*a_test, "test"], False),
        "unconfigure": True,
    }


def test_a_finalizer_that_fails_in_the_parent_is_an_error_of_the_last_item(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="module")
        def of_module():
            yield
            print("printed by the finalizer")
            raise RuntimeError("module finalizer failed")

        def test_one(of_module):
            pass

        def test_two(of_module):
            pass
        """
    )
    result = isolated("-rE")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_two*",
            "*RuntimeError: module finalizer failed",
            "*Captured stdout teardown*",
            "printed by the finalizer",
        ]
    )


def test_a_finalizer_error_is_not_lost_when_the_test_itself_fails_or_crashes(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.fixture(scope="class")
        def of_class():
            yield
            raise RuntimeError("class finalizer failed")

        class TestFails:
            def test_it(self, of_class):
                assert False

        class TestCrashes:
            def test_it(self, of_class):
                os.abort()
        """
    )
    result = isolated()
    result.assert_outcomes(failed=2, errors=2)


def test_fixtures_that_fail_or_skip_do_so_for_every_user_and_run_once(
    pytester: pytest.Pytester, isolated: Run, plain: Run
) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        import pytest
        from diarist import note

        @pytest.fixture(scope="session")
        def failing():
            note("failing")
            print("printed before failing")
            raise RuntimeError("cannot be made")

        @pytest.fixture(scope="module")
        def skipping():
            note("skipping")
            pytest.skip("not today")

        @pytest.fixture
        def narrow():
            raise RuntimeError("narrow one")

        def test_a(failing): pass
        def test_b(failing): pass
        def test_c(skipping): pass
        def test_d(skipping): pass
        def test_e(narrow): pass
        """
    )
    result = isolated("-rsE")
    result.assert_outcomes(errors=3, skipped=2)
    result.stdout.fnmatch_lines(
        ["*ERROR at setup of test_a*", "*RuntimeError: cannot be made", "*printed before failing"]
    )
    assert words(diary(pytester)) == ["failing", "skipping"]
    assert summary(result) == summary(plain("-rsE"))


def test_parametrized_wide_fixtures_are_made_once_for_each_parameter(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        import pytest
        from diarist import note

        @pytest.fixture(scope="session", params=["x", "y"])
        def session(request):
            note(f"make {request.param}")
            yield request.param
            note(f"end {request.param}")

        def test_one(session):
            note(f"one {session}")

        def test_two(session):
            note(f"two {session}")
        """
    )
    isolated().assert_outcomes(passed=4)
    assert words(diary(pytester)) == ["make x", "one x", "two x", "end x", "make y", "one y", "two y", "end y"]


def test_a_wide_fixture_asked_for_by_name_at_run_time_is_torn_down(pytester: pytest.Pytester, isolated: Run) -> None:
    """getfixturevalue: nothing can know of it before the fork, so it lives and dies in the child."""
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        import pytest
        from diarist import note, wide

        of_session = wide("of_session", "session")

        def test_one(request):
            assert request.getfixturevalue("of_session")
            note("test")

        def test_two(request):
            assert request.getfixturevalue("of_session")
            note("test")
        """
    )
    isolated().assert_outcomes(passed=2)
    once = ["make of_session", "test", "end of_session"]
    assert words(diary(pytester)) == [*once, *once]


def test_a_wide_fixture_that_exists_is_not_torn_down_by_who_asks_for_it_at_run_time(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        import pytest
        from diarist import note, wide

        of_session = wide("of_session", "session")

        @pytest.fixture
        def narrow(request): return request.getfixturevalue("of_session")

        def test_one(of_session): pass
        def test_two(request): assert request.getfixturevalue("of_session") != __import__("os").getpid()
        def test_three(narrow): pass
        """
    )
    isolated().assert_outcomes(passed=3)
    assert words(diary(pytester)) == ["make of_session", "end of_session"]


def test_a_failing_finalizer_of_a_fixture_asked_for_at_run_time_is_an_error(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="session")
        def of_session():
            yield
            raise RuntimeError("late finalizer")

        def test_one(request):
            request.getfixturevalue("of_session")

        def test_two():
            pass
        """
    )
    result = isolated()
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_one*", "*late finalizer"])


def test_unittest_classes_are_set_up_once_and_their_tests_run_apart(
    pytester: pytest.Pytester, isolated: Run, plain: Run
) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        import unittest
        from diarist import note

        def setUpModule():
            note("setUpModule")

        def tearDownModule():
            note("tearDownModule")

        class TestIt(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                note("setUpClass")
                cls.made = 1

            @classmethod
            def tearDownClass(cls):
                note("tearDownClass")

            def setUp(self):
                note("setUp")
                self.addCleanup(note, "cleanup")

            def tearDown(self):
                note("tearDown")

            def test_one(self):
                type(self).made += 1
                assert self.made == 2

            def test_two(self):
                type(self).made += 1
                assert self.made == 2

            def test_subtests(self):
                for i in range(3):
                    with self.subTest(i=i):
                        assert i != 1

            @unittest.skip("skipped by unittest")
            def test_skipped(self):
                raise AssertionError

            @unittest.expectedFailure
            def test_expected(self):
                raise AssertionError

        class TestFails(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                note("bad setUpClass")
                raise RuntimeError("class cannot be set up")

            def test_one(self): pass
            def test_two(self): pass
        """
    )
    result = isolated()
    lines = words(diary(pytester))
    outcomes = result.parseoutcomes()
    assert (outcomes["skipped"], outcomes["xfailed"], outcomes["errors"]) == (1, 1, 2)
    plainly = plain().parseoutcomes()  # there test_two fails besides: it sees what test_one left
    assert (outcomes["passed"], outcomes["failed"]) == (plainly["passed"] + 1, plainly["failed"] - 1)
    assert [
        lines.count(name) for name in ("setUpModule", "setUpClass", "tearDownClass", "tearDownModule", "bad setUpClass")
    ] == [1] * 5
    assert lines.count("setUp") == lines.count("tearDown") == lines.count("cleanup") == 4


def test_xunit_functions_of_module_class_and_method_run_where_they_belong(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        from diarist import note

        def setup_module(): note("setup_module")
        def teardown_module(): note("teardown_module")

        class TestIt:
            @classmethod
            def setup_class(cls): note("setup_class")
            @classmethod
            def teardown_class(cls): note("teardown_class")
            def setup_method(self): note("setup_method")
            def teardown_method(self): note("teardown_method")
            def test_one(self): pass
            def test_two(self): pass
        """
    )
    isolated().assert_outcomes(passed=2)
    once = ["setup_method", "teardown_method"]
    assert words(diary(pytester)) == ["setup_module", "setup_class", *once, *once, "teardown_class", "teardown_module"]


def test_doctests_run_and_fail_as_they_do_plainly(pytester: pytest.Pytester, isolated: Run, plain: Run) -> None:
    pytester.makepyfile(
        module='''
        def good():
            """
            >>> 1 + 1
            2
            """

        def bad():
            """
            >>> 1 + 1
            3
            """

        def crashing():
            """
            >>> import os; os.abort()
            """
        '''
    )
    pytester.maketxtfile(test_text=">>> x = 1\n>>> x\n1\n")
    result = isolated("--doctest-modules", "--doctest-glob=*.txt")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["Expected:", "    3", "Got:", "    2", "*SIGABRT*"])


def test_setup_show_shows_the_fixtures_of_both_processes(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="session")
        def wide(): yield
        @pytest.fixture
        def narrow(): yield
        def test_it(wide, narrow): pass
        """
    )
    result = isolated("--setup-show")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["SETUP    S wide*", "*SETUP    F narrow*", "*test_it*fixtures used*", "*TEARDOWN F narrow*", "TEARDOWN S wide"]
    )


def test_session_finalizers_run_once_when_the_last_tests_are_skipped_or_deselected(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        import pytest
        from diarist import note, wide

        of_session = wide("of_session", "session")

        def test_one(of_session): pass

        @pytest.mark.skip(reason="no")
        def test_two(of_session): pass

        @pytest.mark.isolate(False)
        def test_three(of_session): note("in the parent")
        """
    )
    isolated().assert_outcomes(passed=2, skipped=1)
    lines = diary(pytester)
    assert words(lines) == ["make of_session", "in the parent", "end of_session"]
    assert len({line.rpartition(" ")[2] for line in lines}) == 1


@pytest.mark.parametrize("args", [(), ("--isolate-scope=module",)], ids=["each", "module"])
def test_a_wide_fixture_with_a_finally_is_left_by_the_parent_alone(
    pytester: pytest.Pytester, isolated: Run, args: tuple[str, ...]
) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        from diarist import *

        @pytest.fixture(scope="session")
        def server():
            note("start")
            try:
                yield 1
            finally:
                note("stop")

        def test_1(server): note("test")
        def test_2(server): note("test")
        """
    )
    isolated(*args).assert_outcomes(passed=2)
    assert words(diary(pytester)) == ["start", "test", "test", "stop"]
