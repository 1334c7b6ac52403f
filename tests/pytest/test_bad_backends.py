"""Backends that lie, crash, or leave something: each is found out, and nothing else suffers for it."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from tests.conftest import require

from .conftest import ROOT, Run

CONFTEST = """
import os, subprocess, sys
import pytest
from pytest_isolate.capability import Capability
from pytest_isolate.policy import Namespace
from pytest_isolate.tool import ToolBackend

class Bad(ToolBackend):
    name, tool, signals_as_status = "bad", "env", False
    enforces = frozenset(Capability)
    spoilt = None

    def lacks(self, policy):
        return []

    def command(self, policy, argv, run):
        {command}
        return [f"--chdir={{run.cwd}}", *argv]

    {more}

def pytest_isolate_backends():
    return [Bad()]
"""
SUITE = """
import pytest
@pytest.mark.isolate(timeout=30)
def test_first(): pass
def test_second(): pass
@pytest.mark.isolate(False)
def test_outside(): pass
"""


@pytest.fixture
def bad(pytester: pytest.Pytester, plain: Run) -> Run:
    def run(*words: str, command: str = "pass", more: str = "") -> pytest.RunResult:
        pytester.makeconftest(CONFTEST.format(command=command, more=more))
        pytester.makepyfile(SUITE)
        return plain("--isolate-backend=bad", *words)

    return run


def test_one_that_crashes_when_it_is_to_start_is_blamed_and_the_run_goes_on(bad: Run) -> None:
    result = bad(command="raise RuntimeError('no idea')")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        ["pytest-isolate: plugin *, backend bad, spawn (*conftest.py:*): RuntimeError: no idea"]
    )
    assert "INTERNALERROR" not in str(result.stdout)


def test_one_whose_tool_ends_before_the_test_began_is_no_failure_of_the_test(bad: Run) -> None:
    more = "def fault(self, exited, run): return 'it has no room' if exited.status.code == 9 else ''"
    result = bad(command="return ['sh', '-c', 'exit 9']", more=more)
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*sandbox setup failed in env: it has no room*"])
    assert "INTERNALERROR" not in str(result.stdout)


def test_one_that_gives_something_else_than_a_process_is_blamed(bad: Run) -> None:
    result = bad(more="def spawn(self, policy, argv, **words): return 'started'")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        ["pytest-isolate: plugin *, backend bad, spawn: it gave 'started', which is no process*"]
    )
    assert "INTERNALERROR" not in str(result.stdout)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("fork = property(lambda self: self.no_such_thing)", "*backend bad, fork*AttributeError*"),
        ("def fork(self, policy, joined=None): return None", "*backend bad, fork*it gave None, which is no process*"),
    ],
    ids=["raises when it is looked up", "says it is the child, and is the parent"],
)
def test_one_whose_fork_is_none_is_blamed_and_the_run_goes_on(
    pytester: pytest.Pytester, plain: Run, more: str, line: str
) -> None:
    conftest = CONFTEST.format(command="pass", more=more)
    pytester.makeconftest(conftest.replace("spoilt = None", 'spoilt = None\n    runs = frozenset({"tests"})'))
    pytester.makepyfile(SUITE)
    result = plain("--isolate", "--isolate-backend=bad")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines([line])


def test_one_whose_fork_raises_in_the_child_leaves_one_pytest(pytester: pytest.Pytester, plain: Run) -> None:
    more = """
    def fork(self, policy, joined=None):
        pid = os.fork()
        if not pid:
            raise RuntimeError("in the child")
        from pytest_isolate.backends.fork import ForkedProcess
        return ForkedProcess(pid)
"""
    finish = "def pytest_sessionfinish(): print(file=open('finished', 'a'))"
    conftest = f"{CONFTEST.format(command='pass', more=more)}\n{finish}"
    pytester.makeconftest(conftest.replace("spoilt = None", 'spoilt = None\n    runs = frozenset({"tests"})'))
    pytester.makepyfile(SUITE)
    result = plain("--isolate", "--isolate-backend=bad", "-s")
    result.assert_outcomes(passed=1, errors=2)
    result.stderr.fnmatch_lines(["*plugin *, backend bad, fork*RuntimeError: in the child"])
    assert (pytester.path / "finished").read_text() == "\n", "once, in the parent"


@pytest.mark.parametrize(
    ("answer", "said"),
    [("return 'a licence.'", "bad lacks a licence"), ("raise SystemExit(3)", "bad lacks an answer: SystemExit: 3")],
)
def test_one_whose_answer_is_no_list_is_heard_all_the_same(
    pytester: pytest.Pytester, plain: Run, answer: str, said: str
) -> None:
    conftest = CONFTEST.format(command="pass", more="")
    pytester.makeconftest(conftest.replace("return []", answer, 1))
    pytester.makepyfile(SUITE)
    result = plain("--isolate", "--isolate-backend=bad", "--isolate-mode=fresh")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in str(result.stderr) + str(result.stdout)
    result.stdout.no_fnmatch_line("*PytestUnhandledThreadExceptionWarning*")


def test_a_program_under_one_that_crashes_is_an_error_that_names_it(pytester: pytest.Pytester, plain: Run) -> None:
    pytester.makeconftest(CONFTEST.format(command="raise RuntimeError('no idea')", more=""))
    pytester.makepyfile(
        """
        import pytest
        from pytest_isolate import PluginError
        def test_it(sandbox):
            with pytest.raises(PluginError, match="backend bad, spawn .*conftest.py:.*RuntimeError: no idea"):
                sandbox.run(["true"])
        """
    )
    plain("--isolate-backend=bad").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("subprocess.run(['mount', '-t', 'tmpfs', 'left', '/mnt'], check=True)", "*left behind: mount *"),
        ("subprocess.Popen(['sleep', '30'])", "*left behind: process *"),
        (
            "import tempfile; tempfile.mkstemp(prefix='pytest-isolate-')",
            "*left behind: file *pytest-isolate-*",
        ),
    ],
    ids=["mount", "process", "file"],
)
def test_what_one_leaves_behind_is_found_by_the_conformance_suite(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    """In a mount and PID namespace of the run's own: what is left there ends with it."""
    require("root", os.geteuid() == 0, "mounts")
    require("unshare(1)", shutil.which("unshare") is not None, "util-linux is not installed")
    for name in [name for name in os.environ if name.startswith("PYTEST")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ROOT, str(pytester.path)]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(CONFTEST.format(command=command, more=""))
    apart = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    words = ["-p", "pytest_isolate.runner.plugin", "--isolate-backend=bad", "--pyargs", "pytest_isolate.testing"]
    result = pytester.run(*apart, sys.executable, "-m", "pytest", *words, "-k", "environment and bad", timeout=100)
    assert result.ret == 1, result.stdout
    result.stdout.fnmatch_lines([said, "| environment | LIES |"])
