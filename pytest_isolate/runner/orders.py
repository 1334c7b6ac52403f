"""What a test's process is told by its parent: to begin, which item to run next, to go on after a failure, to end.

Owns: both ends of that pipe. The item after the one that runs may be ordered in advance: a child goes on to it by itself
when all went well, and otherwise waits for the word, for the parent may stop the run there.
Refuses: to choose items (protocol.py), and to run them (child.py).
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_isolate import wire


class Orders:
    """The parent's end. Owner of the descriptor.

    ``queued`` was ordered in advance, and no conversation has listened to it yet; ``held``: the child waits for the word.

    Raises of each order:
        OSError: the child is gone.
    """

    __slots__ = ("fd", "held", "queued")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.queued: pytest.Item | None = None
        self.held = False

    @property
    def runs_ahead(self) -> bool:
        """True when the child may be running an item that nobody listens to yet."""
        return self.queued is not None and not self.held

    def open_gate(self) -> None:
        """Let a child that was forked ahead of its turn run its item."""
        os.write(self.fd, wire.GATE)

    def run(self, place: int, following: int | None) -> None:
        """Places are those in session.items, which a forked child shares."""
        wire.send(self.fd, "run", {"item": place, "next": following})

    def go_on(self) -> None:
        """After a failure: what is ordered holds."""
        if self.held:
            wire.send(self.fd, "go")
            self.held = False

    def end(self) -> None:
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
        self._frames: list[tuple[str, Any]] = []
        self._runs: list[dict[str, Any]] = []

    def await_gate(self) -> bool:
        """False when the turn will not come."""
        return os.read(self._fd, len(wire.GATE)) == wire.GATE

    def next(self, *, held: bool) -> dict[str, Any] | None:
        """The next item to run, with ``held`` only once the parent says so; None when it wants no more, or is gone."""
        while held or not self._runs:
            match self._frame():
                case ("run", data):
                    self._runs.append(data)
                case ("go", _):
                    held = False
                case _:
                    return None
        return self._runs.pop(0)

    def _frame(self) -> tuple[str, Any] | None:
        while not self._frames:
            if self._reader.eof:
                return None
            self._frames += self._reader.frames()
        return self._frames.pop(0)
