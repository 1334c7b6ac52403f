"""The other front end: bcc compiles bpf/ (and users' own programs) at run time.

Owns: finding the distribution's bcc and kernel headers, the maps it creates, the programs it loads.
Refuses: to import bcc here (bcc_compiler.py runs apart) and to pin: the compiler only turns text into instructions that
name maps by our descriptors, so nothing is left behind and bpffs is not needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_isolate.errors import BackendUnavailable, PolicyError
from pytest_isolate.kernel.bpf import layout
from pytest_isolate.kernel.bpf.dataplane import OBJECTS, Dataplane, refusal, trimmed
from pytest_isolate.kernel.bpf.layout import MapSpec, ProgramSpec
from pytest_isolate.kernel.bpf.libbpf import MapCreateOpts, ProgLoadOpts, library
from pytest_isolate.kernel.bpf.maps import Map

_INCLUDE = re.compile(r'^#include "(\w+\.h)"$', re.MULTILINE)
_REMEDY = "install python3-bpfcc (Debian) or python3-bcc (Fedora); the package named bcc on the index is something else"
_COMPILE_TIMEOUT_S = 60.0
_LOG_BYTES = 1 << 20


def load(specs: Mapping[str, ProgramSpec], *, sizes: Mapping[str, int] | None = None, debug: bool = False) -> Dataplane:
    """Compile bpf/netpolicy.bpf.c with bcc and load the programs of ``specs``; same result as kernel.bpf.load.

    Raises:
        BackendUnavailable: no bcc, no kernel headers, no privilege.
        SetupError: the verifier refused; the log's end is in the text.
    """
    plane = Dataplane("bcc")
    try:
        maps = create_maps(
            {n: s if n not in (sizes or {}) else _sized(s, (sizes or {})[n]) for n, s in layout.MAPS.items()}
        )
        plane.adopt(maps, {}, {})
        flags = [f"-DDEBUG_MODE={int(debug)}"]
        try:
            _load_into(plane, specs, flags)
        except OSError:
            _load_into(plane, specs, [*flags, "-DNP_NO_SET_RETVAL"])
            plane.can_set_errno = False
    except BaseException:
        plane.close()
        raise
    return plane


def _sized(spec: MapSpec, entries: int) -> MapSpec:
    return MapSpec(spec.type, spec.key_bytes, spec.value_bytes, entries, spec.flags)


def _load_into(plane: Dataplane, specs: Mapping[str, ProgramSpec], flags: list[str]) -> None:
    code = compile_text(bundled("netpolicy.bpf.c"), list(specs), plane.maps, flags)
    for name, spec in specs.items():
        plane.adopt({}, {name: load_program(name, code[name], spec)}, {name: spec})


def bundled(name: str) -> str:
    """A source of bpf/ with its own headers put in: bcc rewrites only what is in the main file."""
    directory = OBJECTS / "sources"
    if not (directory / name).is_file():
        raise BackendUnavailable("bcc", f"{name} is not in the package", "build it with `make -C bpf`")
    seen: set[str] = set()

    def inline(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return _INCLUDE.sub(inline, (directory / match[1]).read_text())

    return _INCLUDE.sub(inline, (directory / name).read_text())


def create_maps(specs: Mapping[str, MapSpec]) -> dict[str, Map]:
    """Make maps; all or none."""
    made: dict[str, Map] = {}
    try:
        for name, spec in specs.items():
            options = MapCreateOpts(sz=ctypes.sizeof(MapCreateOpts), map_flags=spec.flags)
            fd = library().bpf_map_create(
                spec.type, name.encode(), spec.key_bytes, spec.value_bytes, spec.max_entries, ctypes.byref(options)
            )
            if fd < 0:
                raise refusal(-fd, [f"map {name}"])
            made[name] = Map(name, fd, spec)
    except BaseException:
        for item in made.values():
            os.close(item.fd)
        raise
    return made


def load_program(name: str, code: bytes, spec: ProgramSpec) -> int:
    """Load instructions; a file descriptor. Raises SetupError with the verifier's last words."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options = ProgLoadOpts(sz=ctypes.sizeof(ProgLoadOpts), expected_attach_type=_expected(spec))
    fd = _prog_load(name, code, spec, options)
    if fd < 0:
        options.log_level, options.log_size, options.log_buf = 1, _LOG_BYTES, ctypes.addressof(log)
        fd = _prog_load(name, code, spec, options)
    if fd < 0:
        raise refusal(-fd, [f"{name}: {log.value.decode(errors='replace')}"])
    return fd


