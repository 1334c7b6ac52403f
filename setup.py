"""Builds what pyproject.toml cannot say: the C library and init, the eBPF objects, and the tag of the wheel.

Owns: calling `make -C native` and `make -C bpf` with the place where the results belong.
Refuses: to know how anything is compiled; that is in native/Makefile and bpf/Makefile.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import ExecError

HERE = Path(__file__).resolve().parent
PACKAGE = "pytest_isolate"
#: ISOLATE_BUILD_BPF: unset builds eBPF objects where clang can, 1 makes "cannot" an error, 0 leaves them out.
BPF_WISH = os.environ.get("ISOLATE_BUILD_BPF", "")


def make(directory: str, out: Path, *words: str | Path) -> None:
    """Run ``make -C directory OUT=out words``; what it makes is found in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    status = subprocess.call(["make", "-C", str(HERE / directory), f"OUT={out}", *map(str, words)])
    if status:
        raise ExecError(f"make -C {directory} failed with status {status}; its messages are above")


def compiler() -> list[str]:
    return os.environ.get("CC", "gcc" if shutil.which("gcc") else "cc").split()


def need(tool: str, package: str) -> None:
    """Stop with the name of the package that brings ``tool``."""
    if shutil.which(tool) is None:
        raise ExecError(
            f"cannot build pytest-isolate-sandbox: {tool} is not installed. "
            f"Install it with: apt-get install {package} (Debian, Ubuntu) or dnf install {package} (Fedora)"
        )


def why_no_bpf() -> str:
    """The empty string where eBPF objects can be built, else the reason. Asks clang by compiling."""
    if BPF_WISH == "0":
        return "ISOLATE_BUILD_BPF=0"
    clang = os.environ.get("CLANG", "clang")
    for tool, package in ((clang, "clang"), (os.environ.get("LLVM_STRIP", "llvm-strip"), "llvm")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (apt-get install {package})"
    source = "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\nint probe;\n"
    command = [clang, "-target", "bpf", *multiarch_include(), "-x", "c", "-c", "-o", os.devnull, "-"]
    result = subprocess.run(command, input=source, text=True, capture_output=True)
    if result.returncode:
        first = result.stderr.strip().splitlines()
        return (
            f"{clang} cannot compile for bpf: {first[0] if first else 'no message'} (apt-get install clang libbpf-dev)"
        )
    return ""


def multiarch_include() -> list[str]:
    """Where Debian keeps asm/types.h; ``-target bpf`` does not look there by itself."""
    return [f"-I{path}" for path in sorted(Path("/usr/include").glob("*-linux-gnu*")) if path.is_dir()]


class BuildNative(Command):
    """Sub-command of build: fills pytest_isolate/_native and pytest_isolate/_bpf, in build_lib or in place."""

    description = "build the C library, the init program and the eBPF objects"
    user_options = [("build-lib=", "d", "directory the package is built in")]  # noqa: RUF012 (setuptools' own shape)
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    @property
    def package(self) -> Path:
        return HERE / PACKAGE if self.editable_mode else Path(self.build_lib or "").resolve() / PACKAGE

    def run(self) -> None:
        if not sys.platform.startswith("linux"):
            print(f"pytest-isolate-sandbox: no native part on {sys.platform}; --isolate will say so", file=sys.stderr)
            return
        need("make", "make")
        need(compiler()[0], "gcc libc6-dev")
        if (HERE / "native" / "Makefile").exists():
            # A warning of a compiler we have not met must not stop an installation; `tox -e native` has -Werror.
            make("native", self.package / "_native", "WARN=-Wall -Wextra")
        else:
            print("pytest-isolate-sandbox: native/Makefile does not exist, so no C library is built", file=sys.stderr)
        self.build_bpf(self.package / "_bpf")

    def build_bpf(self, out: Path) -> None:
        if not (HERE / "bpf" / "Makefile").exists():
            print("pytest-isolate-sandbox: bpf/Makefile does not exist, so no eBPF object is built", file=sys.stderr)
            return
        make("bpf", out, out / "sources")  # bcc compiles these at run time
        reason = why_no_bpf()
        if not reason:
            make("bpf", out)
        elif BPF_WISH == "1":
            raise ExecError(f"ISOLATE_BUILD_BPF=1, but no eBPF objects can be built: {reason}")
        else:
            print(f"pytest-isolate-sandbox: no eBPF objects in this build: {reason}", file=sys.stderr)

    def get_source_files(self) -> list[str]:
        return [
            str(path.relative_to(HERE))
            for directory in ("native", "bpf")
            for path in sorted((HERE / directory).rglob("*"))
            if path.is_file() and (path.suffix in (".c", ".h", ".S", ".map") or path.name in ("Makefile", "LICENSE"))
        ]

    def get_outputs(self) -> list[str]:
        made = (path for name in ("_native", "_bpf") for path in (self.package / name).rglob("*") if path.is_file())
        return [str(path) for path in made]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]  # noqa: RUF012 (setuptools' own shape)


class LinuxDistribution(Distribution):
    """Has compiled parts, so it belongs into platlib, though no part is bound to a version of Python."""

    def has_ext_modules(self) -> bool:
        return True


class Py3Wheel(bdist_wheel):
    """py3-none-linux_<arch>: the library is loaded by ctypes and knows no Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(distclass=LinuxDistribution, cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Py3Wheel})
