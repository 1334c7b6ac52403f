"""Limits that this host cannot hold, that have no meaning, or that nothing fits into: one clear line, before the first test."""

from __future__ import annotations

import pytest

from pytest_isolate import groups
from tests.conftest import require

from .conftest import Run
from .limited import HELD, cgroups_of_this_process_closed, controller

__all__ = ["cgroups_of_this_process_closed"]
pytestmark = pytest.mark.usefixtures("cgroups_of_this_process_closed")


def test_memory_without_cgroups_is_held_by_rlimit_data_and_the_header_says_what_it_cannot_see(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(limited=HELD)
    pytester.makepyfile(
        """
        from limited import *

        def test_fits(): touch(10)
        def test_grows(): x = bytearray(900 << 20)
        def test_shared_is_not_seen(): touch(600, mmap.MAP_SHARED)
        """
    )
    result = isolated("--isolate-cgroup=none", "--isolate-mem-limit=512M", "-rA")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "isolate: *memory 512 MiB for each process (RLIMIT_DATA: does not see shared memory, MAP_SHARED, *",
            "*.py .O.*",
            "OOM: an allocation was refused under the limit of 512 MiB (RLIMIT_DATA; it cannot see MAP_SHARED)",
        ]
    )


@pytest.mark.parametrize("how", ["error", "skip", "warn"])
def test_a_limit_without_its_controller_is_one_clear_line(pytester: pytest.Pytester, isolated: Run, how: str) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.isolate(pids=20, namespaces="+pid")
        def test_limited():
            assert os.getpid() < 10, "its PID namespace is not given up with the limit"
        """
    )
    result = isolated("--isolate-cgroup=none", f"--isolate-missing={how}", "-rs", "-p", "no:cacheprovider")
    why = "cgroups: they are switched off (--isolate-cgroup=none)"
    match how:
        case "error":
            assert result.ret == pytest.ExitCode.USAGE_ERROR
            result.stderr.fnmatch_lines([f"ERROR: pytest-isolate: {why}. Use auto."])
        case "skip":
            result.assert_outcomes(skipped=1)
            result.stdout.fnmatch_lines([f"SKIPPED*pytest-isolate: {why}*"])
        case "warn":
            result.assert_outcomes(passed=1)
            result.stdout.fnmatch_lines([f"isolate: DEGRADED pids not held: {why}"])


def test_memory_that_no_controller_holds_falls_to_rlimit_data_only_when_asked(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    found = groups.Groups("v2")
    with_memory = False
    try:
        with_memory = found.manager().capabilities()["memory"].available
    except Exception as error:  # no v2 here at all
        require("cgroup2", False, str(error))
    finally:
        found.close()
    require("cgroup2-without-memory", not with_memory, "cgroup v2 has the memory controller here")
    pytester.makepyfile("def test_it(): pass")
    result = isolated("--isolate-cgroup=v2", "--isolate-mem-limit=512M")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: pytest-isolate: cgroup controller memory: it is in cgroup v1*"])
    result = isolated("--isolate-cgroup=v2", "--isolate-mem-limit=512M", "--isolate-missing=warn")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["isolate: DEGRADED memory_bytes not held as asked but by RLIMIT_DATA, *"])


@pytest.mark.parametrize("size", ["0", "-1", "64 MB M", "9E", "9999999P", "0.5"])
def test_a_size_without_meaning_stops_the_run_before_the_first_test(
    pytester: pytest.Pytester, isolated: Run, size: str
) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = isolated(f"--isolate-mem-limit={size}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: pytest-isolate: options: memory: '{size}' is *"])


@pytest.mark.parametrize("size", ["64 MB", "64MiB", "0.25G"])
def test_sizes_as_people_write_them(pytester: pytest.Pytester, isolated: Run, size: str) -> None:
    controller("memory")
    pytester.makepyfile("def test_it(): pass")
    result = isolated(f"--isolate-mem-limit={size}")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"isolate: *memory {256 if 'G' in size else 64} MiB*"])


def test_a_limit_in_which_no_fork_of_pytest_starts_is_refused_with_the_measured_figure(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    controller("memory")
    heap = "HEAP = [bytearray(4096) for _ in range(60_000)]\n"  # page tables for 240 MB have to be copied by a fork
    pytester.makeconftest(heap)
    pytester.makepyfile("def test_it(): pass")
    assert isolated("--isolate-mem-limit=64M").ret == 0
    result = isolated("--isolate-mem-limit=1M")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: pytest-isolate: memory limit of 1 MiB: a process forked from this one does not even start in it, and takes * MiB*"
        ]
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ('rlimits={"NOFILE": 2**70}', f"rlimit NOFILE: {2**70} is out of range. Write 0 to *, or 'unlimited'."),
        ('rlimits={"NOFILE": 2**64 - 1}', f"rlimit NOFILE: {2**64 - 1} is out of range. Write 0 to *, or 'unlimited'."),
        ('rlimits={"NOFILE": 1.5}', "rlimit NOFILE: 1.5 is not a whole number. Write 0 to *, or 'unlimited'."),
        ('rlimits={"NOFILE": True}', "rlimit NOFILE: True is not a whole number. Write 0 to *, or 'unlimited'."),
        ('rlimits={"CPU": float("inf")}', "rlimit CPU: inf is not a whole number. Write 1 to 9223372036 (seconds), *"),
        ('rlimits={"CPU": 2**64}', f"rlimit CPU: {2**64} is out of range. Write 1 to 9223372036 (seconds), *"),
        ('rlimits={"CPU": 0}', "rlimit CPU: 0 is out of range. Write 1 to 9223372036 (seconds), *"),
        ("cpu_limit=2**62", "cpu_time: * is out of range. Write 0.000001 to 9223372036 seconds."),
        ('io="/dev/vda"', "io: '/dev/vda' is no list of IoLimit. Write *"),
        ("io=5", "io: 5 is no list of IoLimit. Write *"),
        ('cpuset=""', "cpuset: '' is not a list of CPUs. Write *"),
        ('cpuset=" "', "cpuset: ' ' is not a list of CPUs. Write *"),
        ('pids=float("inf")', "pids: inf is not a whole number. Write 1 to 4194304 processes."),
        ('cpu=float("nan")', "cpu: nan is out of range. Write 0.001 to 10000 cores."),
        ("cpu_weight=-1", "cpu_weight: -1 is out of range. Write 1 to 10000 (100 is usual)."),
        ("timeout=-1", "timeout: -1 is not a positive, finite time. Write seconds, *"),
        ("memory=10**5000", "memory: a number of thousands of digits is more than the kernel can count. *"),
    ],
    ids=lambda value: value.partition("=")[0],
)
def test_a_marker_with_a_value_that_no_limit_takes_is_one_clear_line(
    pytester: pytest.Pytester, plain: Run, words: str, line: str
) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.isolate({words})\ndef test_it(): pass")
    result = plain()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "INTERNALERROR" not in f"{result.stdout}{result.stderr}"
    said = line.replace("[", "[[]")
    result.stderr.fnmatch_lines([f"ERROR: pytest-isolate: marker isolate of *::test_it: {said}"])


@pytest.mark.parametrize(
    "setting", ["cpuset=", "io=/dev/vda", "pids=-1", "cpu=nan", "rlimits=5", "cpu_time=1h, timeout=0"]
)
def test_a_profile_of_the_ini_file_is_held_to_the_same(pytester: pytest.Pytester, isolated: Run, setting: str) -> None:
    pytester.makeini(f"[pytest]\nisolate_profiles = mine: standard, {setting}")
    pytester.makepyfile("def test_it(): pass")
    result = isolated("--isolate-profile=mine")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    word = setting.rpartition(", ")[2].partition("=")[0]
    result.stderr.fnmatch_lines([f"ERROR: pytest-isolate: {word}: *"])


@pytest.mark.parametrize(("rlimits", "named"), [('{"NOFILE": 3}', "3"), ('{"NOFILE": 0, "AS": "8G", "CPU": 9}', "0")])
def test_an_rlimit_under_which_no_fork_of_pytest_starts_is_refused_and_named(
    pytester: pytest.Pytester, plain: Run, rlimits: str, named: str
) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.isolate(rlimits={rlimits})\ndef test_it(): pass")
    result = plain()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    line = (
        "a process forked from this one, which has * files open, does not even start under it (EBADF). Write several *"
    )
    result.stderr.fnmatch_lines([f"ERROR: pytest-isolate: markers of *::test_it: rlimit NOFILE = {named}: {line}"])


def test_low_rlimits_under_which_a_test_runs_are_not_refused(pytester: pytest.Pytester, plain: Run) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.isolate(rlimits={"NOFILE": 64, "AS": "1M", "STACK": "64K", "FSIZE": 0, "CPU": 9})
        def test_it(): pass
        """
    )
    plain().assert_outcomes(passed=1)


