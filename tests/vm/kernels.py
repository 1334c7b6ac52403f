"""Kernels from Debian's packages, unpacked into the cache, never installed.

Owns: finding the image a suite's metapackage names, unpacking it, the plain ELF image, and the modules the guest's
first minute needs, in load order.
Refuses: to know what a kernel is booted for.
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from pytest_isolate.errors import BackendUnavailable

from .debian import Suite, cache_dir, call, program

#: What the initramfs loads before the root file system is there; a name the kernel has built in is skipped.
BOOT_MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "virtio_rng", "9pnet_virtio", "9p", "overlay")

_COMPRESSED_MODULE = {".xz": lzma.decompress}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """An unpacked kernel: ``release`` is what uname -r answers, ``vmlinux`` the image qemu enters directly."""

    release: str
    version: str
    vmlinux: Path
    modules: Path

    def boot_modules(self) -> list[tuple[str, bytes]]:
        """(file name, content) of BOOT_MODULES and what they depend on, each after its dependencies."""
        available = {_module_name(path): path for path in self.modules.rglob("*.ko*")}
        ordered: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in ordered or name not in available:
                return
            content = _module_content(available[name])
            for dependency in _module_depends(content):
                add(dependency)
            ordered[name] = content

        for name in BOOT_MODULES:
            add(name)
        return [(f"{name}.ko", content) for name, content in ordered.items()]


def fetch(suite: str, *, refresh: bool = False) -> Kernel:
    """Return the newest kernel of a Debian suite, from the cache unless it is not there or ``refresh`` is asked."""
    place = cache_dir() / "kernels" / suite
    if refresh or not (place / "kernel.json").exists():
        _unpack(Suite(suite, refresh=refresh), place)
    told = json.loads((place / "kernel.json").read_text())
    modules = place / "lib/modules" / told["release"]
    return Kernel(release=told["release"], version=told["version"], vmlinux=place / "vmlinux", modules=modules)


def _unpack(suite: Suite, place: Path) -> None:
    """Fill ``place`` in one rename, so that an interrupted run leaves nothing half-made behind."""
    making = place.with_name(place.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    package, *_ = suite.depends("linux-image-amd64", r"linux-image-[0-9].*-amd64")
    release = package.removeprefix("linux-image-")
    parts = [package, *suite.depends(package, r"linux-(binary|modules)-.*")]  # split since Linux 7 in sid
    sha256 = {part: suite.unpack(part, making) for part in parts}
    if not (making / "lib").exists():  # Debian 13 ships below /usr/lib; depmod looks below /lib
        (making / "lib").symlink_to("usr/lib")
    call(program("depmod"), "-b", making, release)
    places = (making / f"boot/vmlinuz-{release}", making / f"lib/modules/{release}/vmlinuz")  # the second in sid
    image = next(place for place in places if place.exists())
    (making / "vmlinux").write_bytes(plain_image(image.read_bytes()))
    told = {"release": release, "version": suite.show(package)["Version"], "sha256": sha256}
    (making / "kernel.json").write_text(json.dumps(told, indent=1))
    shutil.rmtree(place, ignore_errors=True)
    making.rename(place)


def plain_image(bzimage: bytes) -> bytes:
    """The ELF vmlinux inside a bzImage: qemu enters it by PVH, and no emulated CPU has to decompress (3 s).

    Source: Documentation/arch/x86/boot.rst, setup_sects (0x1f1), payload_offset (0x248), payload_length (0x24c).
    """
    sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    payload = bzimage[(sectors + 1) * 512 + offset :][:length]
    match payload[:4]:
        case b"\xfd7zX":
            return lzma.LZMADecompressor().decompress(payload)
        case b"\x1f\x8b\x08\x00":
            return zlib.decompressobj(31).decompress(payload)
        case b"\x28\xb5\x2f\xfd":
            argv = [program("zstd"), "-dcq"]
            return subprocess.run(argv, input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
        case other:
            raise BackendUnavailable("vm: kernel image", f"unknown compression {other.hex()}", "teach plain_image")


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _module_content(path: Path) -> bytes:
    return _COMPRESSED_MODULE.get(path.suffix, bytes)(path.read_bytes())


def _module_depends(content: bytes) -> list[str]:
    """The names in a module's ``depends=`` of .modinfo."""
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    names = found[1].decode().split(",") if found else []
    return [name.replace("-", "_") for name in names if name]
