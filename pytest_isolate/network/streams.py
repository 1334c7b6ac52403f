"""DNS over TCP: several clients at once, each with questions one after another.

Owns: the accepted connections, and how long and how many. Refuses: to wait for any of them; to read the questions.
Source: RFC 1035 section 4.2.2, RFC 7766.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

#: A connection without a further question is closed after this; longer than a look-up may take.
IDLE_S = 6.0
#: Connections at once; the oldest goes when there is one more.
MAX_STREAMS = 32

#: Takes a question, and what is to be called, once, with the answer.
Ask = Callable[[bytes, Callable[[bytes], None]], None]


@dataclass(slots=True, eq=False)
class _Stream:
    connection: socket.socket
    end: float
    data: bytes = field(default=b"")


class Streams:
    """What ``listener`` (non-blocking, borrowed) has accepted. All in one thread."""

    def __init__(self, listener: socket.socket, ask: Ask) -> None:
        self._listener, self._ask = listener, ask
        self._streams: dict[int, _Stream] = {}  # by descriptor, oldest first

    def fds(self) -> list[int]:
        """Descriptors of the connections."""
        return list(self._streams)

    def next_at(self) -> float | None:
        """When ``keep_time`` is next due, by time.monotonic()."""
        return min((stream.end for stream in self._streams.values()), default=None)

    def heard(self, fd: int) -> bool:
        """Take a connection, or what came over one; False when ``fd`` is none of ours."""
        if fd == self._listener.fileno():
            self._accept()
        elif fd in self._streams:
            self._read(self._streams[fd])
        else:
            return False
        return True

    def keep_time(self) -> None:
        """Close those that are idle."""
        now = time.monotonic()
        for stream in [s for s in self._streams.values() if s.end <= now]:
            self._drop(stream)

    def close(self) -> None:
        """Close all. Idempotent."""
        for stream in tuple(self._streams.values()):
            self._drop(stream)

    def _accept(self) -> None:
        if len(self._streams) >= MAX_STREAMS:
            self._drop(next(iter(self._streams.values())))
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor free: not to be asked again at once
            time.sleep(0.01)
            return
        connection.setblocking(False)
        self._streams[connection.fileno()] = _Stream(connection, time.monotonic() + IDLE_S)

    def _read(self, stream: _Stream) -> None:
        try:
            more = stream.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self._drop(stream)
            return
        stream.data += more
        stream.end = time.monotonic() + IDLE_S
        while len(stream.data) >= 2 and len(stream.data) >= 2 + (length := struct.unpack_from("!H", stream.data)[0]):
            query, stream.data = stream.data[2 : 2 + length], stream.data[2 + length :]
            self._ask(query, lambda answer: self._say(stream, answer))

    def _say(self, stream: _Stream, answer: bytes) -> None:
        """A client that does not read what it asked for is let go."""
        if self._streams.get(stream.connection.fileno()) is not stream:
            return
        try:
            text = struct.pack("!H", len(answer)) + answer
            whole = stream.connection.send(text) == len(text)
        except OSError:
            whole = False
        if not whole:
            self._drop(stream)

    def _drop(self, stream: _Stream) -> None:
        self._streams.pop(stream.connection.fileno(), None)
        with contextlib.suppress(OSError):
            stream.connection.close()
