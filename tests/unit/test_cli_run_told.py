"""What `pytest-isolate run` says, and where: JSON apart from the program's output, one line for one thing, nothing that changes the status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_isolate.cli.told import quoted
from tests.unit.test_cli_run import _sandboxes, run  # noqa: F401 - a fixture

RUN = (sys.executable, "-m", "pytest_isolate.cli", "run")


def shell(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", script, "sh", *RUN, *words], capture_output=True, text=True, timeout=60)


def test_json_goes_into_a_file_and_the_program_has_standard_error_for_itself(tmp_path: Path) -> None:
    done = run("--json-file", str(tmp_path / "out"), "--", "sh", "-c", "printf part >&2; exit 3")
    assert (done.returncode, done.stderr) == (3, "part")
    outcome = json.loads((tmp_path / "out").read_text())
    assert (outcome["status"]["code"], outcome["exit_status"], outcome["causes"]) == (3, 3, [])


def test_json_goes_to_a_descriptor_that_the_program_does_not_have(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = shell(f'exec "$@" 7>{out}', "--json-fd", "7", "--", "sh", "-c", "echo x >&7")
    assert done.returncode != 0, "the program could write into the JSON"
    assert json.loads(out.read_text())["exit_status"] == done.returncode


def test_json_on_standard_error_begins_on_a_line_of_its_own() -> None:
    done = run("--json", "--", "sh", "-c", "printf part >&2")
    first, last = done.stderr.splitlines()
    assert (first, json.loads(last)["exit_status"]) == ("part", 0)


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--", "no-such-program"], 127), (["--memory", "x", "--", "true"], 125), (["--pids", "1", "--", "true"], 125)],
)
def test_what_could_not_start_has_an_outcome_with_the_cause_setup(
    words: list[str], status: int, tmp_path: Path
) -> None:
    done = run("--json-file", str(tmp_path / "out"), *words)
    outcome = json.loads((tmp_path / "out").read_text())
    assert (done.returncode, outcome["exit_status"], outcome["causes"]) == (status, status, ["SETUP"])
    assert outcome["detail"][0] in f"SETUP: {done.stderr.partition(': ')[2]}"
    assert json.loads(run("--json", *words).stderr.splitlines()[-1])["causes"] == ["SETUP"]


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--timeout", "0.2", "--", "sleep", "9"], 124),
        (["--json", "--timeout", "0.2", "--", "sleep", "9"], 124),
        (["--", "no-such-program"], 127),
        (["--memory", "x", "--", "true"], 125),
        (["--no-such-option"], 125),
        (["--", "sh", "-c", "exit 3"], 3),
    ],
)
def test_the_status_holds_where_nothing_can_be_said_and_nothing_is_said_elsewhere(
    where: str, words: list[str], status: int
) -> None:
    done = shell(f'exec "$@" {where}', *words)
    assert (done.returncode, done.stdout) == (status, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_is_dev_null_for_the_program(closed: str, tmp_path: Path) -> None:
    """As a daemon has it: no file of ours, and none that the program opens, becomes its input or output."""
    told = tmp_path / "told"
    tell = f"for n in 0 2; do readlink /proc/$$/fd/$n; done >{told}"
    assert shell(f'exec "$@" {closed}', "--", "sh", "-c", tell).returncode == 0
    places = told.read_text().split()
    assert "<" not in closed or places[0] == os.devnull
    assert (places[1] == os.devnull) == ("2>" in closed)


def test_a_file_name_is_one_line_and_quoted_as_a_shell_reads_it(tmp_path: Path) -> None:
    names = ["a b", "new\nline", "it's", "\udc80", "plain"]
    done = run("--fs", "overlay:.", "--", "touch", "--", *names, cwd=tmp_path)
    lines = [line.partition("added: ")[2] for line in done.stderr.splitlines()]
    assert len(lines) == len(names)
    read = subprocess.run(["bash", "-c", f"printf '%s\\0' {' '.join(lines)}"], capture_output=True).stdout
    assert sorted(read.split(b"\0")[:-1]) == sorted(os.fsencode(f"{tmp_path}/{name}") for name in names)
    assert quoted("/tmp/plain-1.txt") == "/tmp/plain-1.txt"
