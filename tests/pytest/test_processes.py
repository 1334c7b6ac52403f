"""What a fork of a warm interpreter has to get right. Traps 6, 9, 16, 18, 19, 21, 22."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.conftest import require

from .conftest import Run
from .test_stopping import living, start, wait_for


def test_killing_pytest_ends_the_running_test_and_what_it_started(pytester: pytest.Pytester, plain: Run) -> None:
    """Trap 6."""
    pytester.makepyfile(
        test_it="""
        import pathlib, subprocess, time
        def test_1():
            subprocess.Popen(["setsid", "sleep", "9881"])
            pathlib.Path("running").touch()
            time.sleep(60)
        """
    )
    process = start(pytester)
    wait_for(pytester.path / "running")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    end = time.monotonic() + 1
    while living(b"sleep\0009881") and time.monotonic() < end:
        time.sleep(0.02)
    assert not living(b"sleep\0009881")


def test_threads_of_the_parent_do_not_hang_a_child_and_are_warned_of_once(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    """Trap 9: locks that another thread held at the fork; CPython's own warning does not see our clone."""
    pytester.makepyfile(
        test_it="""
        import logging, threading, time, pytest

        @pytest.fixture(scope="session")
        def busy():
            stop = threading.Event()
            def log():
                while not stop.is_set():
                    logging.getLogger("busy").info("x" * 100)
                    time.strftime("%c")
            thread = threading.Thread(target=log, name="a-busy-thread", daemon=True)
            thread.start()
            yield
            stop.set()
            thread.join(5)

        @pytest.mark.parametrize("i", range(25))
        def test_it(busy, i):
            logging.getLogger("busy").info("from the test")
            assert threading.active_count() == 1
            thread = threading.Thread(target=logging.warning, args=("from its thread",))
            thread.start()
            thread.join(5)
            assert not thread.is_alive()
        """
    )
    result = isolated("--isolate-timeout=20")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 25
    assert outcomes.get("warnings") == 1
    result.stdout.fnmatch_lines(["*a-busy-thread*"])


def test_exit_handlers_run_in_the_parent_only_and_output_is_flushed(pytester: pytest.Pytester, isolated: Run) -> None:
    """Trap 16."""
    pytester.makeconftest(
        """
        import atexit, os, sys
        atexit.register(lambda: open("exits", "a").write("handler\\n"))
        log = open("buffered", "a")
        sys.stdout.write("waiting in the buffer of the parent")
        """
    )
    pytester.makepyfile(
        test_it="""
        import logging, multiprocessing, sys
        def test_1():
            handler = logging.FileHandler("log")
            logging.getLogger().addHandler(handler)
            logging.warning("logged")
        def test_2():
            with multiprocessing.Pool(1) as pool:
                assert pool.map(abs, [-1]) == [1]
        def test_3():
            sys.stdout.write("no newline at the end")
        """
    )
    result = isolated("-s")
    result.assert_outcomes(passed=3)
    assert (pytester.path / "exits").read_text() == "handler\n"
    assert "logged" in (pytester.path / "log").read_text()
    assert str(result.stdout).count("waiting in the buffer") == 1
    assert str(result.stdout).count("no newline at the end") == 1


