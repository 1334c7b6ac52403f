"""The tutorial's code does what the tutorial says it does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_isolate.kernel import probe
from tests.conftest import require

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


def block(language: str, holding: str) -> str:
    """The one code block that holds a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    (found,) = [text for text in blocks if holding in text]
    return str(found)


def run(cwd: Path, *words: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(autouse=True)
def _needs_sandboxes() -> None:
    require("namespaces", probe.feature("sandbox").available, str(probe.feature("sandbox")))


def test_what_is_shown_to_be_caught_is_caught(tmp_path: Path) -> None:
    (tmp_path / "test_caught.py").write_text(block("python", "test_crash"))
    output = run(tmp_path, "--isolate")
    assert "killed by SIGSEGV during call" in output
    assert "TIMEOUT: the test's call was still running after 1 s" in output
    assert re.search(r"test_caught\.py FT\.L\.", output), output
    assert "sleep 3600" in output
    assert "2 failed, 2 passed" in output


def test_the_ini_file_holds_and_its_profile_is_in_force(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(block("ini", "isolate_profiles"))
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    output = run(tmp_path)
    assert "isolate: profile ci (" in output
    assert "network loopback, memory 1 GiB, time-out 60 s" in output
    assert "1 passed" in output


def test_the_programs_run_as_shown(tmp_path: Path) -> None:
    code = "def test_server(sandbox):"
    text = block("python", code).replace("8000", "38771")
    (tmp_path / "test_programs.py").write_text(text)
    output = run(tmp_path, "-rP")
    assert "2 passed" in output, output
    assert "Cause.OOM" in output or "MemoryError" in output, output
