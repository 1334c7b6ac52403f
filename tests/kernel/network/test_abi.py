"""The Python mirror and the C header are one layout; the table for bcc and the object for libbpf are one set of maps."""

from __future__ import annotations

import enum
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_isolate.kernel.bpf import layout, objects

BPF = Path(__file__).resolve().parents[3] / "bpf"


@pytest.fixture(scope="module")
def dumped(tmp_path_factory, require):
    require("cc", shutil.which("cc") is not None, "no C compiler")
    program = tmp_path_factory.mktemp("abi") / "abi_dump"
    subprocess.run(["cc", "-std=gnu11", f"-I{BPF}", str(BPF / "tests/abi_dump.c"), "-o", str(program)], check=True)
    lines = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split() for line in lines]


def test_every_struct_of_the_header_has_its_mirror(dumped):
    assert {row[1] for row in dumped if row[0] == "struct"} == set(layout.STRUCTS)


@pytest.mark.parametrize("name", list(layout.STRUCTS))
def test_every_field_is_where_the_compiler_put_it(dumped, name):
    mirror = layout.STRUCTS[name]
    ours = {f[0]: (getattr(mirror, f[0]).offset, getattr(mirror, f[0]).size) for f in mirror._fields_}
    theirs = {row[1]: (int(row[2]), int(row[3])) for row in dumped if row[0] == name}
    assert ours == theirs
    assert [int(row[3]) for row in dumped if row[:2] == ["struct", name]] == [layout.ctypes.sizeof(mirror)]


def test_every_number_is_the_same(dumped):
    theirs = {row[1]: int(row[2]) for row in dumped if row[0] == "number"}
    ours: dict[str, int] = {
        "NP_MAGIC": layout.MAGIC,
        "NP_LIST_MAX": layout.LIST_MAX,
        "NP_RING_BYTES": layout.RING_BYTES,
    }
    for name in (
        "LISTS",
        "RULES",
        "REDIRECTS",
        "BUDGETS",
        "SEEN",
        "ACCEPTED",
        "ORIGINALS",
        "STRAYS",
        "CALLERS",
        "LINKS",
    ):
        ours[f"NP_{name}"] = getattr(layout, name)

    def members(kind: type[enum.IntEnum | enum.IntFlag], prefix: str) -> None:
        ours.update({f"NP_{prefix}{m.name}": int(m) for m in kind})

    members(layout.Verdict, "")
    members(layout.Where, "")
    members(layout.Flag, "F_")
    members(layout.Reason, "R_")
    members(layout.Fast, "FAST_")
    ours.update({f"NP_{n}": int(getattr(layout.Protocol, n)) for n in ("TCP", "UDP", "ICMP", "OTHER")})
    assert ours == theirs


def test_both_front_ends_make_the_same_maps(engine):
    made = {name: item.spec for name, item in engine.plane.maps.items()}
    sized = {name: spec for name, spec in objects.MAPS.items() if "flows" not in name}
    assert {name: spec for name, spec in made.items() if "flows" not in name} == sized
    assert made.keys() == objects.MAPS.keys()


def test_the_decisions_hold_on_the_host(tmp_path, require):
    require("cc", shutil.which("cc") is not None and shutil.which("make") is not None, "no C compiler")
    done = subprocess.run(["make", "-C", str(BPF), f"OUT={tmp_path}", "test"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
