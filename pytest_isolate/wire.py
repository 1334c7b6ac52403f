"""The channel between a test's process and pytest: length-prefixed frames of tagged JSON.

Owns: the frame format, its caps, and the codec that keeps tuples tuples.
Refuses: pickle, marshal or anything else that could run code in the reader. The writer is not trusted: a frame
that breaks a rule raises WireError, and the reader then blames the test.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any

MAGIC = b"iso1"
_HEADER = struct.Struct("!4sI")
#: What a process that waits for its turn is told, before any frame. Without it, at the end of the stream, it leaves.
GATE = b"g"
#: One frame holds one report; the longest captured section is cut before (see child.py).
MAX_FRAME_BYTES = 64 * 1024 * 1024
_READ_BYTES = 256 * 1024
#: More elements of a set, or keys that are no texts, are not told one by one: a reader would hash what a test has chosen.
_MOST_HASHED = 1000
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_PLAIN = frozenset({str, int, float, bool, type(None)})
_HASHED = frozenset({"{}", "set", "frozenset"})
_TAGS = _HASHED | {"()", "bytes", "repr"}


class WireError(Exception):
    """What came over the channel is no frame of ours."""


def encode(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: a tuple becomes ``{"()": [...]}``, an unknown object its repr."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return _encode_all(value)
    if kind is tuple:
        return {"()": _encode_all(value)}
    if kind is dict:
        encoded = {}
        for key, item in value.items():
            if type(key) is not str or key in _TAGS:
                if len(value) > _MOST_HASHED:
                    return {"repr": repr(value)}
                return {"{}": [[encode(key), encode(item)] for key, item in value.items()]}
            encoded[key] = item if type(item) in _PLAIN else encode(item)
        return encoded
    return _encode_other(value)


def _encode_all(items: Iterable[Any]) -> list[Any]:
    return [item if type(item) in _PLAIN else encode(item) for item in items]


def _encode_other(value: Any) -> Any:
    match value:
        case tuple():
            return {"()": _encode_all(value)}
        case bool() | int() | float():
            return value.real
        case str():
            return str.__str__(value)
        case bytes() | bytearray():
            return {"bytes": base64.b64encode(value).decode()}
        case frozenset() | set() if len(value) <= _MOST_HASHED:
            return {type(value).__name__: [encode(item) for item in value]}
        case dict():
            return encode(dict(value))
        case list():
            return encode(list(value))
        case os.PathLike():
            return os.fspath(value)
    return {"repr": repr(value)}


def _restore(found: dict[str, Any]) -> Any:
    """One object of JSON, whose content is restored already: the inverse of encode(). An unknown object stays its repr."""
    if len(found) != 1:
        return found
    [(tag, content)] = found.items()
    if tag in _HASHED and len(content) > _MOST_HASHED:
        raise ValueError(f"{len(content)} elements are over the {_MOST_HASHED} allowed")
    match tag:
        case "()":
            return tuple(content)
        case "{}":
            return dict(content)
        case "set":
            return set(content)
        case "frozenset":
            return frozenset(content)
        case "bytes":
            return base64.b64decode(content)
        case "repr":
            return content
    return found


_DECODER = json.JSONDecoder(object_hook=_restore)


def pack(kind: str, data: Any = None) -> bytes:
    """One frame, header included."""
    body = _ENCODER.encode([kind, encode(data)]).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"a {kind} of {len(body)} bytes is over the {MAX_FRAME_BYTES} of one frame")
    return _HEADER.pack(MAGIC, len(body)) + body


def write(fd: int, frames: bytes) -> None:
    """Write it all.

    Raises:
        OSError: the other side is gone.
    """
    view = memoryview(frames)
    while view:
        view = view[os.write(fd, view) :]


def send(fd: int, kind: str, data: Any = None) -> None:
    """Write one frame whole; raises as write()."""
    write(fd, pack(kind, data))


class Reader:
    """Frames out of a non-blocking file descriptor, as they become complete. Borrows the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self.eof = False
        self.received = 0

    def frames(self) -> Iterator[tuple[str, Any]]:
        """Read what is there; yield the frames that are complete. Sets ``eof`` at the end of the stream,
        ``received`` counts bytes. What came whole before a broken frame is yielded first.

        Raises:
            WireError: not a frame of ours. Nothing after it can be trusted.
        """
        self._fill()
        yield from self.received_frames()

    def received_frames(self) -> Iterator[tuple[str, Any]]:
        """The frames that are complete by what was read before; see frames()."""
        while (frame := self._next()) is not None:
            yield frame

    def _fill(self) -> None:
        # One read per call: a writer that never stops must not keep the reader from its deadline.
        try:
            chunk = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            chunk = b""
        self.eof = not chunk
        self.received += len(chunk)
        self._buffer += chunk

    def _next(self) -> tuple[str, Any] | None:
        if len(self._buffer) < _HEADER.size:
            if not MAGIC.startswith(bytes(self._buffer[:4])):
                raise WireError("it does not start with a frame header")
            return None
        magic, size = _HEADER.unpack_from(self._buffer)
        if magic != MAGIC:
            raise WireError("it does not start with a frame header")
        if size > MAX_FRAME_BYTES:
            raise WireError(f"a frame claims {size} bytes, over the {MAX_FRAME_BYTES} allowed")
        end = _HEADER.size + size
        if len(self._buffer) < end:
            return None
        body = self._buffer[_HEADER.size : end]
        del self._buffer[:end]
        try:
            kind, data = _DECODER.decode(body.decode())
            return str(kind), data
        except (ValueError, TypeError, RecursionError) as error:
            raise WireError(f"a frame holds no JSON of ours ({type(error).__name__})") from error
