"""Which files a program needs to start: itself, its interpreter, its shared libraries, by reading them.

Owns: closure(), the search order of the dynamic linker (Source: ld.so(8)) and the reader of /etc/ld.so.cache.
Refuses: to run anything (ldd(1) does), and to guess what a program opens later: dlopen(3), name service, locales, Python modules.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.filesystem import elf

LD_SO_CACHE = "/etc/ld.so.cache"
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_MUSL_FOLDERS = ("/lib", "/usr/local/lib", "/usr/lib")
_MAX_INTERPRETERS = 5  # BINPRM_MAX_RECURSION of exec_binprm(), fs/exec.c


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """A file (or, with ``link``, a symlink to a file) that has to be at ``target``."""

    target: str
    link: str = ""
    words: str = ""


def closure(programs: Iterable[str]) -> tuple[Needed, ...]:
    """Everything ``programs`` (paths, or names on PATH) need to be started.

    Raises:
        PolicyError: a program that is not there, or a library of it that is nowhere.
    """
    search = _Search()
    for program in programs:
        path = shutil.which(program)
        if path is None:
            raise PolicyError(f"program {program}", "not found, or not executable", "write its full path")
        search.program(os.path.abspath(path), program)
    return tuple(search.found.values())


@dataclass(slots=True)
class _Search:
    found: dict[str, Needed] = field(default_factory=dict)
    _cache: dict[str, list[str]] | None = None

    def program(self, path: str, name: str) -> None:
        """Add a program; a script brings its interpreter, and ``#!/usr/bin/env NAME`` brings NAME as well."""
        for _ in range(_MAX_INTERPRETERS):
            self._add(path, f"program {name}")
            script = _shebang(path)
            if not script:
                break
            path = script[0]
            if os.path.basename(path) == "env":
                self._chosen_by_env(script[1:], name)
        image = elf.read(path)
        if image is None:
            raise PolicyError(f"program {name}", f"{path} is neither an ELF file nor a script", "name a program")
        if image.interpreter:
            self._add(image.interpreter, f"dynamic linker of {name}")
            self._libraries(image, name)

    def _chosen_by_env(self, words: list[str], name: str) -> None:
        chosen = next((word for word in words if not word.startswith("-") and "=" not in word), None)
        path = shutil.which(chosen) if chosen else None
        if path is None:
            raise PolicyError(f"program {name}", f"its interpreter {chosen} is not on PATH", "install it")
        self.program(os.path.abspath(path), name)

    def _libraries(self, program: elf.Image, name: str) -> None:
        """Breadth first, as the linker loads them; one file per soname."""
        seen: set[str] = {os.path.basename(program.interpreter)}
        todo: list[tuple[elf.Image, tuple[elf.Image, ...]]] = [(program, ())]
        while todo:
            image, loaders = todo.pop(0)
            for soname in image.needed:
                if soname in seen:
                    continue
                seen.add(soname)
                library = self._library(soname, image, loaders, program)
                if library is None:
                    raise PolicyError(f"program {name}", f"its library {soname} is nowhere on this host", "install it")
                self._add(library.path, f"library of {name}")
                todo.append((library, (image, *loaders)))

    def _library(
        self, soname: str, image: elf.Image, loaders: tuple[elf.Image, ...], program: elf.Image
    ) -> elf.Image | None:
        for path in self._candidates(soname, image, loaders, program):
            found = elf.read(path)
            if found is not None and (found.bits, found.machine) == (program.bits, program.machine):
                return found
        return None

    def _candidates(
        self, soname: str, image: elf.Image, loaders: tuple[elf.Image, ...], program: elf.Image
    ) -> Iterator[str]:
        if "/" in soname:
            yield soname
            return
        if not image.runpath:
            for each in (image, *loaders):
                yield from (f"{folder}/{soname}" for folder in _expand(each.rpath, each.path))
        yield from (f"{folder}/{soname}" for folder in _expand(image.runpath, image.path))
        if "ld-musl" in program.interpreter:
            yield from (f"{folder}/{soname}" for folder in _MUSL_FOLDERS)
            return
        standard = [f"{folder}/{soname}" for folder in _standard_folders(program)]
        yield from (path for path in standard if os.path.exists(path))
        for path in self._cached(soname):
            self._add(LD_SO_CACHE, "where the dynamic linker finds libraries")
            yield path

    def _cached(self, soname: str) -> list[str]:
        if self._cache is None:
            self._cache = {}
            try:
                with open(LD_SO_CACHE, "rb") as file:
                    self._cache = read_cache(file.read())
            except OSError:
                pass
        return self._cache.get(soname, [])

    def _add(self, path: str, words: str) -> None:
        """The file under its real name, and under the name it is asked for by."""
        real = os.path.realpath(path)
        self.found.setdefault(real, Needed(target=real, words=words))
        if real != path:
            self.found.setdefault(path, Needed(target=path, link=real, words=words))


def read_cache(data: bytes) -> dict[str, list[str]]:
    """soname -> paths, of an ld.so.cache in the format of glibc 2.2 and later. Empty for what is none.

    Source: struct cache_file_new in glibc's sysdeps/generic/dl-cache.h; an older format may stand before it.
    """
    start = data.find(_CACHE_MAGIC)
    if start < 0:
        return {}
    (count,) = struct.unpack_from("=I", data, start + 20)
    found: dict[str, list[str]] = {}
    for index in range(count):
        _, key, value, _, hardware = struct.unpack_from("=iIIIQ", data, start + 48 + 24 * index)
        if hardware == 0:  # others are for some processors only, and each has a plain twin
            found.setdefault(_text(data, start + key), []).append(_text(data, start + value))
    return found


def _text(data: bytes, offset: int) -> str:
    return os.fsdecode(data[offset : data.index(b"\0", offset)])


def _shebang(path: str) -> list[str]:
    """The words after ``#!``; none for what is no script."""
    try:
        with open(path, "rb") as file:
            line = file.read(256).split(b"\n")[0]
    except OSError as error:
        raise PolicyError(f"program {path}", os.strerror(error.errno or 0), "") from error
    return [os.fsdecode(word) for word in line[2:].split()] if line.startswith(b"#!") else []


def _expand(folders: tuple[str, ...], path: str) -> Iterator[str]:
    """Search folders with $ORIGIN replaced, which is where the file really is."""
    origin = os.path.dirname(os.path.realpath(path))
    for folder in folders:
        yield folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)


def _standard_folders(program: elf.Image) -> list[str]:
    """The linker's built-in folders: Debian's by architecture first, then the classic ones."""
    triplet = elf.TRIPLETS.get((program.bits, program.machine))
    folders = [f"/lib/{triplet}", f"/usr/lib/{triplet}"] if triplet else []
    wide = ["/lib64", "/usr/lib64"] if program.bits == 64 else []
    return folders + wide + ["/lib", "/usr/lib"]
