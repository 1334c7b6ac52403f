"""What a program changed below the overlays of one launch.

Owns: the hand-over of their upper directories. Refuses: to read them (comparison.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
import weakref
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel import forks
from pytest_isolate.kernel.filesystem.comparison import DIRECTORY, MAX_ENTRIES, compare
from pytest_isolate.kernel.filesystem.idmapped import owned_tree
from pytest_isolate.outcome import FilesChanged

if TYPE_CHECKING:
    from typing_extensions import Self

    from pytest_isolate.kernel.filesystem.mountplan import Layer, MountPlan
    from pytest_isolate.kernel.plan import MountOp

_INT_BYTES = struct.calcsize("i")


class Layers:
    """The way by which one sandbox hands its overlay layers out: owner of a socket pair and of the directories that arrive.

    The child sends the directories (MountOp SEND_DIR) and then unmounts them, so that no program inside can reach them, while they
    live as long as this object: changes can be read while the sandbox runs and after it ended. One object for one launch.
    """

    def __init__(self, plan: MountPlan) -> None:
        self._plan = plan
        self._owner = forks.here
        self._fds: list[int] = []
        self._held: list[int] = []  # directories of kept layers, locked
        self._trees: dict[int, int] = {}  # number of the bind -> its tree
        _LIVING.add(self)
        self._ours, self._childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        try:
            self._keep()
            for number in self._plan.owned:
                self._trees[number] = owned_tree(self._plan.ops[number].source)
        except BaseException:
            self.close()
            raise
        return self

    def _keep(self) -> None:
        """Make the directories of the layers to keep, and hold them: two overlays that write into one are undefined.

        Raises:
            PolicyError: one cannot be made, or another sandbox is at work in it.
        """
        for layer in self._plan.layers:
            if not layer.kept:
                continue
            folder = os.path.dirname(layer.upper)
            try:
                self._hold(folder, layer)
            except BlockingIOError:
                why = f"another sandbox keeps its changes in {folder}"
                raise PolicyError(f"overlay {layer.target}", why, "wait for it, or name another directory") from None
            except OSError as error:
                why = f"to keep the changes in {folder}: {os.strerror(error.errno or 0).lower()}"
                raise PolicyError(f"overlay {layer.target}", why, "name a directory that you may write") from error

    def _hold(self, folder: str, layer: Layer) -> None:
        """Whoever else could write into ``folder`` could lead us, who may be root, elsewhere by what is in it."""
        fd, _ = _own_directory(folder)
        self._held.append(fd)
        if (owner := os.fstat(fd).st_uid) != os.geteuid():
            why = f"{folder}, to keep the changes in, belongs to user {owner}"
            raise PolicyError(
                f"overlay {layer.target}", why, "name a directory of your own, or one that is yet to be made"
            )
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for part in ("work", "upper"):
            part_fd, made = _own_directory(part, dir_fd=fd)
            try:
                if made and part == "upper":  # later it is what the program has made of it
                    _copy_mode_and_owner(layer.lower, part_fd)
            finally:
                os.close(part_fd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ops(self) -> tuple[MountOp, ...]:
        """The plan's table, for Plan.mounts of the launch."""
        ops = list(self._plan.ops_sending_to(self._childs.fileno()))
        for number, tree_fd in self._trees.items():
            ops[number] = replace(ops[number], data=str(tree_fd))
        return tuple(ops)

    def receive(self) -> None:
        """Take over what a child that has been set up has sent. What comes beyond that is the program's, and stays unread."""
        with contextlib.suppress(BlockingIOError):
            while len(self._fds) < self._plan.sends:
                # Not socket.recv_fds(): it loses its flags in some releases of Python, and would wait.
                flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                _, messages, _, _ = self._ours.recvmsg(1, socket.CMSG_SPACE(_INT_BYTES), flags)
                self._fds += [struct.unpack("i", data[:_INT_BYTES])[0] for _, _, data in messages]

    def changed(self, limit: int = MAX_ENTRIES) -> FilesChanged:
        """The changes of all overlays of the plan, up to now; none where no child was set up."""
        self.receive()
        present = [layer for layer in self._plan.layers if layer.kept or layer.sent < len(self._fds)]
        parts = [
            files_changed(layer, layers_fd=-1 if layer.kept else self._fds[layer.sent], limit=limit)
            for layer in present
        ]
        return FilesChanged(
            added=tuple(sorted(path for part in parts for path in part.added)),
            modified=tuple(sorted(path for part in parts for path in part.modified)),
            deleted=tuple(sorted(path for part in parts for path in part.deleted)),
            incomplete=any(part.incomplete for part in parts),
        )

    def close(self) -> None:
        """Give up the layers; those that are not kept are gone once the sandbox is. Idempotent."""
        if self._owner is forks.here:
            for fd in self._held:  # whoever was forked meanwhile has the lock as well, until somebody lifts it
                fcntl.flock(fd, fcntl.LOCK_UN)
        for fds in (self._fds, self._held):
            while fds:
                os.close(fds.pop())
        while self._trees:
            os.close(self._trees.popitem()[1])
        self._ours.close()
        self._childs.close()

    def leave_in_child(self) -> None:
        """Give up a forked child's copy of what is its parent's, of which close_fds may have left nothing."""
        for end in (self._ours, self._childs):
            with contextlib.suppress(OSError):
                end.close()
        _close_all([*self._trees.values(), *self._fds])
        self._trees.clear()
        self._fds.clear()


#: Of this process: a child that is forked off inherits the descriptors of all.
_LIVING: weakref.WeakSet[Layers] = weakref.WeakSet()


def leave_held_in_child() -> None:
    """Give up a forked child's copies of what leads to the host's mounts, also of the sandboxes beside its own."""
    for layers in list(_LIVING):
        _close_all(layers._held)
        layers._held.clear()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _own_directory(path: str, *, dir_fd: int | None = None) -> tuple[int, bool]:
    """Open a directory, which is made if need be, and no symlink to one; (descriptor, whether it was made)."""
    made = False
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, dir_fd=dir_fd)
        made = True
    return os.open(path, DIRECTORY, dir_fd=dir_fd), made


def _copy_mode_and_owner(lower: str, upper_fd: int) -> None:
    """The merged directory shows those of the upper one."""
    status = os.stat(lower)
    if os.geteuid() == 0:
        os.fchown(upper_fd, status.st_uid, status.st_gid)
    os.fchmod(upper_fd, stat.S_IMODE(status.st_mode))


def files_changed(layer: Layer, *, layers_fd: int = -1, limit: int = MAX_ENTRIES) -> FilesChanged:
    """Compare an overlay with what it lies on. ``layers_fd``: the directory sent, for a layer that is not kept."""
    upper = os.open(layer.upper, DIRECTORY, dir_fd=None if layer.kept else layers_fd)
    try:
        return compare(layer, upper, limit)
    finally:
        os.close(upper)
