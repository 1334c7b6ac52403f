"""--isolate-scope=class|module: one child runs a group of tests; when it dies, the rest goes on in a new one. Trap 10."""

from __future__ import annotations

import pytest

from .conftest import Run
from .test_fixtures import _DIARY, diary, words

MODULE = "--isolate-scope=module"
CLASS = "--isolate-scope=class"


def test_a_module_in_one_child_keeps_its_state_and_its_fixtures(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(diarist=_DIARY)
    body = """
        from diarist import *

        of_session = wide("of_session", "session")
        of_module = wide("of_module", "module")
        of_function = wide("of_function", "function")
        seen = []

        def test_one(of_session, of_module, of_function):
            seen.append(os.getpid())
            assert of_module == os.getpid() != of_session

        def test_two(of_session, of_module, of_function):
            assert seen == [os.getpid()] == [of_module]
        """
    pytester.makepyfile(test_a=body, test_b=body.replace("of_session = wide", "of_session_here = wide"))
    pytester.makeconftest("from diarist import wide\nof_session = wide('of_session', 'session')")
    narrow = body.replace('of_session = wide("of_session", "session")', "")
    pytester.makepyfile(test_a=narrow, test_b=narrow)
    isolated(MODULE).assert_outcomes(passed=4)
    module = ["make of_module", *["make of_function", "end of_function"] * 2, "end of_module"]
    assert words(diary(pytester)) == ["make of_session", *module, *module, "end of_session"]


def test_a_crash_blames_the_test_in_flight_and_the_rest_goes_on_in_a_new_child(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        import time
        from diarist import *

        of_module = wide("of_module", "module")

        def test_1(of_module): note("1")
        def test_2(of_module): os.abort()
        def test_3(of_module): note("3")
        def test_4(of_module): time.sleep(60)
        def test_5(of_module): note("5")
        def test_6(of_module): os._exit(0)
        """
    )
    result = isolated(MODULE, "--isolate-timeout=2", "-v")
    result.assert_outcomes(passed=3, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*::test_1 PASSED*",
            "*::test_2 FAILED*",
            "*::test_3 PASSED*",
            "*::test_4 TIMEOUT*",
            "*::test_5 PASSED*",
            "*::test_6 FAILED*",
        ]
    )
    assert words(diary(pytester)) == ["make of_module", "1", "make of_module", "3", "make of_module", "5"]


def test_each_test_of_a_group_has_its_own_deadline_and_output(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import time, pytest

        @pytest.mark.parametrize("i", range(4))
        def test_it(i):
            print("output of", i)
            time.sleep(0.5)
            assert i != 3
        """
    )
    result = isolated(MODULE, "--isolate-timeout=1.5")
    result.assert_outcomes(passed=3, failed=1)
    text = str(result.stdout)
    assert "output of 3" in text
    assert "output of 2" not in text


@pytest.mark.parametrize("args", [("-x",), ("--maxfail=1",)], ids=" ".join)
def test_stopping_tears_the_fixtures_of_the_group_down(
    pytester: pytest.Pytester, isolated: Run, args: tuple[str, ...]
) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        from diarist import *

        of_session = wide("of_session", "session")
        of_module = wide("of_module", "module")

        def test_1(of_session, of_module): pass
        def test_2(of_session, of_module): assert 0
        def test_3(of_session, of_module): note("3")
        """
    )
    isolated(MODULE, *args).assert_outcomes(passed=1, failed=1)
    assert words(diary(pytester)) == ["make of_session", "make of_module", "end of_module", "end of_session"]


def test_a_module_finalizer_that_fails_in_the_child_is_an_error_of_the_last_test(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.fixture(scope="module")
        def of_module():
            yield
            raise RuntimeError("finalizer of the group")

        def test_1(of_module): pass
        def test_2(of_module): pass
        """
    )
    result = isolated(MODULE)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_2*", "*finalizer of the group"])
    result = isolated(MODULE, "-x", "-k", "test_1 or test_2", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, errors=1)


def test_a_finalizer_that_fails_when_a_run_is_cut_short_is_told(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.fixture(scope="module")
        def of_module():
            yield
            raise RuntimeError("finalizer of the group")

        def test_1(of_module): pass
        def test_2(of_module): assert 0
        def test_3(of_module): pass
        """
    )
    result = isolated(MODULE, "-x")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_2*", "*finalizer of the group"])


def test_skipped_exempt_and_other_tests_within_a_group(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        from diarist import *

        of_module = wide("of_module", "module")

        @pytest.mark.skip(reason="first of all")
        def test_0(of_module): pass
        def test_1(of_module): note("1")
        @pytest.mark.skip(reason="in the middle")
        def test_2(of_module): note("2")
        def test_3(of_module): note("3")
        @pytest.mark.isolate(timeout=30)
        def test_4(): note("4")
        def test_5(): note("5")
        @pytest.mark.isolate(False)
        def test_6(): note("6")
        def test_7(): note("7")
        @pytest.mark.skip(reason="last of all")
        def test_8(of_module): pass
        """
    )
    result = isolated(MODULE, "-rs")
    result.assert_outcomes(passed=6, skipped=3)
    lines = diary(pytester)
    assert [word for word in words(lines) if word.isdigit()] == list("134567")
    where = {line.split()[0]: line.split()[1] for line in lines if line[0].isdigit()}
    assert where["1"] == where["3"] != where["4"]
    assert where["5"] not in (where["1"], where["4"], where["6"])
    assert words(lines).count("make of_module") == words(lines).count("end of_module")


