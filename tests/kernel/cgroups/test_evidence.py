"""From counters to words, and from limits to files: pure functions over tables."""

from __future__ import annotations

import os

import pytest

from pytest_isolate.errors import BackendUnavailable, PolicyError
from pytest_isolate.kernel.cgroups import CgroupEvents, CgroupUsage, devices, kernel_log, settings, v1, v2, verdicts
from pytest_isolate.kernel.cgroups.kernel_log import Victim
from pytest_isolate.outcome import Cause
from pytest_isolate.policy import IoLimit, Limits

MIB = 2**20
NONE = CgroupEvents()
LOST = "the memory limit did not hold: its cgroup, or the controller in it, was taken away meanwhile"
LIMITS = Limits(memory_bytes=256 * MIB, pids=20)
PEAK = CgroupUsage(memory_peak_bytes=256 * MIB, pids_peak=20)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (CgroupEvents(), []),
        (CgroupEvents(oom_kill=None, oom=None, pids_max=None), []),
        (CgroupEvents(memory_max=900), []),
        (CgroupEvents(oom=1, oom_kill=1), [(Cause.OOM, "OOM-killed: peak 256 MiB of 256 MiB")]),
        (CgroupEvents(oom=None, memory_max=7, oom_kill=2), [(Cause.OOM, "OOM-killed: peak 256 MiB of 256 MiB")]),
        (CgroupEvents(oom=None, oom_kill=1), [(Cause.OOM, "OOM-killed: peak 256 MiB of 256 MiB")]),
        (CgroupEvents(oom_kill=1), [(Cause.OOM, "OOM-killed by the host, or by a limit above the sandbox: peak 256 MiB")]),
        (CgroupEvents(pids_max=1), [(Cause.PIDS, "1 fork refused: the limit of 20 processes and threads was reached")]),
        (CgroupEvents(lost=("memory",)), [(Cause.SETUP, LOST)]),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_a_cause_needs_a_counter_that_moved(after, said):
    assert verdicts(NONE, after, LIMITS, usage=PEAK) == said
    assert verdicts(after, after, LIMITS, usage=PEAK) == [v for v in said if v[0] is Cause.SETUP]


def test_a_kill_below_the_limit_is_anothers_doing():
    low = CgroupUsage(memory_peak_bytes=100 * MIB, pids_peak=20)
    said = [(Cause.OOM, "OOM-killed by the host, or by a limit above the sandbox, or inside it: peak 100 MiB")]
    assert verdicts(NONE, CgroupEvents(oom=None, oom_kill=1), LIMITS, usage=low) == said


def test_a_kernel_without_peaks_still_gets_a_sentence():
    ((_, own),) = verdicts(NONE, CgroupEvents(oom=1, oom_kill=1), LIMITS)
    ((_, other),) = verdicts(NONE, CgroupEvents(oom_kill=1), LIMITS)
    assert own == "OOM-killed at the limit of 256 MiB"
    assert other == "OOM-killed by the host, or by a limit above the sandbox"


def test_the_victim_is_named_and_the_kernels_word_on_whose_limit_it_was_outweighs_the_counters():
    after = CgroupEvents(oom=1, oom_kill=1)
    own = Victim(pid=41, name="python3", rss_bytes=412 * MIB, own_limit=True)
    other = Victim(pid=41, name="python3", rss_bytes=412 * MIB, own_limit=False)
    assert verdicts(NONE, after, LIMITS, usage=PEAK, victim=own) == [
        (Cause.OOM, "OOM-killed: peak 256 MiB of 256 MiB, killed: python3 pid 41, rss 412 MiB")
    ]
    ((_, text),) = verdicts(NONE, after, LIMITS, usage=PEAK, victim=other)
    assert text.startswith("OOM-killed by the host, or by a limit above the sandbox")


def test_a_limit_inside_the_sandbox_is_told_of_whose_it_is():
    inside = kernel_log.parse(log(memcg="oom_memcg=/run/1-a/inner", task="/run/1-a/inner"), "/run/1-a")
    assert (inside.own_limit, inside.inner_limit) == (False, True)
    after, low = CgroupEvents(oom=1, oom_kill=1, pids_max=1), CgroupUsage(memory_peak_bytes=40 * MIB, pids_peak=7)
    assert [cause for cause, _ in verdicts(NONE, after, LIMITS, usage=low, victim=inside)] == [Cause.PIDS]
    assert verdicts(NONE, after, LIMITS, usage=low, surely=True) == []
    assert [cause for cause, _ in verdicts(NONE, after, LIMITS, usage=PEAK, surely=True)] == [Cause.OOM, Cause.PIDS]
    above = Victim(pid=41, name="python3", rss_bytes=412 * MIB, own_limit=False)
    ((_, text),) = verdicts(NONE, CgroupEvents(oom_kill=1), LIMITS, usage=low, victim=above, surely=True)
    assert text.startswith("OOM-killed by the host")


