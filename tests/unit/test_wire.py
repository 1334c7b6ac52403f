"""Frames: what goes in comes out, whole or in pieces; what is no frame of ours is refused.

Owns: wire.py alone, over a real socket. Refuses: what a frame may hold for the runner (frames.py, tests/pytest).
"""

from __future__ import annotations

import math
import os
import pathlib
import socket
import struct
from collections.abc import Iterator

import pytest

from pytest_isolate import wire

_VALUES = [
    None,
    "text with a \x00, a \ud800 and a ☃",
    [1, -2.5, True, [], {}],
    (1, (2, [3, ()])),
    {"a": {"b": ("c",)}, "()": "the name of a tag as a key"},
    {1: "a number", (2, 3): "a tuple", None: "none"},
    {"one": (1,)},
    {"{}": []},
    {1, 2},
    frozenset({("a", 1)}),
    b"\x00\xff",
    {"repr": "a dict that looks like a tag"},
]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("value", _VALUES, ids=repr)
def test_what_goes_in_comes_out(ends: tuple[socket.socket, socket.socket], value: object) -> None:
    ours, theirs = ends
    wire.send(theirs.fileno(), "kind", value)
    assert list(wire.Reader(ours.fileno()).frames()) == [("kind", value)]


def test_types_of_others_become_what_they_are_like(ends: tuple[socket.socket, socket.socket]) -> None:
    class Name(str):
        __slots__ = ()

    ours, theirs = ends
    wire.send(theirs.fileno(), "kind", [Name("n"), pathlib.PurePosixPath("/p"), object, math.inf])
    [(_, found)] = wire.Reader(ours.fileno()).frames()
    assert found == ["n", "/p", repr(object), math.inf]
    assert [type(one) for one in found] == [str, str, str, float]


@pytest.mark.parametrize("value", [set(range(1001)), frozenset(range(1001)), dict.fromkeys(range(1001))])
def test_what_would_be_hashed_at_length_is_told_as_text(
    ends: tuple[socket.socket, socket.socket], value: object
) -> None:
    ours, theirs = ends
    wire.send(theirs.fileno(), "kind", value)
    assert list(wire.Reader(ours.fileno()).frames()) == [("kind", repr(value))]


def test_frames_come_in_pieces_and_together(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    reader = wire.Reader(ours.fileno())
    both = wire.pack("first", (1,)) + wire.pack("second")
    for cut in range(1, len(both)):
        theirs.sendall(both[:cut])
        found = list(reader.frames())
        theirs.sendall(both[cut:])
        assert [*found, *reader.frames()] == [("first", (1,)), ("second", None)], cut
    theirs.close()
    assert (list(reader.frames()), reader.eof) == ([], True)


def _frame(body: bytes) -> bytes:
    return struct.pack("!4sI", wire.MAGIC, len(body)) + body


@pytest.mark.parametrize(
    "sent",
    [
        b"hello",
        b"ix",
        struct.pack("!4sI", wire.MAGIC, wire.MAX_FRAME_BYTES + 1),
        _frame(b"\xff\xfe"),
        _frame(b"{}"),
        _frame(b'["one"]'),
        _frame(b'["kind",{"set":[[]]}]'),
        _frame(b'["kind",{"{}":[1]}]'),
        _frame(b'["kind",{"bytes":"a"}]'),
        _frame(b'["kind",{"()":1}]'),
        _frame(b'["kind",{"set":[%s]}]' % b",".join(b"%d" % number for number in range(1001))),
        _frame(b"[" * 100_000),
    ],
    ids=lambda sent: repr(sent[:40]),
)
def test_what_is_no_frame_of_ours_is_refused(ends: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    ours, theirs = ends
    theirs.sendall(wire.pack("good"))
    reader = wire.Reader(ours.fileno())
    assert list(reader.frames()) == [("good", None)]
    theirs.sendall(sent)
    with pytest.raises(wire.WireError):
        list(reader.frames())


def test_a_frame_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(wire.WireError, match="over the"):
        wire.pack("kind", "x" * (wire.MAX_FRAME_BYTES + 1))


def test_a_writer_sees_that_nobody_reads(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    ours.close()
    with pytest.raises(OSError, match=os.strerror(32)):
        wire.send(theirs.fileno(), "kind")
