"""Every limit of a test, hit by a test: what a person, junit and the record say then. The control comes first.

Owns: one row per limit, run by a real pytest. Refuses: programs under sandbox.run (tests/kernel/limits/).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest

from tests.conftest import require

from .conftest import Run
from .limited import HELD, cgroups_of_this_process_closed, controller

__all__ = ["cgroups_of_this_process_closed"]
pytestmark = pytest.mark.usefixtures("cgroups_of_this_process_closed")


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
    pytester.makepyfile(limited=HELD)
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
    pytester.makepyfile(limited=HELD)
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