def test_a_kill_by_the_sandboxs_own_limit_is_not_hidden_by_one_of_a_limit_inside():
    own = log(memcg="oom_memcg=/run/1-a", task="/run/1-a", pid=41)
    inner = log(memcg="oom_memcg=/run/1-a/inner", task="/run/1-a/inner", pid=42)
    after = CgroupEvents(oom=2, oom_kill=2)
    for lines in (own + inner, inner + own):
        victim = kernel_log.parse(lines, "/run/1-a")
        assert victim.pid == 41
        assert [cause for cause, _ in verdicts(NONE, after, LIMITS, usage=PEAK, victim=victim)] == [Cause.OOM]
    silent = kernel_log.parse(inner + own[:-1], "/run/1-a")  # the kernel told of too many
    assert silent.inner_limit
    said = [(Cause.OOM, "OOM-killed: peak 256 MiB of 256 MiB")]
    assert verdicts(NONE, after, LIMITS, usage=PEAK, victim=silent) == said


def test_where_the_log_is_silent_a_kill_below_the_limit_was_by_one_inside():
    after, low = CgroupEvents(oom_kill=1, oom=1, memory_max=1), CgroupUsage(memory_peak_bytes=20 * MIB)
    assert verdicts(NONE, after, LIMITS, usage=low) == []
    assert verdicts(NONE, after, Limits(), usage=low) == []
    assert [cause for cause, _ in verdicts(NONE, after, LIMITS, usage=PEAK)] == [Cause.OOM]
    host = CgroupEvents(oom_kill=1, memory_max=1)  # by no limit of the subtree, whatever was reclaimed at one before
    ((_, text),) = verdicts(NONE, host, LIMITS, usage=low)
    assert text == "OOM-killed by the host, or by a limit above the sandbox: peak 20 MiB"


def test_where_no_peak_is_counted_a_refused_fork_is_not_surely_by_our_own_limit():
    after = CgroupEvents(pids_max=1)
    assert verdicts(NONE, after, LIMITS, surely=True) == []
    assert [cause for cause, _ in verdicts(NONE, after, LIMITS, usage=PEAK, surely=True)] == [Cause.PIDS]
    assert [cause for cause, _ in verdicts(NONE, after, LIMITS)] == [Cause.PIDS]


def test_forks_refused_below_our_own_limit_were_refused_by_another_one():
    usage = CgroupUsage(pids_peak=7)
    ((cause, text),) = verdicts(NONE, CgroupEvents(pids_max=3), LIMITS, usage=usage)
    assert cause is Cause.PIDS
    assert text == "3 forks refused by a pids limit above the sandbox, or inside it"


def log(memcg="oom_memcg=/run/1-a", task="/run/1-a", pid=41, name="python3"):
    context = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0"
    sizes = "total-vm:9kB, anon-rss:1000kB, file-rss:20kB, shmem-rss:4kB, UID:0 pgtables:2kB oom_score_adj:0"
    return [
        f"4,1,2,-;{context},{memcg},task_memcg={task},task={name},pid={pid},uid=0\n",
        "6,9,9,-;something else\n",
        f"3,1,3,-;Memory cgroup out of memory: Killed process {pid} ({name}) {sizes}\n",
    ]


def test_the_kernels_log_names_the_victim_of_our_cgroup_only():
    victim = kernel_log.parse(log(), "/run/1-a")
    assert victim == Victim(pid=41, name="python3", rss_bytes=1024 * 1024, own_limit=True)
    assert kernel_log.parse(log(), "/run/1") is None
    assert kernel_log.parse(log(task="/run/1-a/inner"), "/run/1-a").own_limit
    assert not kernel_log.parse(log(memcg="oom_memcg=/run"), "/run/1-a").own_limit
    assert not kernel_log.parse(log(memcg="global_oom"), "/run/1-a").own_limit
    assert kernel_log.parse(log(name="a,task=b (c)"), "/run/1-a").name == "a,task=b (c)"
    assert kernel_log.parse(log(pid=41) + log(pid=42), "/run/1-a").pid == 42
    assert kernel_log.parse(["", "oom-kill:", log()[2]], "/run/1-a") is None


def written(table, limits, old=None):
    return [(s.file, s.value) for name in table.TABLES for s in table.TABLES[name](limits, old or Limits())]


def test_every_limit_has_its_files_in_v1_and_v2():
    limits = Limits(
        memory_bytes=100, swap_bytes=50, pids=7, cpu_cores=1.5, cpu_weight=200, cpuset="0", hugetlb_bytes={"2MB": 9}
    )
    assert written(v1, limits) == [
        ("memory.limit_in_bytes", "100"),
        ("memory.memsw.limit_in_bytes", "150"),
        ("pids.max", "7"),
        ("cpu.cfs_quota_us", "150000"),
        ("cpu.shares", "2048"),
        ("cpuset.cpus", "0"),
        ("hugetlb.2MB.limit_in_bytes", "9"),
    ]
    assert written(v2, limits) == [
        ("memory.oom.group", "1"),
        ("memory.swap.max", "50"),
        ("memory.max", "100"),
        ("pids.max", "7"),
        ("cpu.max", "150000 100000"),
        ("cpu.weight", "200"),
        ("cpuset.cpus", "0"),
        ("hugetlb.2MB.max", "9"),
    ]
    assert settings.controllers_for(limits) == {"memory", "pids", "cpu", "cpuset", "hugetlb"}


