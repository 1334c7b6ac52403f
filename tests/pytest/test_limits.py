"""Every limit of a test, hit by a test: what a person, junit and the record say then. The control comes first.

Owns: one row per limit, run by a real pytest. Refuses: programs under sandbox.run (tests/kernel/test_sandbox_limits.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import pytest

from pytest_isolate import groups
from tests.conftest import require

from .conftest import Run
from .test_stopping import living

_HELD = """
    import ctypes, mmap, os, subprocess, sys, threading, time, pytest

    def touch(mib, flags=mmap.MAP_PRIVATE):
        memory = mmap.mmap(-1, mib << 20, flags=flags | mmap.MAP_ANONYMOUS)
        for offset in range(0, mib << 20, mmap.PAGESIZE):
            memory[offset] = 1

    def in_a_grandchild(work):
        pid = os.fork()
        if pid == 0:
            inner = os.fork()
            if inner == 0:
                work()
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) != 0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def bomb(forks):
        assert os.getpid() < 10, "only in a PID namespace of its own"
        for _ in range(forks):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        os.kill(-1, 9)

    def threads(number):
        gate = threading.Event()
        for _ in range(number):
            threading.Thread(target=gate.wait, daemon=True).start()
        gate.set()

    def burn(seconds):
        while time.process_time() < seconds:
            pass

    def as_nobody():
        os.setgid(65534)
        os.setuid(65534)

    def fork_as_nobody():
        as_nobody()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def write(mib, path):
        with open(path, "wb") as file:
            file.write(bytes(mib << 20))
"""


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Any:
    yield
    groups.of_this_process().close()


def controller(name: str) -> None:
    found = groups.of_this_process().manager().capabilities()[name]
    require(f"cgroup-{name}", found.available, found.reason)


class Row(NamedTuple):
    """A test that passes with ``fits`` and not with ``grows`` under the marker's ``limit``; what is then said."""

    id: str
    needs: str
    limit: str
    fits: str
    grows: str
    letter: str
    cause: str
    words: str


MEMORY = "OOM-killed: peak 64 MiB of 64 MiB*"
ROWS = (
    Row("memory-private", "memory", "memory='64M'", "touch(20)", "touch(200)", "O", "OOM", MEMORY),
    Row(
        "memory-shared",
        "memory",
        "memory='300M'",
        "touch(100, mmap.MAP_SHARED)",
        "touch(800, mmap.MAP_SHARED)",
        "O",
        "OOM",
        "OOM-killed: peak 300 MiB of 300 MiB*",
    ),
    Row(
        "memory-grandchild",
        "memory",
        "memory='64M'",
        "in_a_grandchild(lambda: touch(20))",
        "in_a_grandchild(lambda: touch(200))",
        "O",
        "OOM",
        MEMORY,
    ),
    Row(
        "pids-forks",
        "pids",
        "pids=16, namespaces='+pid'",
        "bomb(5)",
        "bomb(100)",
        "P",
        "PIDS",
        "1 fork refused: the limit of 16 processes and threads was reached",
    ),
    Row(
        "pids-threads",
        "pids",
        "pids=16",
        "threads(5)",
        "threads(100)",
        "P",
        "PIDS",
        "1 fork refused: the limit of 16 processes and threads was reached",
    ),
    Row(
        "cpu-limit",
        "",
        "cpu_limit=1",
        "burn(0.1)",
        "burn(9)",
        "C",
        "CPU",
        "CPU: the test used up its CPU time during call (killed by SIGXCPU): the limit RLIMIT_CPU = 1 s *",
    ),
    Row("CPU-hard", "", "rlimits={'CPU': (1, 1)}", "burn(0.1)", "burn(9)", "C", "CPU", "CPU: killed after *"),
    Row(
        "AS",
        "",
        "rlimits={'AS': '2G'}",
        "mmap.mmap(-1, 1 << 20)",
        "mmap.mmap(-1, 3 << 30)",
        "O",
        "OOM",
        "OOM: the limit RLIMIT_AS = 2147483648 was reached",
    ),
    Row(
        "DATA",
        "",
        "rlimits={'DATA': '1G'}",
        "bytearray(1 << 20)",
        "bytearray(2 << 30)",
        "O",
        "OOM",
        "OOM: the limit RLIMIT_DATA = 1073741824 was reached",
    ),
    Row(
        "FSIZE",
        "",
        "rlimits={'FSIZE': '1M'}",
        "write(0, tmp_path / 'f')",
        "write(2, tmp_path / 'f')",
        "Z",
        "FSIZE",
        "FSIZE: the limit RLIMIT_FSIZE = 1048576 was reached",
    ),
    Row(
        "FSIZE-signal",
        "",
        "rlimits={'FSIZE': '1M'}",
        "write(0, tmp_path / 'f')",
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); write(2, tmp_path / 'f')",
        "Z",
        "FSIZE",
        "FSIZE: a file grew over the limit on file size (SIGXFSZ), during call",
    ),
    Row(
        "NOFILE",
        "",
        "rlimits={'NOFILE': 64}",
        "[os.open('/dev/null', 0) for _ in range(5)]",
        "[os.open('/dev/null', 0) for _ in range(99)]",
        "N",
        "NOFILE",
        "NOFILE: the limit RLIMIT_NOFILE = 64 was reached",
    ),
    Row(
        "NPROC",
        "root",
        "rlimits={'NPROC': 1}",
        "as_nobody()",
        "fork_as_nobody()",
        "P",
        "PIDS",
        "PIDS: the limit RLIMIT_NPROC = 1 was reached",
    ),
)


