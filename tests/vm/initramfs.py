"""The initramfs of a guest, made in memory from values.

Owns: the cpio format and which files go in. Refuses: to run anything; what the files do is said in guest/.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .debian import program

if TYPE_CHECKING:
    from .kernels import Kernel

_GUEST = Path(__file__).parent / "guest"
_DIRECTORY = 0o040755
_PROGRAM = 0o100755
_FILE = 0o100644


def build(kernel: Kernel, command: str, parameters: Mapping[str, str]) -> bytes:
    """Return the archive: busybox, the modules in load order, guest/, ``command`` and the shell ``parameters``."""
    modules = kernel.boot_modules()
    words = "".join(f"{name}={shlex.quote(value)}\n" for name, value in parameters.items())
    files = [
        ("bin", _DIRECTORY, b""),
        ("modules", _DIRECTORY, b""),
        ("bin/busybox", _PROGRAM, Path(program("busybox")).read_bytes()),
        ("init", _PROGRAM, (_GUEST / "init.sh").read_bytes()),
        ("guest.sh", _PROGRAM, (_GUEST / "guest.sh").read_bytes()),
        ("vm.service", _FILE, (_GUEST / "vm.service").read_bytes()),
        ("command", _PROGRAM, command.encode() + b"\n"),
        ("parameters", _FILE, words.encode()),
        ("modules.order", _FILE, "\n".join(name for name, _ in modules).encode()),
    ]
    return cpio([*files, *((f"modules/{name}", _FILE, content) for name, content in modules)])


def cpio(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An archive of (name, mode, content) in the newc format. Source: Documentation/driver-api/early-userspace."""
    out = io.BytesIO()
    for inode, (name, mode, content) in enumerate([*files, ("TRAILER!!!", 0, b"")], start=1):
        path = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        out.write(b"070701" + b"".join(b"%08x" % field for field in fields) + path)
        out.write(b"\0" * (-out.tell() % 4) + content)
        out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()
