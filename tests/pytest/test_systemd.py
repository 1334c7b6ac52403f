"""The backend systemd on a machine of its own, where systemd is PID 1: its tests, and the conformance suite."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from tests import in_systemd
from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "systemd"


def on_the_machine(*words: str) -> subprocess.CompletedProcess[str]:
    require("systemd", not in_systemd.why_not(), in_systemd.why_not())
    require("jeepney", importlib.util.find_spec("jeepney") is not None, "no module jeepney")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {
        "ISOLATE_REQUIRE": "systemd",
        "PYTHONPATH": f"{PLUGIN}{os.pathsep}{ROOT}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    plugins = ["-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:randomly"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *words]
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "in_systemd.py"), *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_plugins_own_tests_pass_where_systemd_is_pid_1() -> None:
    done = on_the_machine(str(PLUGIN / "tests"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout, done.stdout


def test_it_enforces_what_it_claims() -> None:
    done = on_the_machine(
        "-p", "pytest_isolate_systemd", "--isolate-backend=systemd", "--pyargs", "pytest_isolate.testing"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| network_loopback | yes |" in done.stdout
    assert "LIES" not in done.stdout


def test_the_machine_leaves_nothing_on_this_one() -> None:
    require("systemd", not in_systemd.why_not(), in_systemd.why_not())
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "in_systemd.py"), "cat", "/proc/1/comm"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "systemd\n"), done.stderr
    assert not [name for name in os.listdir(in_systemd.cgroup2()) if name.startswith("pytest-isolate-machine")]
    assert not [name for name in os.listdir("/tmp") if name.startswith("pytest-isolate-machine")]