def test_only_rlimits_that_can_prevent_a_start_cost_a_fork(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makeconftest(
        """
        from pytest_isolate.runner import trial
        real = trial._start
        def told(config, policy, backend):
            print("TRIED", sorted(policy.limits.rlimits))
            return real(config, policy, backend)
        trial._start = told
        """
    )
    pytester.makepyfile(
        """
        import pytest
        def test_plain(): pass
        @pytest.mark.isolate(rlimits={"CPU": 60, "CORE": 0, "FSIZE": "1G"}, cpu_time=60)
        def test_cpu(): pass
        @pytest.mark.isolate(rlimits={"NOFILE": 64})
        @pytest.mark.parametrize("n", range(3))
        def test_files(n): pass
        """
    )
    result = isolated("-s")
    assert str(result.stdout).count("TRIED") == 1, str(result.stdout)


@pytest.mark.parametrize(
    ("rlimits", "line"),
    [
        ('{"AS": "1M"}', "rlimit AS = 1048576 is too low for the program to start: *"),
        ('{"STACK": 1}', "rlimit STACK = 1 is too low for the program to start: killed by SIGSEGV after *"),
        ('{"NOFILE": 3}', "rlimit NOFILE = 3 is too low for the program to start: exited with status 127 after *"),
        ('{"NOFILE": 0}', "pytest-isolate: rlimit NOFILE of 0: the program does not start under it *"),
    ],
)
def test_an_rlimit_under_which_no_new_interpreter_starts_is_named(
    pytester: pytest.Pytester, plain: Run, rlimits: str, line: str
) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.isolate(mode='fresh', rlimits={rlimits})\ndef test_it(): pass")
    result = plain()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([line])


def test_a_new_interpreter_that_did_not_fit_into_its_memory_is_not_laid_to_an_rlimit(
    pytester: pytest.Pytester, plain: Run
) -> None:
    controller("memory")
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.isolate(mode="fresh", memory="5M", rlimits={"STACK": 200 * 1024})
        def test_it(): pass
        """
    )
    result = plain()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["OOM-killed: *"])
    result.stdout.no_fnmatch_line("*rlimit STACK*")


@pytest.mark.parametrize(
    ("rlimits", "line"),
    [
        (
            '{"NOFILE": 64, "STACK": "8M", "CPU": 9}',
            "rlimit NOFILE = 64, STACK = 8388608 may be too low for pytest itself. Or the *",
        ),
        ('{"CPU": 9}', "The test may have changed what pytest and pytest-isolate run on *"),
    ],
)
def test_a_process_that_cannot_report_under_rlimits_names_them_before_it_asks_for_a_report(
    pytester: pytest.Pytester, plain: Run, rlimits: str, line: str
) -> None:
    pytester.makepyfile(
        f"""
        import json, pytest
        @pytest.mark.isolate(rlimits={rlimits})
        def test_it():
            def no_room(*_, **__): raise MemoryError
            json.JSONEncoder.encode = no_room
        """
    )
    result = plain()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the test's process could not go on to report, during call: MemoryError*", line])
