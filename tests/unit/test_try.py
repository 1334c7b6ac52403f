"""`make try` may call a failure expected only when it is listed, and must notice a catch that did not happen."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "try.py"
EXPECTED = """
# a comment
test_crash   failed   SIGSEGV
test_fine    passed
"""
SUITE = """
import pytest
def test_crash(): assert 0, {message!r}
def test_fine(): pass
def test_other(): assert {other}
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_try", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.dont_write_bytecode", True)
        patch.setitem(__import__("sys").modules, "make_try", module)
        spec.loader.exec_module(module)
    return module


def surprises(script: ModuleType, pytester: pytest.Pytester, source: str, expected: str = EXPECTED) -> list[str]:
    pytester.makepyfile(test_it=source)
    pytester.runpytest("--junitxml=junit.xml")
    (pytester.path / "EXPECTED").write_text(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "EXPECTED", pytester.path / "EXPECTED")
        return list(script.surprises(script.expectations(), script.seen(pytester.path / "junit.xml")))


def test_what_is_listed_and_happens_is_no_surprise(script: ModuleType, pytester: pytest.Pytester) -> None:
    assert surprises(script, pytester, SUITE.format(message="killed by SIGSEGV", other=True)) == []


def test_a_report_without_the_cause_is_a_surprise(script: ModuleType, pytester: pytest.Pytester) -> None:
    (line,) = surprises(script, pytester, SUITE.format(message="something else", other=True))
    assert "does not say 'SIGSEGV'" in line


def test_a_failure_that_is_not_listed_is_a_surprise(script: ModuleType, pytester: pytest.Pytester) -> None:
    (line,) = surprises(script, pytester, SUITE.format(message="SIGSEGV", other=False))
    assert line == "test_other: failed, and nothing of the kind is expected"


def test_a_catch_that_did_not_happen_or_run_is_a_surprise(script: ModuleType, pytester: pytest.Pytester) -> None:
    more = EXPECTED + "test_hang failed TIMEOUT\ntest_other failed LEAK\n"
    found = surprises(script, pytester, SUITE.format(message="SIGSEGV", other=True), more)
    assert found == ["test_hang: did not run", "test_other: passed, expected failed"]
