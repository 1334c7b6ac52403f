"""What a user gets: the sdist, the wheel built from it, and an installation that works without the checkout.

Each test uses the ordinary tools (build, pip, venv) in a directory of its own. Run by `tox -e package`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from .conftest import ROOT, run, succeed

HAS_NATIVE = (ROOT / "native" / "Makefile").exists()
HAS_BPF = (ROOT / "bpf" / "Makefile").exists()


def test_the_wheel_is_for_any_python_3_on_this_kind_of_linux(wheel: Path) -> None:
    assert wheel.name.startswith("pytest_isolate_sandbox-")
    assert wheel.name.endswith(f"-py3-none-linux_{os.uname().machine}.whl")


def test_the_wheel_holds_the_library_the_init_and_the_ebpf_sources(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "pytest_isolate/py.typed" in names
    if HAS_NATIVE:
        assert {"pytest_isolate/_native/libisolate.so", "pytest_isolate/_native/isolate-init"} <= names
    if HAS_BPF:
        expected = {f"pytest_isolate/_bpf/sources/{path.name}" for path in (ROOT / "bpf").glob("*.[ch]")}
        assert expected <= names
    assert not [name for name in names if name.startswith(("tests/", "native/", "bpf/", "benchmarks/"))]


def test_programs_in_the_wheel_stay_executable(wheel: Path) -> None:
    modes = {info.filename: info.external_attr >> 16 for info in zipfile.ZipFile(wheel).infolist()}
    if HAS_NATIVE:
        assert modes["pytest_isolate/_native/isolate-init"] & 0o111


def test_the_sdist_holds_what_a_build_and_the_tests_need(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "LICENSE", "bpf/LICENSE", "tests/conftest.py", "tox.ini", "Makefile", ".ci/prepare"} <= names
    tracked = subprocess.run(
        ["git", "ls-files", "native", "bpf"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert [path for path in tracked if path not in names] == []


def test_pytest_loads_the_installed_plugin(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(
        "def test_one():\n    import pytest_isolate\n    print(pytest_isolate.__file__)\n"
    )
    output = succeed(installed / "python", "-m", "pytest", "-s", "--trace-config", tmp_path, cwd=tmp_path)
    assert "pytest_isolate/runner/plugin.py" in output
    assert str(installed.parent) in output
    assert "1 passed" in output


def test_an_editable_installation_builds_in_place(tmp_path: Path, require: Callable[[str, bool, str], None]) -> None:
    require("native", HAS_NATIVE, "native/Makefile does not exist")
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".tox", ".venv", "build", "_native", "_bpf"))
    succeed(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    succeed(python, "-m", "pip", "install", "-q", "--no-input", "-e", source, cwd=tmp_path)
    assert (source / "pytest_isolate" / "_native" / "libisolate.so").exists()
    place = succeed(python, "-c", "import pytest_isolate; print(pytest_isolate.__file__)", cwd=tmp_path)
    assert str(source) in place


def test_without_a_compiler_the_message_names_the_package(
    tmp_path: Path, require: Callable[[str, bool, str], None]
) -> None:
    has_setuptools = importlib.util.find_spec("setuptools.command.bdist_wheel") is not None
    require("setuptools", has_setuptools, "pip install setuptools>=77")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "make").symlink_to(shutil.which("make") or "/usr/bin/make")
    env = {"PATH": str(tools), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "setup.py", "-q", "build_native", f"--build-lib={tmp_path}"]
    result = run(*command, cwd=ROOT, env=env)
    assert result.returncode != 0
    assert "cc is not installed. Install it with: apt-get install gcc libc6-dev" in result.stdout
