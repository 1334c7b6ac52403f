"""Unpacking: archives, images and dependencies are read as they are written. Boots nothing."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.testing import require

from . import debian, initramfs, kernels


def bzimage(payload: bytes) -> bytes:
    """A boot image with two setup sectors and ``payload``, as boot.rst lays one out."""
    head = bytearray(3 * 512)
    head[0x1F1] = 2
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + b"\0" * 16 + payload + b"trailing"


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress], ids=["xz", "gzip"])
def test_the_plain_image_is_what_was_compressed(compress: Callable[[bytes], bytes]) -> None:
    assert kernels.plain_image(bzimage(compress(b"\x7fELF" * 1000))) == b"\x7fELF" * 1000


def test_an_unknown_compression_is_named() -> None:
    with pytest.raises(BackendUnavailable, match="unknown compression deadbeef"):
        kernels.plain_image(bzimage(b"\xde\xad\xbe\xef" * 4))


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    for name, depends in (("9pnet_virtio", "9pnet"), ("9pnet", ""), ("overlay", ""), ("unrelated", "")):
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF\0depends=" + depends.encode() + b"\0")
    (tmp_path / "9p.ko.xz").write_bytes(lzma.compress(b"\x7fELF\0depends=9pnet,netfs\0"))
    (tmp_path / "netfs.ko").write_bytes(b"\x7fELF\0depends=\0")
    kernel = kernels.Kernel(release="0", version="0", vmlinux=tmp_path, modules=tmp_path)
    names = [name for name, _ in kernel.boot_modules()]
    assert names == ["9pnet.ko", "9pnet_virtio.ko", "netfs.ko", "9p.ko", "overlay.ko"]


def test_the_archive_is_one_that_cpio_unpacks(tmp_path: Path) -> None:
    require("busybox", shutil.which("busybox") is not None, "the archive is read back with its cpio")
    files = [("bin", 0o040755, b""), ("bin/tool", 0o100755, b"odd"), ("empty", 0o100644, b"")]
    archive = initramfs.cpio(files)
    subprocess.run(["busybox", "cpio", "-id"], input=archive, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bin/tool").read_bytes() == b"odd"
    assert (tmp_path / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "PROGRAMS", {"no-such-program": ("its-package", "a test")})
    with pytest.raises(BackendUnavailable, match="Apt-get install its-package"):
        debian.program("no-such-program")


def test_a_host_program_that_fails_says_its_last_words() -> None:
    with pytest.raises(BackendUnavailable, match="status 3: one; two"):
        debian.call("sh", "-c", "echo one >&2; echo two >&2; exit 3")
