"""Sizes and numbers without meaning, and limits that nothing fits into: refused before anything starts."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.outcome import Cause
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
