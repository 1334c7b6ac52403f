"""A path that failed a test because of the sandbox's view of the files: named in the child, explained in the parent.

Owns: the attribute of a report that carries it, and the section that explains it. Refuses: to word the explanation
(kernel/filesystem/resolve.py), and to look from inside: what the host has can be seen only from the parent.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from pytest_isolate.runner.verdict import chain

if TYPE_CHECKING:
    from pytest_isolate.kernel.filesystem import MountPlan

#: Title of the section.
SECTION = "Files of the sandbox"
_MAX_PATH = 4096  # Source: PATH_MAX, linux/limits.h


def name(error: BaseException, report: Any) -> None:
    """In the child: note the errno and path of the OSError that ``error`` is, or came from."""
    for one in chain(error):
        if isinstance(one, OSError) and one.errno and isinstance(one.filename, (str, bytes)):
            with contextlib.suppress(OSError):  # a working directory that is gone
                report.isolate_refused = (one.errno, os.path.abspath(os.fsdecode(one.filename)))
            return


def explain(report: Any, view: MountPlan | None) -> None:
    """In the parent: say what the view has to do with it; nothing where it has not. The child may have written anything."""
    match getattr(report, "isolate_refused", None):
        case (int(error), str(path)) if view is not None and path.startswith("/") and len(path) < _MAX_PATH:
            from pytest_isolate.kernel import filesystem

            if "\0" not in path and filesystem.caused(error, path, view):
                report.sections.append((SECTION, filesystem.explain(error, path, view)))
