"""The check at the end of every run must be able to fail: each kind of leftover is left here, and found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_isolate.kernel.interfaces import SUBNETS
from tests import host_state
from tests.conftest import require

SETTLE_S = 0.1


def test_an_untouched_host_is_the_same() -> None:
    assert host_state.remains(host_state.observe(), SETTLE_S) == []


def test_an_open_file_is_found() -> None:
    before = host_state.observe()
    with open("/dev/zero"):
        lines = host_state.remains(before, SETTLE_S)
    assert [line for line in lines if "open file" in line and "/dev/zero" in line], lines
    lines = host_state.remains(before, SETTLE_S)  # another run on this host may come and go meanwhile
    assert not [line for line in lines if "/dev/zero" in line], lines


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
    lines = host_state.remains(before, SETTLE_S)
    assert [line for line in lines if "working directory" in line], lines


def test_a_run_that_leaves_a_process_fails_and_says_so(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "from tests.conftest import pytest_sessionstart, pytest_sessionfinish, pytest_terminal_summary"
    )
    pytester.makepyfile(
        """
        import subprocess
        def test_leaves():
            subprocess.run("sleep 60 >/dev/null 2>&1 & echo $! > left", shell=True)
        """
    )
    root = str(Path(__file__).parents[2])
    pytester.makeini(f"[pytest]\npythonpath = {root}\n")
    result = pytester.runpytest()
    os.kill(int((pytester.path / "left").read_text()), 9)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the host is not as it was before*", "process *: sleep 60*"])


def test_a_cgroup_belongs_to_another_run_only_while_its_owner_lives() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    assert host_state._of_another_run(f"/sys/fs/cgroup/pytest-isolate-run1-{os.getppid()}-77-4026531836")
    assert host_state._of_another_run(f"/sys/fs/cgroup/pytest-isolate-run1-{os.getppid()}-77.scope")
    assert host_state._of_another_run(f"/sys/fs/cgroup/pytest-isolate-network-{os.getppid()}/isolate-one")
    assert not host_state._of_another_run(f"/sys/fs/cgroup/pytest-isolate-network-{os.getpid()}/isolate-one")
    assert not host_state._of_another_run(f"/sys/fs/cgroup/pytest-isolate-run1-{os.getpid()}-77-4026531836")
    assert not host_state._of_another_run(f"/sys/fs/cgroup/pytest-isolate-1-{dead.pid}-1-1")
    assert not host_state._of_another_run("/sys/fs/cgroup/isolate-leftover-1")


def test_a_network_belongs_to_another_run_only_while_a_process_that_counts_there_lives() -> None:
    def of_another(number: int) -> bool:
        return host_state._made_by_another_run(f"/sys/class/net/iso{number % SUBNETS:x}")

    starts = [61 * pid for pid in host_state._pids()]
    free = next(number for number in range(SUBNETS) if all((number - start) % SUBNETS > 2000 for start in starts))
    assert of_another(61 * os.getppid())
    assert of_another(61 * os.getppid() + 900)
    assert not of_another(free)
    assert not host_state._made_by_another_run("/sys/class/net/eth0")


def test_what_lies_inside_another_runs_cgroup_is_its_own_and_inside_ours_it_is_ours() -> None:
    resident = "/sys/fs/cgroup/unified/pytest-isolate-run1-{}-77-4026531836/pytest-isolate-resident"
    assert host_state._of_another_run(resident.format(os.getppid()))
    assert not host_state._of_another_run(resident.format(os.getpid()))


def test_a_cgroup_is_found() -> None:
    roots = [root for root in host_state._cgroup_roots() if os.access(root, os.W_OK)]
    require("cgroups", bool(roots), "no cgroup hierarchy is writable for this user")
    place = os.path.join(roots[0], f"pytest-isolate-leak-{os.getpid()}-0-0")
    before = host_state.observe()
    os.mkdir(place)
    try:
        lines = host_state.remains(before, SETTLE_S)
    finally:
        os.rmdir(place)
    assert lines == [f"cgroup: {place}"]
    assert host_state.remains(before) == []


MOUNTS = """
import subprocess
import sys
from tests import host_state
before = host_state.observe()
subprocess.run(["mount", "-t", "tmpfs", "left", "/mnt"], check=True)
print(host_state.remains(before, 0.1))
subprocess.run(["umount", "/mnt"], check=True)
print(host_state.remains(before, 0.1))
"""


def test_a_mount_is_found() -> None:
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", MOUNTS]
    if os.getuid():
        command[1:1] = ["--user", "--map-root-user"]
    can = subprocess.run([*command[: command.index(sys.executable)], "true"], capture_output=True, text=True)
    require("namespaces", can.returncode == 0, can.stderr.strip())
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.stdout.splitlines() == ["['mount: /mnt (root /, tmpfs, left) x1']", "[]"], result.stderr


def test_a_device_that_has_another_owner_is_found() -> None:
    before = host_state.observe()
    assert before.devices["/dev/null"].startswith("crw-rw-rw- of ")
    before.devices["/dev/null"] = "crw-rw-rw- of 4711:4711"
    lines = host_state.remains(before, SETTLE_S)
    assert [line for line in lines if line.startswith("/dev/null: was crw-rw-rw- of 4711:4711, is ")], lines
