"""The reader of a BPF ring buffer: two mappings, positions, records.

Owns: the mappings, kept out of forked children (MADV_DONTFORK): a test must not move our reading position. They are made
by mmap(2) itself, because Python's mmap keeps a duplicate of the descriptor that a child could find.
Refuses: to interpret records. Source: Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

from pytest_isolate.kernel import forks

_BUSY = 1 << 31
_DISCARD = 1 << 30
_HEADER = 8
_PAGE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class _Mapping:
    """Shared pages of a map, not inherited over fork."""

    def __init__(self, fd: int, length: int, protection: int, offset: int) -> None:
        address = _libc.mmap(None, length, protection, mmap.MAP_SHARED, fd, offset)
        if address is None or address == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise OSError(code, f"mmap of the ring buffer: {os.strerror(code)}")
        self.address, self._length = address, length
        _libc.madvise(address, length, mmap.MADV_DONTFORK)

    def close(self) -> None:
        if self.address:
            _libc.munmap(self.address, self._length)
            self.address = 0


class Ring:
    """Drains one ring buffer map. ``fd`` is the map's, and is readable (poll) when there are records.

    One thread at a time: the caller's lock.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self._owner = forks.here
        self._mask = size_bytes - 1
        self._consumer = _Mapping(fd, _PAGE, mmap.PROT_READ | mmap.PROT_WRITE, 0)
        self._producer = _Mapping(fd, _PAGE + 2 * size_bytes, mmap.PROT_READ, _PAGE)
        self._read = ctypes.c_uint64.from_address(self._consumer.address)
        self._written = ctypes.c_uint64.from_address(self._producer.address)

    def drain(self) -> Iterator[bytes]:
        """Every record written before the call. The place of each is given back to the kernel after it was taken.

        None in a forked child: the pages are not there, or something else is.
        """
        if self._owner is not forks.here or not self._producer.address:
            return
        end = self._written.value  # a flood that goes on must not keep the reader for ever
        while self._consumer.address and self._read.value < end:
            at = self._producer.address + _PAGE + (self._read.value & self._mask)
            head = ctypes.c_uint32.from_address(at).value
            if head & _BUSY:  # reserved, not yet submitted
                return
            length = head & ~(_BUSY | _DISCARD)
            record = None if head & _DISCARD else ctypes.string_at(at + _HEADER, length)
            self._read.value += (length + _HEADER + 7) & ~7
            if record is not None:
                yield record

    def close(self) -> None:
        """Unmap. Idempotent."""
        if self._owner is forks.here:
            self._consumer.close()
            self._producer.close()
