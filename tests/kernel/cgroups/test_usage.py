"""The counters against a truth made by the test."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import time

import pytest

MIB = 2**20


def test_the_peak_is_what_was_touched(manager, need, nursery):
    need("memory")
    with manager.create("gw0-peak") as cgroup:
        base = nursery.run(cgroup, lambda: None), cgroup.usage().memory_peak_bytes

        def touch():
            memory = mmap.mmap(-1, 48 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.write(b"x" * len(memory))

        assert nursery.run(cgroup, touch) == 0
        usage = cgroup.usage()
    assert base[0] == 0
    if usage.memory_peak_bytes is None:  # memory.peak: Linux 5.19
        assert not os.path.exists(f"{manager.branches[0].path}/memory.peak")
        return
    # 48 MiB are written from a bytes object of 48 MiB: both are there at once, and little besides.
    assert usage.memory_peak_bytes == pytest.approx(96 * MIB, rel=0.06)
    assert usage.memory_bytes < 8 * MIB


def test_cpu_time_is_that_of_the_tree_and_agrees_with_rusage(manager, need, nursery):
    need("cpuacct")
    with manager.create("gw0-cpu") as cgroup:

        def burn_in_a_child():
            if os.fork() == 0:
                end = time.process_time() + 0.3
                while time.process_time() < end:
                    os.getppid()
                os._exit(0)
            os.wait()
            used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            os._exit(min(200, round(sum(100 * (part.ru_utime + part.ru_stime) for part in used))))

        hundredths = nursery.run(cgroup, burn_in_a_child)
        usage = cgroup.usage()
    assert hundredths >= 30
    assert usage.cpu_usec == pytest.approx(hundredths * 10_000, rel=0.25)
    assert usage.cpu_user_usec + usage.cpu_system_usec == pytest.approx(usage.cpu_usec, rel=0.05)


def test_processes_are_counted_now_and_at_most(manager, need, nursery, until):
    need("pids")
    with manager.create("gw0-pids") as cgroup:

        def four():
            for _ in range(3):
                if os.fork() == 0:
                    break
            time.sleep(60)

        nursery.start(cgroup, four)
        until(lambda: len(cgroup.pids()) == 4)
        assert cgroup.usage().pids == 4
        assert cgroup.usage(current=False).pids is None
        cgroup.kill()
        assert cgroup.usage().pids_peak in (None, 4)


def test_pressure_is_read_where_the_kernel_has_it(manager, version, nursery):
    with manager.create("gw0-psi") as cgroup:
        nursery.run(cgroup, lambda: None)
        assert cgroup.usage().cpu_pressure is None, "only on demand"
        usage = cgroup.usage(pressure=True)
    there = version == 2 and os.path.exists("/proc/pressure/cpu")
    assert (usage.cpu_pressure is not None) is there
    if there:
        assert usage.cpu_pressure.some_usec >= 0


def test_a_new_cgroup_has_counted_nothing(manager, nursery):
    with manager.create("gw0-one") as cgroup:
        child = nursery.start(cgroup, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert child.wait() == -signal.SIGKILL
    with manager.create("gw0-two") as cgroup:
        usage = cgroup.usage()
        assert not usage.memory_peak_bytes
        assert not usage.cpu_usec
        assert not usage.pids_peak
        assert cgroup.verdicts() == []
