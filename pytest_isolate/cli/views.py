"""What `pytest-isolate run` shows of the file system: --fs and the options named as bwrap(1) has them, as a policy.

Owns: their grammar. Refuses: to compile a view, or to make a place that is not there (kernel/filesystem).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_isolate import units
from pytest_isolate.errors import PolicyError
from pytest_isolate.policy import Bind, Namespace, Overlay, Policy, Tmpfs
from pytest_isolate.profile import vary

if TYPE_CHECKING:
    import argparse

_KEEP = ":keep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this module."""

    def repeatable(flag: str, metavar: Any, text: str, **more: Any) -> None:
        parser.add_argument(flag, action="append", default=[], metavar=metavar, help=text, **more)

    repeatable(
        "--fs",
        "VIEW",
        "host, readonly, minimal (the program with its libraries, and nothing else), or overlay:DIR (changes are listed and "
        "thrown away), overlay:DIR:keep=KEPT (kept there), overlay:DIR:keep (kept in DIR.changes)",
    )
    repeatable("--bind", ("SRC", "DST"), "show SRC at DST, writable: changes the host", nargs=2)
    repeatable("--ro-bind", ("SRC", "DST"), "show SRC at DST, read-only", nargs=2)
    repeatable("--tmpfs", "DIR[:SIZE]", "an empty directory in memory, of at most SIZE")
    repeatable("--mask", "PATH", "show something empty in the place of PATH")
    repeatable("--with-program", "NAME", "with --fs minimal: a further program, with what it needs to start")


def viewed(policy: Policy, arguments: argparse.Namespace, program: str) -> Policy:
    """``policy`` with the view that is asked for; a root built from nothing has at least what is to be run in it.

    Raises:
        PolicyError: a place that is not there, or that is not named.
    """
    for view in arguments.fs:
        policy = _with_view(policy, view)
    filesystem = policy.filesystem
    binds = [_bind("--bind", pair, writable=True) for pair in arguments.bind]
    binds += [_bind("--ro-bind", pair, writable=False) for pair in arguments.ro_bind]
    changed = replace(
        filesystem,
        binds=(*filesystem.binds, *binds),
        tmpfs=(*filesystem.tmpfs, *map(_tmpfs, arguments.tmpfs)),
        masks=(*filesystem.masks, *(_absolute("--mask", path) for path in arguments.mask)),
        programs=_programs(policy, arguments.with_program, program),
    )
    if changed == filesystem:
        return policy
    return replace(policy, filesystem=changed, namespaces=policy.namespaces | {Namespace.MOUNT})


def _programs(policy: Policy, further: Sequence[str], program: str) -> tuple[str, ...]:
    filesystem = policy.filesystem
    if filesystem.root != "minimal":
        if further:
            raise PolicyError("--with-program", f"the root is {filesystem.root!r}, which has them", "add --fs minimal")
        return filesystem.programs
    found = shutil.which(program) if program else None
    return (*filesystem.programs, *((found,) if found else ()), *further)


def _with_view(policy: Policy, view: str) -> Policy:
    kind, colon, rest = view.partition(":")
    if kind != "overlay":
        return vary(policy, fs=view)
    place, keeps, kept = rest.partition(_KEEP)
    if not colon or not place:
        raise PolicyError(f"--fs {view}", "it names no directory", "write overlay:DIR, overlay:. for this one")
    if keeps and kept[:1] not in ("", "="):  # a directory whose name goes on like that
        place, keeps, kept = rest, "", ""
    if kept == "=":
        raise PolicyError(f"--fs {view}", "it names no directory to keep the changes in", "write overlay:DIR:keep=KEPT")
    target = _real(f"--fs {view}", place)
    if not os.path.isdir(target):
        raise PolicyError(f"--fs {view}", "there is no such directory", "name one that exists")
    overlay = Overlay(target=target, keep=_real(f"--fs {view}", kept[1:]) if kept else bool(keeps))
    changed = replace(policy.filesystem, overlays=(*policy.filesystem.overlays, overlay))
    return replace(policy, filesystem=changed, namespaces=policy.namespaces | {Namespace.MOUNT})


def _bind(flag: str, pair: Sequence[str], *, writable: bool) -> Bind:
    source, target = pair
    if not source:
        raise PolicyError(flag, "the first name is empty", "write SRC DST")
    return Bind(source=_real(flag, source), target=_absolute(flag, target), writable=writable)


def _tmpfs(text: str) -> Tmpfs:
    """A colon is part of the name where no size follows."""
    place, colon, size = text.rpartition(":")
    if not colon or not size[:1].isdigit():
        place, size = text, ""
    limit = units.size_bytes(size, what=f"--tmpfs {text}") if size else None
    return Tmpfs(target=_absolute("--tmpfs", place), size_bytes=limit)


def _absolute(flag: str, path: str) -> str:
    if not path.startswith("/"):
        raise PolicyError(f"{flag} {path!r}", "it is no absolute path", "write where it is inside, from / on")
    return path


def _real(what: str, path: str) -> str:
    try:
        return os.path.realpath(path)
    except FileNotFoundError:
        raise PolicyError(what, "the working directory does not exist any more", "write an absolute path") from None
    except ValueError as error:
        raise PolicyError(what, str(error), "name a file") from None
