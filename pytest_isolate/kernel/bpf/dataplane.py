"""The loaded data plane: maps and programs, however they were compiled.

Owns: the libbpf object, or the file descriptors of what bcc compiled; closes them.
Refuses: to attach (links.py) and to fill maps (network/).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from pytest_isolate.errors import BackendUnavailable, SetupError
from pytest_isolate.kernel.bpf import objects
from pytest_isolate.kernel.bpf.libbpf import check, library
from pytest_isolate.kernel.bpf.maps import Map
from pytest_isolate.kernel.bpf.objects import MapSpec, MapType, ProgramSpec

if TYPE_CHECKING:
    from typing_extensions import Self

#: Where `make -C bpf` puts objects and sources.
OBJECTS = Path(__file__).resolve().parents[2] / "_bpf"
_LOG_LINES = 12
NO_MAPS: Mapping[str, Map] = MappingProxyType({})


class Dataplane:
    """Maps and programs by name. A context manager; closing it detaches nothing (links keep programs alive)."""

    def __init__(self, front_end: str) -> None:
        self.front_end = front_end
        self.maps: dict[str, Map] = {}
        self.programs: dict[str, int] = {}
        self.specs: dict[str, ProgramSpec] = {}
        self.can_set_errno = True
        self._object: int | None = None
        self._fds: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up every file descriptor. Idempotent."""
        if self._object is not None:
            library().bpf_object__close(self._object)
            self._object = None
        while self._fds:
            os.close(self._fds.pop())
        self.maps.clear()
        self.programs.clear()

    def fds(self) -> list[int]:
        """Every file descriptor it holds: what a child must not keep."""
        return [m.fd for m in self.maps.values()] + list(self.programs.values())

    def memory_bytes(self) -> int:
        """True kernel memory of the maps, as /proc/self/fdinfo says (memlock)."""
        return sum(map(self.memory_of, self.maps))

    def memory_of(self, name: str) -> int:
        """That of one map."""
        return _memlock(self.maps[name].fd)

    # -- made by ---------------------------------------------------------------------------------------------------

    def adopt(self, maps: Mapping[str, Map], programs: Mapping[str, int], specs: Mapping[str, ProgramSpec]) -> None:
        """Take over maps and programs made elsewhere (bcc.py); their descriptors are closed with this object."""
        self.maps.update(maps)
        self.programs.update(programs)
        self.specs.update(specs)
        self._fds += [m.fd for m in maps.values()] + list(programs.values())


def object_path(name: str = "netpolicy") -> Path:
    """The compiled object.

    Raises:
        BackendUnavailable: it was not built with the package.
    """
    path = OBJECTS / f"{name}.bpf.o"
    if not path.is_file():
        raise BackendUnavailable(
            "network policy",
            f"{path.name} is not in the package",
            "build it with `make -C bpf`, or use --isolate-bpf=bcc",
        )
    return path


def load(
    specs: Mapping[str, ProgramSpec],
    *,
    sizes: Mapping[str, int] | None = None,
    maps: Mapping[str, Map] | None = None,
    name: str = "netpolicy",
) -> Dataplane:
    """Load the programs of ``specs`` from the compiled object, with libbpf.

    ``sizes``: max_entries by map name, where the caller chooses (flow tables). ``maps``: those of a plane that is loaded
    already, which the programs are to share.
    On a kernel without bpf_set_retval (before 5.18) the object without it is used and ``can_set_errno`` is False.

    Raises:
        BackendUnavailable: no privilege, no libbpf, no object, or a kernel too old.
        SetupError: the verifier or the kernel refused; the log's end is in the text.
    """
    try:
        return load_image(object_path(name).read_bytes(), specs, sizes or {}, maps or {})
    except SetupError as error:
        if error.errno != errno.EINVAL:
            raise
        plain = OBJECTS / f"{name}-nosetretval.bpf.o"
        if not plain.is_file():
            raise
        try:
            plane = load_image(plain.read_bytes(), specs, sizes or {}, maps or {})
        except SetupError:
            raise error from None
        plane.can_set_errno = False
        return plane


