"""What the tests of the package share: the sdist and the wheel that `build` makes, and an environment with the wheel in it.

Owns: run() and succeed(), and the fixtures `dist`, `wheel` and `installed`, made once. Refuses: the checkout as an import.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def succeed(*command: str | Path, cwd: Path) -> str:
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, bool, str], None]) -> Path:
    """A directory with the sdist and the wheel that `build` makes from it."""
    require("build", importlib.util.find_spec("build") is not None, "pip install build")
    place = tmp_path_factory.mktemp("dist")
    source = place / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".git", ".tox", ".venv", "build", "_native", "_bpf", "*.so", "*.o")
    )
    succeed(sys.executable, "-m", "build", "--outdir", place, source, cwd=place)
    return place


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of a fresh environment with the wheel in it."""
    venv = tmp_path_factory.mktemp("venv")
    succeed(sys.executable, "-m", "venv", venv, cwd=venv)
    succeed(venv / "bin" / "python", "-m", "pip", "install", "-q", "--no-input", wheel, cwd=venv)
    return venv / "bin"
