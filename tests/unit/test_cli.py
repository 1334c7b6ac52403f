"""The command `pytest-isolate`, as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_isolate import cli
from pytest_isolate.kernel import probe


def command(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    program = "import sys; from pytest_isolate.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=cwd, timeout=120)


def test_the_table_has_a_line_for_every_feature_and_a_fix_below_a_no() -> None:
    ran = command("doctor")
    lines = ran.stdout.splitlines()
    for name, feature in probe.capabilities().items():
        assert any(line.split()[:2] == [name, "yes" if feature else "no"] for line in lines), (name, ran.stdout)
        if feature.remedy:
            assert "fix: " in ran.stdout
    assert ran.returncode == (0 if probe.feature("sandbox") else 1), ran.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest_isolate.cli", "doctor", "--json"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=120,
        )
    finally:
        os.close(writing)
    assert (ran.returncode in (cli.EXIT_OK, cli.EXIT_NO), ran.stderr) == (True, "")


def test_a_standard_output_that_the_shell_has_closed_is_no_error() -> None:
    words = [sys.executable, "-m", "pytest_isolate.cli", "doctor", "--require", "rlimits"]
    ran = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *words], stderr=subprocess.PIPE, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (cli.EXIT_OK, "")


def test_json_says_the_same_and_nothing_else() -> None:
    answer = json.loads(command("doctor", "--json").stdout)
    assert set(answer) == {"version", "surroundings", "profiles", "features"}
    assert {name: feature["available"] for name, feature in answer["features"].items()} == {
        name: bool(feature) for name, feature in probe.capabilities().items()
    }


def test_requiring_what_is_there_succeeds_and_a_typing_error_is_a_usage_error() -> None:
    assert command("doctor", "--require", "rlimits,pidfd").returncode == cli.EXIT_OK
    ran = command("doctor", "--require", "rlimit")
    assert ran.returncode == cli.EXIT_USAGE
    assert "did you mean 'rlimits'" in ran.stderr.lower()


def test_requiring_what_is_missing_fails_and_says_what() -> None:
    missing = [name for name, feature in probe.capabilities().items() if not feature]
    if not missing:
        pytest.skip("needs a missing feature: this host has all of them")
    ran = command("doctor", "--require", missing[0])
    assert ran.returncode == cli.EXIT_NO
    assert f"required: {missing[0]}" in ran.stderr


@pytest.mark.parametrize("words", [(), ("nonsense",), ("doctor", "--json", "--ci")])
def test_words_without_meaning_are_usage_errors(words: tuple[str, ...]) -> None:
    ran = command(*words)
    assert ran.returncode == cli.EXIT_USAGE
    assert "usage: pytest-isolate" in ran.stderr


def test_explain_runs_nothing_and_says_where_each_setting_came_from(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pathlib, pytest\n"
        "@pytest.mark.isolate(timeout=3, profile='minimal')\n"
        "def test_marked():\n    pathlib.Path('ran').touch()\n"
        "def test_bare(): pass\n"
    )
    ran = command("doctor", "--explain", "test_it.py::test_marked", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "isolated   always: it has the marker" in ran.stdout
    assert "profile    minimal: time-out 3 s" in ran.stdout
    assert "isolate(timeout=3, profile='minimal')" in ran.stdout
    assert ": taken, the first that enforces all of it" in ran.stdout
    assert not (tmp_path / "ran").exists()
    assert "with --isolate" in command("doctor", "--explain", "test_it.py::test_bare", cwd=tmp_path).stdout


def test_explaining_a_test_that_is_not_there_fails(tmp_path: Path) -> None:
    assert command("doctor", "--explain", "test_none.py", cwd=tmp_path).returncode != 0


def test_explain_says_what_the_fork_backend_lacks(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nisolate = true\nisolate_backend = fork\n")
    ran = command("doctor", "--explain", "test_it.py", cwd=tmp_path)
    assert "fork: not taken, it lacks namespaces ipc, mnt, uts" in ran.stdout
    assert "none: --isolate-missing=error decides" in ran.stdout


def test_the_command_loads_nothing_heavy_before_a_subcommand_is_chosen() -> None:
    program = "import sys, pytest_isolate.cli; print([n for n in sys.modules if n in ('pytest', 'ctypes', 'pyroute2')])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert ran.stdout.strip() == "[]"
