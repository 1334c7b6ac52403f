"""`pytest-isolate run` shows and limits what it is asked to, by the names that bwrap(1) and getrlimit(2) have."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_isolate.cli import run as cli
from pytest_isolate.kernel import probe
from pytest_isolate.policy import IoLimit
from tests.kernel.filesystem.asking import host_mount
from tests.unit.test_cli_run import _sandboxes, run  # noqa: F401 - a fixture


@pytest.fixture
def place(require: Callable[[str, bool, str], None]) -> Iterator[Path]:
    """On a disk: what lies on an overlay cannot keep an overlay's changes."""
    require("overlay-upper", host_mount("/var/tmp").fstype != "overlay", "/var/tmp on a disk")
    folder = Path(tempfile.mkdtemp(prefix="isolate-run-", dir="/var/tmp"))
    (folder / "work").mkdir()
    (folder / "work" / "old").write_text("old")
    (folder / "work" / "both").write_text("old")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_binds_are_writable_or_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    words = ["--bind", "a", "/mnt", "--", "touch", "/mnt/x"]
    assert run(*words, cwd=tmp_path).returncode == 0
    assert (tmp_path / "a" / "x").exists()
    assert run("--ro-bind", "a", "/mnt", "--", "ls", "/mnt", cwd=tmp_path).stdout == "x\n"
    assert run("--ro-bind", "a", "/mnt", "--", "touch", "/mnt/y", cwd=tmp_path).returncode == 1


def test_a_tmpfs_is_empty_and_as_large_as_said(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert run("--tmpfs", str(tmp_path), "--", "ls", str(tmp_path)).stdout == ""
    fill = ["--", "dd", "if=/dev/zero", f"of={tmp_path}/full", "bs=64K", "count=4"]
    assert run("--tmpfs", f"{tmp_path}:1M", *fill).returncode == 0
    assert run("--tmpfs", f"{tmp_path}:128K", *fill).returncode == 1
    assert (tmp_path / "x").exists()


def test_a_mask_hides(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    assert run("--", "cat", str(tmp_path / "secret")).stdout == "secret"
    done = run("--mask", str(tmp_path / "secret"), "--", "cat", str(tmp_path / "secret"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_minimal_root_has_the_programs_that_are_added(tmp_path: Path) -> None:
    assert run("--fs", "minimal", "--", "sh", "-c", "ls /", cwd=tmp_path).returncode == 127
    both = ["--with-program", "ls", "--with-program", "cat"]
    done = run("--fs", "minimal", *both, "--", "sh", "-c", "ls / && cat /dev/null", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_rlimits_are_those_of_the_program() -> None:
    done = run("--rlimit", "NOFILE=64:128", "--rlimit", "core=0", "--", "sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c")
    assert done.stdout.split() == ["64", "128", "0"]


def test_a_cpuset_holds(require: Callable[[str, bool, str], None]) -> None:
    feature = probe.feature("cgroup_cpuset")
    require("cgroup-cpuset", feature.available, feature.reason)
    assert run("--cpuset", "0", "--", "nproc").stdout == "1\n"
    assert run("--cpuset", "9999", "--", "nproc").returncode == 125


def test_bounds_on_a_device_have_the_names_of_io_max() -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    words = parser.parse_args(["--io", "/var/tmp:rbps=1M,wiops=5", "--io", "/a:b:wbps=64K", "--", "true"])
    assert cli.policy_of(words).limits.io == (
        IoLimit(path="/var/tmp", read_bps=1 << 20, write_iops=5),
        IoLimit(path="/a:b", write_bps=64 << 10),
    )


def test_the_network_obeys_rules(require: Callable[[str, bool, str], None]) -> None:
    feature = probe.feature("bpf")
    require("bpf", feature.available, feature.reason)
    with subprocess.Popen(
        [
            "python3",
            "-c",
            "import socket as s; a=s.create_server(('127.0.0.1',0)); print(a.getsockname()[1],flush=1); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        connect = ["--", "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"]
        assert run("--net-allow", f"127.0.0.1:{port}/tcp", "--net-deny", "127.0.0.1:9", *connect).returncode == 0
        done = run("--net-deny", f"127.0.0.1:{port}/tcp", "--net-default", "allow", *connect)
        assert done.returncode == 1
        assert "NETDENIED" in done.stderr
        server.communicate("\n")


@pytest.mark.parametrize("how", ["keep=kept", "keep"])
def test_an_overlays_changes_are_found_where_they_are_kept(place: Path, how: str) -> None:
    kept = place / ("kept" if how == "keep=kept" else "work.changes")
    change = ["--", "sh", "-c", "echo new >work/both; echo new >work/new; rm work/old; ls work"]
    done = run("--fs", f"overlay:work:{how}", *change, cwd=place)
    assert (done.returncode, done.stdout.split()) == (0, ["both", "new"]), done.stderr
    assert {line.partition("run: ")[2] for line in done.stderr.splitlines()} == {
        f"added: {place}/work/new",
        f"modified: {place}/work/both",
        f"deleted: {place}/work/old",
    }
    assert [(place / "work" / name).read_text() for name in ("old", "both")] == ["old", "old"]
    assert (kept / "upper" / "new").read_text() == (kept / "upper" / "both").read_text() == "new\n"
    again = run("--fs", f"overlay:work:{how}", "--", "ls", "work", cwd=place)
    assert again.stdout.split() == ["both", "new"], "a further run goes on from there"


def test_two_at_a_time_do_not_keep_their_changes_in_one_directory(place: Path) -> None:
    inner = f"{sys.executable} -m pytest_isolate.cli run --fs overlay:/var/log:keep={place}/kept -- true"
    done = run("--fs", f"overlay:{place}/work:keep={place}/kept", "--", "sh", "-c", inner)
    assert (done.returncode, "another sandbox keeps" in done.stderr) == (125, True), done.stderr


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ("work/inside", "overlaps it"),
        ("work/old", "is a file"),
        ("no/such/place", "Create the directory it is in"),
        (".", "overlaps it"),
    ],
)
def test_a_place_to_keep_changes_in_that_cannot_be_is_said(place: Path, kept: str, words: str) -> None:
    done = run("--fs", f"overlay:work:keep={kept}", "--", "true", cwd=place)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert words in done.stderr
