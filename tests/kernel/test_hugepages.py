"""A heap collapsed into huge pages: the kernel says how much of it is, and a sparse mapping stays as it is."""

from __future__ import annotations

import platform
import subprocess
import sys

from tests.conftest import require

_TRY = """
import mmap, sys
from pytest_isolate.kernel.hugepages import HUGE_BYTES, collapse_heap

def kib(name):
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))

def mapping(huge_pages):
    return mmap.mmap(-1, huge_pages * HUGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

dense = mapping(24)
between = mmap.mmap(-1, HUGE_BYTES)  # a shared one, lest the kernel makes one mapping of the two
sparse = mapping(64)
for at in range(0, len(dense), mmap.PAGESIZE):
    dense[at] = 1
for at in range(0, len(sparse), HUGE_BYTES):
    sparse[at] = 1
before = kib("Rss")
asked = collapse_heap(int(sys.argv[1]))
print(asked, kib("AnonHugePages"), kib("Rss") - before, dense[0] + dense[-mmap.PAGESIZE])
"""


def collapsed(least_bytes: int) -> list[int]:
    said = subprocess.run([sys.executable, "-c", _TRY, str(least_bytes)], capture_output=True, text=True, check=True)
    return [int(word) for word in said.stdout.split()]


def test_a_dense_mapping_is_collapsed_and_a_sparse_one_is_not() -> None:
    major, minor = map(int, platform.release().split("-")[0].split(".")[:2])
    require("madv_collapse", (major, minor) >= (6, 1), "MADV_COLLAPSE is new in Linux 6.1")
    asked, huge_kib, grown_kib, content = collapsed(0)
    assert asked >= 23 * 2048 * 1024
    assert huge_kib >= 20 * 2048
    assert grown_kib < 16 * 1024, "the sparse mapping of 128 MiB was not filled"
    assert content == 2


def test_too_little_is_left_as_it_is() -> None:
    assert collapsed(2**40)[:2] == [0, 0]


_GROWS = """
import os, signal, sys
from pytest_isolate.kernel.hugepages import LOOK_EVERY, Heap, small_bytes

held = []

def grow(megabytes):
    held.extend(bytes(1000) for _ in range(megabytes << 10))

def forks(count):
    before = small_bytes()
    for _ in range(count):
        heap.expect(int(sys.argv[1]))
    return (before - small_bytes()) >> 20

heap = Heap()
grow(100)
first = forks(1)
living = os.fork()  # a child shares the heap, as the children of a run do
if not living:
    signal.alarm(60)
    signal.pause()
nothing = forks(LOOK_EVERY)
grow(100)
soon, later = forks(LOOK_EVERY - 2), forks(3)
os.kill(living, 9)
os.waitpid(living, 0)
print(first, nothing, soon, later)
"""


def grown(forks: int) -> list[int]:
    said = subprocess.run([sys.executable, "-c", _GROWS, str(forks)], capture_output=True, text=True, check=True)
    return [int(word) for word in said.stdout.split()]


def test_a_heap_that_has_grown_is_copied_again() -> None:
    major, minor = map(int, platform.release().split("-")[0].split(".")[:2])
    require("madv_collapse", (major, minor) >= (6, 1), "MADV_COLLAPSE is new in Linux 6.1")
    first, nothing, soon, later = grown(1000)
    assert first > 80
    assert abs(nothing) < 16
    assert abs(soon) < 16
    assert later > 80


def test_for_few_forks_nothing_is_copied() -> None:
    assert max(map(abs, grown(100))) < 16