def load_image(
    image: bytes, specs: Mapping[str, ProgramSpec], sizes: Mapping[str, int], maps: Mapping[str, Map] = NO_MAPS
) -> Dataplane:
    """Load the programs of ``specs`` from an ELF image. Raises as ``load``."""
    lib = library()
    lib.complaints.clear()
    ctypes.set_errno(0)
    handle = lib.bpf_object__open_mem(image, len(image), None)
    if not handle:
        raise SetupError("bpf-open", ctypes.get_errno() or errno.EINVAL, detail=trimmed(lib.complaints))
    plane = Dataplane("libbpf")
    plane._object = handle
    try:
        _choose(handle, specs, sizes, maps)
        result = lib.bpf_object__load(handle)
        if result:
            raise refusal(-result, lib.complaints)
        _collect(plane, handle, specs)
    except BaseException:
        plane.close()
        raise
    return plane


def _choose(handle: int, specs: Mapping[str, ProgramSpec], sizes: Mapping[str, int], maps: Mapping[str, Map]) -> None:
    lib = library()
    program = lib.bpf_object__next_program(handle, None)
    while program:
        lib.bpf_program__set_autoload(program, lib.bpf_program__name(program).decode() in specs)
        program = lib.bpf_object__next_program(handle, program)
    item = lib.bpf_object__next_map(handle, None)
    while item:
        name = lib.bpf_map__name(item).decode()
        if name in maps:
            check(lib.bpf_map__reuse_fd(item, maps[name].fd), f"map {name}")
        elif name in sizes:
            lib.bpf_map__set_max_entries(item, sizes[name])
        item = lib.bpf_object__next_map(handle, item)


def _collect(plane: Dataplane, handle: int, specs: Mapping[str, ProgramSpec]) -> None:
    lib = library()
    item = lib.bpf_object__next_map(handle, None)
    while item:
        spec = MapSpec(
            MapType(lib.bpf_map__type(item)), lib.bpf_map__key_size(item), lib.bpf_map__value_size(item),
            lib.bpf_map__max_entries(item), lib.bpf_map__map_flags(item),
        )  # fmt: skip
        name = lib.bpf_map__name(item).decode()
        plane.maps[name] = Map(name, lib.bpf_map__fd(item), spec)
        item = lib.bpf_object__next_map(handle, item)
    program = lib.bpf_object__next_program(handle, None)
    while program:
        name = lib.bpf_program__name(program).decode()
        if name in specs:
            plane.programs[name] = lib.bpf_program__fd(program)
        program = lib.bpf_object__next_program(handle, program)
    plane.specs.update(specs)
    missing = sorted(set(specs) - set(plane.programs))
    if missing:
        raise SetupError("bpf-load", errno.ENOENT, detail=f"no program {', '.join(missing)} in the object")


def trimmed(log: list[str]) -> str:
    """The last lines of a verifier log: the reason is at the end."""
    lines = [line for text in log for line in text.rstrip().splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("processed ", "-- END", "-- BEGIN"))]
    shown = lines[-_LOG_LINES:]
    return ("... " if len(lines) > len(shown) else "") + "\n".join(shown)


def refusal(code: int, log: list[str]) -> BackendUnavailable | SetupError:
    """The error for a load that failed: whose it is depends on the errno."""
    if code in (errno.EPERM, errno.EACCES) and not any("R0" in text or "invalid" in text for text in log):
        return BackendUnavailable(
            "network policy",
            "the kernel refuses bpf(2) to this user",
            "run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
        )
    return SetupError("bpf-load", code, detail=f"\n{trimmed(log)}\n")


def _memlock(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    return 0


ALL_PROGRAMS = {**objects.PROGRAMS, **objects.FLOW_PROGRAMS, **objects.LINK_PROGRAMS}
