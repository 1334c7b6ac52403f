"""DNS messages: one plain question, and the answer to it.

Owns: bytes of RFC 1035. Refuses: sockets, names' meaning, and questions that are not plain.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pytest_isolate.network.rules import Address

A, AAAA = 1, 28
NOERROR, FORMERR, SERVFAIL, NXDOMAIN = 0, 1, 2, 3
TTL_S = 1
_IN = 1


def parse_question(query: bytes) -> tuple[str, int, int]:
    """(name in lower case, type, byte after the question). Raises ValueError for what is not one plain question."""
    if len(query) < 17 or struct.unpack_from("!H", query, 4)[0] != 1 or query[2] & 0xF8:
        raise ValueError("not a standard query with one question")
    labels, at = [], 12
    while query[at]:
        length = query[at]
        if length > 63 or at + length + 1 >= len(query):
            raise ValueError("bad label")
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", errors="replace").lower())
        at += length + 1
    if at + 5 > len(query):
        raise ValueError("cut short")
    kind, _ = struct.unpack_from("!HH", query, at + 1)
    return ".".join(labels), kind, at + 5


def refusal(query: bytes) -> bytes:
    """The answer to what is no plain question; empty where it is too short to be answered."""
    return query[:2] + struct.pack("!HHHHH", 0x8180 | FORMERR, 0, 0, 0, 0) if len(query) >= 2 else b""


def reply(query: bytes, end: int, code: int, addresses: Sequence[Address] = ()) -> bytes:
    """The answer to the question that ends at byte ``end``. Source: RFC 1035 sections 4.1 and 4.2."""
    head = query[:2] + struct.pack("!HHHHH", 0x8580 | code, 1, len(addresses), 0, 0)
    body = b"".join(
        struct.pack("!HHHIH", 0xC00C, A if a.version == 4 else AAAA, _IN, TTL_S, len(a.packed)) + a.packed
        for a in addresses
    )
    return head + query[12:end] + body
