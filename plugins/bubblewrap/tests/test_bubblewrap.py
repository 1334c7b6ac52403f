"""What is bubblewrap's own: its arguments, its versions, its faults. What it enforces is held by pytest_isolate.testing."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_isolate_bubblewrap
from pytest_isolate_bubblewrap import Bubblewrap, options

from pytest_isolate import (
    MINIMAL,
    STANDARD,
    STRICT,
    Bind,
    Filesystem,
    PolicyError,
    Sandbox,
    SetupError,
    Tmpfs,
    hooks,
    tool,
    vary,
)
from pytest_isolate.testing import require


def sandbox(policy):
    lacking = Bubblewrap().lacks(policy)
    require("bubblewrap", not lacking, "; ".join(lacking))
    manager = hooks.plugin_manager()
    manager.register(pytest_isolate_bubblewrap)
    return Sandbox(policy, hooks=hooks.Hooks(manager), backends=["bubblewrap"])


def test_minimal_shares_everything():
    assert list(options(MINIMAL)) == ["--die-with-parent", "--dev-bind", "/", "/"]


def test_strict_is_translated_whole():
    found = list(options(STRICT))
    assert {"--unshare-pid", "--unshare-uts", "--unshare-ipc", "--unshare-net"} <= set(found)
    assert found[found.index("--cap-drop") + 1] == "ALL"
    assert found.index("--ro-bind") < found.index("--tmpfs") < len(found)


@pytest.mark.parametrize("words", [{"namespaces": "+time"}, {"net": "none"}])
def test_what_it_cannot_do_it_lacks(words):
    assert Bubblewrap().lacks(vary(STANDARD, **words))


def test_a_bind_without_the_mounts_below_is_not_made_recursive_silently():
    policy = vary(STANDARD, fs=Filesystem(proc=False, binds=(Bind(source="/usr", target="/mnt", recursive=False),)))
    assert any("recursively" in text for text in Bubblewrap().lacks(policy))


def test_a_missing_tool_is_named_with_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Bubblewrap().lacks(MINIMAL) == ["bwrap: not found on PATH. Install it: apt-get install bubblewrap"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo bubblewrap 0.3.1", "bwrap 0.5: this is 0.3.1"),
        ("case $1 in --version) echo bubblewrap 0.8.0;; *) echo no userns >&2; exit 1;; esac", "no userns"),
        ("case $1 in --version) echo bubblewrap 0.8.0;; *) exec sleep 99;; esac", "not done after"),
    ],
    ids=["too old", "refused", "hangs"],
)
def test_a_bwrap_that_is_no_good_is_told_as_lacking(monkeypatch, tmp_path, script, said):
    monkeypatch.setattr(tool, "_TRIAL_S", 0.5)
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (lacking,) = Bubblewrap().lacks(MINIMAL)
    assert said in lacking


def test_the_fault_of_bwrap_is_not_the_programs(tmp_path: Path):
    gone = tmp_path / "gone"
    gone.mkdir()
    with sandbox(vary(STANDARD, fs=Filesystem(proc=False, binds=(Bind(source=str(gone), target="/mnt"),)))) as made:
        assert made.run(["true"]).ok
        gone.rmdir()
        with pytest.raises((SetupError, PolicyError), match="gone"):
            made.run(["true"])


def test_a_signal_reaches_the_program_and_not_bwrap_alone():
    with sandbox(vary(MINIMAL, namespaces="pid")) as made:
        running = made.spawn(["sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"])
        running.wait_for_line("ready")
        outcome = running.terminate()
    assert (outcome.status.code, outcome.stdout) == (3, "ready\nbye\n")


def test_a_mask_is_of_the_kind_that_the_view_has_there(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("content")
    (tmp_path / "folder" / "inner").touch()
    view = Filesystem(tmpfs=(Tmpfs(target="/mnt"),), binds=(Bind(source=str(tmp_path), target="/mnt/b"),))
    look = ["sh", "-c", "cat /mnt/b/file; ls /mnt/b/folder; test -d /mnt/b/folder"]
    with sandbox(vary(STANDARD, fs=view)) as box:
        assert box.run(look, cwd="/").stdout == "contentinner\n"
        outcome = box.run(look, cwd="/", fs=replace(view, masks=("/mnt/b/file", "/mnt/b/folder")))
    assert (outcome.stdout, outcome.status.code) == ("", 0), outcome.stderr
