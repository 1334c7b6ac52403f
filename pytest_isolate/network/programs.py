"""Users' own eBPF programs on a test's cgroup, compiled by bcc.

Owns: a program, its maps, its link; a context manager. The text is C as bcc takes it: one function that gets the hook's
context, and maps by BPF_HASH(name, key, value), BPF_ARRAY and so on; Python reads them as numbers, lists and dicts.
Refuses: programs the verifier refuses: SetupError with its words.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel import bcc
from pytest_isolate.kernel.bpf import Links
from pytest_isolate.kernel.bpf.dataplane import Dataplane
from pytest_isolate.kernel.bpf.libbpf import library
from pytest_isolate.kernel.bpf.maps import Map
from pytest_isolate.kernel.bpf.objects import PROGRAMS, ProgramSpec
from pytest_isolate.policy import unknown

#: Hooks by the words users write.
HOOKS: dict[str, ProgramSpec] = {name.removeprefix("np_"): spec for name, spec in PROGRAMS.items()}


class TypedMap:
    """A map whose keys and values are Python's: numbers, bytes, lists, dicts by field; a list of these for each CPU."""

    def __init__(self, raw: Map, key: Any, value: Any) -> None:
        self._raw, self._key, self._value = raw, key, value

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Every entry."""
        for key, value in self._raw.items():
            yield decoded(self._key, key), self._of_cpus(value)

    def get(self, key: Any) -> Any:
        """The value, None where there is none."""
        value = self._raw.lookup(encoded(self._key, key, self._raw.spec.key_bytes))
        return None if value is None else self._of_cpus(value)

    def set(self, key: Any, value: Any) -> None:
        """Store; on every CPU where each has its own."""
        size = self._raw.spec.value_bytes
        packed = encoded(self._value, value, size)
        if self._raw.spec.type.per_cpu:
            packed = packed.ljust(-(-size // 8) * 8, b"\0") * library().cpus
        self._raw.update(encoded(self._key, key, self._raw.spec.key_bytes), packed)

    def delete(self, key: Any) -> bool:
        """Remove; False when it was not there."""
        return self._raw.delete(encoded(self._key, key, self._raw.spec.key_bytes))

    def _of_cpus(self, value: bytes) -> Any:
        size = self._raw.spec.value_bytes
        if not self._raw.spec.type.per_cpu:
            return decoded(self._value, value[:size])
        stride = -(-size // 8) * 8
        return [decoded(self._value, value[at : at + size]) for at in range(0, len(value), stride)]


def decoded(layout: Any, raw: bytes) -> Any:
    """``raw`` as its layout says (kernel/bcc_compiler.py makes it); bytes without one."""
    match layout:
        case {"int": signed}:
            return int.from_bytes(raw, "little", signed=signed)
        case {"array": [length, size, inner]}:
            return [decoded(inner, raw[at * size : (at + 1) * size]) for at in range(length)]
        case {"struct": rows}:
            return {name: decoded(inner, raw[at : at + size]) for name, at, size, inner in rows}
    return raw


def encoded(layout: Any, value: Any, size: int) -> bytes:
    """The other way; bytes of the right size pass as they are.

    Raises:
        PolicyError: the value is not of this layout, or does not fit.
    """
    try:
        match layout, value:
            case _, bytes() if len(value) == size:
                return value
            case {"int": signed}, int():
                return value.to_bytes(size, "little", signed=signed)
            case {"array": [length, each, inner]}, list() | tuple() if len(value) == length:
                return b"".join(encoded(inner, item, each) for item in value)
            case {"struct": rows}, dict() if set(value) == {row[0] for row in rows}:
                packed = bytearray(size)
                for name, at, length, inner in rows:
                    packed[at : at + length] = encoded(inner, value[name], length)
                return bytes(packed)
    except OverflowError as error:
        raise PolicyError("map of an eBPF program", f"{value!r}: {error}", "give a smaller number") from None
    raise PolicyError("map of an eBPF program", f"{value!r} does not fit its {size} bytes", "see the text's own types")


class UserProgram:
    """A user's program in force on a cgroup. ``function``: its name, where the text has several."""

    def __init__(self, cgroup_fd: int, text: str, hook: str, function: str = "") -> None:
        if hook not in HOOKS:
            raise unknown("hook", hook, HOOKS)
        spec = HOOKS[hook]
        compiled = bcc.compile_foreign(text, function)
        self._plane = Dataplane("bcc")
        try:
            self._plane.adopt(compiled.maps, {}, {})
            for name, code in compiled.functions.items():
                self._plane.adopt({}, {name: bcc.load_program(name, code, spec)}, {name: spec})
            self.maps: Mapping[str, TypedMap] = {
                name: TypedMap(found, *compiled.layouts[name]) for name, found in compiled.maps.items()
            }
            self._links = Links(self._plane, cgroup_fd)
            self._links.attach(tuple(compiled.functions))
        except BaseException:
            self._plane.close()
            raise

    def __enter__(self) -> UserProgram:  # noqa: PYI034
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
            with contextlib.suppress(OSError):
                os.close(fd)
