"""The ctypes mirrors and the C library describe the same bytes; compared both ways, from the library's own table."""

from __future__ import annotations

import ctypes

import pytest

from pytest_isolate.kernel import abi, library
from pytest_isolate.kernel.plan import MountKind


def library_table() -> dict[str, dict[str, tuple[int, int]]]:
    fields = library.load().iso_abi_fields
    fields.restype, fields.argtypes = ctypes.POINTER(abi.AbiField), (ctypes.POINTER(ctypes.c_uint32),)
    count = ctypes.c_uint32()
    rows = fields(count)
    table: dict[str, dict[str, tuple[int, int]]] = {}
    for row in rows[: count.value]:
        table.setdefault(row.owner.decode(), {})[row.field.decode()] = (row.offset, row.size)
    return table


def mirror_table(mirror: type[ctypes.Structure]) -> dict[str, tuple[int, int]]:
    described = {name: getattr(mirror, name) for name, *_ in mirror._fields_}
    return {"": (0, ctypes.sizeof(mirror)), **{name: (field.offset, field.size) for name, field in described.items()}}


def test_the_library_and_the_mirrors_share_the_same_structs() -> None:
    assert library_table().keys() == abi.MIRRORS.keys()


@pytest.mark.parametrize("owner", sorted(abi.MIRRORS))
def test_every_field_has_the_same_offset_and_size_on_both_sides(owner: str) -> None:
    assert library_table()[owner] == mirror_table(abi.MIRRORS[owner])


@pytest.mark.parametrize("owner", sorted(abi.MIRRORS))
def test_no_struct_has_implicit_padding(owner: str) -> None:
    fields = mirror_table(abi.MIRRORS[owner])
    (_, total) = fields.pop("")
    assert sum(size for _, size in fields.values()) == total


def test_versions_agree() -> None:
    library.load().iso_abi_version.restype = ctypes.c_uint32
    assert library.load().iso_abi_version() == abi.VERSION


def test_steps_have_the_same_names_on_both_sides() -> None:
    name = library.load().iso_step_name
    name.restype, name.argtypes = ctypes.c_char_p, (ctypes.c_int32,)
    assert {step: name(step).decode() for step in abi.Step} == {step: step.name.lower() for step in abi.Step}
    assert name(0) == b"unknown"
    assert name(max(abi.Step) + 1) == b"unknown"


def test_mount_kinds_are_those_of_the_header() -> None:
    from tests.kernel.throwaway import ROOT

    header = (ROOT / "native/include/isolate_abi.h").read_text()
    for kind in MountKind:
        assert f"ISO_MOUNT_{kind.name} = {kind.value}," in header
