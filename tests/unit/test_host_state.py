"""The check at the end of every run must be able to fail: each kind of leftover is left here, and found."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import host_state

SETTLE_S = 0.1


def test_an_untouched_host_is_the_same() -> None:
    assert host_state.remains(host_state.observe(), SETTLE_S) == []


def test_an_open_file_is_found() -> None:
    before = host_state.observe()
    with open("/dev/zero"):
        (line,) = host_state.remains(before, SETTLE_S)
    assert "open file" in line
    assert "/dev/zero" in line
    assert host_state.remains(before, SETTLE_S) == []


def test_a_daemon_is_found_though_it_left_session_and_parent() -> None:
    before = host_state.observe()
    program = "setsid sleep 60 >/dev/null & echo $!"
    output = subprocess.run(["sh", "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(output.stdout)
    try:
        lines = host_state.remains(before, SETTLE_S)
    finally:
        os.kill(pid, 9)
    assert [line for line in lines if f"process {pid}: sleep 60" in line], lines
    assert host_state.remains(before) == []


def test_a_changed_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = host_state.observe()
    monkeypatch.chdir(tmp_path)
    (line,) = host_state.remains(before, SETTLE_S)
    assert "working directory" in line


def test_a_run_that_leaves_a_process_fails_and_says_so(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "from tests.conftest import pytest_sessionstart, pytest_sessionfinish, pytest_terminal_summary"
    )
    pytester.makepyfile(
        """
        import subprocess
        def test_leaves():
            subprocess.run("sleep 3 >/dev/null 2>&1 & echo $! > left", shell=True)
        """
    )
    root = str(Path(__file__).parents[2])
    pytester.makeini(f"[pytest]\npythonpath = {root}\n")
    result = pytester.runpytest()
    os.kill(int((pytester.path / "left").read_text()), 9)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the host is not as it was before*", "process *: sleep 3*"])
