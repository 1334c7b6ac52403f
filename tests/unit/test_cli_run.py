"""`pytest-isolate run`, as a shell sees it: output, exit status, and what is left on the host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_isolate.kernel import probe

ALLOCATE = "x = bytearray(200 << 20)"


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest_isolate.cli", "run", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)


@pytest.fixture(autouse=True)
def _sandboxes(require: Callable[[str, bool, str], None]) -> None:
    feature = probe.feature("sandbox")
    require("namespaces", feature.available, feature.reason)


def test_the_programs_status_and_output_are_passed_through() -> None:
    done = run("--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_a_time_out_is_124_as_timeout_1_has_it() -> None:
    assert run("--timeout", "30", "--", "true").returncode == 0
    done = run("--timeout", "0.3", "--", "sleep", "9")
    assert done.returncode == 124
    assert "TIMEOUT" in done.stderr


def test_a_time_out_that_takes_sigkill_is_137_as_timeout_1_has_it() -> None:
    stubborn = ["sh", "-c", "trap '' TERM; exec sleep 9"]
    assert subprocess.run(["timeout", "-k", "0.2", "0.5", *stubborn], timeout=60).returncode in (137, -9)  # the control
    done = run("--timeout", "0.5", "--grace", "0.2", "--", *stubborn)
    assert done.returncode == 137
    assert "TIMEOUT" in done.stderr


def test_a_signal_is_128_and_its_number() -> None:
    assert run("--", "sh", "-c", "kill -9 $$").returncode == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_command_is_the_programs_which_ends_as_it_likes(number: int) -> None:
    command = [sys.executable, "-m", "pytest_isolate.cli", "run", "--grace", "20", "--"]
    trap = f"trap 'echo bye; exit 5' {number}; echo ready; sleep 6177 & wait"
    with subprocess.Popen([*command, "sh", "-c", trap], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        started.send_signal(number)
        assert started.communicate(timeout=30)[0] == "bye\n"
    assert started.returncode == 5


def test_a_program_that_ignores_the_signal_is_killed_after_the_grace() -> None:
    command = [sys.executable, "-m", "pytest_isolate.cli", "run", "--grace", "0.2", "--"]
    with subprocess.Popen(
        [*command, "sh", "-c", "trap '' 15; echo ready; exec sleep 6178"], stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        started.terminate()
        assert started.wait(30) == 128 + signal.SIGKILL


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "status"), [(("--timeout", "0.2", "--", "sleep", "9"), 124), (("--json", "--", "sh", "-c", "exit 3"), 3)]
)
def test_the_status_is_the_programs_also_where_nobody_reads_what_is_said(
    words: tuple[str, ...], status: int, unbuffered: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "pytest_isolate.cli", "run", *words]
    try:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=writing, env=environment, timeout=60)
    finally:
        os.close(writing)
    assert done.returncode == status


@pytest.mark.parametrize("profile", ["minimal", "standard", "strict"])
@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1 2"])
def test_what_the_shell_has_closed_is_dev_null_for_the_program(profile: str, closed: str) -> None:
    """It was whatever this command opened next: a cgroup's directory, isolate-init."""
    program = "for n; do test $(readlink /proc/$$/fd/$n) = /dev/null || exit 1; done"
    command = [sys.executable, "-m", "pytest_isolate.cli", "run", "--profile", profile, "--pids", "20", "--"]
    argv = [*command, "sh", "-c", program, "sh", *closed.split()]
    closing = " ".join(f"{n}>&-" for n in closed.split())
    assert subprocess.run(["sh", "-c", f'exec "$@" {closing}', "sh", *argv], timeout=60).returncode == 0


