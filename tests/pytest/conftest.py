"""How the runner is tested: real pytest runs in a subprocess, with only the plugins that a test names.

Owns: the fixtures `isolated` and `plain`, which run pytest with and without --isolate in the pytester directory.
Refuses: to look inside the runner; what counts is what a user sees.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
from collections.abc import Callable

import pytest

from tests.conftest import require

ROOT = str(pathlib.Path(__file__).parents[2])
#: No inner run may take longer; a run that hangs fails its test.
HANGS_S = 60
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def plain(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``plain(*args)`` runs pytest, our plugin loaded and silent, no other plugin unless ``-p`` names it."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    for name in [name for name in os.environ if name.startswith("PYTEST_ISOLATE") or name == "PYTEST_ADDOPTS"]:
        monkeypatch.delenv(name)

    def run(*args: object, timeout: float = HANGS_S) -> pytest.RunResult:
        return pytester.runpytest_subprocess("-p", "pytest_isolate.runner.plugin", *args, timeout=timeout)

    return run


@pytest.fixture
def isolated(plain: Run) -> Run:
    """``isolated(*args)`` is ``plain("--isolate", *args)``."""

    def run(*args: object, timeout: float = HANGS_S) -> pytest.RunResult:
        return plain("--isolate", *args, timeout=timeout)

    return run


@pytest.fixture
def meeting(pytester: pytest.Pytester) -> None:
    """The modules ``meeting`` and ``diarist`` are there for inner tests to import."""
    from .meeting import MEETING
    from .test_fixtures import _DIARY

    pytester.makepyfile(meeting=MEETING, diarist=_DIARY)


@pytest.fixture
def need() -> Callable[[str, str], None]:
    """``need("xdist", "xdist")`` skips, naming the feature, where the module cannot be imported."""

    def check(feature: str, module: str) -> None:
        require(feature, importlib.util.find_spec(module) is not None, f"no module {module}")

    return check
