"""A directory to try views on, and small questions: which mount answers for a path, how an attempt ends."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pytest_isolate.kernel.filesystem import mountinfo
from tests.kernel.throwaway import NOBODY


def host_mount(path: str) -> mountinfo.Mount:
    """The mount that answers for a path that is no symlink."""
    over = [m for m in mountinfo.read() if path == m.mountpoint or path.startswith(m.mountpoint.rstrip("/") + "/")]
    return max(over, key=lambda m: len(m.mountpoint))


def attempt(action: Callable[[], Any]) -> str:
    """``ok`` or the name of the errno."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def write(path: Path | str, text: str = "x") -> str:
    return attempt(lambda: Path(path).write_text(text))


def flags_at(path: str) -> int:
    return next(mount.flags for mount in reversed(mountinfo.read()) if mount.mountpoint == path)


def place_in(folder: str, who: str) -> Iterator[Path]:
    """A directory of its own in ``folder``, with some content, that belongs to ``who``."""
    path = Path(tempfile.mkdtemp(prefix="isolate-fs-", dir=folder))
    (path / "old").mkdir()
    (path / "old" / "inner").write_text("inner")
    (path / "file").write_text("content")
    (path / "script").write_text("#!/bin/sh\necho script\n")
    (path / "script").chmod(0o755)
    if who == "user":
        for each in [path, *path.rglob("*")]:
            os.chown(each, NOBODY, NOBODY)
    try:
        yield path
    finally:
        shutil.rmtree(path)
