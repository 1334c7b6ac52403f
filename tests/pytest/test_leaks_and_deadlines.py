"""Nothing outlives its test: leaked processes, time-outs, processes that do not want to end. Traps 4 and 5."""

from __future__ import annotations

import time

import pytest

from .conftest import Run
from .test_stopping import living

_LEAKS = """
    import os, subprocess, time

    def leak(seconds, *, setsid):
        subprocess.Popen(["sleep", str(seconds)], start_new_session=setsid)

    def daemonize(seconds):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", str(seconds)])
            os._exit(0)
        os.wait()
"""


def test_leaked_processes_are_killed_and_named(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(leaking=_LEAKS)
    pytester.makepyfile(
        test_it="""
        from leaking import *

        def test_child(): leak(6701, setsid=False)
        def test_session_of_its_own(): leak(6702, setsid=True)
        def test_daemon(): daemonize(6703)
        def test_tidy(): subprocess.run(["true"])
        """
    )
    result = isolated("-v")
    result.assert_outcomes(passed=4)
    assert not [pid for seconds in (b"6701", b"6702", b"6703") for pid in living(b"sleep\0" + seconds)]
    text = str(result.stdout)
    assert text.count("LEAK") >= 3
    result.stdout.fnmatch_lines(["*::test_child LEAK*", "*::test_session_of_its_own LEAK*", "*::test_daemon LEAK*"])
    result.stdout.no_fnmatch_line("*test_tidy*LEAK*")
    for seconds in (6701, 6702, 6703):
        result.stdout.fnmatch_lines([f"*pid * old): sleep {seconds}*"])


def test_leaks_fail_the_test_or_are_not_mentioned_as_asked(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(leaking=_LEAKS)
    pytester.makepyfile(
        test_it="""
        import pytest
        from leaking import *

        def test_fails(): leak(6704, setsid=True)

        @pytest.mark.isolate(leaks="ignore")
        def test_ignored(): leak(6705, setsid=True)
        """
    )
    result = isolated("--isolate-leaks=fail", "-v")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*::test_fails LEAK*", "*ERROR at teardown of test_fails*", "*sleep 6704"])
    result.stdout.no_fnmatch_line("*sleep 6705*")
    assert not living(b"sleep\0006704") + living(b"sleep\0006705")


def test_a_leaked_process_that_holds_the_channel_does_not_delay_the_run(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    """Trap 4: waiting for the end of a pipe that a grandchild holds open."""
    pytester.makepyfile(
        test_it="""
        import os, time

        def test_leaks():
            if os.fork() == 0:
                time.sleep(600)
                os._exit(0)

        def test_crashes_with_company():
            if os.fork() == 0:
                time.sleep(600)
                os._exit(0)
            os.abort()
        """
    )
    began = time.monotonic()
    result = isolated()
    result.assert_outcomes(passed=1, failed=1)
    assert time.monotonic() - began < 10


def test_a_time_out_shows_all_stacks_and_ends_what_the_test_started(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(leaking=_LEAKS)
    pytester.makepyfile(
        test_it="""
        import threading
        from leaking import *

        def busy_elsewhere():
            time.sleep(60)

        def waits_for_ever():
            time.sleep(60)

        def test_hangs():
            print("said before")
            threading.Thread(target=busy_elsewhere, daemon=True).start()
            leak(6711, setsid=True)
            waits_for_ever()

        def test_after(): pass
        """
    )
    result = isolated("--isolate-timeout=0.7", "-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_hangs TIMEOUT*",
            "*::test_after PASSED*",
            "TIMEOUT: the test's call was still running after 700 ms*",
            "*Captured stdout call*",
            "said before",
            "Thread 0x*",
            "*in busy_elsewhere",
            "Current thread 0x*",
            "*in waits_for_ever",
            "*in test_hangs",
            "*Leaked processes*",
            "*sleep 6711",
        ]
    )
    assert not living(b"sleep\0006711")


@pytest.mark.parametrize(
    "stubborn",
    [
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(60)",
    ],
    ids=["ignores SIGTERM", "stops itself", "blocks every signal"],
)
def test_a_test_that_does_not_want_to_end_is_killed_at_its_deadline(
    pytester: pytest.Pytester, isolated: Run, stubborn: str
) -> None:
    pytester.makepyfile(
        test_it=f"""
        import os, signal, time

        def test_hangs():
            {stubborn}

        def test_after(): pass
        """
    )
    began = time.monotonic()
    result = isolated("--isolate-timeout=0.5", "--isolate-grace=0.3")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["TIMEOUT: the test's call was still running after 500 ms*"])
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("phase", "counted"),
    [("setup", {"errors": 1}), ("teardown", {"passed": 1, "errors": 1}), ("exit", {"passed": 1, "errors": 1})],
)
def test_a_hang_outside_the_call_is_found_and_named(
    pytester: pytest.Pytester, isolated: Run, phase: str, counted: dict[str, int]
) -> None:
    pytester.makepyfile(
        test_it=f"""
        import sys, time, pytest

        def hang(here):
            if here == {phase!r}:
                time.sleep(60)

        class Handler:
            def flush(self): hang("exit")

        @pytest.fixture
        def narrow():
            hang("setup")
            yield
            hang("teardown")

        def test_hangs(narrow, monkeypatch):
            import logging
            class Handler(logging.Handler):
                def flush(self): hang("exit")
            logging.getLogger("x").addHandler(Handler())
        """
    )
    result = isolated("--isolate-timeout=0.6")
    result.assert_outcomes(**counted)
    where = "teardown" if phase == "exit" else phase
    result.stdout.fnmatch_lines([f"TIMEOUT: the test's {where} was still running after 600 ms*"])


def test_a_thread_that_never_ends_does_not_keep_the_run(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import threading, time

        def test_thread():
            threading.Thread(target=time.sleep, args=(600,)).start()

        def test_after(): pass
        """
    )
    began = time.monotonic()
    isolated().assert_outcomes(passed=2)
    assert time.monotonic() - began < 10


def test_a_process_that_does_not_end_after_its_last_word_does_not_keep_the_run(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import os, sys, time, types
        import pytest

        def hang(*_):
            time.sleep(6804)

        def clear_away(by):
            sys.modules["pytest_isolate.networks"] = types.SimpleNamespace(close_those_of_this_process=by)

        def test_hangs_in_what_is_cleared_away():
            clear_away(hang)

        def test_leaves_one_that_hangs():
            clear_away(lambda: os.fork() or hang())

        @pytest.mark.isolate(namespaces="+pid")
        def test_leaves_one_that_hangs_in_its_namespace():
            clear_away(lambda: os.fork() or hang())

        def test_hangs_in_leaving():
            os._exit = hang
        """
    )
    isolated("--isolate-timeout=2").assert_outcomes(passed=4)


def test_slow_is_said_once_while_the_test_runs_and_not_with_q(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(test_it="import time\ndef test_slow(): time.sleep(0.6)")
    result = isolated("--isolate-slow=0.2", "--isolate-timeout=30")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["SLOW test_it.py::test_slow: running for *, ends in *"])
    assert str(result.stdout).count("SLOW") == 1
    isolated("--isolate-slow=0.2", "-q").stdout.no_fnmatch_line("*SLOW*")


def test_a_hang_in_a_session_fixture_ends_by_the_deadline(pytester: pytest.Pytester, isolated: Run) -> None:
    """It is set up in the parent, on behalf of the first test that asks for it."""
    pytester.makepyfile(
        test_it="""
        import time, pytest

        @pytest.fixture(scope="session")
        def wide():
            time.sleep(60)

        def test_one(wide): pass
        def test_two(wide): pass
        def test_three(): pass
        """
    )
    began = time.monotonic()
    result = isolated("--isolate-timeout=0.7")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        [">*time.sleep(60)", "E*TIMEOUT: a fixture wider than the test was still running after 700 ms"]
    )
    assert time.monotonic() - began < 20


def test_the_cpu_limit_ends_a_busy_test(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        def test_busy():
            while True: pass
        def test_after(): pass
        """
    )
    result = isolated("--isolate-cpu-limit=1", "-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*::test_busy CPU*", "CPU: the test used up its CPU time during call*"])


def test_who_left_a_process_in_a_group_is_not_guessed(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        """
        import subprocess
        def test_guilty(): subprocess.Popen(["sleep", "6181"])
        def test_innocent(): pass
        """
    )
    result = isolated("--isolate-scope=module", "--isolate-leaks=fail")
    result.stdout.fnmatch_lines(["LEAK: a test of this module, which ran in one process, left processes behind*"])
