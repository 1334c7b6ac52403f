"""One test per limit: each is hit by a real process, and the verdict is told from the kernel's own counters."""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import subprocess
import time

import pytest

from pytest_isolate.errors import BackendUnavailable, PolicyError
from pytest_isolate.kernel.cgroups import throttling
from pytest_isolate.kernel.cgroups.usage import CgroupEvents
from pytest_isolate.outcome import Cause
from pytest_isolate.policy import IoLimit, Limits

MIB = 1024 * 1024


def touch(size_bytes: int, flags: int = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes, flags=flags)
    for offset in range(0, size_bytes, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def burn(cpu_s: float) -> None:
    """Spend this much CPU time from now on, however long a busy machine takes to give it."""
    end = time.process_time() + cpu_s
    while time.process_time() < end:
        pass


def causes(cgroup):
    return [cause for cause, _ in cgroup.verdicts()]


def test_memory_below_the_limit_is_left_alone_and_above_it_is_killed_and_named(manager, need, nursery):
    need("memory")
    with manager.create("gw0-memory", Limits(memory_bytes=64 * MIB)) as cgroup:
        assert nursery.run(cgroup, lambda: touch(32 * MIB)) == 0
        assert cgroup.verdicts() == []
        child = nursery.start(cgroup, lambda: touch(200 * MIB))
        assert child.wait() == -signal.SIGKILL
        ((cause, detail),) = cgroup.verdicts()
    assert cause is Cause.OOM
    assert detail.startswith(("OOM-killed: peak 64 MiB of 64 MiB", "OOM-killed at the limit of 64 MiB")), detail
    assert not _kernel_tells_of(child.pid) or f"pid {child.pid}, rss " in detail


def _kernel_tells_of(pid: int) -> bool:
    """Not where its log is not ours to read, nor where ten others were killed in these 5 s (mm/oom_kill.c, oom_rs)."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace", timeout=30)
    return any("oom-kill:" in line and f",pid={pid}," in line for line in log.stdout.splitlines())


def test_shared_memory_is_counted_800_mib_under_300_mib_is_killed_and_called_oom(manager, need, nursery):
    need("memory")
    with manager.create("gw0-shared", Limits(memory_bytes=300 * MIB)) as cgroup:
        shared = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
        assert nursery.run(cgroup, lambda: touch(800 * MIB, shared)) == -signal.SIGKILL
        assert causes(cgroup) == [Cause.OOM]
        assert cgroup.usage().memory_peak_bytes in (None, pytest.approx(300 * MIB, rel=0.02))


def test_a_sigkill_that_the_oom_killer_did_not_send_is_no_oom(manager, need, nursery):
    need("memory")
    with manager.create("gw0-killed", Limits(memory_bytes=64 * MIB)) as cgroup:
        child = nursery.start(cgroup, lambda: time.sleep(60))
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert cgroup.verdicts() == []


def test_an_oom_takes_the_whole_sandbox_on_v2_once_its_start_is_over(manager, need, nursery, version):
    need("memory")
    with manager.create("gw0-group", Limits(memory_bytes=64 * MIB)) as cgroup:
        bystander = nursery.start(cgroup, lambda: time.sleep(60))
        cgroup.started()
        assert nursery.run(cgroup, lambda: touch(128 * MIB)) == -signal.SIGKILL
        if version == 2:  # v1 has no such thing: it kills the largest
            assert bystander.wait(5) == -signal.SIGKILL


def test_an_oom_in_a_cgroup_that_the_sandbox_made_inside_its_own_is_seen(manager, need, nursery):
    need("memory")
    with manager.create("gw0-nested", Limits(memory_bytes=64 * MIB)) as cgroup:
        branch = next(b for b in manager.branches if "memory" in b.controllers)
        inner = f"{branch.path}/{cgroup.name}/inner"
        os.mkdir(inner)

        def move_and_touch():
            with open(f"{inner}/cgroup.procs", "w") as procs:
                procs.write("0")
            touch(200 * MIB)

        assert nursery.run(cgroup, move_and_touch) == -signal.SIGKILL
        assert causes(cgroup) == [Cause.OOM]
    assert not os.path.exists(inner)


def test_swap_is_none_unless_given_then_it_is_used_and_bounded(manager, need, nursery, require):
    need("memory")
    with open("/proc/meminfo") as file:
        total_kib = int(next(line.split()[1] for line in file if line.startswith("SwapTotal")))
    require("swap", total_kib >= 128 * 1024, "no swap space of 128 MiB is on")
    for swap_bytes, survives in ((None, False), (64 * MIB, True)):
        with manager.create("gw0-swap", Limits(memory_bytes=64 * MIB, swap_bytes=swap_bytes)) as cgroup:
            status = nursery.run(cgroup, lambda: touch(96 * MIB), 120)
            assert (status == 0) is survives, (swap_bytes, status)
            assert (causes(cgroup) == [Cause.OOM]) is not survives
            if survives:
                assert nursery.run(cgroup, lambda: touch(200 * MIB), 120) == -signal.SIGKILL


def test_memory_high_slows_down_and_does_not_kill_where_the_host_has_it(manager, need, nursery, version):
    need("memory")
    limits = Limits(memory_high_bytes=32 * MIB)
    if version == 1:
        with pytest.raises(BackendUnavailable, match="memory_high_bytes: cgroup v1 has no such limit"):
            manager.create("gw0-high", limits)
        return
    with manager.create("gw0-high", limits) as cgroup:
        assert nursery.run(cgroup, lambda: touch(36 * MIB), 60) == 0
        events = cgroup.counters.read("memory", "memory.events")
        assert int(events.split("high ")[1].split()[0]) > 0
        assert cgroup.verdicts() == []


def test_a_fork_bomb_stops_at_its_own_pids_limit(manager, need, nursery):
    need("pids")
    with manager.create("gw0-bomb", Limits(pids=16)) as cgroup:

        def bomb():
            refused = 0
            for _ in range(100):
                try:
                    if os.fork() == 0:
                        time.sleep(60)
                        os._exit(0)
                except BlockingIOError:
                    refused += 1
            os._exit(0 if refused == 85 else 3)

        assert nursery.run(cgroup, bomb) == 0
        assert len(cgroup.pids()) == 15
        cgroup.kill()
        ((cause, detail),) = cgroup.verdicts()
        assert cause is Cause.PIDS
        assert detail == "85 forks refused: the limit of 16 processes and threads was reached"
        assert cgroup.usage().pids_peak in (None, 16)


def test_the_cpu_quota_holds_and_what_it_cost_is_measured(manager, need, nursery):
    need("cpu")
    with manager.create("gw0-cpu", Limits(cpu_cores=0.2)) as cgroup:
        begin = time.monotonic()
        assert nursery.run(cgroup, lambda: burn(0.4)) == 0
        took_s = time.monotonic() - begin
        usage = cgroup.usage()
        text = throttling(CgroupEvents(), usage.events, cgroup.limits)
        assert cgroup.verdicts() == []  # slowed down is what was asked for
    assert usage.cpu_usec is not None
    assert usage.cpu_usec > 0.38e6
    assert took_s > 1.2, "0.4 s at a fifth of a core take 2 s, but for what one period may overrun"
    assert usage.events.nr_throttled > 0.1 * usage.events.nr_periods
    assert usage.events.throttled_usec > 0.02e6  # who waits for a busy machine anyway is not throttled
    assert text.startswith("CPU quota of 0.2 cores: throttled in ")


def test_without_a_quota_the_same_work_is_not_throttled(manager, need, nursery):
    need("cpu", "cpuacct")
    with manager.create("gw0-free", Limits(cpu_weight=100)) as cgroup:
        assert nursery.run(cgroup, lambda: burn(0.4)) == 0
        usage = cgroup.usage()
        assert usage.cpu_usec > 0.38e6
        assert not usage.events.nr_throttled


def test_cpu_time_of_the_whole_tree_is_a_cause_with_its_figures(manager, need, nursery):
    need("cpuacct")
    with manager.create("gw0-time", Limits(cpu_time_s=0.3)) as cgroup:
        assert nursery.run(cgroup, lambda: burn(0.1)) == 0
        assert cgroup.verdicts() == []

        def two():
            if os.fork() == 0:
                burn(0.4)
                os._exit(0)
            os.wait()

        assert nursery.run(cgroup, two) == 0
        ((cause, detail),) = cgroup.verdicts()
    assert cause is Cause.CPU
    assert detail.endswith("of CPU time of 300 ms allowed")


def test_cpu_weight_is_written_by_the_formula_of_the_version(manager, need, version):
    need("cpu")
    with manager.create("gw0-weight", Limits(cpu_weight=50)) as cgroup:
        file, expected = ("cpu.shares", "512") if version == 1 else ("cpu.weight", "50")
        assert cgroup.counters.read("cpu", file).strip() == expected


def test_a_cpuset_pins_every_process_and_an_impossible_one_says_so(manager, need, nursery):
    need("cpuset")
    last = max(os.sched_getaffinity(0))
    with manager.create("gw0-cpuset", Limits(cpuset=str(last))) as cgroup:
        assert nursery.run(cgroup, lambda: os._exit(0 if os.sched_getaffinity(0) == {last} else 3)) == 0
        cgroup.update(Limits())
        assert nursery.run(cgroup, lambda: os._exit(len(os.sched_getaffinity(0)))) == len(os.sched_getaffinity(0))
    if next(b for b in manager.branches if "cpuset" in b.controllers).version == 1:
        with pytest.raises(OSError, match=r"cgroup cpuset\.cpus"):
            manager.create("gw0-cpuset", Limits(cpuset="9999"))


def disk_to_read(tmp_path, size_bytes):
    """The scratch disk of a test machine, else a new file on whatever holds the tests' directory."""
    if os.path.exists("/dev/vm/data"):
        return "/dev/vm/data"
    path = tmp_path / "data"
    path.write_bytes(os.urandom(size_bytes))
    os.sync()
    return str(path)


@pytest.mark.parametrize("rate", [{"read_bps": 2 * MIB}, {"read_iops": 8}], ids=["bytes", "operations"])
def test_reads_of_a_disk_are_held_to_their_rate(manager, need, nursery, require, tmp_path, rate):
    need("io")
    size, piece = (4 * MIB, MIB) if "read_bps" in rate else (MIB, MIB // 16)  # 2 s either way
    path = disk_to_read(tmp_path, size)
    try:
        cgroup = manager.create("gw0-io", Limits(io=(IoLimit(path=path, **rate),)))
    except PolicyError as error:
        require(f"cgroup{manager.branches[0].version}-blockdevice", False, str(error))
        raise

    def read_directly():
        buffer = mmap.mmap(-1, piece)  # page-aligned, as O_DIRECT wants it
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        for _ in range(size // piece):
            os.readv(fd, [buffer])

    def seconds_in(place):
        start = time.monotonic()
        assert nursery.run(place, read_directly) == 0
        return time.monotonic() - start

    with cgroup:
        with manager.create("gw0-io-free", Limits(io=(IoLimit(path=path, read_bps=2**40),))) as free:
            unheld_s = min(seconds_in(free) for _ in range(3))  # the machine may be busy with others
        held_s = seconds_in(cgroup)
        usage = cgroup.usage()
    assert held_s > 0.9, "4 MiB at 2 MiB a second, 16 reads at 8 a second; the first slice may burst"
    assert unheld_s < held_s / 2
    assert usage.io_read_bytes >= size
    assert usage.io_read_ops > 0


def test_huge_pages_are_held_to_their_limit(manager, need, nursery, require):
    with open("/proc/sys/vm/nr_hugepages") as file:
        pages = int(file.read())
    require("hugepages", pages >= 4, f"{pages} huge pages are reserved, 4 are needed")
    need("hugetlb")
    huge = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB

    def take(pages):
        faulthandler.disable()  # a SIGBUS is what is wanted
        with contextlib.suppress(OSError):
            memory = mmap.mmap(-1, pages * 2 * MIB, flags=huge)
            for page in range(pages):
                memory[page * 2 * MIB] = 1
            os._exit(0)
        os._exit(3)

    with manager.create("gw0-huge", Limits(hugetlb_bytes={"2MB": 4 * MIB})) as cgroup:
        assert nursery.run(cgroup, lambda: take(2)) == 0
        assert causes(cgroup) == []
        assert nursery.run(cgroup, lambda: take(3)) == -signal.SIGBUS
        assert cgroup.verdicts() == [(Cause.OOM, "1 huge page refused (SIGBUS) at the limit of 4 MiB of 2MB pages")]


def test_a_live_update_bites_and_lifting_it_lets_go(manager, need, nursery):
    need("memory", "pids")
    with manager.create("gw0-live", Limits(memory_bytes=128 * MIB)) as cgroup:
        cgroup.update(Limits(memory_bytes=256 * MIB, pids=50))
        assert nursery.run(cgroup, lambda: touch(150 * MIB)) == 0
        cgroup.update(Limits(memory_bytes=64 * MIB))
        assert nursery.run(cgroup, lambda: touch(150 * MIB)) == -signal.SIGKILL
        assert causes(cgroup) == [Cause.OOM]
        before = cgroup.usage().events
        cgroup.update(Limits())
        assert nursery.run(cgroup, lambda: touch(150 * MIB)) == 0
        assert cgroup.verdicts(before) == []


def test_a_live_sandbox_can_be_given_a_controller_it_was_made_without(manager, need, nursery, until):
    need("cpu")
    with manager.create("gw0-late", Limits(), accounting=frozenset({"pids"})) as cgroup:
        child = nursery.start(cgroup, lambda: burn(60))
        until(lambda: child.pid in cgroup.pids())
        cgroup.update(Limits(cpu_cores=0.1))
        before = cgroup.usage().events
        time.sleep(0.6)
        assert cgroup.usage().events.nr_throttled > before.nr_throttled
        cgroup.kill()


def test_an_update_to_what_cannot_be_held_here_says_so(manager):
    missing = [name for name in ("pids", "cpu", "memory") if not manager.capabilities()[name].available]
    limits = {"pids": {"pids": 5}, "cpu": {"cpu_cores": 1}, "memory": {"memory_bytes": 64 * MIB}}
    with manager.create("gw0-cannot", accounting=frozenset()) as cgroup:
        for name in missing:
            with pytest.raises(BackendUnavailable, match=f"cgroup controller {name}"):
                cgroup.update(Limits(**limits[name]))
        assert cgroup.limits == Limits()