def test_a_memory_limit_alone_leaves_no_swap_and_minds_a_kernel_without_swap_accounting():
    (_, memsw) = v1.TABLES["memory"](Limits(memory_bytes=100), Limits())
    assert (memsw.file, memsw.value, memsw.optional) == ("memory.memsw.limit_in_bytes", "100", True)
    swap = v2.TABLES["memory"](Limits(memory_bytes=100), Limits())[1]
    assert (swap.file, swap.value, swap.optional) == ("memory.swap.max", "0", True)


def test_an_update_lifts_what_is_gone_and_writes_v1_memory_in_an_order_the_kernel_takes():
    full = Limits(memory_bytes=100, pids=7, cpu_cores=1, cpu_weight=200, cpuset="0", hugetlb_bytes={"2MB": 9})
    assert written(v1, Limits(), full) == [
        ("memory.memsw.limit_in_bytes", "-1"),
        ("memory.limit_in_bytes", "-1"),
        ("pids.max", "max"),
        ("cpu.cfs_quota_us", "-1"),
        ("cpu.shares", "1024"),
        ("cpuset.cpus", ""),
        ("hugetlb.2MB.limit_in_bytes", "-1"),
    ]
    assert written(v2, Limits(), full) == [
        ("memory.swap.max", "max"),
        ("memory.max", "max"),
        ("pids.max", "max"),
        ("cpu.max", "max"),
        ("cpu.weight", "100"),
        ("cpuset.cpus", "\n"),
        ("hugetlb.2MB.max", "max"),
    ]
    grown = [file for file, _ in written(v1, Limits(memory_bytes=200), Limits(memory_bytes=100))]
    assert grown == ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]
    shrunk = [file for file, _ in written(v1, Limits(memory_bytes=50), Limits(memory_bytes=100))]
    assert shrunk == ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]


def test_io_limits_are_written_per_disk_and_lifted_per_disk(tmp_path, require):
    try:
        disk = devices.whole_disk(str(tmp_path))
    except PolicyError as error:
        require("blockdevice", False, str(error))
    limit = Limits(io=(IoLimit(path=str(tmp_path), read_bps=5, write_iops=6),))
    assert written(v2, limit) == [("io.max", f"{disk} rbps=5 wbps=max riops=max wiops=6")]
    assert written(v2, Limits(), limit) == [("io.max", f"{disk} rbps=max wbps=max riops=max wiops=max")]
    files = ("blkio.throttle.read_bps_device", "blkio.throttle.write_iops_device")
    assert written(v1, limit) == list(zip(files, (f"{disk} 5", f"{disk} 6"), strict=True))
    assert written(v1, Limits(), limit) == [(file, f"{disk} 0") for file in files]


@pytest.mark.parametrize("path", ["/proc/self/stat", "/dev/null", "/no/such/place"])
def test_a_path_without_a_block_device_below_it_is_the_users_error(path):
    with pytest.raises(PolicyError, match="io limit"):
        devices.whole_disk(path)


@pytest.mark.parametrize(
    ("cores", "quota"),
    [(1, (100000, 100000)), (0.01, (1000, 100000)), (0.005, (5000, 1000000)), (64, (6400000, 100000))],
)
def test_the_quota_of_a_share_of_a_core(cores, quota):
    assert settings.cpu_quota(cores) == quota


def test_a_share_too_small_for_the_kernel_is_refused():
    assert settings.cpu_quota(0.001) == (1000, 1000000)
    with pytest.raises(PolicyError, match=r"^cpu: 0\.0009 is out of range\. Write 0\.001 to 10000 cores"):
        Limits(cpu_cores=0.0009)


@pytest.mark.parametrize(("weight", "shares"), [(1, 10), (100, 1024), (10000, 102400)])
def test_weights_become_shares_default_to_default(weight, shares):
    assert v1.shares(weight) == shares


def test_v1_says_what_it_cannot_enforce():
    with pytest.raises(BackendUnavailable, match="memory and swap together"):
        v1.TABLES["memory"](Limits(swap_bytes=0), Limits())


def test_whole_disk_of_the_root_file_system_is_a_disk_not_a_partition(require):
    try:
        number = devices.whole_disk("/")
    except PolicyError as error:
        require("blockdevice", False, str(error))
    assert not os.path.exists(f"/sys/dev/block/{number}/partition")
