"""The hooks around a sandbox: who is called when, and who is blamed."""

from __future__ import annotations

from typing import Any

import pytest

LOG = """
import contextlib, os
LOG = {log!r}
def say(*words):
    with open(LOG, "a") as file: print(*words, file=file)
"""


@pytest.fixture(name="log")
def log_file(pytester: pytest.Pytester) -> Any:
    return pytester.path / "hooks.log"


def conftest(pytester: pytest.Pytester, log: Any, text: str) -> None:
    pytester.makeconftest(LOG.format(log=str(log)) + text)


def test_a_test_and_a_program_have_all_hooks_in_order(pytester: pytest.Pytester, isolated: Any, log: Any) -> None:
    conftest(
        pytester,
        log,
        """
@contextlib.contextmanager
def guard():
    say("guard in")
    yield
    say("guard out")
def pytest_isolate_guards(policy): return [guard()]
def pytest_isolate_prepare(sandbox, policy): say("prepare", sandbox.kind, sandbox.item.name, sandbox.backend, sandbox.policy is policy)
def pytest_isolate_spawned(sandbox, process): say("spawned", process.pid > 0)
def pytest_isolate_finished(sandbox, outcome): say("finished", *outcome.args, outcome.status, *outcome.causes)
""",
    )
    pytester.makepyfile(
        test_it="""
        import pytest
        def test_one(): pass
        @pytest.mark.isolate(False)
        def test_program(sandbox): sandbox.run(["false"])
        """
    )
    isolated().assert_outcomes(passed=2)
    begins = ["guard in", "prepare {} native True", "spawned True"]
    assert log.read_text().splitlines() == [
        *(line.format("tests test_one") for line in begins),
        "finished test_it.py::test_one exited with status 0",
        "guard out",
        *(line.format("programs test_program") for line in begins),
        "finished false exited with status 1",
        "guard out",
    ]


def test_what_a_sandbox_came_to_is_told(pytester: pytest.Pytester, isolated: Any, log: Any) -> None:
    conftest(
        pytester,
        log,
        "def pytest_isolate_finished(sandbox, outcome): say(outcome.args[0], outcome.status, [c.value for c in outcome.causes], len(outcome.leftovers))\n"
        "def pytest_isolate_report(outcome, report): say('report', outcome.causes[0].value, outcome.detail[0][:7])",
    )
    pytester.makepyfile(
        test_it="""
        import os, time, subprocess
        def test_hangs(): time.sleep(60)
        def test_dies(): os.abort()
        def test_leaks(): subprocess.Popen(["sleep", "3600"])
        """
    )
    isolated("--isolate-timeout=0.5").assert_outcomes(failed=2, passed=1)
    assert log.read_text().splitlines() == [
        "report TIMEOUT TIMEOUT",
        "test_it.py::test_hangs killed by SIGTERM ['TIMEOUT'] 0",
        "test_it.py::test_dies killed by SIGABRT [] 0",
        "test_it.py::test_leaks exited with status 0 [] 1",
        "report LEAK LEAK: t",
    ]


@pytest.mark.parametrize(
    "hook", ["guards(policy)", "prepare(sandbox)", "spawned(sandbox)", "select(candidates)", "finished(sandbox)"]
)
def test_a_hook_that_raises_is_blamed_and_the_test_is_an_error(
    pytester: pytest.Pytester, isolated: Any, hook: str
) -> None:
    pytester.makeconftest(f"def helper(): raise RuntimeError('no licence')\ndef pytest_isolate_{hook}:\n    helper()")
    pytester.makepyfile(test_it="def test_one(): pass\ndef test_two(): pass")
    result = isolated("-rE")
    outcomes = result.parseoutcomes()
    assert "failed" not in outcomes
    where = "*plugin *conftest.py, pytest_isolate_{} (*conftest.py:3): RuntimeError: no licence*".format(
        hook.partition("(")[0]
    )
    assert outcomes["errors"] == 2
    result.stdout.fnmatch_lines([where])


def test_a_report_hook_that_raises_is_an_error_beside_the_failure(pytester: pytest.Pytester, isolated: Any) -> None:
    pytester.makeconftest("def pytest_isolate_report(report): raise RuntimeError('no licence')")
    pytester.makepyfile(
        test_it="""
        import subprocess, time
        def test_hangs(): time.sleep(60)
        def test_leaks(): subprocess.Popen(["sleep", "3600"])
        """
    )
    result = isolated("--isolate-timeout=0.5")
    result.assert_outcomes(failed=1, errors=2, passed=1)
    result.stdout.fnmatch_lines(["*conftest.py, pytest_isolate_report (*conftest.py:1): RuntimeError: no licence*"])


def test_a_guard_that_raises_is_blamed_and_those_entered_are_left(
    pytester: pytest.Pytester, isolated: Any, log: Any
) -> None:
    conftest(
        pytester,
        log,
        """
@contextlib.contextmanager
def good():
    yield
    say("left")
@contextlib.contextmanager
def bad():
    raise OSError("no mount")
    yield
def pytest_isolate_guards(policy): return [good(), bad()]
""",
    )
    pytester.makepyfile(test_it="def test_one(): pass")
    result = isolated()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*pytest_isolate_guards (*conftest.py:*): OSError: no mount*"])
    assert log.read_text() == "left\n"


def test_a_misspelt_hook_is_a_usage_error_that_names_the_right_one(pytester: pytest.Pytester, plain: Any) -> None:
    pytester.makeconftest("def pytest_isolate_finnished(sandbox): pass")
    pytester.makepyfile(test_it="def test_one(): pass")
    result = plain()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: pytest-isolate: *conftest.py: there is no hook pytest_isolate_finnished; did you mean pytest_isolate_finished?"
        ]
    )


def test_a_hook_with_a_wrong_argument_is_refused_by_name(pytester: pytest.Pytester, plain: Any) -> None:
    pytester.makeconftest("def pytest_isolate_finished(sandbx): pass")
    pytester.makepyfile(test_it="def test_one(): pass")
    result = plain()
    assert result.ret != 0
    assert "sandbx" in str(result.stderr) + str(result.stdout)


def test_a_hook_below_a_directory_holds_for_its_tests_only(pytester: pytest.Pytester, isolated: Any, log: Any) -> None:
    below = pytester.mkdir("below")
    (below / "conftest.py").write_text(
        LOG.format(log=str(log)) + "def pytest_isolate_prepare(sandbox): say(sandbox.item.nodeid)"
    )
    (below / "test_in.py").write_text("def test_in(): pass")
    pytester.makepyfile(test_out="def test_out(): pass")
    isolated().assert_outcomes(passed=2)
    assert log.read_text().splitlines() == ["below/test_in.py::test_in"]


def test_an_installed_package_decorates_its_hooks(pytester: pytest.Pytester, isolated: Any, log: Any) -> None:
    pytester.makepyfile(
        packaged=LOG.format(log=str(log))
        + """
import pytest
@pytest.hookimpl(wrapper=True)
def pytest_isolate_prepare(sandbox, policy):
    say("before")
    yield
    say("after")
"""
    )
    pytester.syspathinsert()
    pytester.makepyfile(test_it="def test_one(): pass")
    isolated("-p", "packaged").assert_outcomes(passed=1)
    assert log.read_text().splitlines() == ["before", "after"]
