"""Users' own eBPF programs on a test's cgroup, compiled by bcc.

Owns: a program, its maps, its link; a context manager. The text is C with one function per hook; maps are declared in
Python and used with map_get(name, &key), map_put, map_add (bpf/np_dual.h is put before the text).
Refuses: programs the verifier refuses: SetupError with its words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType

from pytest_isolate.kernel import bcc
from pytest_isolate.kernel.bpf import Links
from pytest_isolate.kernel.bpf.dataplane import Dataplane
from pytest_isolate.kernel.bpf.layout import PROGRAMS, MapSpec, MapType, ProgramSpec
from pytest_isolate.kernel.bpf.maps import Map
from pytest_isolate.policy import unknown

#: Hooks by the words users write.
HOOKS: dict[str, ProgramSpec] = {name.removeprefix("np_"): spec for name, spec in PROGRAMS.items()}


def hash_map(key_bytes: int, value_bytes: int, entries: int = 1024) -> MapSpec:
    """A hash map; key and value are bytes of these sizes in Python."""
    return MapSpec(MapType.HASH, key_bytes, value_bytes, entries)


def array_map(value_bytes: int, entries: int) -> MapSpec:
    """An array; its key is a 32-bit index."""
    return MapSpec(MapType.ARRAY, 4, value_bytes, entries)


class UserProgram:
    """A user's program in force on a cgroup; ``maps`` are read and written from Python."""

    def __init__(self, cgroup_fd: int, text: str, hook: str, function: str, maps: Mapping[str, MapSpec]) -> None:
        if hook not in HOOKS:
            raise unknown("hook", hook, HOOKS)
        self._plane = Dataplane("bcc")
        try:
            self._plane.adopt(bcc.create_maps(maps), {}, {})
            whole = bcc.bundled("np_dual.h") + "\n" + text
            code = bcc.compile_text(whole, [function], self._plane.maps)
            self._plane.adopt(
                {}, {function: bcc.load_program(function, code[function], HOOKS[hook])}, {function: HOOKS[hook]}
            )
            self._links = Links(self._plane, cgroup_fd)
            self._links.attach((function,))
        except BaseException:
            self._plane.close()
            raise

    def __enter__(self) -> UserProgram:  # noqa: PYI034
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def maps(self) -> Mapping[str, Map]:
        """The maps by name: lookup, update, delete, items."""
        return self._plane.maps

    def fds(self) -> list[int]:
        """Descriptors a child must not keep."""
        return self._plane.fds() + self._links.fds()

    def close(self) -> None:
        """Detach and forget. Idempotent."""
        self._links.close()
        self._plane.close()

    def close_in_child(self) -> None:
        """In a forked child: give the descriptors up."""
        for fd in self.fds():
            os.close(fd)
