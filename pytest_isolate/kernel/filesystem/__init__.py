"""File-system views: a Filesystem policy becomes a mount table, and one can ask what the sandbox will see.

Owns: the names of this package. Refuses: to mount; the C child interprets the table (kernel/plan.py, native/src/mounts.c).
"""

from pytest_isolate.kernel.filesystem.changes import Layers, files_changed
from pytest_isolate.kernel.filesystem.context import Context
from pytest_isolate.kernel.filesystem.mountplan import Layer, MountPlan
from pytest_isolate.kernel.filesystem.places import for_tests
from pytest_isolate.kernel.filesystem.resolve import Resolution, caused, exists, explain, resolve
from pytest_isolate.kernel.filesystem.view import compile  # noqa: A004 - the word of the design

__all__ = [
    "Context",
    "Layer",
    "Layers",
    "MountPlan",
    "Resolution",
    "caused",
    "compile",
    "exists",
    "explain",
    "files_changed",
    "for_tests",
    "resolve",
]
