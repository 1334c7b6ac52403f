"""The conftest.py of the measured suite: fills the heap, and notes when the first test is about to start.

BENCH_HEAP_MB of ordinary Python objects: rows of a table, each a dict with two strings, a float and a tuple, from pymalloc's 4 KiB
pools, as an application's data would be. No madvise, no gc.freeze, no big buffers. Written into the measured suite by per_test.py.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterator

import pytest

ROWS_PER_MB = 1700  # about 600 bytes each; what the process really holds is reported
TABLE: list[dict[str, object]] = []


def row(number: int) -> dict[str, object]:
    return {
        "name": f"row number {number}",
        "note": f"{number:064d}",
        "share": number / 7,
        "place": (number, number + 1.5),
    }


def fill(megabytes: int) -> None:
    gc.disable()
    TABLE.extend(row(number) for number in range(megabytes * ROWS_PER_MB))
    gc.enable()


def resident_kb() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def pytest_configure() -> None:
    fill(int(os.environ.get("BENCH_HEAP_MB", "0")))


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    note = {"rss_kb": resident_kb(), "tests": len(session.items), "started": time.monotonic()}
    yield
    note["failed"] = session.testsfailed
    with open(os.environ["BENCH_NOTE"], "w") as file:
        json.dump(note, file)
