"""What a program needs to start, read from its file, against what ldd(1) finds by starting it."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.filesystem import elf
from pytest_isolate.kernel.filesystem.programs import closure, read_cache

PROGRAMS = [path for path in map(shutil.which, ("sh", "ls", "tar", "git", "gcc", "perl", "ssh")) if path]


def ldd(program: str) -> set[str]:
    text = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    return {os.path.realpath(path) for path in re.findall(r"(/\S+) \(0x", text)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_libraries_are_those_that_ldd_finds(program: str) -> None:
    found = {needed.target for needed in closure([program]) if not needed.link}
    assert found - {os.path.realpath(program), "/etc/ld.so.cache"} == ldd(program)


def test_every_name_a_file_is_asked_for_by_leads_to_it() -> None:
    for needed in closure(["/bin/sh"]):
        assert os.path.exists(needed.link or needed.target)
        if needed.link:
            assert os.path.realpath(needed.target) == needed.link


@pytest.fixture
def build(tmp_path: Path, require: Any) -> Any:
    """build(name, source, *flags): a file made by the C compiler in tmp_path."""
    compiler = shutil.which("cc")
    require("cc", compiler is not None, "a C compiler")

    def make(name: str, source: str, *flags: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        subprocess.run([compiler or "", "-xc", "-", "-o", str(path), *flags], input=source, text=True, check=True)
        return str(path)

    return make


@pytest.mark.parametrize("tag", ["--enable-new-dtags", "--disable-new-dtags"], ids=["RUNPATH", "RPATH"])
def test_libraries_beside_the_program_are_found_through_origin(build: Any, tmp_path: Path, tag: str) -> None:
    library = build("lib/libmine.so", "int mine(void) { return 0; }", "-shared", "-fPIC")
    flags = ["-L", str(tmp_path / "lib"), "-Wl,--no-as-needed", "-lmine", f"-Wl,{tag}", "-Wl,-rpath,$ORIGIN/../lib"]
    program = build("bin/prog", "int main(void) { return 0; }", *flags)
    link = tmp_path / "elsewhere"
    link.symlink_to(program)
    found = {needed.target: needed.link for needed in closure([str(link)])}
    assert found[library] == ""
    assert found[str(link)] == program  # $ORIGIN is where the file really is
    assert subprocess.run([link]).returncode == 0


def test_a_library_that_is_nowhere_is_named(build: Any, tmp_path: Path) -> None:
    library = build("lib/libgone.so", "int gone(void) { return 0; }", "-shared", "-fPIC")
    program = build(
        "bin/prog", "int main(void) { return 0; }", "-L", str(tmp_path / "lib"), "-Wl,--no-as-needed", "-lgone"
    )
    os.unlink(library)
    with pytest.raises(PolicyError, match=r"its library libgone.so is nowhere"):
        closure([program])


def test_a_static_program_needs_itself_only(build: Any) -> None:
    program = build("static", "void _start(void) {}", "-static", "-nostdlib")
    assert [needed.target for needed in closure([program])] == [program]


def test_a_script_brings_its_interpreter_and_what_env_chooses(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env sh\n")
    script.chmod(0o755)
    found = {needed.target for needed in closure([str(script)])}
    assert {str(script), os.path.realpath("/usr/bin/env"), os.path.realpath(shutil.which("sh") or "")} <= found


@pytest.mark.parametrize(
    ("content", "words"), [(b"just text", "neither an ELF file"), (b"#!/absent/x\n", "No such file")]
)
def test_what_cannot_be_started_is_the_users_error(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "program"
    path.write_bytes(content)
    path.chmod(0o755)
    with pytest.raises(PolicyError, match=words):
        closure([str(path)])
    with pytest.raises(PolicyError, match="not found"):
        closure(["no-such-program-anywhere"])


def test_the_linkers_cache_is_read_as_ldconfig_prints_it(require: Any) -> None:
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin")
    require("ldconfig", ldconfig is not None and os.path.exists("/etc/ld.so.cache"), "a glibc host")
    printed = subprocess.run([ldconfig or "", "-p"], stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = re.findall(r"^\t(\S+) \(([^)]*)\) => (\S+)$", printed, re.MULTILINE)
    expected = {(name, path) for name, flags, path in lines if "hwcap" not in flags}
    found = {
        (name, path) for name, paths in read_cache(Path("/etc/ld.so.cache").read_bytes()).items() for path in paths
    }
    assert found == expected
    assert found


def test_damaged_files_are_refused_and_never_believed(tmp_path: Path) -> None:
    whole = Path("/bin/sh").read_bytes()
    assert elf.read("/bin/sh") is not None
    path = tmp_path / "damaged"
    dice = random.Random(3)
    for _ in range(500):
        broken = bytearray(whole[: dice.choice([20, 64, 700, 4096, len(whole)])])
        for _ in range(dice.randint(1, 8)):
            broken[dice.randrange(min(len(broken), 1024))] = dice.randrange(256)
        path.write_bytes(broken)
        image = elf.read(str(path))
        assert image is None or image.bits in (32, 64)