@pytest.mark.parametrize("fault", ["in_the_backend", "before_the_test"])
def test_a_child_that_does_not_get_as_far_as_its_test_does_not_go_on_as_pytest(
    pytester: pytest.Pytester, isolated: Run, fault: str
) -> None:
    pytester.makeconftest(
        f"""
        import os, pytest
        from pytest_isolate import registry

        PARENT, unset = os.getpid(), os.unsetenv
        os.environ["TO_BE_SCRUBBED"] = "x"

        def fail(*args):
            if os.getpid() != PARENT:
                raise MemoryError("no room left")
            unset(*args)

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop():
            if {fault!r} == "in_the_backend":
                os.unsetenv = fail
            else:
                registry.enter = fail

        def pytest_sessionfinish():
            with open("finished", "a") as file:
                print(file=file)
        """
    )
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.isolate(environment="scrub")
        def test_it(): pass
        """
    )
    found = isolated("-s")
    found.assert_outcomes(errors=1)
    assert (pytester.path / "finished").read_text() == "\n", "once, in the parent"
    if fault == "in_the_backend":
        found.stdout.fnmatch_lines(["the test's process exited with status 12 before reporting*"])
        found.stderr.fnmatch_lines(["MemoryError: no room left"])
    else:
        found.stdout.fnmatch_lines(
            [
                "the test's process could not go on to report, during setup: MemoryError: no room left",
                "*if it has not, please report this with the traceback below",
                "*conftest.py*in fail",
            ]
        )


def test_a_limit_that_the_backend_fork_may_not_set_leaves_one_pytest(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makeconftest(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NPROC, (900, 900))  # to raise it takes a capability

        def pytest_sessionfinish():
            with open("finished", "a") as file:
                print(file=file)
        """
    )
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.isolate(rlimits={"NPROC": 1000})
        def test_it(): pass
        """
    )
    found = isolated("--isolate-backend=fork", "--isolate-profile=minimal")
    found.assert_outcomes(errors=1)
    found.stderr.fnmatch_lines(["*failed at rlimits*not allowed to raise maximum limit*"])
    assert (pytester.path / "finished").read_text() == "\n", "once, in the parent"


def test_random_numbers_differ_between_tests(pytester: pytest.Pytester, isolated: Run) -> None:
    """Trap 18: CPython reseeds `random` at a fork; a clone of ours must tell it."""
    pytester.makepyfile(
        test_it="""
        import pathlib, random, ssl, pytest
        @pytest.mark.parametrize("i", range(5))
        def test_it(i):
            with open("drawn", "a") as file:
                file.write(f"{random.random()} {random.SystemRandom().random()} {ssl.RAND_bytes(8).hex()}\\n")
        """
    )
    isolated().assert_outcomes(passed=5)
    lines = [line.split() for line in (pytester.path / "drawn").read_text().splitlines()]
    assert [len({line[column] for line in lines}) for column in range(3)] == [5, 5, 5]


def test_handlers_registered_for_a_fork_run_in_each_child(pytester: pytest.Pytester, isolated: Run) -> None:
    """Trap 19: a connection of a wide fixture is shared; os.register_at_fork is the hook to make a new one."""
    pytester.makepyfile(
        test_it="""
        import os, pytest

        class Connection:
            def __init__(self):
                self.owner = os.stat("/proc/self").st_ino, os.getpid()
                os.register_at_fork(after_in_child=self.reconnect)
            def reconnect(self):
                self.owner = "child"

        @pytest.fixture(scope="session")
        def connection(): return Connection()

        @pytest.mark.parametrize("i", range(2))
        def test_it(connection, i): assert connection.owner == "child"
        """
    )
    isolated().assert_outcomes(passed=2)


def test_fresh_mode_starts_a_new_interpreter_with_the_options_of_the_run(
    pytester: pytest.Pytester, plain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 21."""
    pytester.makeini("[pytest]\nmarkers = own: of this suite\naddopts = --strict-markers")
    pytester.makeconftest(
        """
        import pytest
        def pytest_addoption(parser): parser.addoption("--colour", default="none")
        state = []
        @pytest.fixture(scope="session")
        def wide():
            state.append(1)
            return state
        """
    )
    (pytester.path / "sub").mkdir()
    (pytester.path / "sub" / "test_it.py").write_text(
        "import os, sys, pytest\n"
        "sys.modules.setdefault('marked_by_the_parent', sys)\n"
        "state = []\n"
        "def test_first(): state.append(1)\n"
        "@pytest.mark.own\n"
        "@pytest.mark.parametrize('x', ['a b', 'ü'])\n"
        "@pytest.mark.isolate(mode='fresh')\n"
        "def test_fresh(request, wide, x):\n"
        "    assert request.config.getoption('colour') == 'red'\n"
        "    assert request.config.rootpath.name != 'sub'\n"
        "    assert wide == [1]\n"
        "    assert 'PYTEST_CURRENT_TEST' in os.environ\n"
        "    print('from inside')\n"
        "@pytest.mark.isolate(mode='fresh')\n"
        "def test_fresh_crash(): os.abort()\n"
        "@pytest.mark.isolate(mode='fresh')\n"
        "def test_fresh_fails(): assert 1 == 2\n"
        "@pytest.mark.isolate(mode='fresh', timeout=6)\n"
        "def test_fresh_hangs():\n"
        "    import time\n"
        "    time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTEST_ADDOPTS", "--colour=red")
    result = plain("--isolate", "sub", "-v", "-rP")
    result.assert_outcomes(passed=3, failed=3)
    result.stdout.fnmatch_lines(
        ["*test_fresh_hangs TIMEOUT*", "*killed by SIGABRT during call*", "E*assert 1 == 2", "*from inside*"]
    )


