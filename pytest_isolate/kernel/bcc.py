"""The other front end: bcc compiles bpf/ (and users' own programs) at run time.

Owns: finding the distribution's bcc and kernel headers, the maps it creates, the programs it loads.
Refuses: to import bcc here (bcc_compiler.py runs apart) and to pin: the compiler only turns text into instructions, and
hands over the maps that a text declares by their descriptors (SCM_RIGHTS), so nothing is left behind and bpffs is not needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_isolate.errors import BackendUnavailable, PolicyError
from pytest_isolate.hardening import Landlock
from pytest_isolate.kernel import landlock
from pytest_isolate.kernel.bpf import objects
from pytest_isolate.kernel.bpf.dataplane import OBJECTS, Dataplane, refusal, trimmed
from pytest_isolate.kernel.bpf.libbpf import MapCreateOpts, ProgLoadOpts, library
from pytest_isolate.kernel.bpf.maps import Map
from pytest_isolate.kernel.bpf.objects import MapSpec, MapType, ProgramSpec
from pytest_isolate.kernel.scratch import Scratch

_INCLUDE = re.compile(r'^#include "(\w+\.h)"$', re.MULTILINE)
_REMEDY = "install python3-bpfcc (Debian) or python3-bcc (Fedora); the package named bcc on the index is something else"
_COMPILE_TIMEOUT_S = 60.0
_LOG_BYTES = 1 << 20
_MAPS_MAX = 64
_READABLE = frozenset(
    {MapType.HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_HASH, MapType.LRU_PERCPU_HASH}
    | {MapType.LPM_TRIE}
)
_POSSIBLE_CPUS = "/sys/devices/system/cpu"
#: struct bpf_insn; LD | IMM | DW with BPF_PSEUDO_MAP_FD or BPF_PSEUDO_MAP_VALUE names a map. Source: linux/bpf.h.
_INSTRUCTION, _LD_IMM64, _NAMES_A_MAP = struct.Struct("=BBhi"), 0x18, (1, 2)


def load(
    specs: Mapping[str, ProgramSpec],
    *,
    sizes: Mapping[str, int] | None = None,
    maps: Mapping[str, Map] | None = None,
    debug: bool = False,
) -> Dataplane:
    """Compile bpf/netpolicy.bpf.c with bcc and load the programs of ``specs``; same result as kernel.bpf.load.

    Raises:
        BackendUnavailable: no bcc, no kernel headers, no privilege.
        SetupError: the verifier refused; the log's end is in the text.
    """
    plane = Dataplane("bcc")
    try:
        if maps is None:
            maps = create_maps(
                {n: s if n not in (sizes or {}) else _sized(s, (sizes or {})[n]) for n, s in objects.MAPS.items()}
            )
            plane.adopt(maps, {}, {})
        flags = [f"-DDEBUG_MODE={int(debug)}"]
        try:
            _load_into(plane, specs, maps, flags)
        except OSError:
            _load_into(plane, specs, maps, [*flags, "-DNP_NO_SET_RETVAL"])
            plane.can_set_errno = False
    except BaseException:
        plane.close()
        raise
    return plane


def _sized(spec: MapSpec, entries: int) -> MapSpec:
    return MapSpec(spec.type, spec.key_bytes, spec.value_bytes, entries, spec.flags)


def _load_into(plane: Dataplane, specs: Mapping[str, ProgramSpec], maps: Mapping[str, Map], flags: list[str]) -> None:
    code = compile_text(bundled("netpolicy.bpf.c"), list(specs), maps, flags)
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
    return 0 if spec.type in (objects.ProgramType.SCHED_CLS, objects.ProgramType.XDP) else int(spec.attach)


# -- compiling -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compiled:
    """Instructions of each function. ``maps``: those the text declares, ours to close; ``layouts``: key, value of each."""

    functions: dict[str, bytes]
    maps: dict[str, Map]
    layouts: dict[str, tuple[Any, Any]]


def compile_text(
    text: str, functions: Sequence[str], maps: Mapping[str, Map], flags: Sequence[str] = ()
) -> dict[str, bytes]:
    """Instructions of each function of a text of ours. Maps are named FD_<name> in it (np_dual.h's MAP_REF).

    Raises:
        BackendUnavailable: no bcc, or no kernel headers.
        PolicyError: the text does not compile; clang's words are in the error.
    """
    cflags = ["-Wno-everything", *flags, *(f"-DFD_{m.name}={m.fd}" for m in maps.values())]
    answer, _ = _ask(text, list(functions), cflags, confined=False)
    return {name: bytes.fromhex(code) for name, code in answer["functions"].items()}


def compile_foreign(text: str, function: str = "") -> Compiled:
    """The function of somebody else's text (the only one, without a name), and the maps it declares by bcc's macros.

    The compiler is confined: what the text includes can only be a header. Raises as compile_text().
    """
    answer, fds = _ask(text, [function] if function else None, ["-Wno-everything"], confined=True)
    try:
        specs = {row["name"]: _spec_of(row) for row in answer["maps"]}
        ours = {row["fd"]: fd for row, fd in zip(answer["maps"], fds, strict=True)}
        functions = {name: _with_fds(bytes.fromhex(code), ours) for name, code in answer["functions"].items()}
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    maps = {row["name"]: Map(row["name"], ours[row["fd"]], specs[row["name"]]) for row in answer["maps"]}
    return Compiled(functions, maps, {row["name"]: (row["key"], row["value"]) for row in answer["maps"]})


def _spec_of(row: Mapping[str, Any]) -> MapSpec:
    if row["type"] not in _READABLE:
        why = f"it is of type {row['type']} (enum bpf_map_type), which is not read here"
        known = "BPF_HASH, BPF_ARRAY, BPF_PERCPU_HASH, BPF_PERCPU_ARRAY, BPF_LPM_TRIE or an LRU hash"
        raise PolicyError(f"map {row['name']}", why, f"use {known}")
    return MapSpec(MapType(row["type"]), row["key_bytes"], row["value_bytes"], row["max_entries"], row["flags"])


def _with_fds(code: bytes, ours: Mapping[int, int]) -> bytes:
    """Instructions that name maps by our descriptors instead of the compiler's; no other descriptor passes."""
    patched = bytearray(code)
    for at in range(0, len(code), 8):
        opcode, registers, _, value = _INSTRUCTION.unpack_from(code, at)
        if opcode == _LD_IMM64 and registers >> 4 in _NAMES_A_MAP:
            if value not in ours:
                raise PolicyError("eBPF program", f"it names descriptor {value}, no map of its own", "declare a map")
            struct.pack_into("=i", patched, at + 4, ours[value])
    return bytes(patched)


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


def _ask(
    text: str, functions: list[str] | None, cflags: list[str], *, confined: bool
) -> tuple[dict[str, Any], list[int]]:
    """The compiler's answer, and the descriptors that came with it."""
    environment = {**os.environ, "LC_ALL": "C"}
    with headers() as source, Scratch("bcc") as scratch:
        if source:
            environment["BCC_KERNEL_SOURCE"] = source
        environment["TMPDIR"] = scratch.path
        request: dict[str, Any] = {"text": text, "cflags": cflags, "functions": functions, "confine": None}
        if confined:
            request["confine"] = _confinement(environment.get("BCC_KERNEL_SOURCE", ""), scratch.path)
        answer, fds = _answered(request, environment)
    if "error" in answer:
        raise _complaint(answer["error"], answer["log"])
    return answer, fds


def _confinement(source: str, scratch: str) -> tuple[int, list[tuple[int, str]]] | None:
    """Landlock rights and rules for a compiler; None where this kernel has no Landlock: the text is then read as root."""
    if not landlock.abi():
        return None
    readable = tuple(filter(None, ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", _POSSIBLE_CPUS, source)))
    ruleset = landlock.compile_ruleset(Landlock(read=readable, write=(scratch, "/dev/null")))
    return ruleset.fs, [(rule.rights, rule.path) for rule in ruleset.rules]


def _answered(request: dict[str, Any], environment: Mapping[str, str]) -> tuple[dict[str, Any], list[int]]:
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as said:
        with theirs:
            command = [interpreter(), "-I", str(Path(__file__).with_name("bcc_compiler.py"))]
            process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=said, stderr=said, env=environment)
        ours.settimeout(_COMPILE_TIMEOUT_S)
        fds: list[int] = []
        try:
            with contextlib.suppress(BrokenPipeError):  # it has died: what it said tells why
                ours.sendall(json.dumps(request).encode())
                ours.shutdown(socket.SHUT_WR)
            first, fds, _, _ = socket.recv_fds(ours, 1, _MAPS_MAX)
            with ours.makefile("rb") as rest:
                return json.load(rest) if first else json.loads(""), fds
        except (ValueError, OSError) as error:
            for fd in fds:
                os.close(fd)
            process.kill()
            said.seek(0)
            why = trimmed([said.read().decode(errors="replace")]) or f"the compiler did not answer ({error})"
            raise BackendUnavailable("bcc", why, _REMEDY) from None
        finally:
            process.wait()


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
            with Scratch("headers") as merged:
                _merge(common, built, Path(merged.path))
                yield merged.path
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


__all__ = ["Compiled", "compile_foreign", "compile_text", "create_maps", "load", "load_program"]
