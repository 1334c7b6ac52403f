"""A test whose process ends early: what is told about it. Traps 2, 3 and 7."""

from __future__ import annotations

import pytest

from .conftest import Run


def test_a_crash_is_one_failure_with_signal_phase_output_and_native_traceback(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        """
        import os, signal, sys

        def test_before():
            print("printed by the first")

        def test_crashes():
            print("printed before the crash")
            sys.stderr.write("to stderr\\n")
            os.write(2, b"raw to fd 2\\n")
            os.kill(os.getpid(), signal.SIGSEGV)

        def test_after():
            assert False, "to see what was captured"
        """
    )
    result = isolated()
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*_ test_crashes _*",
            "the test's process was killed by SIGSEGV during call*",
            "*Captured stdout call*",
            "printed before the crash",
            "*Captured stderr call*",
            "to stderr",
            "raw to fd 2",
            "Fatal Python error: Segmentation fault",
            '  File "*test_a_crash_is_one*.py", line * in test_crashes',
            "*_ test_after _*",
        ]
    )
    text = str(result.stdout)
    assert text.count("printed before the crash") == 1 + text.count('print("printed before the crash")')
    assert "Captured stdout" not in text.partition("_ test_after _")[2]


@pytest.mark.parametrize(
    ("phase", "counted", "word"),
    [
        ("setup", {"errors": 1}, "ERROR"),
        ("call", {"failed": 1}, "FAILED"),
        ("teardown", {"passed": 1, "errors": 1}, "ERROR"),
    ],
)
def test_a_crash_is_blamed_on_the_phase_it_happened_in(
    pytester: pytest.Pytester, isolated: Run, phase: str, counted: dict[str, int], word: str
) -> None:
    pytester.makepyfile(
        f"""
        import os, pytest

        def die(phase):
            if phase == {phase!r}:
                print("last words in", phase)
                os.abort()

        @pytest.fixture
        def fixture():
            die("setup")
            yield
            die("teardown")

        def test_it(fixture):
            die("call")
        """
    )
    result = isolated("-rA")
    result.assert_outcomes(**counted)
    result.stdout.fnmatch_lines(
        [
            f"the test's process was killed by SIGABRT during {phase}*",
            f"*Captured stdout {phase}*",
            f"last words in {phase}",
            f"{word} test_a_crash_is_blamed*::test_it*",
        ]
    )


def test_leaving_with_status_zero_is_a_failure(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        """
        import ctypes, os, sys

        def test_os_exit():
            os._exit(0)

        def test_c_exit():
            ctypes.CDLL(None)._exit(0)

        def test_sys_exit():
            sys.exit(0)
        """
    )
    result = isolated()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "*exited with status 0 before reporting, during call*",
            "*exited with status 0 before reporting*",
            "E*SystemExit: 0",
        ]
    )


def test_xfail_marks_hold_for_crashes(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.xfail(reason="known to crash")
        def test_any():
            os.abort()

        @pytest.mark.xfail(strict=True)
        def test_strict():
            os.abort()

        @pytest.mark.xfail(raises=ValueError)
        def test_other_exception():
            os.abort()

        @pytest.mark.xfail(condition=False, reason="not here")
        def test_condition_is_false():
            os.abort()

        @pytest.mark.xfail(run=False)
        def test_not_run():
            os.abort()
        """
    )
    result = isolated("-rxf")
    result.assert_outcomes(xfailed=3, failed=2)
    result.stdout.fnmatch_lines(["XFAIL *::test_any - known to crash", "FAILED *::test_other_exception*"])
    isolated("--runxfail").assert_outcomes(failed=5)


def test_a_crash_with_capture_sys_says_that_output_in_memory_is_lost(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        """
        import os

        def test_crashes():
            print("in memory only")
            os.abort()

        def test_fails():
            print("this one is shown")
            assert False
        """
    )
    result = isolated("--capture=sys")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*SIGABRT*",
            "Fatal Python error: Aborted",
            "*lost*--capture=sys*",
            "*Captured stdout call*",
            "this one is shown",
        ]
    )


def test_with_capture_off_output_appears_at_once_and_once(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        """
        import os

        def test_prints():
            print("first words")

        def test_crashes():
            print("second words", flush=True)
            os.abort()
        """
    )
    result = isolated("-s")
    result.assert_outcomes(passed=1, failed=1)
    assert str(result.stdout).count("first words") == 1
    assert str(result.stdout).count("second words") == 1 + str(result.stdout).count('print("second words"')


def test_a_stack_overflow_in_c_is_a_crash_like_any_other(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        """
        import ctypes, sys

        def test_overflows():
            @ctypes.CFUNCTYPE(None)
            def down():
                down()
            sys.setrecursionlimit(10**8)
            down()

        def test_after():
            pass
        """
    )
    result = isolated()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*killed by SIGSEGV during call*"])


def test_what_reporting_runs_on_may_be_broken_by_the_test_which_is_blamed(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import builtins, json, os

        def test_before(): pass

        def test_a_builtin():
            builtins.len = None

        def test_a_library():
            json.JSONEncoder.encode = None

        def test_in_many_words():
            def encode(*_):
                error = ValueError("no file \\udc80name\\nand more")
                error.__notes__ = ["a note"]
                raise error
            json.JSONEncoder.encode = encode

        def test_a_status_that_means_something_to_us():
            os._exit(70)

        def test_after(): pass
        """
    )
    found = isolated()
    found.assert_outcomes(passed=2, failed=4)
    found.stdout.fnmatch_lines(
        [
            "*_ test_a_builtin _*",
            "the test's process could not go on to report, during call: TypeError: 'NoneType' object is not callable",
            "The test may have changed what pytest and pytest-isolate run on *",
            "*_ test_a_library _*",
            "the test's process could not go on to report, during call: TypeError: 'NoneType' object is not callable",
            '*File "*wire.py", line *, in pack',
            "*_ test_in_many_words _*",
            "the test's process could not go on to report, during call: ValueError: no file \\udc80name",
            "*_ test_a_status_that_means_something_to_us _*",
            "the test's process exited with status 70 before reporting, during call*",
        ]
    )


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "time.sleep(60)", "raise RuntimeError('of a handler')"])
def test_a_teardown_that_failed_is_told_whatever_ends_the_process_after_it(
    pytester: pytest.Pytester, isolated: Run, end: str
) -> None:
    pytester.makepyfile(
        test_it=f"""
        import logging, os, time, pytest

        PARENT = os.getpid()

        class Handler(logging.Handler):
            def flush(self):
                if os.getpid() != PARENT:
                    {end}

        kept = Handler()
        logging.getLogger("x").addHandler(kept)

        @pytest.fixture
        def row():
            yield
            print("said by the teardown")
            assert False, "a lost row"

        def test_it(row): pass
        """
    )
    found = isolated("--isolate-timeout=2", "--isolate-grace=0.1")
    assert found.parseoutcomes()["passed"] == 1
    found.stdout.fnmatch_lines(["E *AssertionError: a lost row", "said by the teardown"])
