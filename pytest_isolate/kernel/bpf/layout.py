"""Mirrors of bpf/np_abi.h: structs and numbers.

Owns: the Python side of every layout; tests/kernel/network/test_abi.py compares each field with the compiled header.
Refuses: to decide, to call the kernel, and the tables of maps and programs (objects.py).
"""

from __future__ import annotations

import ctypes
import enum

MAGIC = 0x6E703031
LIST_MAX = 32
LISTS = 2048
RULES = 32768
REDIRECTS = 256
BUDGETS = 1024
SEEN = 4096
ACCEPTED = 65536
ORIGINALS = 1024
STRAYS = 1024
CALLERS = 1024
RING_BYTES = 256 * 1024
LINKS = 1024


class Verdict(enum.IntEnum):
    """NP_ALLOW ...: what a rule says; UNSET never leaves the kernel as anything but a denial."""

    UNSET = 0
    ALLOW = 1
    DENY = 2
    LOG = 3
    REDIRECT = 4


class Where(enum.IntFlag):
    """NP_OUT ...: where a rule holds."""

    OUT = 1
    IN = 2
    BIND = 4
    PACKET = 8


class Protocol(enum.IntFlag):
    """NP_TCP ...: protocols of a rule."""

    TCP = 1
    UDP = 2
    ICMP = 4
    OTHER = 8
    ANY = 15


class Flag(enum.IntFlag):
    """NP_F_*: how a policy is applied."""

    COUNT_ONLY = 1
    PER_PACKET = 2
    FLOWS = 4
    RAW = 8
    BUDGET = 16
    INBOUND = 32


class Reason(enum.IntEnum):
    """NP_R_*: which hook, or which limit, wrote an event."""

    CONNECT = 1
    SENDMSG = 2
    BIND = 3
    SOCKET = 4
    PACKET_OUT = 5
    PACKET_IN = 6
    LIMIT_CONNECTIONS = 7
    LIMIT_BYTES = 8
    LIMIT_PPS = 9
    MALFORMED = 10
    UNTOLD = 11
    NAME = 12


class Fast(enum.IntFlag):
    """NP_FAST_*: what np_counters.fast may say."""

    OUT = 1
    IN = 2
    OUT_PLAIN = 4
    IN_PLAIN = 8


_u8, _u16, _u32, _u64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


class Policy(ctypes.Structure):
    _fields_ = [
        ("magic", _u32),
        ("flags", _u32),
        ("id", _u32),
        ("ruleset", _u32),
        ("default_out", _u8),
        ("default_in", _u8),
        ("default_bind", _u8),
        ("pad0", _u8),
        ("error", _u32),
        ("budget", _u32),
        ("limit_connections", _u32),
        ("limit_bytes", _u64),
        ("limit_pps", _u64),
        ("pad1", _u64 * 2),
    ]


class Counters(ctypes.Structure):
    _fields_ = [
        (name, _u64)
        for name in (
            "fast", "packed_out", "packets_in", "bytes_in", "packets_out", "bytes_out",
            "gso_packets_out", "gso_bytes_out", "gso_packets_in", "gso_bytes_in",
            "denied_out", "denied_in", "connections_out", "connections_in",
            "logged", "redirected", "events_lost", "flows_lost",
        )
    ]  # fmt: skip


PACKET_UNIT = 1 << 40


