"""One eBPF map: lookups, updates and batches in plain bytes and ctypes structures.

Owns: nothing but numbers (the file descriptor belongs to the data plane).
Refuses: to know what a map is for.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pytest_isolate.kernel.bpf.libbpf import check, library
from pytest_isolate.kernel.bpf.objects import MapSpec

_T = TypeVar("_T", bound=ctypes.Structure)
_CHUNK, _CHUNK_BYTES = 4096, 1 << 20  # of one batched read
_NO_BATCH = (errno.EINVAL, errno.EOPNOTSUPP, 524)  # 524: ENOTSUPP, which the kernel lets out


@dataclass(slots=True)
class Map:
    """A map by file descriptor. Keys and values are bytes of the sizes its spec says."""

    name: str
    fd: int
    spec: MapSpec
    _values: type[ctypes.Array[ctypes.c_char]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        size = self.spec.value_bytes
        self._values = ctypes.c_char * (self._stride * library().cpus if self.spec.type.per_cpu else max(size, 1))

    @property
    def _stride(self) -> int:
        return (self.spec.value_bytes + 7) & ~7

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None. For a per-CPU map: the values of all possible CPUs, each padded to 8 bytes."""
        value = self._values()  # for each call: ctypes lets other threads run
        result = library().bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        check(result, f"map {self.name} lookup")
        return value.raw

    def lookup_cpus(self, key: bytes, kind: type[_T]) -> list[_T]:
        """The value of each possible CPU; none when absent."""
        raw = self.lookup(key)
        if raw is None:
            return []
        return [kind.from_buffer_copy(raw, at) for at in range(0, len(raw), self._stride)]

    def update(self, key: bytes, value: bytes | ctypes.Structure, flags: int = 0) -> None:
        """Store. Raises OSError (E2BIG: full; ENOENT: a cgroup without storage)."""
        pointer = value if isinstance(value, bytes) else ctypes.byref(value)
        check(library().bpf_map_update_elem(self.fd, key, pointer, flags), f"map {self.name} update")

    def delete(self, key: bytes) -> bool:
        """Remove; False when it was not there."""
        result = library().bpf_map_delete_elem(self.fd, key)
        return result != -errno.ENOENT and check(result, f"map {self.name} delete") == 0

    def update_batch(self, keys: bytes, values: bytes) -> None:
        """Store many: packed keys and packed values. One system call where the kernel has it for this type of map."""
        count = ctypes.c_uint32(len(keys) // self.spec.key_bytes)
        if not count.value:
            return
        result = library().bpf_map_update_batch(self.fd, keys, values, ctypes.byref(count), None)
        if -result in _NO_BATCH:
            for key, value in zip(
                self._split(keys, self.spec.key_bytes), self._split(values, self.spec.value_bytes), strict=True
            ):
                self.update(key, value)
            return
        check(result, f"map {self.name} batch update")

    def delete_batch(self, keys: bytes) -> None:
        """Remove many; those already gone do not matter."""
        count = ctypes.c_uint32(len(keys) // self.spec.key_bytes)
        if not count.value:
            return
        result = library().bpf_map_delete_batch(self.fd, keys, ctypes.byref(count), None)
        if result:
            for key in self._split(keys, self.spec.key_bytes):
                self.delete(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry, read in batches. Entries that come or go meanwhile may be missed (never for a stopped test)."""
        size, count = ctypes.sizeof(self._values), ctypes.c_uint32()
        chunk = max(1, min(_CHUNK, _CHUNK_BYTES // size))
        keys = ctypes.create_string_buffer(self.spec.key_bytes * chunk)
        values = ctypes.create_string_buffer(size * chunk)
        place = ctypes.create_string_buffer(max(self.spec.key_bytes, 8))
        begin = None
        while True:
            count.value = chunk
            result = library().bpf_map_lookup_batch(self.fd, begin, place, keys, values, ctypes.byref(count), None)
            if -result in _NO_BATCH and begin is None:
                yield from self._one_by_one()
                return
            if result not in (0, -errno.ENOENT):
                check(result, f"map {self.name} batch lookup")
            sizes = ((keys, self.spec.key_bytes), (values, size))
            ks, vs = (self._split(memoryview(b)[: count.value * n].tobytes(), n) for b, n in sizes)
            yield from zip(ks, vs, strict=True)
            if result:
                return
            begin = place

    def _one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        """For types without batches (a per-CPU array before 5.13)."""
        following = ctypes.create_string_buffer(self.spec.key_bytes)
        key = None
        while library().bpf_map_get_next_key(self.fd, key, following) == 0:
            key = following.raw
            value = self.lookup(key)
            if value is not None:
                yield key, value

    @staticmethod
    def _split(packed: bytes, size: int) -> Sequence[bytes]:
        return [packed[at : at + size] for at in range(0, len(packed), size)]
