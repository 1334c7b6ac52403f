"""Mirrors of bpf/np_abi.h and bpf/np_maps.h: structs, numbers, the tables of maps and programs.

Owns: the Python side of every layout; tests/kernel/network/test_abi.py compares each field with the compiled header.
Refuses: to decide or to call the kernel.
"""

from __future__ import annotations

import ctypes
import enum
from dataclasses import dataclass

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


class MapType(enum.IntEnum):
    """enum bpf_map_type of linux/bpf.h, those in use here."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    CGROUP_STORAGE = 19
    PERCPU_CGROUP_STORAGE = 21
    RINGBUF = 27

    @property
    def per_cpu(self) -> bool:
        """True when a lookup answers one value for each possible CPU."""
        return self in _PER_CPU


_PER_CPU = frozenset(kind for kind in MapType if "PERCPU" in kind.name)


class ProgramType(enum.IntEnum):
    """enum bpf_prog_type of linux/bpf.h, those in use here."""

    SCHED_CLS = 3
    XDP = 6
    CGROUP_SKB = 8
    CGROUP_SOCK = 9
    SOCK_OPS = 13
    CGROUP_SOCK_ADDR = 18


class AttachType(enum.IntEnum):
    """enum bpf_attach_type of linux/bpf.h, those in use here."""

    CGROUP_INET_INGRESS = 0
    CGROUP_INET_EGRESS = 1
    CGROUP_INET_SOCK_CREATE = 2
    CGROUP_SOCK_OPS = 3
    CGROUP_INET4_BIND = 8
    CGROUP_INET6_BIND = 9
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One row of bpf/np_maps.h."""

    type: MapType
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int = 0


_NO_PREALLOC = 1  # BPF_F_NO_PREALLOC


def _spec(kind: MapType, key: int, value: type[ctypes.Structure] | int, entries: int, flags: int = 0) -> MapSpec:
    return MapSpec(kind, key, value if isinstance(value, int) else ctypes.sizeof(value), entries, flags)


MAPS: dict[str, MapSpec] = {
    "np_policies": _spec(MapType.CGROUP_STORAGE, 8, Policy, 0),
    "np_epoch": _spec(MapType.ARRAY, 4, 4, 2),
    "np_strays": _spec(MapType.HASH, 4, 4, STRAYS),
    "np_callers": _spec(MapType.LRU_HASH, 8, Caller, CALLERS),
    "np_counts": _spec(MapType.PERCPU_CGROUP_STORAGE, 8, Counters, 0),
    "np_rules4": _spec(MapType.LPM_TRIE, ctypes.sizeof(Key4), Rule, RULES, _NO_PREALLOC),
    "np_rules6": _spec(MapType.LPM_TRIE, ctypes.sizeof(Key6), Rule, RULES, _NO_PREALLOC),
    "np_lists": _spec(MapType.ARRAY, 4, List, LISTS),
    "np_redirects": _spec(MapType.ARRAY, 4, Redirect, REDIRECTS),
    "np_budgets": _spec(MapType.ARRAY, 4, Budget, BUDGETS),
    "np_reported": _spec(MapType.LRU_HASH, ctypes.sizeof(Seen), 4, SEEN),
    "np_accepted": _spec(MapType.ARRAY, 4, 8, ACCEPTED),
    "np_originals": _spec(MapType.LRU_HASH, ctypes.sizeof(OriginalKey), Original, ORIGINALS),
    "np_flows4": _spec(MapType.HASH, ctypes.sizeof(Flow4), Flow, 1),
    "np_flows6": _spec(MapType.HASH, ctypes.sizeof(Flow6), Flow, 1),
    "np_links": _spec(MapType.HASH, 4, Policy, LINKS, _NO_PREALLOC),
    "np_link_counts": _spec(MapType.PERCPU_HASH, 4, Counters, LINKS, _NO_PREALLOC),
    "np_events": _spec(MapType.RINGBUF, 0, 0, RING_BYTES),
}


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """One hook function of bpf/*.bpf.c: what it is loaded as and where it attaches."""

    type: ProgramType
    attach: AttachType


_ADDR, _SKB = ProgramType.CGROUP_SOCK_ADDR, ProgramType.CGROUP_SKB

PROGRAMS: dict[str, ProgramSpec] = {
    "np_connect4": ProgramSpec(_ADDR, AttachType.CGROUP_INET4_CONNECT),
    "np_connect6": ProgramSpec(_ADDR, AttachType.CGROUP_INET6_CONNECT),
    "np_sendmsg4": ProgramSpec(_ADDR, AttachType.CGROUP_UDP4_SENDMSG),
    "np_sendmsg6": ProgramSpec(_ADDR, AttachType.CGROUP_UDP6_SENDMSG),
    "np_bind4": ProgramSpec(_ADDR, AttachType.CGROUP_INET4_BIND),
    "np_bind6": ProgramSpec(_ADDR, AttachType.CGROUP_INET6_BIND),
    "np_recvmsg4": ProgramSpec(_ADDR, AttachType.CGROUP_UDP4_RECVMSG),
    "np_recvmsg6": ProgramSpec(_ADDR, AttachType.CGROUP_UDP6_RECVMSG),
    "np_getpeername4": ProgramSpec(_ADDR, AttachType.CGROUP_INET4_GETPEERNAME),
    "np_getpeername6": ProgramSpec(_ADDR, AttachType.CGROUP_INET6_GETPEERNAME),
    "np_sock_create": ProgramSpec(ProgramType.CGROUP_SOCK, AttachType.CGROUP_INET_SOCK_CREATE),
    "np_sockops": ProgramSpec(ProgramType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS),
    "np_egress": ProgramSpec(_SKB, AttachType.CGROUP_INET_EGRESS),
    "np_ingress": ProgramSpec(_SKB, AttachType.CGROUP_INET_INGRESS),
}

#: Only loaded when the engine was asked for flows.
FLOW_PROGRAMS: dict[str, ProgramSpec] = {
    "np_flow_egress": ProgramSpec(_SKB, AttachType.CGROUP_INET_EGRESS),
    "np_flow_ingress": ProgramSpec(_SKB, AttachType.CGROUP_INET_INGRESS),
}

#: Only loaded when an interface is to be policed; tcx (6.6+) or clsact.
LINK_PROGRAMS: dict[str, ProgramSpec] = {
    "np_link_out": ProgramSpec(ProgramType.SCHED_CLS, AttachType.TCX_INGRESS),
    "np_link_in": ProgramSpec(ProgramType.SCHED_CLS, AttachType.TCX_EGRESS),
}
