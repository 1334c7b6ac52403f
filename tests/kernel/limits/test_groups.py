"""Every group limit, hit by a program under sandbox.run: the same program with room first, then without.

Owns: one test per controller. Refuses: what pytest shows of it (tests/pytest/test_limits.py) and the cgroup layer alone
(tests/kernel/cgroups/).
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from pytest_isolate import groups
from pytest_isolate.errors import PolicyError
from pytest_isolate.outcome import Cause
from pytest_isolate.policy import IoLimit
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require
from tests.kernel.limits.programs import (
    BURN,
    IN_A_GRANDCHILD,
    MIB,
    PRIVATE,
    SHARED,
    TOUCH,
    controller,
    python,
)


@pytest.mark.parametrize(
    ("source", "limit", "fits", "grows"),
    [(PRIVATE, "64M", 32, 200), (SHARED, "300M", 100, 800), (IN_A_GRANDCHILD, "64M", 32, 200)],
    ids=["private", "shared-800-under-300", "grandchild"],
)
def test_memory_is_held_and_the_verdict_says_so(box: Sandbox, source: str, limit: str, fits: int, grows: int) -> None:
    controller("memory")
    assert box.run(python(source.format(mib=fits)), memory=limit).ok
    hit = box.run(python(source.format(mib=grows)), memory=limit)
    assert not hit.ok
    assert hit.causes == (Cause.OOM,)
    assert hit.detail[0].startswith(f"OOM-killed: peak {limit[:-1]} MiB of {limit[:-1]} MiB"), hit.detail
    assert hit.usage.cgroup_memory_peak_bytes == pytest.approx(int(limit[:-1]) * MIB, rel=0.02)


def test_swap_adds_to_memory_only_what_was_given(box: Sandbox) -> None:
    controller("memory")
    with open("/proc/meminfo") as file:
        total_kib = int(next(line.split()[1] for line in file if line.startswith("SwapTotal")))
    require("swap", total_kib >= 128 * 1024, "no swap space of 128 MiB is on")
    assert box.run(python(PRIVATE.format(mib=96)), memory="64M", swap="64M", timeout=100).ok
    assert box.run(python(PRIVATE.format(mib=96)), memory="64M", swap=0, timeout=100).causes == (Cause.OOM,)
    assert box.run(python(PRIVATE.format(mib=200)), memory="64M", swap="64M", timeout=100).causes == (Cause.OOM,)


BOMB = """
import os, sys, time
assert os.getppid() == 1 or os.getpid() == 1, "only in a PID namespace of its own"
refused = 0
for _ in range({forks}):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except BlockingIOError:
        refused += 1