def inherited(*words: str, fds: tuple[int, ...]) -> list[str]:
    """Which of the descriptors the program has, under ``words``."""
    look = "for n; do test -e /proc/$$/fd/$n && echo $n; done; true"
    command = [sys.executable, "-m", "pytest_isolate.cli", "run", *words, "--", "sh", "-c", look, "sh", *map(str, fds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, pass_fds=fds, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("profile", ["minimal", "standard", "strict"])
def test_no_descriptor_is_inherited_that_nobody_named(profile: str) -> None:
    fds = tuple(os.open("/", os.O_RDONLY) for _ in range(3))
    first, second, third = map(str, fds)
    try:
        assert inherited("--profile", profile, fds=fds) == []
        assert inherited("--profile", profile, "--close-fds", "no", fds=fds) == [first, second, third]
        kept = inherited("--profile", profile, "--keep-fd", first, "--keep-fd", third, fds=fds)
        assert kept == [first, third]
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--keep-fd", "77"), "it is not open"),
        (("--keep-fd", "1", "--close-fds", "no"), "Leave one out"),
        (("--keep-fd", "7", "--json-fd", "7"), "writes the outcome there"),
    ],
)
def test_a_descriptor_to_be_kept_has_to_be_there_and_free(words: tuple[str, ...], why: str) -> None:
    command = [sys.executable, "-m", "pytest_isolate.cli", "run", *words, "--", "true"]
    shell = ["sh", "-c", 'exec "$@" 7>/dev/null', "sh", *command]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60)
    assert (done.returncode, why in done.stderr) == (125, True), done.stderr


def test_a_program_that_is_not_there_is_127_and_one_that_cannot_be_executed_126(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    assert run("--", "no-such-program-anywhere").returncode == 127
    assert run("--", str(tmp_path / "text")).returncode == 126


def test_a_memory_limit_is_hit_and_said(require: Callable[[str, bool, str], None]) -> None:
    feature = probe.feature("cgroup_memory")
    require("cgroup-memory", feature.available, feature.reason)
    assert run("--memory", "400M", "--", sys.executable, "-c", ALLOCATE).returncode == 0
    done = run("--memory", "64M", "--json", "--", sys.executable, "-c", ALLOCATE)
    outcome = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, outcome["causes"]) == (137, ["OOM"])
    assert outcome["usage"]["cgroup_memory_peak_bytes"] >= 60 << 20


def test_a_minimal_root_has_the_program_and_nothing_else(tmp_path: Path) -> None:
    done = run("--fs", "minimal", "--", "ls", "/", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usr" in done.stdout.split()
    assert not {"etc", "home", "root", "var"} & set(done.stdout.split())
    assert run("--fs", "minimal", "--", "no-such-program", cwd=tmp_path).returncode == 127


def test_changes_below_an_overlay_are_listed_and_thrown_away(tmp_path: Path) -> None:
    done = run("--fs", "overlay:.", "--", "touch", "x", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, f"pytest-isolate run: added: {tmp_path}/x\n")
    assert list(tmp_path.iterdir()) == []


def test_a_seccomp_profile_and_landlock_hold(require: Callable[[str, bool, str], None], tmp_path: Path) -> None:
    for name in ("seccomp_default", "landlock"):
        feature = probe.feature(name)
        require(name, feature.available, feature.reason)
    unshare = ("--", "unshare", "--uts", "true")
    assert run("--namespaces", "+user", *unshare).returncode == 0
    assert run("--namespaces", "+user", "--seccomp", "default", *unshare).returncode == 1
    assert run("--landlock", "yes", "--landlock-write", "/tmp,/dev", "--", "touch", f"{tmp_path}/x").returncode == 0
    assert run("--landlock", "yes", "--landlock-write", "/dev", "--", "touch", f"{tmp_path}/y").returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--memory", "-1", "--", "true"],
        ["--memory", "4K", "--", "true"],
        ["--pids", "1", "--", "true"],
        ["--fs", "overlay:/no/such/place", "--", "true"],
        ["--fs", "overlay:", "--", "true"],
        ["--fs", "overlay", "--", "true"],
        ["--fs", "overlay:.:keep=", "--", "true"],
        ["--seccomp", "defualt", "--", "true"],
        ["--seccomp-refuse", "nosuchcall", "--", "true"],
        ["--rlimit", "NOFILE", "--", "true"],
        ["--rlimit", "NOFILES=3", "--", "true"],
        ["--io", "/tmp", "--", "true"],
        ["--io", "/tmp:bps=1", "--", "true"],
        ["--bind", "/tmp", "tmp", "--", "true"],
        ["--ro-bind", "", "/tmp", "--", "true"],
        ["--tmpfs", "/tmp:0", "--", "true"],
        ["--mask", "etc", "--", "true"],
        ["--with-program", "ls", "--", "true"],
        ["--json-fd", "97", "--", "true"],
        ["--json-fd", "0", "--", "true"],
        ["--json-fd", "1", "--", "true"],
        ["--json-fd", "2", "--", "true"],
        ["--cwd", "", "--", "true"],
        ["--hostname", "n" * 65, "--", "true"],
        ["--mask", "/nonexistent", "--", "true"],
        ["--backend", "no-such-one", "--", "true"],
        ["--backend", "fork", "--", "true"],
        ["--json-file", "/no/such/place", "--", "true"],
        ["--"],
    ],
    ids=" ".join,
)
def test_what_has_no_meaning_is_one_line_and_status_125(words: list[str]) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
    assert len(done.stderr) < 400


