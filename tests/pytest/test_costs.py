"""What a test cost: the list after the run, the record, and what there is without cgroups."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Run
from .limited import cgroups_of_this_process_closed, controller

__all__ = ["cgroups_of_this_process_closed"]
pytestmark = pytest.mark.usefixtures("cgroups_of_this_process_closed")


_HEAVY = """
    import threading, time, pytest

    def test_memory(): x = bytearray(100 << 20)

    def test_cpu():
        begin = time.process_time()
        x = bytearray(20 << 20)  # more than test_memory can have spent, however slow the machine
        end = begin + max(1.5, 15 * (time.process_time() - begin))
        while time.process_time() < end: pass

    def test_processes():
        gate = threading.Event()
        threads = [threading.Thread(target=gate.wait) for _ in range(9)]
        for thread in threads: thread.start()
        gate.set()
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
    result = isolated("--isolate-durations=1", "--isolate-record=record.json", *arguments, timeout=300)
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
