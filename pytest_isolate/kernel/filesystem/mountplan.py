"""A compiled view as a value: the mount table, what each op is for, and what the sandbox will see.

Owns: MountPlan and Layer. Refuses: to compile (view.py) and to launch (native.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_isolate.kernel.plan import MountKind, MountOp

if TYPE_CHECKING:
    from pytest_isolate.kernel.filesystem.tree import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Where the changes of one overlay are.

    ``upper`` is below the directory that the ``sent``-th SEND_DIR hands out, or an absolute path of the host when it is kept.
    ``userxattr``: the overlay notes what it means in xattrs of a user (it is one of a user namespace), not in trusted ones.
    ``made``: mount points the table itself had to create in it, which are no changes of the program.
    """

    target: str
    lower: str
    upper: str
    sent: int = -1
    kept: bool = False
    userxattr: bool = False
    made: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPlan:
    """A mount table and what it amounts to.

    The launch must also set Plan.cwd: a working directory from before the mounts stays what it was, beneath an overlay put on it.

    Attributes:
        ops: for Plan.mounts; with layers, first give it the socket: ``ops_sending_to(fd)``.
        words: for each op, what it is for; a SetupError's index points here.
        owned: indices of the binds for which each launch prepares a tree (idmapped.py).
        tree: the mounts as the sandbox will see them; ``host``: as the host has them.
    """

    ops: tuple[MountOp, ...]
    words: tuple[str, ...]
    tree: Tree
    host: Tree
    layers: tuple[Layer, ...] = ()
    owned: tuple[int, ...] = ()

    @property
    def per_launch(self) -> bool:
        """True when a launch has to prepare something: Layers owns it."""
        return bool(self.layers or self.owned)

    @property
    def sends(self) -> int:
        """How many directories the child hands out."""
        return sum(op.kind is MountKind.SEND_DIR for op in self.ops)

    def ops_sending_to(self, socket_fd: int) -> tuple[MountOp, ...]:
        """The ops with the number that the supervisor's socket has in the child."""
        return tuple(replace(op, flags=socket_fd) if op.kind is MountKind.SEND_DIR else op for op in self.ops)