@pytest.mark.parametrize(
    "words",
    [
        ["--no-such-option", "--", "true"],
        ["--profile", "no-such", "--", "true"],
        ["--json-fd", "-1", "--", "true"],
        ["--json-fd", "99999999999", "--", "true"],
        ["--keep-fd", "99999999999", "--", "true"],
        ["--keep-fd", "x", "--", "true"],
    ],
    ids=" ".join,
)
def test_what_the_command_line_does_not_know_is_125_too(words: list[str]) -> None:
    done = run(*words)
    usage, why = done.stderr.splitlines()
    assert (done.returncode, usage.split()[0], "error: " in why) == (125, "usage:", True)


def test_a_host_name_is_bytes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest_isolate.cli", "run", "--hostname", b"\xff", "--", "uname", "-n"],
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"\xff\n"), done.stderr


def test_another_technology_runs_it_only_when_it_is_asked_for(tmp_path: Path) -> None:
    """A user namespace cannot join a network that the host wired: to the native backend that is a lack."""
    done = run("--namespaces", "+user", "--net", "private", "--json-file", str(tmp_path / "out"), "--", "true")
    assert done.returncode == 125
    assert "native lacks" in done.stderr
    assert "bubblewrap" not in done.stderr + (tmp_path / "out").read_text()


def test_a_script_without_a_first_line_is_run_by_sh_as_execvp_3_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").write_text('echo "$0" "$1"; exit 7\n')
    (tmp_path / "plain").chmod(0o755)
    done = run("--", "./plain", "a b", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (7, "./plain a b\n", "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert run("--", "plain", "x").stdout == f"{tmp_path}/plain x\n"
    (tmp_path / "plain").chmod(0o644)
    assert run("--", "./plain", cwd=tmp_path).returncode == 126


def test_an_empty_name_is_no_program() -> None:
    assert run("--", "").returncode == 127


@pytest.mark.parametrize("text", ["0", "0s", "inf", "1d", ".5h", "1e3", "1e1m", "9.", "5000ms"])
def test_a_time_out_is_written_as_for_timeout_1(text: str) -> None:
    assert run("--timeout", text, "--", "true").returncode == 0


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "1w", "s", "0x1p3", "1e"])
def test_a_time_out_that_is_none_is_refused(text: str) -> None:
    assert run(f"--timeout={text}", "--", "true").returncode == 125


@pytest.mark.parametrize("view", ["readonly", "overlay:{}"])
def test_a_working_directory_that_was_deleted_is_no_crash(tmp_path: Path, view: str) -> None:
    script = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    words = [sys.executable, "-m", "pytest_isolate.cli", "run", "--fs", view.format(tmp_path), "--", "pwd"]
    done = subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "/\n", "")
    words[words.index("--fs") + 1] = "overlay:."
    done = subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "does not exist any more" in done.stderr


def test_a_directory_to_run_in_that_is_not_there_is_named() -> None:
    done = run("--cwd", "no-such-place", "--", "true")
    assert done.returncode == 125
    assert "no-such-place" in done.stderr


def test_errors_speak_of_the_options_of_this_command() -> None:
    done = run("--cgroup", "none", "--pids", "10", "--", "true")
    assert done.returncode == 125
    assert "(--cgroup=none)" in done.stderr
    said = json.loads(run("--cgroup", "none", "--pids", "10", "--json", "--", "true").stderr.splitlines()[-1])
    assert "(--cgroup=none)" in said["detail"][0]
    assert "--isolate" not in said["detail"][0]
