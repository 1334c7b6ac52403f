"""What a test's process is told by its parent: to begin, which items to run next, to go on after a failure, to end.

Owns: both ends of that pipe. The items after the one that runs may be ordered in advance: a child goes on to the next by itself
when all went well, and otherwise waits for the word, for the parent may stop the run there. The order to end goes before all others.
Refuses: to choose items (protocol.py), and to run them (child.py).
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest

from pytest_isolate import wire

#: So many items are ordered in advance, and again so many when half of them have had their turn: a write wakes the child, and
#: a child that finds no order sleeps.
MOST_QUEUED = 4


class Orders:
    """The parent's end. Owner of the descriptor.

    ``queued`` were ordered in advance, and no conversation has listened to them yet; ``held``: the child waits for the word.

    Raises of each order:
        OSError: the child is gone.
    """

    __slots__ = ("fd", "held", "queued")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.queued: deque[pytest.Item] = deque()
        self.held = False

    def room(self) -> int:
        """How many may be ordered in advance now: none before it is worth a write."""
        return MOST_QUEUED - len(self.queued) if len(self.queued) <= MOST_QUEUED // 2 else 0

    def open_gate(self) -> None:
        """Let a child that was forked ahead of its turn run its item."""
        os.write(self.fd, wire.GATE)

    def run(self, places: Iterable[tuple[int, int | None]]) -> None:
        """Of each item its place, and that of the next in the same child; places in session.items, which a forked child shares."""
        orders = (wire.pack("run", {"item": place, "next": following}) for place, following in places)
        wire.write(self.fd, b"".join(orders))

    def go_on(self) -> None:
        """After a failure: what is ordered holds."""
        if self.held:
            wire.send(self.fd, "go")
            self.held = False

    def end(self) -> None:
        """Run nothing more, whatever was ordered."""
        wire.send(self.fd, "end")

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Inbox:
    """The child's end, blocking. Borrows the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._reader = wire.Reader(fd)
        self._poller = select.poll()
        self._poller.register(fd, select.POLLIN)
        self._runs: deque[dict[str, Any]] = deque()
        self._held = False
        self._over = False

    def await_gate(self) -> bool:
        """False when the turn will not come."""
        return os.read(self._fd, len(wire.GATE)) == wire.GATE

    def next(self, *, held: bool) -> dict[str, Any] | None:
        """The next item to run, with ``held`` only once the parent says so; None when it wants no more, or is gone."""
        self._held = held
        if self._poller.poll(0):
            self._hear()
        while not self._over and (self._held or not self._runs):
            self._hear()
        return None if self._over else self._runs.popleft()

    def _hear(self) -> None:
        for kind, data in self._reader.frames():
            match kind:
                case "run":
                    self._runs.append(data)
                case "go":
                    self._held = False
                case _:
                    self._over = True
        self._over = self._over or self._reader.eof