def properties(file: Path) -> dict[str, dict[str, str]]:
    return {
        case.attrib["name"]: {entry.attrib["name"]: entry.attrib["value"] for entry in case.iter("property")}
        for case in ET.parse(file).getroot().iter("testcase")
    }


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_a_limit_is_hit_and_told_everywhere(pytester: pytest.Pytester, isolated: Run, row: Row) -> None:
    if row.needs == "root":
        require("root", os.geteuid() == 0, "the test changes its user")
    elif row.needs:
        controller(row.needs)
    pytester.makepyfile(limited=_HELD)
    pytester.makepyfile(
        f"""
        from limited import *

        @pytest.mark.isolate({row.limit})
        def test_fits(tmp_path):
            {row.fits}

        @pytest.mark.isolate({row.limit})
        def test_grows(tmp_path):
            {row.grows}
        """
    )
    result = isolated(
        "-rA", "--junitxml=junit.xml", "--isolate-record=record.json", "-o", "console_output_style=classic"
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines([f"*.py .{row.letter}*", f"{row.cause} *::test_grows*"])
    assert any(line.startswith(row.words.rstrip("*")) for line in result.outlines), result.outlines
    found = properties(pytester.path / "junit.xml")
    assert "isolate_cause" not in found["test_fits"]
    assert found["test_grows"]["isolate_cause"] == row.cause
    assert found["test_grows"]["isolate_detail"].startswith(row.words.rstrip("*"))
    record = json.loads((pytester.path / "record.json").read_text())["tests"]
    fits, grows = (next(test for nodeid, test in record.items() if nodeid.endswith(name)) for name in ("fits", "grows"))
    assert (fits["outcome"], "cause" in fits) == ("passed", False)
    assert (grows["outcome"], grows["cause"]) == ("failed", row.cause)
    assert grows["detail"] == found["test_grows"]["isolate_detail"]
    if row.needs == "memory":
        assert grows["cgroup_memory_peak_bytes"] > fits["cgroup_memory_peak_bytes"] > 0


def test_swap_is_more_memory_where_the_host_has_swap(pytester: pytest.Pytester, isolated: Run) -> None:
    controller("memory")
    with open("/proc/meminfo") as file:
        total_kib = int(next(line.split()[1] for line in file if line.startswith("SwapTotal")))
    require("swap", total_kib >= 128 * 1024, "no swap space of 128 MiB is on")
    pytester.makepyfile(limited=_HELD)
    pytester.makepyfile(
        """
        from limited import *

        @pytest.mark.isolate(memory="64M", swap="64M")
        def test_swaps(): touch(96)

        @pytest.mark.isolate(memory="64M", swap=0)
        def test_may_not(): touch(96)
        """
    )
    isolated("-rA").stdout.fnmatch_lines(["*.py .O*"])


def test_a_cpu_quota_and_a_cpuset_hold(pytester: pytest.Pytester, isolated: Run) -> None:
    controller("cpu")
    controller("cpuset")
    last = max(os.sched_getaffinity(0))
    pytester.makepyfile(
        f"""
        import os, time, pytest

        def spin(seconds):
            end = time.process_time() + seconds
            while time.process_time() < end: pass

        def test_free(): spin(0.15)

        @pytest.mark.isolate(cpu=0.1)
        def test_held(): spin(0.15)

        @pytest.mark.isolate(cpuset="{last}")
        def test_pinned(): assert os.sched_getaffinity(0) == {{{last}}}
        """
    )
    result = isolated("--isolate-record=record.json")
    result.assert_outcomes(passed=3)
    tests = json.loads((pytester.path / "record.json").read_text())["tests"]
    free, held = (next(test for nodeid, test in tests.items() if nodeid.endswith(name)) for name in ("free", "held"))
    assert not free["cgroup_throttled_usec"]
    assert held["cgroup_cpu_usec"] / 1e6 < 0.2 * held["wall_s"], "0.1 cores, and what one period may overrun"
    assert held["cgroup_throttled_usec"] > 0.2e6
    assert "cause" not in held


def test_memory_without_cgroups_is_held_by_rlimit_data_and_the_header_says_what_it_cannot_see(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(limited=_HELD)
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


def test_a_daemon_that_left_its_session_is_found_in_the_cgroup_where_there_is_no_pid_namespace(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    controller("pids")
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.isolate(profile="minimal", pids=20)
        def test_daemon():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.execvp("sleep", ["sleep", "6801"])
                os._exit(0)
            os.wait()

        @pytest.mark.isolate(profile="minimal", pids=20)
        def test_tidy(): pass
        """
    )
    result = isolated("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*::test_daemon LEAK*", "*::test_tidy PASSED*", "*pid * old): sleep 6801"])
    assert not living(b"sleep\0006801")


def test_a_daemon_of_a_test_that_killed_its_monitor_is_named_and_ended_by_the_cgroup(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    controller("pids")
    pytester.makepyfile(
        """
        import os, time, pytest

        @pytest.mark.isolate(pids=20)
        def test_daemon():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.execvp("sleep", ["sleep", "6802"])
                os._exit(0)
            os.wait()
            os.kill(os.getppid(), 9)
            time.sleep(30)
        """
    )
    result = isolated("-v")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*pid * old): sleep 6802"])
    assert not living(b"sleep\0006802")


def test_a_test_that_leaves_its_cgroup_and_so_its_limits_does_not_pass(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    controller("pids")
    require("root", os.geteuid() == 0, "only root may write to the cgroups above")
    pytester.makepyfile(
        """
        import time, pytest

        def burn():
            end = time.process_time() + 0.6
            while time.process_time() < end: pass

        @pytest.mark.isolate(pids=20)
        def test_stays(): burn()

        @pytest.mark.isolate(pids=20)
        def test_leaves():
            for line in open("/proc/self/mountinfo"):
                if line.partition(" - ")[2].startswith("cgroup"):
                    with open(line.split()[4] + "/cgroup.procs", "w") as procs: procs.write("0")
            burn()
        """
    )
    result = isolated("-rA")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        ["*.py ..S*", "the limits did not hold: the program left its cgroup: of * its cgroup saw *"]
    )


# What it cost


_HEAVY = """
    import threading, time, pytest

    def test_memory(): x = bytearray(100 << 20)

    def test_cpu():
        end = time.process_time() + 1.5
        while time.process_time() < end: pass

    def test_processes():
        threads = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(9)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()

    def test_light(): pass

    @pytest.mark.isolate(False)
    def test_not_isolated(): pass
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_heaviest_tests_are_listed_and_recorded(
    pytester: pytest.Pytester, isolated: Run, need: Any, workers: str
) -> None:
    controller("memory")
    controller("pids")
    arguments: list[str] = []
    if workers != "0":
        need("xdist", "xdist")
        arguments = ["-p", "xdist", "-n", workers]
    pytester.makepyfile(test_heavy=_HEAVY)
    result = isolated("--isolate-durations=1", "--isolate-record=record.json", *arguments)
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        [
            "*heaviest tests*",
            "by memory:",
            " *1?? MiB test_heavy.py::test_memory",
            "by CPU time:",
            " *s test_heavy.py::test_cpu",
            "by processes and threads:",
            " * 11 test_heavy.py::test_processes",
            "by I/O:*",
        ]
    )
    tests = json.loads((pytester.path / "record.json").read_text())["tests"]
    assert sorted(tests) == [f"test_heavy.py::test_{name}" for name in ("cpu", "light", "memory", "processes")]
    light, memory = tests["test_heavy.py::test_light"], tests["test_heavy.py::test_memory"]
    assert 0 < light["cgroup_memory_peak_bytes"] < 30 << 20
    assert 100 << 20 <= memory["cgroup_memory_peak_bytes"] < 130 << 20


def test_a_recorded_peak_is_enough_as_a_limit(pytester: pytest.Pytester, isolated: Run) -> None:
    """The page's advice: a third more than the record says."""
    controller("memory")
    pytester.makepyfile("def test_it(): x = bytearray(50 << 20)")
    assert isolated("--isolate-record=record.json").ret == 0
    (test,) = json.loads((pytester.path / "record.json").read_text())["tests"].values()
    assert isolated(f"--isolate-mem-limit={test['cgroup_memory_peak_bytes'] * 4 // 3}").ret == 0
    result = isolated(f"--isolate-mem-limit={test['cgroup_memory_peak_bytes'] // 2}")
    result.assert_outcomes(failed=1)


def test_without_cgroups_the_figures_are_marked_and_the_header_says_why(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile("def test_it(): x = bytearray(100 << 20)")
    result = isolated("--isolate-durations=1", "--isolate-cgroup=none")
    result.stdout.fnmatch_lines(
        [
            "isolate: costs are those of a test's largest process, no cgroup counts them: cgroups: they are switched off*",
            "by memory:",
            " * MiB [*] test_without*::test_it",
            "by processes and threads: nothing was counted",
            "[*] of its largest process*",
        ]
    )


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--isolate-durations=few", "--isolate-durations: 'few' is not a number"),
        ("--isolate-durations=-1", "--isolate-durations: '-1' is not a number"),
        (
            "--isolate-record=no/such/file.json",
            "--isolate-record: 'no/such/file.json' is no file in a directory that exists",
        ),
    ],
)
def test_what_the_cost_options_do_not_take(pytester: pytest.Pytester, isolated: Run, option: str, words: str) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = isolated(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in str(result.stderr)


@pytest.mark.parametrize("name", ["durations", "record", "cgroup"])
def test_options_of_a_whole_run_are_no_keywords_of_a_marker(
    pytester: pytest.Pytester, isolated: Run, name: str
) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.isolate({name}='none')\ndef test_it(): pass")
    result = isolated()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"marker isolate {name}=: it holds for a whole run. Use --isolate-{name}." in str(result.stderr)
