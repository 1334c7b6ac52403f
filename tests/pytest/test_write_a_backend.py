"""What docs/how-to/write-a-backend.md says is done, word by word: a newcomer's conftest works, and a lie is found out."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import require

from .conftest import ROOT

PAGE = Path(ROOT) / "docs" / "how-to" / "write-a-backend.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(autouse=True)
def _ground(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    require("unshare(1)", shutil.which("unshare") is not None, "util-linux is not installed")
    require("root", os.geteuid() == 0, "unshare(1) without a user namespace needs it")
    for name in [name for name in os.environ if name.startswith("PYTEST")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ROOT, str(pytester.path)]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def run(pytester: pytest.Pytester, *words: str) -> pytest.RunResult:
    return pytester.run(sys.executable, "-m", "pytest", "-p", "pytest_isolate.runner.plugin", *words, timeout=100)


def conformance(pytester: pytest.Pytester) -> pytest.RunResult:
    words = ("--isolate-backend=unshare", "-k", "unshare", "--pyargs", "pytest_isolate.testing")
    return run(pytester, *words)


def test_the_backend_is_as_short_as_promised_and_its_test_passes(pytester: pytest.Pytester) -> None:
    conftest, test = blocks()
    assert len(conftest.splitlines()) < 60
    pytester.makeconftest(conftest)
    pytester.makepyfile(test)
    run(pytester, "--isolate-backend=unshare").assert_outcomes(passed=1)


def test_it_passes_the_conformance_suite_where_it_claims_something(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(blocks()[0])
    result = conformance(pytester)
    assert result.ret == 0, result.stdout
    for capability, word in (("namespace_net", "yes"), ("session", "yes"), ("namespace_pid", "-")):
        result.stdout.fnmatch_lines([f"| {capability} | {word} |"])


def test_a_backend_that_claims_more_than_it_does_gets_a_red_cell(pytester: pytest.Pytester) -> None:
    conftest = blocks()[0].replace("if namespace in policy.namespaces]", "if namespace is not Namespace.NET]")
    pytester.makeconftest(conftest.replace("[*asked,", "["))
    result = conformance(pytester)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["| namespace_uts | LIES |", "| namespace_net | LIES |"])
    result.stdout.fnmatch_lines(["*inside it printed 'net:*', outside 'net:*'"])
