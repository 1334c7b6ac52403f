"""The places a test run expects to write to, added to a view that is otherwise sealed.

Owns: for_tests(), which the runner calls with what it knows of its own process. Refuses: to read the environment itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from pytest_isolate.kernel.filesystem.tree import is_below
from pytest_isolate.policy import Bind, Filesystem, Overlay


def for_tests(
    filesystem: Filesystem,
    *,
    home: str | None = None,
    working_copy: str | None = None,
    writable: Iterable[str] = (),
    readable: Iterable[str] = (),
) -> Filesystem:
    """The view with overlays on HOME and on the working copy, and binds of what a private /tmp would hide.

    Args:
        writable: directories shared with the host, at their own paths: pytest's basetemp above all.
        readable: directories that must stay visible, such as those of sys.path; bound only where a tmpfs or a mask hides them.

    What does not exist, and ``/`` as HOME of some service, is left out.
    """
    shared = [_real(path) for path in writable]
    copies = {_real(path): None for path in (home, working_copy) if path and os.path.isdir(path)}
    overlays = [Overlay(target=path) for path in copies if path != "/" and path not in shared]
    hidden = _outermost([_real(path) for path in readable], filesystem, [*shared, *copies])
    binds = [Bind(source=path, target=path, writable=True) for path in dict.fromkeys(shared)]
    binds += [Bind(source=path, target=path) for path in hidden]
    return replace(
        filesystem,
        overlays=(*filesystem.overlays, *(o for o in overlays if o not in filesystem.overlays)),
        binds=(*filesystem.binds, *(b for b in binds if b not in filesystem.binds)),
    )


def _outermost(paths: list[str], filesystem: Filesystem, shown: list[str]) -> list[str]:
    """The paths that a tmpfs or a mask hides and nothing shown brings back, without those below another of them."""
    covers = [_real(tmpfs.target) for tmpfs in filesystem.tmpfs] + [_real(mask) for mask in filesystem.masks]
    hidden = sorted({p for p in paths if os.path.exists(p) and _within(p, covers) and not _within(p, shown)})
    return [path for path in hidden if not any(is_below(path, other) for other in hidden)]


def _within(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or is_below(path, folder) for folder in folders)


def _real(path: str) -> str:
    return os.path.realpath(path)