def test_an_isolated_run_leaves_its_own_process_as_it_was(pytester: pytest.Pytester, isolated: Run) -> None:
    """Signal handlers, descriptors, children, namespaces and environment before the first and after the last test."""
    pytester.makeconftest(
        """
        import json, os, signal, threading
        def state():
            return {
                "handlers": [str(signal.getsignal(s)) for s in range(1, 32) if s not in (9, 19)],
                "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
                "namespaces": {n: os.readlink(f"/proc/self/ns/{n}") for n in os.listdir("/proc/self/ns")},
                "threads": threading.active_count(),
                "environment": sorted(k for k in os.environ if k != "PYTEST_CURRENT_TEST"),
                "cwd": os.getcwd(),
                "pipes": len([f for f in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{f}") and "pipe" in os.readlink(f"/proc/self/fd/{f}")]),
            }
        def pytest_collection_finish(session):
            open("before", "w").write(json.dumps(state()))
        def pytest_unconfigure():
            open("after", "w").write(json.dumps(state()))
        """
    )
    pytester.makepyfile(
        test_it="""
        import os, signal, threading, time, pytest
        @pytest.mark.parametrize("i", range(6))
        def test_it(i):
            os.environ["CHANGED"] = "1"
            os.chdir("/")
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            if i == 2: os.abort()
            if i == 3: time.sleep(60)
        """
    )
    isolated("--isolate-timeout=1").assert_outcomes(passed=4, failed=2)
    before, after = (json.loads((pytester.path / name).read_text()) for name in ("before", "after"))
    assert after == before


def test_our_own_tests_run_pytest_in_a_subprocess(request: pytest.FixtureRequest) -> None:
    """Trap 22: an in-process run would share our fork state."""
    assert request.config.option.runpytest == "subprocess"


def test_a_run_of_many_tests_keeps_no_process_and_no_descriptor(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import os, pytest
        @pytest.mark.parametrize("i", range(150))
        def test_it(i): assert int(max(os.listdir("/proc/self/fd"), key=int)) < 64
        """
    )
    isolated("-q").assert_outcomes(passed=150)


def test_pytest_itself_may_run_with_few_descriptors(pytester: pytest.Pytester, isolated: Run) -> None:
    import resource

    require("prlimit", hasattr(resource, "prlimit"), "no prlimit")
    pytester.makepyfile(test_it="import pytest\n@pytest.mark.parametrize('i', range(40))\ndef test_it(i): pass")
    pytester.makeconftest("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))")
    isolated().assert_outcomes(passed=40)


def test_a_full_collection_due_by_the_parents_count_does_not_come_in_each_child(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    """It would copy the whole heap, every time; what the test itself asks for still sees all objects."""
    pytester.makeconftest(
        """
        import gc

        class Ring:
            def __init__(self): self.me = self

        def pytest_collection_finish():
            gc.collect()
            gc.disable()
            global kept
            kept = [[] for _ in range(2 * len(gc.get_objects()))]  # a quarter more than was old: due
            for generation in (0, 1) * 12:  # counts for the oldest, without looking at it
                gc.collect(generation)
            gc.enable()
        """
    )
    pytester.makepyfile(
        """
        import gc, weakref
        from conftest import Ring

        def full(): return gc.get_stats()[2]["collections"]

        def test_1():
            before = full()
            garbage = [[[]] for _ in range(5000)]
            assert full() == before

        ring = Ring()

        def test_2():
            global ring
            seen = weakref.ref(ring)
            ring = None
            gc.collect()
            assert seen() is None
        """
    )
    isolated("-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_a_pid_namespace_asked_for_by_a_word_has_its_own_proc(pytester: pytest.Pytester, plain: Run) -> None:
    require("root", os.geteuid() == 0, "a fresh /proc in a container's user namespace may be refused")
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.mark.isolate(namespaces="+pid")
        def test_it(sandbox):
            assert os.readlink("/proc/self") == str(os.getpid())
            assert len([name for name in os.listdir("/proc") if name.isdigit()]) < 5
            assert sandbox.run(["true"]).ok
        """
    )
    plain().assert_outcomes(passed=1)


def test_what_a_test_s_own_sandbox_took_away_is_not_the_host_s_lack(pytester: pytest.Pytester, plain: Run) -> None:
    require("root", os.geteuid() == 0, "root's capabilities are what is dropped")
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.isolate(profile="strict")
        def test_it(sandbox):
            sandbox.run(["true"])
        @pytest.mark.isolate(profile="strict")
        def test_less(sandbox):
            assert sandbox.run(["true"], namespaces=[]).ok
        """
    )
    result = plain()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*no backend can enforce the policy inside this test's own sandbox, which drops *"])
