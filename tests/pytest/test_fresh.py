"""The mode `fresh`: a new interpreter in the sandbox, and the backends that can start nothing but that."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import venv

import pytest

from tests.conftest import require

from .conftest import Run

#: A backend that starts programs; its own name is in the environment inside.
BACKEND = """
import os, shlex
from pytest_isolate.capability import Capability
from pytest_isolate.policy import Namespace
from pytest_isolate.tool import ToolBackend

class Env(ToolBackend):
    name, tool, signals_as_status = "env", "env", False
    enforces = frozenset(Capability)

    def command(self, policy, argv, run):
        return ["INSIDE=env", f"--chdir={run.cwd}", *argv]

class Hidden(Env):
    name, tool = "hidden", "unshare"

    def command(self, policy, argv, run):
        return ["--pid", "--fork", "--mount-proc", "env", "INSIDE=hidden", f"--chdir={run.cwd}", *argv]

    def hides_processes(self, policy):
        return True

class Relaying(Env):
    name, tool, relays_output = "relaying", "sh", True

    def command(self, policy, argv, run):
        program = f"export FED=$(readlink /proc/self/fd/0); cat | INSIDE=relaying env --chdir={run.cwd} {shlex.join(argv)} 3>&1"
        return ["-c", f"{{ {{ {program}; }} 2>&1 1>&3 | cat >&2; }} 3>&1 | cat"]

def pytest_isolate_backends():
    return [Env(), Hidden(), Relaying()]
