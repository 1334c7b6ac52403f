"""The tests that run at once, and the one loop that listens to all of them.

Owns: Lane (a process and its items whose turn has not come), and Listening: whose descriptors are watched, whose deadline is
next, and how much of what comes early is kept. Refuses: to choose what runs (turns.py, ahead.py).
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import pytest

from pytest_isolate.runner.conversation import Conversation
from pytest_isolate.runner.process import TestProcess
from pytest_isolate.runner.settings import Settings

#: Of an item whose turn has not come so much is read; more waits in its process, whose time then stands still.
MAX_KEPT_BYTES = 8 * 2**20
#: So many items may have run before their turn: what they told is kept in memory.
MAX_KEPT_ITEMS = 256
Ended = Callable[[Conversation], None]


class Told(Protocol):
    """What the kernel tells of tests: readable when there is something, -1 while nothing is open."""

    def fileno(self) -> int: ...

    def drain(self) -> None: ...


@dataclass(slots=True, eq=False)
class Lane:
    """One process. ``talks``: its items that run or have run, in order, but for the one whose turn it is.

    ``gated``: it waits for the word to begin ``item``; ``alive``: not buried yet.
    """

    worker: TestProcess
    settings: Settings
    item: pytest.Item
    following: pytest.Item | None = None
    gated: bool = False
    alive: bool = True
    dropped: bool = False
    talks: deque[Conversation] = field(default_factory=deque)

    def has(self, item: pytest.Item) -> bool:
        """True when it runs ``item`` next, or has begun it."""
        return (self.talks[0].item if self.talks else self.item) is item


class Listening:
    """Reads, keeps time, and says when a conversation is over: to whoever added it. ``told`` is drained meanwhile."""

    def __init__(self, told: Told) -> None:
        self._poller = select.poll()
        self._told, self._told_fd = told, -1
        self._by_fd: dict[int, Conversation] = {}
        self._ended: dict[Conversation, Ended] = {}
        self._paused: dict[Conversation, float] = {}
        self._head: Conversation | None = None

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, talk: Conversation, ended: Ended) -> None:
        """Listen to ``talk``; ``ended`` is called once, when it is over."""
        self._ended[talk] = ended
        for fd in (talk.worker.report_fd, talk.worker.process.pidfd):
            self._by_fd[fd] = talk
            self._poller.register(fd, select.POLLIN)

    def live(self) -> list[Conversation]:
        return list(self._ended)

    def until(self, talk: Conversation) -> None:
        """Listen to all until ``talk``, whose turn it is, is over."""
        before, self._head = self._head, talk
        if (since := self._paused.pop(talk, None)) is not None:
            talk.hold_time(time.monotonic() - since)
            self._poller.register(talk.worker.report_fd, select.POLLIN)
        try:
            self._settle()
            while not talk.over:
                self._step(None)
        finally:
            self._head = before

    def idle(self, seconds: float) -> None:
        """Do nothing for so long, but listen."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._step(left)

    def _step(self, most_s: float | None) -> None:
        self._hear_told()
        for fd, _ in self._poller.poll(self._wait_ms(most_s)):
            if fd == self._told_fd:
                self._told.drain()
            talk = self._by_fd.get(fd)
            if talk is None or talk.over:
                continue
            if fd != talk.worker.report_fd:
                talk.process_ended()
            elif not talk.read():
                self._poller.unregister(fd)
            elif talk.kept_bytes > MAX_KEPT_BYTES and talk is not self._head and not talk.over:
                self._poller.unregister(fd)
                self._paused[talk] = time.monotonic()
        now = time.monotonic()
        for talk in self._ended:
            if talk not in self._paused:
                talk.keep_time(now)
        self._settle()

    def _hear_told(self) -> None:
        fd = self._told.fileno()
        if fd == self._told_fd:
            return
        if self._told_fd >= 0:
            with contextlib.suppress(KeyError):
                self._poller.unregister(self._told_fd)
        self._told_fd = fd
        if fd >= 0:
            self._poller.register(fd, select.POLLIN)

    def _settle(self) -> None:
        """Say what is over. Whoever is told may add the next, which may be over, too, or end what others do."""
        while (talk := next((talk for talk in self._ended if talk.over), None)) is not None:
            ended = self._ended.pop(talk)
            self._paused.pop(talk, None)
            for fd in (talk.worker.report_fd, talk.worker.process.pidfd):
                del self._by_fd[fd]
                with contextlib.suppress(KeyError):  # it had said all before
                    self._poller.unregister(fd)
            ended(talk)

    def _wait_ms(self, most_s: float | None) -> int | None:
        now = time.monotonic()
        waits = [at - now for talk in self._ended if talk not in self._paused and (at := talk.next_at) is not None]
        if most_s is not None:
            waits.append(most_s)
        return max(0, int(min(waits) * 1000) + 1) if waits else None