def _prog_load(name: str, code: bytes, spec: ProgramSpec, options: ProgLoadOpts) -> int:
    return int(
        library().bpf_prog_load(
            spec.type, name.encode()[:15], b"Dual MIT/GPL", code, len(code) // 8, ctypes.byref(options)
        )
    )


def _expected(spec: ProgramSpec) -> int:
    # tcx and XDP programs are loaded without one: libbpf 1.1 and kernels before 6.6 know no such number.
    return 0 if spec.type in (layout.ProgramType.SCHED_CLS, layout.ProgramType.XDP) else int(spec.attach)


# -- compiling -----------------------------------------------------------------------------------------------------


def compile_text(
    text: str, functions: Sequence[str], maps: Mapping[str, Map], flags: Sequence[str] = ()
) -> dict[str, bytes]:
    """Instructions of each function. Maps are named FD_<name> in the text (np_dual.h's MAP_REF).

    Raises:
        BackendUnavailable: no bcc, or no kernel headers.
        PolicyError: the text does not compile; clang's words are in the error.
    """
    cflags = ["-Wno-everything", *flags, *(f"-DFD_{m.name}={m.fd}" for m in maps.values())]
    answer = _ask({"text": text, "cflags": cflags, "functions": list(functions)})
    if "functions" in answer:
        return {name: bytes.fromhex(code) for name, code in answer["functions"].items()}
    raise _complaint(answer["error"], answer["log"])


def _complaint(kind: str, log: str) -> BackendUnavailable | PolicyError:
    if kind == "unrelated":
        return BackendUnavailable("bcc", f"{log} is an unrelated package", _REMEDY)
    if kind == "missing":
        return BackendUnavailable("bcc", f"Python module bcc is not installed ({log})", _REMEDY)
    if "kheaders" in log or "Unable to find kernel headers" in log or "linux/kconfig.h" in log:
        return BackendUnavailable(
            "bcc", "there are no kernel headers", "install linux-headers-amd64, or name a tree in BCC_KERNEL_SOURCE"
        )
    return PolicyError("eBPF program", f"it does not compile:\n{trimmed([log or kind])}\n")


def _ask(request: dict[str, object]) -> dict[str, Any]:
    environment = {**os.environ, "LC_ALL": "C"}
    with headers() as source:
        if source:
            environment["BCC_KERNEL_SOURCE"] = source
        done = subprocess.run(
            [interpreter(), "-I", str(Path(__file__).with_name("bcc_compiler.py"))],
            input=json.dumps(request), capture_output=True, text=True, env=environment, timeout=_COMPILE_TIMEOUT_S,
        )  # fmt: skip
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        why = trimmed([done.stderr, done.stdout]) or f"the compiler ended with status {done.returncode}"
        raise BackendUnavailable("bcc", why, _REMEDY) from None
    return answer


@functools.cache
def interpreter() -> str:
    """The Python that has the distribution's bcc: never the one of a virtual environment."""
    return "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable


@contextlib.contextmanager
def headers() -> Iterator[str]:
    """A kernel source tree for bcc, "" when it finds its own (those of the running kernel).

    Only UAPI structures are used, so the headers of another version serve. Debian splits them over two packages, which
    are joined here by links in a temporary directory.
    """
    if os.environ.get("BCC_KERNEL_SOURCE") or Path(f"/lib/modules/{os.uname().release}/build").exists():
        yield ""
        return
    pairs = sorted(
        (p, p.with_name(_common(p.name)))
        for p in Path("/usr/src").glob("linux-headers-*")
        if not p.name.endswith("-common")
    )
    for built, common in reversed(pairs):
        if (built / "include/generated/autoconf.h").exists() and common.is_dir():
            with tempfile.TemporaryDirectory(prefix="pytest-isolate-headers-") as merged:
                _merge(common, built, Path(merged))
                yield merged
            return
    yield ""


def _common(name: str) -> str:
    return name.rpartition("-")[0] + "-common"


def _merge(common: Path, built: Path, target: Path) -> None:
    """Links to everything of ``common``; where both have a directory, it is made and merged."""
    target.mkdir(exist_ok=True)
    ours, theirs = set(os.listdir(common)), set(os.listdir(built))
    for name in ours | theirs:
        one, two = common / name, built / name
        if name in ours and name in theirs and one.is_dir() and two.is_dir() and not two.is_symlink():
            _merge(one, two, target / name)
        else:
            (target / name).symlink_to(two if name in theirs else one)


__all__ = ["compile_text", "create_maps", "load", "load_program"]
