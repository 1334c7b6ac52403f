"""What `make try` shows happens, and what it would not forgive."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pytest_isolate.kernel import probe
from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make_try() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_try", ROOT / ".ci" / "try.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_try"] = module
    spec.loader.exec_module(module)
    return module


def test_every_catch_happens_and_nothing_is_left() -> None:
    require("namespaces", probe.feature("sandbox").available, str(probe.feature("sandbox")))
    ran = subprocess.run([sys.executable, ".ci/try.py"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "All 6 catches happened" in ran.stdout


def test_every_example_says_what_plain_pytest_and_what_isolate_would_do() -> None:
    examples = sorted((ROOT / "examples").glob("test_*.py"))
    assert len(examples) == 8
    for path in examples:
        text = path.read_text()
        assert "Plain pytest: " in text, path
        assert "With --isolate" in text, path


def test_a_catch_that_did_not_happen_and_one_that_nobody_expects_are_surprises(make_try: ModuleType) -> None:
    expected = {
        "test_hang": make_try.Expected("failed", ("TIMEOUT",)),
        "test_leak": make_try.Expected("error", ("LEAK",)),
        "test_gone": make_try.Expected("passed", ("",)),
    }
    run = {
        "test_hang": make_try.Seen("failed", "AssertionError"),
        "test_leak": make_try.Seen("passed", ""),
        "test_new": make_try.Seen("failed", "?"),
    }
    assert sorted(make_try.surprises(expected, run)) == [
        "test_gone: did not run",
        "test_hang: failed as expected, but its report does not say 'TIMEOUT'",
        "test_leak: passed, expected error",
        "test_new: failed, and nothing of the kind is expected",
    ]


def test_any_of_the_alternative_words_will_do(make_try: ModuleType) -> None:
    expected = {"test_memory": make_try.Expected("failed", ("OOM-killed", "MemoryError"))}
    assert list(make_try.surprises(expected, {"test_memory": make_try.Seen("failed", "E   MemoryError")})) == []
