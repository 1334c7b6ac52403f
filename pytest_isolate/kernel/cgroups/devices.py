"""From a path to the block device whose I/O can be limited, and from a size to the huge pages that are so large.

Owns: path -> ``major:minor`` of the whole disk, as io.max and blkio.throttle want it; the sizes of huge pages here.
Refuses: to guess for file systems without one device (overlay, tmpfs, network).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from pytest_isolate.errors import PolicyError


def whole_disk(path: str) -> str:
    """``major:minor`` of the disk under ``path``, a block device or any file on one.

    Partitions have no queue of their own, so the kernel refuses their numbers (ENODEV).

    Raises:
        PolicyError: no such path, or no block device below it.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise PolicyError(f"io limit {path!r}", str(error.strerror), "name a block device or a file on it") from error
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    if os.major(number) == 0:
        number = _source_of(number)
    node = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    if not number or not os.path.exists(node):
        raise PolicyError(f"io limit {path!r}", "there is no block device below it", "name the block device itself")
    real = os.path.realpath(node)
    if os.path.exists(f"{real}/partition"):
        real = os.path.dirname(real)
    with open(f"{real}/dev", encoding="ascii") as file:
        return file.read().strip()


def check_huge_pages(sizes: Iterable[str]) -> None:
    """Each of ``sizes``, as the hugetlb controller's files name it (``2MB``), is a size of huge pages on this host.

    Raises:
        PolicyError: it is none. Source: Documentation/admin-guide/mm/hugetlbpage.rst, mm/hugetlb_cgroup.c mem_fmt().
    """
    try:
        there = [int(name[len("hugepages-") : -len("kB")]) for name in os.listdir("/sys/kernel/mm/hugepages")]
    except OSError:
        there = []
    names = [_file_size(kib) for kib in sorted(there)]
    for size in sizes:
        if size not in names:
            has = f"use {', '.join(names)}" if names else "do without: this kernel has none"
            raise PolicyError(f"hugetlb {size!r}", "no size of huge pages here", has)


def _file_size(kib: int) -> str:
    return f"{kib >> 20}GB" if kib >= 1 << 20 else f"{kib >> 10}MB" if kib >= 1 << 10 else f"{kib}KB"


def _source_of(number: int) -> int:
    """btrfs and the like answer stat with an anonymous device: find the real one as the source of their mount."""
    wanted = f"{os.major(number)}:{os.minor(number)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if before.split(" ")[2] == wanted and (source := after.split(" ")[1]).startswith("/dev/"):
                try:
                    return os.stat(source).st_rdev
                except OSError:
                    return 0
    return 0