"""


@pytest.fixture
def with_backend(pytester: pytest.Pytester, plain: Run) -> Run:
    require("env(1)", shutil.which("env") is not None, "coreutils is not installed")
    pytester.makeconftest(BACKEND)
    return plain


def test_a_backend_that_only_starts_programs_is_given_a_new_interpreter(
    pytester: pytest.Pytester, with_backend: Run
) -> None:
    pytester.makepyfile(
        """
        import os
        def test_inside(): assert os.environ["INSIDE"] == "env"
        """
    )
    result = with_backend("--isolate", "--isolate-backend=env")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["isolate: *backend env, a new interpreter for each test"])


def test_to_name_a_backend_is_to_ask_for_isolation(pytester: pytest.Pytester, with_backend: Run) -> None:
    """But tests that use the fixture sandbox start their programs there, and are not put there themselves."""
    pytester.makepyfile(
        """
        import os, pytest
        def test_inside(): assert os.environ["INSIDE"] == "env"
        def test_program(sandbox):
            assert "INSIDE" not in os.environ
            assert "INSIDE=env" in sandbox.run(["env"]).stdout
        @pytest.mark.isolate
        def test_asked_for(sandbox): assert os.environ["INSIDE"] == "env"
        @pytest.mark.isolate(False)
        def test_exempt(): assert "INSIDE" not in os.environ
        """
    )
    with_backend("--isolate-backend=env").assert_outcomes(passed=4)
    with_backend("--isolate-backend=env", "--no-isolate").assert_outcomes(passed=2, failed=2)
    with_backend("--isolate", "--isolate-backend=env", "-k", "program").assert_outcomes(failed=1)


def test_a_fork_that_is_asked_for_by_name_is_not_replaced(pytester: pytest.Pytester, with_backend: Run) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = with_backend("--isolate-backend=env", "--isolate-mode=fork")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *env lacks test functions: it starts none. Use --isolate-mode=fresh*"])


def test_where_one_of_the_backends_forks_it_is_taken_for_tests(pytester: pytest.Pytester, with_backend: Run) -> None:
    pytester.makepyfile(
        """
        import os
        def test_it(sandbox):
            assert "INSIDE" not in os.environ
            assert "INSIDE=env" in sandbox.run(["env"]).stdout
        """
    )
    result = with_backend("--isolate", "--isolate-backend=env,native")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["isolate: *backend native"])


def test_closed_descriptors_leave_the_channel_open(pytester: pytest.Pytester, isolated: Run) -> None:
    """And standard input is empty, not the channel."""
    pytester.makeini("[pytest]\nisolate_profiles = closed: minimal, close_fds=yes")
    pytester.makepyfile(
        """
        import os, sys
        def test_it():
            assert os.read(0, 10) == b""
            assert sys.stdin.fileno() == 0
            print("from inside")
        """
    )
    result = isolated("--isolate-mode=fresh", "--isolate-profile=closed", "-s")
    result.assert_outcomes(passed=1)


def test_the_time_of_a_test_is_not_spent_by_the_start_of_its_interpreter(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makeconftest("import time, os\nif 'HERE' in os.environ: time.sleep(2)\nos.environ['HERE'] = '1'")
    pytester.makepyfile(
        """
        import time
        def test_quick(): pass
        def test_slow(): time.sleep(60)
        """
    )
    result = isolated("--isolate-mode=fresh", "--isolate-timeout=1.5")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "TIMEOUT: the test's call was still running after 1.5 s*",
            "*Python stacks at the end*",
            "*in test_slow",
        ]
    )


def test_stacks_of_a_crash_are_apart_from_what_was_written(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        """
        import ctypes, os
        def test_it():
            os.write(2, b"a last word\\n")
            ctypes.string_at(0)
        """
    )
    result = isolated("--isolate-mode=fresh", "-s")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*killed by SIGSEGV during call*",
            "*Captured stderr call*",
            "a last word",
            "*Python stacks at the end*",
            "Fatal Python error: Segmentation fault",
            "*in test_it",
        ]
    )


@pytest.mark.parametrize("ends", ["os.kill(os.getpid(), 9)", "os._exit(3)", "time.sleep(60)"])
def test_what_a_test_printed_outlives_its_interpreter(pytester: pytest.Pytester, isolated: Run, ends: str) -> None:
    pytester.makepyfile(
        f"""
        import os, sys, time
        import pytest

        @pytest.fixture
        def made():
            print("of the set-up")

        def test_it(made):
            print("last words")
            print("of errors", file=sys.stderr)
            sys.stdout.flush()
            {ends}
        """
    )
    result = isolated("--isolate-mode=fresh", "--isolate-timeout=3")
    result.assert_outcomes(failed=1)
    said = ["*Captured stdout setup*", "of the set-up", "*Captured stdout call*", "last words"]
    result.stdout.fnmatch_lines([*said, "*Captured stderr call*", "of errors"])


def test_a_backend_that_relays_the_streams_carries_the_reports(pytester: pytest.Pytester, with_backend: Run) -> None:
    """Input goes one way there, so that the channel is the output; what is written to that is with the errors."""
    pytester.makepyfile(
        """
        import os, sys
        def test_inside():
            print("said")
            os.write(1, b"by number")
            assert os.read(0, 1) == b""
            assert os.environ["FED"] == "/dev/null"  # and not what pytest itself is given to read
            assert os.environ["INSIDE"] == "none"
        def test_other(): pass
        """
    )
    result = with_backend("--isolate-backend=relaying")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*assert 'relaying' == 'none'", "*Captured stdout call*", "said", "by number*"])
    result = with_backend("--isolate-backend=relaying", "-s")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*assert 'relaying' == 'none'"])


def test_options_of_the_run_are_the_run_s_and_operands_stay_with_their_options(
    pytester: pytest.Pytester, isolated: Run, request: pytest.FixtureRequest
) -> None:
    """Also those of ini: what selects, clears or writes once is not done again in each interpreter."""
    pytester.makeini("[pytest]\naddopts = --cache-clear --junitxml=all.xml --log-file=all.log -p no:randomly")
    pytester.makepyfile(
        """
        import logging
        def test_one(cache, record_testsuite_property):
            cache.set("by/one", 1)
            record_testsuite_property("made", "by one")
            logging.warning("first")
        def test_two(cache):
            assert cache.get("by/one", 0) == 1
            logging.warning("second")
        """
    )
    isolated("--isolate-mode=fresh", "--confcutdir", ".", ".").assert_outcomes(passed=2)
    assert '<property name="made" value="by one"' in (pytester.path / "all.xml").read_text()
    if hasattr(request.config.option, "log_file_mode"):  # not in pytest 7.4
        assert [line.split()[-1] for line in (pytester.path / "all.log").read_text().splitlines()] == [
            "first",
            "second",
        ]


def test_what_is_printed_is_seen_and_what_pytest_says_of_itself_is_not(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile("def test_it(): print('seen ' 'now')\ndef test_fails(): print('and then'); assert False")
    for how in ("-s", "--capture=tee-sys"):
        result = isolated("--isolate-mode=fresh", how)
        result.assert_outcomes(passed=1, failed=1)
        assert " ".join(result.outlines).count("seen now") == 1
    result = isolated("--isolate-mode=fresh", "-vv")
    result.stdout.no_fnmatch_line("*Captured stdout setup*")
    result.stdout.fnmatch_lines(["*Captured stdout call*", "and then"])


def test_a_debugger_has_no_terminal_there(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile("def test_it(): assert False")
    result = isolated("--isolate-mode=fresh", "--pdb")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["pytest-isolate: mode fresh: *no terminal for a debugger. Leave out --pdb*"])


def test_a_pytest_that_ends_before_the_test_is_not_blamed_on_it(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makeconftest(
        """
        import os, pytest
        def pytest_addoption():
            if "PYTEST_ISOLATE_CHANNEL" in os.environ:
                raise pytest.UsageError("not twice")
        """
    )
    pytester.makepyfile("def test_it(): pass")
    result = isolated("--isolate-mode=fresh")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["pytest in the new interpreter ended before the test began, with status 4 (usage error)"]
    )
    result.stdout.fnmatch_lines(["*Captured stderr setup*", "ERROR: not twice"])


def test_what_nobody_sees_from_outside_is_named_from_inside(pytester: pytest.Pytester, with_backend: Run) -> None:
    require("root", os.geteuid() == 0, "unshare(1) without a user namespace needs it")
    pytester.makepyfile(
        """
        import subprocess, time
        def test_leak(): subprocess.run("setsid sleep 6731 & ", shell=True)
        def test_hang(): time.sleep(60)
        def test_clean(): subprocess.run(["true"])
        """
    )
    result = with_backend("--isolate-backend=hidden", "--isolate-leaks=fail", "--isolate-timeout=5")
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.fnmatch_lines(["LEAK: *", "pid * old): sleep 6731"])
    result.stdout.fnmatch_lines(["*still running after 5 s*", "*Python stacks at the end*", "*in test_hang"])


def test_an_interpreter_below_tmp_is_there_although_strict_has_a_tmp_of_its_own(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        """
        import os, sys
        def test_it():
            assert os.path.exists(sys.executable) and sys.executable.startswith("/tmp/")
            assert not os.path.exists(os.environ["HIDDEN"])
            import single, package.below
        """
    )
    pytester.makeconftest(
        """
        import importlib.util, os, sys
        for name, file in (("single", "single.py"), ("package", "package/__init__.py")):
            spec = importlib.util.spec_from_file_location(name, os.path.join(os.environ["APART"], file))
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        """
    )
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as place,
        tempfile.TemporaryDirectory(dir="/tmp") as hidden,
        tempfile.TemporaryDirectory(dir="/tmp") as apart,  # in no sys.path, as an editable installation
    ):
        os.mkdir(f"{apart}/package")
        for file in ("single.py", "package/__init__.py", "package/below.py"):
            with open(f"{apart}/{file}", "w"):
                pass
        monkeypatch.setenv("APART", apart)
        venv.create(place)
        monkeypatch.setenv("HIDDEN", hidden)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        words = (
            "-p",
            "no:randomly",
            "-p",
            "no:asyncio",
            "--isolate",
            "--isolate-profile=strict",
            "--isolate-mode=fresh",
        )
        result = pytester.run(f"{place}/bin/python", "-m", "pytest", *words, timeout=60)
    result.assert_outcomes(passed=1)
