"""Sizes and numbers without meaning, and limits that nothing fits into: refused before anything starts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import IsolateError, PolicyError, SetupError
from pytest_isolate.outcome import Cause
from pytest_isolate.running import ProgramFailed
from pytest_isolate.sandbox import Sandbox
from tests.kernel.limits.programs import (
    MIB,
    controller,
    python,
)


@pytest.mark.parametrize("size", ["0", 0, -1, "-64M", "lots", "64 M M", "1e9", "9E", 2**63, "9999999P", "", True, 1.5])
@pytest.mark.parametrize("word", ["memory", "swap"])
def test_a_size_without_meaning_is_refused_before_anything_starts(box: Sandbox, word: str, size: Any) -> None:
    if word == "swap" and size in ("0", 0):
        return  # no swap at all: that has a meaning
    with pytest.raises(PolicyError, match=rf"^{word}: .*(not a size|not positive|more than the kernel)"):
        box.run(["/bin/true"], **{word: size})


@pytest.mark.parametrize(
    ("written", "means"), [("64 MB", 64 * MIB), ("64MiB", 64 * MIB), ("0.5G", 512 * MIB), (2**26, 64 * MIB)]
)
def test_sizes_as_people_write_them(box: Sandbox, written: str | int, means: int) -> None:
    controller("memory")
    with box.spawn(["/bin/sleep", "60"], memory=written) as running:
        assert running.limits.memory_bytes == means
        assert running._cgroup is not None
        file = "memory.limit_in_bytes" if running._cgroup.counters._version("memory") == 1 else "memory.max"
        assert running._cgroup.counters.read("memory", file) == f"{means}\n"


def test_half_a_byte_is_no_byte(box: Sandbox) -> None:
    with pytest.raises(PolicyError, match=r"memory: '0\.5' is not positive"):
        box.run(["/bin/true"], memory="0.5")


@pytest.mark.parametrize("hugetlb", ["64M", {"2MB": "lots"}, {"2MB": 0}])
def test_huge_pages_without_meaning_are_refused(box: Sandbox, hugetlb: Any) -> None:
    with pytest.raises(PolicyError, match=r"^hugetlb( 2MB)?: .*(not a mapping|not a size|not positive)"):
        box.run(["/bin/true"], hugetlb=hugetlb)


def test_huge_pages_of_a_size_that_this_host_has_not_are_refused(box: Sandbox) -> None:
    controller("hugetlb")
    with pytest.raises(PolicyError, match=r"^hugetlb '3MB': no size of huge pages here"):
        box.run(["/bin/true"], hugetlb={"3MB": "64M"})


@pytest.mark.parametrize("pids", [0, -3, "many", True, 2**63])
def test_a_number_of_processes_without_meaning_is_refused(box: Sandbox, pids: Any) -> None:
    with pytest.raises(PolicyError, match=r"^pids: "):
        box.run(["/bin/true"], pids=pids)


@pytest.mark.parametrize("cpu", [0, -1, "fast", 1e9, float("nan"), float("inf")])
def test_a_share_of_cores_without_meaning_is_refused(box: Sandbox, cpu: Any) -> None:
    with pytest.raises(PolicyError, match=r"^cpu: "):
        box.run(["/bin/true"], cpu=cpu)


@pytest.mark.parametrize(
    "words",
    [
        {"io": "/dev/vda"},
        {"io": 5},
        {"cpuset": ""},
        {"cpuset": " "},
        {"cpu_weight": 0},
        {"pids": 2**22 + 1},
        {"memory": 2**64},
        {"hugetlb": {"2MB": -1}},
    ],
    ids=str,
)
def test_a_value_that_no_group_limit_takes_is_refused_at_the_start_and_while_it_runs(
    box: Sandbox, words: dict[str, Any]
) -> None:
    controller("pids")
    (word,) = words
    with pytest.raises(PolicyError, match=rf"^{word}( 2MB)?: "):
        box.run(["/bin/true"], **words)
    with box.spawn(["/bin/sleep", "60"], pids=10) as running:
        with pytest.raises(PolicyError, match=rf"^{word}( 2MB)?: "):
            running.limits.update(**words)
        assert running.limits.pids == 10


def test_a_limit_below_what_the_sandbox_itself_needs_is_said_in_words(box: Sandbox) -> None:
    controller("memory")
    with pytest.raises(PolicyError, match=r"memory limit of 4 KiB: the sandbox itself does not fit into it .*ENOMEM"):
        box.run(["/bin/true"], memory="4K")
    small = box.run(python("print(1)"), memory="1M")
    assert small.causes == (Cause.OOM,)
    assert small.detail[0].startswith("OOM-killed: peak 1 MiB of 1 MiB")
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PolicyError, match=r"memory limit of 4 KiB: the sandbox itself does not fit into it"):
        box.python(print, policy={"memory": "4K"})
    assert len(os.listdir("/proc/self/fd")) == fds
    controller("pids")
    with pytest.raises(PolicyError, match=r"limit of 1 processes: the sandbox itself needs more"):
        box.run(["/bin/true"], pids=1)


TRUE = ["/bin/true"]


@pytest.mark.parametrize(
    ("argv", "name", "held"),
    [
        (python("pass"), "AS", "1M"),
        (python("pass"), "DATA", 0),
        (python("pass"), "STACK", 1),
        (TRUE, "AS", "1M"),
        (TRUE, "STACK", 1),
        (TRUE, "NOFILE", 3),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_rlimit_too_low_for_a_program_to_start_is_named(box: Sandbox, argv: list[str], name: str, held: Any) -> None:
    """The kernel kills it in execve, or its loader gives up; a bare SIGSEGV told nothing."""
    assert box.run(argv).ok
    found = box.run(argv, rlimits={name: held})
    assert found.status.code != 0
    assert found.causes == ()
    (line,) = found.detail
    assert line.startswith(f"rlimit {name} = "), line
    assert " is too low for the program to start: " in line
    with pytest.raises(ProgramFailed, match=f"rlimit {name} = "):
        box.run(argv, rlimits={name: held}, check=True)


def test_only_the_low_one_of_several_rlimits_is_named(box: Sandbox) -> None:
    (line,) = box.run(python("pass"), rlimits={"AS": "8G", "STACK": 1, "NOFILE": 4, "CPU": 5}).detail
    assert line.startswith("rlimit STACK = 1 is too low")


def test_a_death_of_the_programs_own_making_is_not_the_limits(box: Sandbox) -> None:
    dies = python("import os; os.kill(os.getpid(), 11)")
    assert box.run(dies, rlimits={"AS": "4G", "STACK": "8M", "NOFILE": 64}).detail == ()
    assert box.run(dies).detail == ()
    assert box.run(["/bin/sh", "-c", "exit 127"], rlimits={"NOFILE": 6, "AS": "32M"}).detail == ()
    late = box.run(["/bin/sh", "-c", "sleep 1.2; kill -SEGV $$"], rlimits={"STACK": "128K"})
    assert late.detail == (), "not in its first moments"
    with box.spawn(["/bin/sleep", "60"], rlimits={"STACK": "128K"}) as running:
        assert running.terminate(signal.SIGKILL).detail == (), "we did"


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_limit_on_files_that_not_even_standard_streams_fit_into_is_named(box: Sandbox, most: int) -> None:
    with pytest.raises(
        PolicyError, match=rf"^rlimit NOFILE of {most}: the program does not start under it .*stdio\[{most}\]: EBADF"
    ):
        box.run(TRUE, rlimits={"NOFILE": most})
    with pytest.raises(PolicyError, match=r"^stdin: descriptor 9999 is not open"):  # that is the caller's descriptor
        box.run(TRUE, stdin=9999, rlimits={"NOFILE": 64})


def test_a_stack_that_the_arguments_do_not_fit_into_is_named(box: Sandbox) -> None:
    assert box.run(TRUE, env={"A": "x" * 60_000}).ok
    with pytest.raises(PolicyError, match=r"^rlimit STACK of 16384: the program does not start under it .*E2BIG"):
        box.run(TRUE, env={"A": "x" * 60_000}, rlimits={"STACK": "16K"})
    with pytest.raises(SetupError, match="E2BIG"):  # one text of 200 kB is refused under any limit
        box.run(TRUE, env={"A": "x" * 200_000}, rlimits={"STACK": "4M"})


def test_a_hard_limit_that_may_not_be_raised_is_named() -> None:
    above = int(Path("/proc/sys/fs/nr_open").read_text()) + 1  # not even root may, setrlimit(2)
    named = rf"rlimits\[0\] \(NOFILE, hard limit {above}\): EPERM"
    with Sandbox(backends=["native"]) as box, pytest.raises(IsolateError, match=named):
        box.run(TRUE, rlimits={"NOFILE": above})
