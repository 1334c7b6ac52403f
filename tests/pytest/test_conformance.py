"""Every backend of this repository enforces what it claims: the conformance suite, run as a user runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pytest_isolate.testing import require, required_features

from .conftest import ROOT

#: What must be among the cells of a backend that works; by plugin's directory, None for what is built in. systemd: test_systemd.py.
CLAIMS = {
    "native": (None, "overlays"),
    "fork": (None, "rlimits"),
    "landlock": ("landlock", "landlock"),
    "bubblewrap": ("bubblewrap", "namespace_user"),
    "oci": ("oci", "root_minimal"),
    "gvisor": ("gvisor", "fresh_proc"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_no_red_cell(name: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, claimed = CLAIMS[name]
    for variable in [variable for variable in os.environ if variable.startswith("PYTEST")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("ISOLATE_REQUIRE", ",".join({"native", "fork"} | required_features()))
    words = ["-p", "pytest_isolate.runner.plugin", f"--isolate-backend={name}", "--pyargs", "pytest_isolate.testing"]
    paths = [ROOT]
    if plugin is not None:
        paths.append(str(Path(ROOT) / "plugins" / plugin))
        words = ["-p", f"pytest_isolate_{plugin}", *words]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    result = pytester.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words, timeout=200)
    assert result.ret == 0, str(result.stdout)
    assert "LIES" not in str(result.stdout)
    cells = [line.split("|")[2].strip() for line in result.outlines if line.startswith(f"| {claimed} |")]
    if cells in ([], ["-"]):
        reason = next((line for line in result.outlines if "not claimed" in line), "it claims nothing")
        require(name, False, reason)
    assert cells == ["yes"] or set(cells) == {"yes"}
