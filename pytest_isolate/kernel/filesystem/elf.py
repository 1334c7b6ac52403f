"""What an ELF file says about how it is started: interpreter, needed libraries, where to look for them.

Owns: the few fields of headers, program headers and the dynamic section that this takes. Source: elf(5), gABI chapter 5.
Refuses: symbols, sections, and any file whose offsets lead out of it (None: not an ELF file we can read).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 15, 29
_MAX_TABLE_BYTES = 16 << 20

#: (bits, e_machine) -> Debian's name of the architecture.
TRIPLETS = {
    (64, 62): "x86_64-linux-gnu",
    (32, 62): "x86_64-linux-gnux32",
    (32, 3): "i386-linux-gnu",
    (64, 183): "aarch64-linux-gnu",
    (32, 40): "arm-linux-gnueabihf",
    (64, 243): "riscv64-linux-gnu",
    (64, 21): "powerpc64le-linux-gnu",
    (64, 22): "s390x-linux-gnu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """``bits`` is 32 or 64, ``machine`` is e_machine. ``interpreter`` is empty for a static program or a library."""

    path: str
    bits: int
    machine: int
    interpreter: str = ""
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def read(path: str) -> Image | None:
    """The Image of a file; None when it is not there, not readable, or not an ELF file."""
    try:
        with open(path, "rb") as file:
            return _image(path, file)
    except (OSError, struct.error, ValueError, KeyError, IndexError):  # the last four: not as the format has it
        return None


def _image(path: str, file: BinaryIO) -> Image | None:
    ident = file.read(16)
    if ident[:4] != b"\x7fELF":
        return None
    bits, order = {1: 32, 2: 64}[ident[4]], {1: "<", 2: ">"}[ident[5]]
    word = "Q" if bits == 64 else "I"
    machine, _, _, table, _, _, _, entry_size, count = struct.unpack(
        f"{order}2xHI{word}{word}{word}IHHH", file.read(struct.calcsize(f"{order}2xHI{word}{word}{word}IHHH"))
    )
    segments = [_segment(_at(file, table + index * entry_size, entry_size), order, bits) for index in range(count)]
    texts: dict[int, list[str]] = {}
    for segment in segments:
        if segment.kind == _PT_DYNAMIC:
            texts = _dynamic(file, segment, segments, order + word)
    interpreter = next((_at(file, s.offset, s.size) for s in segments if s.kind == _PT_INTERP), b"")
    return Image(
        path=path,
        bits=bits,
        machine=machine,
        interpreter=os.fsdecode(interpreter.rstrip(b"\0")),
        needed=tuple(texts.get(_DT_NEEDED, ())),
        rpath=_folders(texts.get(_DT_RPATH, ())),
        runpath=_folders(texts.get(_DT_RUNPATH, ())),
    )


def _segment(data: bytes, order: str, bits: int) -> _Segment:
    """Elf64_Phdr or Elf32_Phdr, whose fields stand in another order."""
    if bits == 64:
        kind, _, offset, address, _, size = struct.unpack_from(f"{order}IIQQQQ", data)
    else:
        kind, offset, address, _, size = struct.unpack_from(f"{order}IIIII", data)
    return _Segment(kind, offset, address, size)


def _dynamic(file: BinaryIO, segment: _Segment, segments: list[_Segment], layout: str) -> dict[int, list[str]]:
    """The texts of the dynamic section by tag. Their offsets lead into DT_STRTAB, which is an address."""
    data = _at(file, segment.offset, segment.size)
    entries = []
    for tag, value in struct.iter_unpack(
        f"{layout[0]}{layout[1]}{layout[1]}", data[: len(data) // _entry(layout) * _entry(layout)]
    ):
        if tag == 0:
            break
        entries.append((tag, value))
    tags = dict(entries)
    strings = _at(file, _offset(tags[_DT_STRTAB], segments), tags[_DT_STRSZ]) if _DT_STRTAB in tags else b""
    texts: dict[int, list[str]] = {}
    for tag, value in entries:
        if tag in (_DT_NEEDED, _DT_RPATH, _DT_RUNPATH):
            texts.setdefault(tag, []).append(os.fsdecode(strings[value : strings.index(b"\0", value)]))
    return texts


def _entry(layout: str) -> int:
    return struct.calcsize(f"{layout[0]}{layout[1]}{layout[1]}")


def _offset(address: int, segments: list[_Segment]) -> int:
    for segment in segments:
        if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    raise ValueError("an address outside of the file")


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    if size > _MAX_TABLE_BYTES:
        raise ValueError("a table too large to be true")
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise ValueError("a table outside of the file")
    return data


def _folders(texts: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return tuple(folder for text in texts for folder in text.split(":") if folder)
