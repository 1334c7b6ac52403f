"""The reader of a BPF ring buffer: mmap, positions, records.

Owns: the two mappings, kept out of forked children (MADV_DONTFORK): a test must not move our reading position.
Refuses: to interpret records. Source: Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

_BUSY = 1 << 31
_DISCARD = 1 << 30
_HEADER = 8


class Ring:
    """Drains one ring buffer map. ``fd`` is the map's, and is readable (poll) when there are records."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self._mask = size_bytes - 1
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer = mmap.mmap(fd, page + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        for mapping in (self._consumer, self._producer):
            mapping.madvise(mmap.MADV_DONTFORK)

    def drain(self) -> Iterator[bytes]:
        """Every record written so far. The place of each is given back to the kernel after it was taken."""
        read = struct.unpack_from("=Q", self._consumer, 0)[0]
        while read < struct.unpack_from("=Q", self._producer, 0)[0]:
            at = mmap.PAGESIZE + (read & self._mask)
            head = struct.unpack_from("=I", self._producer, at)[0]
            if head & _BUSY:  # reserved, not yet submitted
                return
            length = head & ~(_BUSY | _DISCARD)
            record = None if head & _DISCARD else self._producer[at + _HEADER : at + _HEADER + length]
            read += (length + _HEADER + 7) & ~7
            struct.pack_into("=Q", self._consumer, 0, read)
            if record is not None:
                yield record

    def close(self) -> None:
        """Unmap. Idempotent."""
        self._consumer.close()
        self._producer.close()
