"""Tests that leave their session, their monitor or their cgroup are told of, and ended."""

from __future__ import annotations

import os

import pytest

from tests.conftest import require

from .conftest import Run
from .limited import cgroups_of_this_process_closed, controller
from .test_stopping import living

__all__ = ["cgroups_of_this_process_closed"]
pytestmark = pytest.mark.usefixtures("cgroups_of_this_process_closed")


def test_a_daemon_that_left_its_session_is_found_in_the_cgroup_where_there_is_no_pid_namespace(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    controller("pids")
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.isolate(profile="minimal", pids=20)
        def test_daemon():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.execvp("sleep", ["sleep", "6801"])
                os._exit(0)
            os.wait()

        @pytest.mark.isolate(profile="minimal", pids=20)
        def test_tidy(): pass
        """
    )
    result = isolated("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*::test_daemon LEAK*", "*::test_tidy PASSED*", "*pid * old): sleep 6801"])
    assert not living(b"sleep\0006801")


def test_a_daemon_of_a_test_that_killed_its_monitor_is_named_and_ended_by_the_cgroup(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    controller("pids")
    pytester.makepyfile(
        """
        import os, time, pytest

        @pytest.mark.isolate(pids=20)
        def test_daemon():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.execvp("sleep", ["sleep", "6802"])
                os._exit(0)
            os.wait()
            os.kill(os.getppid(), 9)
            time.sleep(30)
        """
    )
    result = isolated("-v")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*pid * old): sleep 6802"])
    assert not living(b"sleep\0006802")


def test_a_test_that_leaves_its_cgroup_and_so_its_limits_does_not_pass(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    controller("pids")
    require("root", os.geteuid() == 0, "only root may write to the cgroups above")
    pytester.makepyfile(
        """
        import time, pytest

        def burn():
            end = time.process_time() + 0.6
            while time.process_time() < end: pass

        @pytest.mark.isolate(pids=20)
        def test_stays(): burn()

        @pytest.mark.isolate(pids=20)
        def test_leaves():
            for line in open("/proc/self/mountinfo"):
                if line.partition(" - ")[2].startswith("cgroup"):
                    with open(line.split()[4] + "/cgroup.procs", "w") as procs: procs.write("0")
            burn()
        """
    )
    result = isolated("-rA")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        ["*.py ..S*", "the limits did not hold: the program left its cgroup: of * its cgroup saw *"]
    )


def _cgroups_named(text: str) -> list[str]:
    return [path for path, _, _ in os.walk("/sys/fs/cgroup") if text in os.path.basename(path)]


@pytest.mark.parametrize(
    "ends", ["pass", "assert 0", "os._exit(3)", "os.kill(os.getpid(), 9)", "time.sleep(60)", "leave_one_running()"]
)
def test_the_cgroups_of_a_tests_own_sandboxes_are_gone_with_the_run(
    pytester: pytest.Pytester, isolated: Run, ends: str
) -> None:
    controller("memory")
    pytester.makepyfile(
        f"""
        import os, subprocess, time

        def leave_one_running():
            subprocess.Popen(["sleep", "6803"])

        def test_it(sandbox):
            assert sandbox.run(["/bin/true"], memory="64M").ok
            made = [path for path, _, _ in os.walk("/sys/fs/cgroup") if f"sandbox-{{os.getpid()}}-" in path]
            with open("seen", "w") as file:
                print(os.getpid(), len(made), file=file)
            {ends}
        """
    )
    isolated("--isolate-timeout=2")
    pid, made = map(int, (pytester.path / "seen").read_text().split())
    assert made > 0, "the test saw none of its own, so this test shows nothing"
    assert _cgroups_named(f"-sandbox-{pid}-") == []
    assert not living(b"sleep\0006803")


@pytest.mark.parametrize("ends", ["pass", "raise ValueError", "os._exit(3)", "os.kill(os.getpid(), 9)", "spawn()"])
@pytest.mark.parametrize("options", [("--isolate",), ()])
def test_the_cgroups_of_a_called_functions_own_sandboxes_are_gone_with_the_run(
    pytester: pytest.Pytester, plain: Run, ends: str, options: tuple[str, ...]
) -> None:
    controller("memory")
    pytester.makepyfile(
        f"""
        import contextlib, os, pytest
        from pytest_isolate import Sandbox
        from pytest_isolate.calls import CallFailed

        def spawn():
            Sandbox().spawn(["sleep", "6805"], memory="64M")

        def call():
            assert Sandbox().run(["/bin/true"], memory="64M").ok
            made = [path for path, _, _ in os.walk("/sys/fs/cgroup") if f"sandbox-{{os.getpid()}}-" in path]
            with open("seen", "w") as file:
                print(os.getpid(), len(made), file=file)
            {ends}

        def test_it(sandbox):
            with contextlib.nullcontext() if {ends!r} in ("pass", "spawn()") else pytest.raises(CallFailed):
                sandbox.python(call)
        """
    )
    plain(*options).assert_outcomes(passed=1)
    pid, made = map(int, (pytester.path / "seen").read_text().split())
    assert made > 0, "the function saw none of its own, so this test shows nothing"
    assert _cgroups_named(f"-sandbox-{pid}-") == []
    assert not living(b"sleep\0006805")