def test_class_scope_groups_classes_and_leaves_functions_alone(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        import unittest
        from diarist import *

        of_module = wide("of_module", "module")
        of_class = wide("of_class", "class")

        class TestA:
            @classmethod
            def setup_class(cls): note("setup_class")
            def test_1(self, of_module, of_class): note("A")
            def test_2(self, of_module, of_class): note("A")

        def test_free(of_module): note("free")
        def test_free_too(of_module): note("free too")

        class TestB(unittest.TestCase):
            @classmethod
            def setUpClass(cls): note("setUpClass")
            def test_1(self): note("B")
            def test_2(self): note("B")
        """
    )
    isolated(CLASS).assert_outcomes(passed=6)
    lines = diary(pytester)
    pids = {
        word: {line.rpartition(" ")[2] for line in lines if line.rpartition(" ")[0] == word}
        for word in set(words(lines))
    }
    assert [len(pids[name]) for name in ("A", "B", "setup_class", "setUpClass")] == [1] * 4
    assert pids["A"] == pids["setup_class"] == pids["make of_class"] == pids["end of_class"]
    assert len(pids["A"] | pids["B"] | pids["free"] | pids["free too"] | pids["make of_module"]) == 5
    assert words(lines).count("make of_class") == words(lines).count("make of_module") == 1


def test_a_wide_parameter_splits_a_group(pytester: pytest.Pytester, isolated: Run) -> None:
    """The session fixture lives in the parent: another parameter means another parent state, so another child."""
    pytester.makepyfile(diarist=_DIARY)
    pytester.makepyfile(
        test_it="""
        from diarist import *

        @pytest.fixture(scope="session", params=["x", "y"])
        def of_session(request):
            note(f"make {request.param}")
            yield request.param
            note(f"end {request.param}")

        @pytest.fixture(scope="module", params=[1, 2])
        def of_module(request):
            yield request.param

        def test_1(of_session, of_module): note(f"{of_session}{of_module}")
        def test_2(of_session, of_module): note(f"{of_session}{of_module}")
        """
    )
    isolated(MODULE).assert_outcomes(passed=8)
    lines = diary(pytester)
    assert words(lines)[0] == "make x"
    assert words(lines).count("make x") == words(lines).count("make y") == words(lines).count("end x") == 1
    assert sorted(word for word in words(lines) if word[0] in "xy") == ["x1", "x1", "x2", "x2", "y1", "y1", "y2", "y2"]
    by_session = {key: {line.split()[1] for line in lines if line[0] == key} for key in "xy"}
    assert not by_session["x"] & by_session["y"]


def test_a_marker_can_make_one_module_a_group(pytester: pytest.Pytester, isolated: Run) -> None:
    body = """
        import os, pytest
        {mark}
        seen = set()
        def test_1(): seen.add(os.getpid())
        def test_2(): assert (os.getpid() in seen) is {together}
        """
    pytester.makepyfile(
        test_a=body.format(mark="pytestmark = pytest.mark.isolate(scope='module')", together=True),
        test_b=body.format(mark="", together=False),
    )
    isolated().assert_outcomes(passed=4)


def test_a_server_of_a_module_lives_in_the_network_of_its_module(pytester: pytest.Pytester, isolated: Run) -> None:
    """Trap 10: with a network per test, a server that a wide fixture started in the parent is out of reach."""
    pytester.makepyfile(
        test_it="""
        import os, socket, threading, pytest

        @pytest.fixture(scope="module")
        def port():
            server = socket.create_server(("127.0.0.1", 0))
            def serve():
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"hello")
                    connection.close()
            threading.Thread(target=serve, daemon=True).start()
            return server.getsockname()[1]

        @pytest.mark.parametrize("i", range(2))
        def test_it(port, i):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                assert client.recv(10) == b"hello"
        """
    )
    isolated("--isolate-net=loopback", MODULE).assert_outcomes(passed=2)
    apart = isolated("--isolate-net=loopback")
    apart.assert_outcomes(failed=2)
    apart.stdout.fnmatch_lines(["*ConnectionRefusedError*"])


def test_leaks_and_costs_of_a_group_are_told_once(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import subprocess
        def test_1(): subprocess.Popen(["setsid", "sleep", "6720"])
        def test_2(): pass
        """
    )
    result = isolated(MODULE)
    result.assert_outcomes(passed=2)
    assert str(result.stdout).count("sleep 6720") == 1


def test_a_child_killed_while_it_waits_for_the_next_test_blames_nobody_wrongly(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import os, threading, time
        def test_1():
            threading.Timer(0.05, os._exit, (3,)).start()
        def test_2():
            time.sleep(0.5)
        def test_3(): pass
        """
    )
    result = isolated(MODULE)
    assert result.parseoutcomes() in ({"passed": 2, "failed": 1}, {"passed": 3})
    assert "INTERNALERROR" not in str(result.stdout)


def test_a_group_shares_its_process_under_a_limit_too(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import os, pathlib
        HERE = []
        def test_1(): HERE.append(1)
        def test_2(): assert HERE
        """
    )
    isolated("--isolate-scope=module", "--isolate-mem-limit=512M").assert_outcomes(passed=2)


def test_tests_that_are_marked_one_by_one_share_a_process_where_they_say_the_same(
    pytester: pytest.Pytester, plain: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import os, pytest
        seen = []
        @pytest.mark.isolate(scope="module", timeout=30)
        def test_1(): seen.append(os.getpid())
        @pytest.mark.isolate(scope="module", timeout=30)
        def test_2(): assert seen == [os.getpid()]
        @pytest.mark.isolate(scope="module", timeout=31)
        def test_3(): assert not seen
        """
    )
    plain().assert_outcomes(passed=3)
