"""Scratch directories: gone with their maker, with kill -9 at the next start, and nobody else's ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pytest_isolate.kernel import scratch
from pytest_isolate.testing import require

_MAKER = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from pytest_isolate.kernel.scratch import Scratch
made = Scratch("of-a-test")
open(made.path + "/file", "w").close()
print(made.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def _maker(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    words = [sys.executable, "-c", _MAKER, str(tmp_path)]
    made = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    return made, Path(made.stdout.readline().strip())


def _aged(path: Path) -> None:
    os.utime(path, (0, 0))


def _swept() -> None:
    scratch.sweep.cache_clear()
    scratch.sweep()


def test_it_is_gone_when_it_is_closed_with_what_it_holds() -> None:
    with scratch.Scratch("of-a-test") as made:
        (Path(made.path) / "below").mkdir()
    assert not os.path.exists(made.path)
    made.close()


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    killed, left = _maker(tmp_path)
    living, held = _maker(tmp_path)
    with killed, living:
        for path in (left, held):
            _aged(path)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.exists()
        _swept()
        assert (left.exists(), held.exists()) == (False, True)
        living.communicate("")


def test_a_directory_made_just_now_is_left_alone_for_it_may_not_be_locked_yet(tmp_path: Path) -> None:
    young = tmp_path / "pytest-isolate-scratch-tool-young"
    young.mkdir()
    _swept()
    assert young.exists()
    _aged(young)
    _swept()
    assert not young.exists()


def test_neither_a_link_nor_another_users_directory_is_followed(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "only root can give a directory away")
    target, link = tmp_path / "target", tmp_path / "pytest-isolate-scratch-link"
    target.mkdir()
    link.symlink_to(target)
    theirs = tmp_path / "pytest-isolate-scratch-theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    for path in (target, theirs):
        _aged(path)
    _swept()
    assert [target.exists(), link.is_symlink(), theirs.exists()] == [True, True, True]
