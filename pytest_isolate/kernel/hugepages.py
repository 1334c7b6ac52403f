"""A large heap in huge pages before it is forked many times: fewer page-table entries to copy, and to take down.

Owns: when it is worth it, for which mappings, and the madvise(2) that does it. Refuses: to make memory of what nobody touched.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterator

HUGE_BYTES = 2 * 1024 * 1024
#: Collapse a range into huge pages now. Since Linux 6.1; asks neither the settings of transparent_hugepage/ nor for khugepaged.
_MADV_COLLAPSE = 25
#: A mapping of which less is in use would grow by this: each of its huge pages is filled whole.
_IN_USE = 0.9
#: What one huge page may refuse (pinned, shared with a child, no free one left) without the next being in vain.
_GO_ON = (errno.EAGAIN, errno.EBUSY, errno.EINVAL, errno.ENOMEM)
#: So much in small pages, forked so often, is worth a copy: 2.5 ms per MB once, against 0.04 ms per MB for each fork.
LARGE_BYTES = 64 * 2**20
_MANY_FORKS = 300
#: A look at the heap, which takes a millisecond or two, is for so many forks.
LOOK_EVERY = 128


class Heap:
    """This process's heap, which is copied into huge pages before the first of many forks, and whenever it has grown."""

    def __init__(self) -> None:
        self._forks_to_look = 0
        self._stays_small_bytes = 0

    def expect(self, forks: int) -> None:
        """Said before each fork: so many will come."""
        self._forks_to_look -= 1
        if self._forks_to_look > 0 or forks < _MANY_FORKS:
            return
        self._forks_to_look = LOOK_EVERY
        if small_bytes() - self._stays_small_bytes >= LARGE_BYTES:
            collapse_heap(LARGE_BYTES)
            self._stays_small_bytes = small_bytes()


def small_bytes() -> int:
    """How much private anonymous memory lies in small pages. Source: /proc/PID/smaps_rollup, since Linux 4.14."""
    with open("/proc/self/smaps_rollup", "rb") as rollup:
        kib = {words[0]: int(words[1]) for line in rollup if len(words := line.split()) == 3}
    return (kib[b"Anonymous:"] - kib[b"AnonHugePages:"]) * 1024


def collapse_heap(least_bytes: int) -> int:
    """Collapse this process's private anonymous memory, where ``least_bytes`` of it are worth it.

    Returns the bytes of the mappings that now are huge pages throughout; 0 before Linux 6.1. It copies them all, once, and is
    for a time when no child shares them: what is shared stays as it is. Source: madvise(2).
    """
    ranges = list(_dense(_mappings()))
    if sum(end - start for start, end in ranges) < least_bytes:
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    done = 0
    for start, end in ranges:
        if madvise(start, end - start, _MADV_COLLAPSE) == 0:
            done += end - start
        elif ctypes.get_errno() not in _GO_ON:
            break
    return done


def _dense(mappings: Iterator[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """The whole huge pages inside mappings that are in use almost everywhere."""
    for start, end, resident_bytes in mappings:
        first, last = -(-start // HUGE_BYTES) * HUGE_BYTES, end // HUGE_BYTES * HUGE_BYTES
        if last > first and resident_bytes >= _IN_USE * (end - start):
            yield first, last


def _mappings() -> Iterator[tuple[int, int, int]]:
    """Private, writable, anonymous mappings: start, end, resident bytes. Source: proc_pid_smaps(5)."""
    place: tuple[int, int] | None = None
    with open("/proc/self/smaps", "rb", buffering=mmap.PAGESIZE * 16) as smaps:
        for line in smaps:
            words = line.split()
            if not words[0].endswith(b":"):
                start, _, end = words[0].partition(b"-")
                anonymous = len(words) == 5 or words[5] == b"[heap]"
                place = (int(start, 16), int(end, 16)) if words[1] == b"rw-p" and anonymous else None
            elif place is not None and words[0] == b"Rss:":
                yield *place, int(words[1]) * 1024