print("refused", refused)
os.kill(-1, 9)
"""


def test_a_fork_bomb_is_held_by_pids(box: Sandbox) -> None:
    controller("pids")
    calm = box.run(python(BOMB.format(forks=5)), pids=16, namespaces="+pid")
    assert (calm.stdout, calm.causes) == ("refused 0\n", ()), calm
    bomb = box.run(python(BOMB.format(forks=100)), pids=16, namespaces="+pid")
    refused = int(bomb.stdout.split()[1])
    assert refused >= 84, "16 less the init and the program are left for children"
    assert bomb.causes == (Cause.PIDS,)
    assert bomb.detail == (f"{refused} forks refused: the limit of 16 processes and threads was reached",)
    assert bomb.usage.pids_peak in (None, 16)


def test_a_cpu_quota_holds_and_the_lost_time_is_measured(box: Sandbox) -> None:
    """By its own CPU time, so that a busy machine changes nothing: it can only be slower."""
    controller("cpu")
    free = box.run(python(BURN.format(seconds=0.15)), cpu_weight=100)
    held = box.run(python(BURN.format(seconds=0.15)), cpu=0.03)
    assert free.ok, free
    assert not free.usage.cgroup_throttled_usec
    assert held.usage.cgroup_cpu_usec is not None
    assert held.usage.cgroup_throttled_usec is not None
    assert held.usage.cgroup_cpu_usec / 1e6 < 0.08 * held.usage.wall_s, "0.03 cores, and what one period may overrun"
    assert held.usage.cgroup_throttled_usec > 0.2e6
    assert held.causes == (), "slowed down is what was asked for"


def test_a_time_out_under_a_cpu_quota_says_what_the_quota_took(box: Sandbox) -> None:
    controller("cpu")
    free = box.run(python(BURN.format(seconds=60)), cpu_weight=100, timeout=1)
    held = box.run(python(BURN.format(seconds=60)), cpu=0.1, timeout=1)
    assert free.causes == held.causes == (Cause.TIMEOUT,)
    assert len(free.detail) == 1
    assert held.detail[1].startswith("CPU quota of 0.1 cores: throttled in "), held.detail
    assert box.run(python(BURN.format(seconds=0.1)), cpu=0.1).detail == (), "a line for a cause alone"


def test_pressure_is_in_the_usage_where_costs_are_asked_for_and_the_kernel_has_it() -> None:
    there = os.path.exists("/proc/pressure/cpu") and groups.of_this_process().v2_directory() is not None
    for account in (False, True):
        with contextlib.closing(groups.Groups(account=account)) as held, Sandbox(cgroups=held) as box:
            usage = box.run(["/bin/true"], pids=20).usage
        found = [usage.cgroup_cpu_pressure_usec, usage.cgroup_memory_pressure_usec, usage.cgroup_io_pressure_usec]
        assert [value is not None for value in found] == 3 * [there and account]


def test_a_cpuset_pins_every_process_of_the_tree(box: Sandbox) -> None:
    controller("cpuset")
    last = max(os.sched_getaffinity(0))
    inner = "import os; print(os.sched_getaffinity(0))"
    tell = f"import subprocess, sys; subprocess.run([sys.executable, '-Ic', {inner!r}], check=True)"
    assert box.run(python(tell), pids=50).stdout.strip() == str(os.sched_getaffinity(0))
    assert box.run(python(tell), cpuset=str(last)).stdout.strip() == str({last})
    with pytest.raises(OSError, match=r"cgroup cpuset\.cpus.*(ERANGE|EINVAL|ENOSPC|EACCES|Invalid)"):
        box.run(["/bin/true"], cpuset="9999")


WRITE = """
import mmap, os, sys
buffer = mmap.mmap(-1, 1 << 20)
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
for _ in range(4):
    os.writev(fd, [buffer])
"""


def test_writes_to_a_disk_are_held_to_their_rate(box: Sandbox, tmp_path: Path) -> None:
    controller("io")
    scratch = "/dev/vm/data"  # the disk of a test machine; else whatever holds the tests' directory
    place = scratch if os.path.exists(scratch) else str(tmp_path)
    argv = [*python(WRITE), scratch if place == scratch else str(tmp_path / "data")]
    try:
        free = box.run(argv, io=[IoLimit(path=place, write_bps=2**40)])
    except PolicyError as error:
        require("blockdevice", False, str(error))
    held = box.run(argv, io=[IoLimit(path=place, write_bps=2 * MIB)])
    assert free.ok, free
    assert held.ok, held
    assert held.usage.wall_s > 1.2, "4 MiB at 2 MiB a second"
    assert free.usage.wall_s < held.usage.wall_s / 2
    assert held.usage.io_write_bytes is not None
    assert held.usage.io_write_bytes >= 4 * MIB


def test_huge_pages_are_held_and_the_verdict_says_so(box: Sandbox) -> None:
    pages = int(Path("/proc/sys/vm/nr_hugepages").read_text())
    require("hugepages", pages >= 4, f"{pages} huge pages are reserved, 4 are needed")
    controller("hugetlb")
    source = TOUCH + "touch({mib} << 20, mmap.MAP_PRIVATE | 0x40000); print('touched')"  # MAP_HUGETLB
    fits = box.run(python(source.format(mib=4)), hugetlb={"2MB": "4M"})
    assert fits.ok, fits
    grows = box.run(python(source.format(mib=6)), hugetlb={"2MB": "4M"})
    assert grows.status.signal == signal.SIGBUS
    assert grows.causes == (Cause.OOM,)
    assert grows.detail == ("1 huge page refused (SIGBUS) at the limit of 4 MiB of 2MB pages",)


def test_cpu_time_of_the_whole_tree_is_counted(box: Sandbox) -> None:
    controller("cpuacct")
    two = "import os\nos.fork()\n" + BURN.format(seconds=0.7) + "\ntry: os.wait()\nexcept ChildProcessError: pass"
    assert box.run(python(two), cpu_time=9, pids=50).ok
    hit = box.run(python(two), cpu_time=1, pids=50)
    assert Cause.CPU in hit.causes, hit
    assert any("of CPU time of 1 s allowed" in line for line in hit.detail), hit.detail