def unpack(word: int) -> tuple[int, int]:
    """Packets and bytes of one packed word: the low 40 bits are bytes, signed. Source: np_decide.h."""
    packed = (word ^ (1 << 63)) - (1 << 63)
    packets = (packed + PACKET_UNIT // 2) // PACKET_UNIT
    return packets, packed - packets * PACKET_UNIT


def unpack_counters(cpus: list[Counters]) -> dict[str, int]:
    """Totals by name over all CPUs, ``packed_out`` taken apart."""
    names = [field[0] for field in Counters._fields_ if field[0] not in ("fast", "packed_out")]
    totals = {name: sum(getattr(c, name) for c in cpus) for name in names}
    for c in cpus:
        packets, size = unpack(c.packed_out)
        totals["packets_out"] += packets
        totals["bytes_out"] += size
    return totals


class Entry(ctypes.Structure):
    _fields_ = [
        ("port_lo", _u16),
        ("port_hi", _u16),
        ("protocols", _u8),
        ("where_verdict", _u8),
        ("redirect", _u16),
    ]


class List(ctypes.Structure):
    _fields_ = [("count", _u32), ("pad", _u32), ("entries", Entry * LIST_MAX)]


class Key4(ctypes.Structure):
    _fields_ = [("prefixlen", _u32), ("scope", _u32), ("peer", _u32)]


class Key6(ctypes.Structure):
    _fields_ = [("prefixlen", _u32), ("scope", _u32), ("peer", _u32 * 4)]


class Rule(ctypes.Structure):
    _fields_ = [("list", _u32), ("pad", _u32)]


class Flow4(ctypes.Structure):
    _fields_ = [
        ("prefixlen", _u32),
        ("scope", _u32),
        ("peer", _u32),
        ("local", _u32),
        ("peer_port", _u16),
        ("local_port", _u16),
        ("protocol", _u32),
    ]


class Flow6(ctypes.Structure):
    _fields_ = [
        ("prefixlen", _u32),
        ("scope", _u32),
        ("peer", _u32 * 4),
        ("local", _u32 * 4),
        ("peer_port", _u16),
        ("local_port", _u16),
        ("protocol", _u32),
    ]


class Flow(ctypes.Structure):
    _fields_ = [
        ("packed_out", _u64),
        ("packed_in", _u64),
        ("packets_out", _u64),
        ("bytes_out", _u64),
        ("packets_in", _u64),
        ("bytes_in", _u64),
        ("ruleset", _u32),
        ("verdict", _u8),
        ("opener", _u8),
        ("pad0", _u16),
    ]


class Budget(ctypes.Structure):
    _fields_ = [("bytes", _u64), ("connections", _u64), ("window", _u64), ("packets", _u64)]


class Redirect(ctypes.Structure):
    _fields_ = [("address", _u32 * 4), ("port", _u32), ("pad", _u32)]


class Seen(ctypes.Structure):
    _fields_ = [
        ("cookie", _u64),
        ("address", _u32 * 4),
        ("ruleset", _u32),
        ("port", _u16),
        ("protocol", _u8),
        ("where", _u8),
        ("id", _u32),
        ("pad", _u32),
    ]


class Caller(ctypes.Structure):
    _fields_ = [("pid", _u32), ("pad", _u32), ("comm", ctypes.c_char * 16)]


class OriginalKey(ctypes.Structure):
    _fields_ = [("cookie", _u64), ("address", _u32 * 4), ("port", _u32), ("pad", _u32)]


class Original(ctypes.Structure):
    _fields_ = [("address", _u32 * 4), ("port", _u32), ("pad", _u32)]


class Event(ctypes.Structure):
    _fields_ = [
        ("time_ns", _u64),
        ("id", _u32),
        ("ruleset", _u32),
        ("pid", _u32),
        ("port", _u16),
        ("verdict", _u8),
        ("reason", _u8),
        ("protocol", _u8),
        ("family", _u8),
        ("local_port", _u16),
        ("address", _u8 * 16),
        ("pad", _u32),
        ("comm", ctypes.c_char * 16),
    ]


#: C name -> mirror, for the test that compares them.
STRUCTS: dict[str, type[ctypes.Structure]] = {
    "np_policy": Policy,
    "np_counters": Counters,
    "np_entry": Entry,
    "np_list": List,
    "np_key4": Key4,
    "np_key6": Key6,
    "np_rule": Rule,
    "np_flow4": Flow4,
    "np_flow6": Flow6,
    "np_flow": Flow,
    "np_budget": Budget,
    "np_redirect": Redirect,
    "np_seen": Seen,
    "np_caller": Caller,
    "np_original_key": OriginalKey,
    "np_original": Original,
    "np_event": Event,
}
