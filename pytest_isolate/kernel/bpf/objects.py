"""What is loaded: the maps of bpf/np_maps.h and the hook functions of bpf/*.bpf.c, with their kinds and sizes.

Owns: the tables MAPS and *_PROGRAMS; tests/kernel/network/test_abi.py compares them with the compiled objects.
Refuses: the layouts of keys and values (layout.py), and to load anything (dataplane.py).
"""

from __future__ import annotations

import ctypes
import enum
from dataclasses import dataclass

from pytest_isolate.kernel.bpf.layout import (
    ACCEPTED,
    BUDGETS,
    CALLERS,
    LINKS,
    LISTS,
    ORIGINALS,
    REDIRECTS,
    RING_BYTES,
    RULES,
    SEEN,
    STRAYS,
    Budget,
    Caller,
    Counters,
    Flow,
    Flow4,
    Flow6,
    Key4,
    Key6,
    List,
    Original,
    OriginalKey,
    Policy,
    Redirect,
    Rule,
    Seen,
)


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
