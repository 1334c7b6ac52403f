"""Network namespaces made ahead of their use: making one takes the kernel several times as long as all else of a start.

Owns: a few namespaces that nobody has been in, each held by a descriptor, ``lo`` up where that is asked. One that was handed out
never comes back: whatever its sandbox did to it is gone with it. Refuses: to make one while somebody waits: ``fill`` is for moments
in which there is nothing else to do, and ``take`` gives none where none is ready (the launch then makes its own, as it always did).
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections import deque
from collections.abc import Callable

from pytest_isolate.errors import BackendUnavailable, SetupError
from pytest_isolate.kernel.library import functions

#: How many of a kind are kept. More would be of use only to who starts several at once.
READY = 2


def make(*, loopback: bool) -> int:
    """A descriptor of a new network namespace with nobody in it; ``lo`` is up, or down.

    Raises:
        BackendUnavailable: not for this user. SetupError: the kernel refused it for another reason.
    """
    fd = int(functions().netns(loopback))
    if fd == -errno.EPERM:
        why, remedy = "this user may not make one", "run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN"
        raise BackendUnavailable("network namespace, wired from outside", why, remedy)
    if fd < 0:
        raise SetupError("netns", -fd)
    return fd


class NetnsPool:
    """Clean network namespaces by whether ``lo`` is up. A forked child forgets them: they are its parent's."""

    def __init__(self) -> None:
        self._ready: dict[bool, deque[int]] = {}
        self._holders = 0
        _living.add(self)

    def hold(self) -> Callable[[], None]:
        """Say that starts are to come; call the result when there are none any more. Nothing is kept for nobody."""
        self._holders += 1
        return self._let_go

    def _let_go(self) -> None:
        self._holders -= 1
        if self._holders <= 0:
            self.close()

    def take(self, *, loopback: bool) -> int:
        """A descriptor that is the caller's from now on, or -1: none is ready. Either way the kind is kept from now on."""
        ready = self._ready.get(loopback)
        if ready is None:
            self._ready[loopback] = deque()
            return -1
        return ready.popleft() if ready else -1

    def fill(self) -> None:
        """Make one of a kind that was asked for and is short; where the kernel refuses, launches say why."""
        if self._holders <= 0:
            return
        for loopback, ready in list(self._ready.items()):  # another thread may ask for a new kind
            if len(ready) < READY:
                with contextlib.suppress(SetupError, BackendUnavailable):
                    ready.append(make(loopback=loopback))
                return

    def __len__(self) -> int:
        return sum(map(len, self._ready.values()))

    def close(self) -> None:
        """Close what is ready. Idempotent, and the pool can be used again."""
        kinds, self._ready = self._ready, {}
        for ready in kinds.values():
            for fd in ready:
                os.close(fd)


_living: weakref.WeakSet[NetnsPool] = weakref.WeakSet()


def _forget() -> None:
    """In a forked child, which may have been started with every descriptor closed: one that is gone ends the loop."""
    for pool in _living:
        with contextlib.suppress(OSError):
            pool.close()


os.register_at_fork(after_in_child=_forget)

#: That of this process.
POOL = NetnsPool()
