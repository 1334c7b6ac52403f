"""A policy compiled to map entries: which port list each prefix has, and the redirects it names.

Owns: flattening. The kernel looks up one prefix, the longest; so the list stored there must hold the lines of every
shorter prefix that covers it too, in order of precedence.
Refuses: file descriptors; engine.py writes what comes out of here.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.bpf.layout import LIST_MAX, RULES, Flag, Verdict, Where
from pytest_isolate.network.rules import Address, NetworkPolicy, Rule, Spot, Target

_KEY4 = struct.Struct("=II4s")
_KEY6 = struct.Struct("=II16s")
_ENTRY = struct.Struct("=HHBBH")
_HEAD = struct.Struct("=II")
Line = tuple[int, int, int, int, int]  # port_lo, port_hi, protocols, where << 4 | verdict, number of the redirect (1..)


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a policy is in the kernel, before numbers are given to it.

    ``lists`` are distinct port lists; ``prefixes`` of each family are (network bytes, prefix length, index into lists);
    ``targets[i]`` is redirect i + 1 in the lines.
    """

    lists: tuple[tuple[Line, ...], ...]
    prefixes4: tuple[tuple[bytes, int, int], ...]
    prefixes6: tuple[tuple[bytes, int, int], ...]
    targets: tuple[Target, ...]
    flags: Flag
    binds: bool
    redirects: bool


def compile_policy(policy: NetworkPolicy) -> Compiled:
    """Flatten the rules of ``policy``.

    Raises:
        PolicyError: more rules or more ports than the maps hold; the text names the limit.
    """
    targets = tuple(dict.fromkeys(r.to for r in policy.rules if r.to is not None))
    by_network: dict[Spot, list[Rule]] = {}
    for rule in policy.rules:
        if (known := by_network.get(rule.spot)) is None:
            by_network[rule.spot] = [rule]
        else:
            known.append(rule)
    if len(by_network) > RULES // 2:
        raise PolicyError("network policy", f"{len(by_network)} prefixes are more than {RULES // 2}", "merge CIDRs")
    lists = _Lists(targets)
    rows: dict[int, list[tuple[bytes, int, int]]] = {4: [], 6: []}
    shorter = _shorter_lengths(by_network)
    for (version, length, address), own in by_network.items():
        bits = 32 if version == 4 else 128
        for above in shorter[version, length]:
            if covering := by_network.get((version, above, address >> (bits - above) << (bits - above))):
                own = covering + own  # noqa: PLW2901
        number = lists.alone.get(own[0].says) if len(own) == 1 else None
        if number is None:
            number = lists.number(own)
        rows[version].append((address.to_bytes(bits // 8, "big"), length, number))
    return Compiled(tuple(lists.numbers), tuple(rows[4]), tuple(rows[6]), targets, *_traits(policy), bool(targets))


def _shorter_lengths(spots: Iterable[Spot]) -> dict[tuple[int, int], list[int]]:
    """For each prefix length in use, those below it that are in use, too: where covering prefixes can be."""
    used = {spot[:2] for spot in spots}
    return {(version, length): sorted(n for v, n in used if v == version and n < length) for version, length in used}


class _Lists:
    """Distinct port lists and their numbers. Most rules stand alone on their prefix, and say what others say."""

    def __init__(self, targets: tuple[Target, ...]) -> None:
        self.numbers: dict[tuple[Line, ...], int] = {}
        self._targets = targets
        self.alone: dict[object, int] = {}

    def number(self, rules: list[Rule]) -> int:
        found = self.numbers.setdefault(_lines(rules, self._targets), len(self.numbers))
        if len(rules) == 1:
            self.alone[rules[0].says] = found
        return found


def _lines(rules: list[Rule], targets: tuple[Target, ...]) -> tuple[Line, ...]:
    lines: dict[tuple[int, int, int, int], Line] = {}
    for rule in sorted(rules, key=lambda r: r.rank) if len(rules) > 1 else rules:
        low, high = rule.ports
        number = targets.index(rule.to) + 1 if rule.to is not None else 0
        line = (low, high, int(rule.protocols), int(rule.where) << 4 | int(rule.verdict), number)
        lines.setdefault((low, high, int(rule.protocols), int(rule.where)), line)  # the first decides, the others never
    if len(lines) > LIST_MAX:
        raise PolicyError(
            f"network policy at {rules[-1].network}",
            f"{len(lines)} ranges of ports are more than {LIST_MAX}",
            "merge port ranges",
        )
    return tuple(lines.values())


def _traits(policy: NetworkPolicy) -> tuple[Flag, bool]:
    """(flags, True when bind hooks are needed)."""
    places = 0
    for rule in policy.rules:
        places |= rule.says[2]
    binds = bool(places & Where.BIND) or policy.bind is not Verdict.ALLOW
    limits = bool(policy.limit_pps or policy.limit_bytes or policy.limit_connections)
    inbound = policy.inbound is not Verdict.ALLOW
    flags = Flag(0)
    if (
        not (policy.rules or policy.hosts or binds or limits or inbound or policy.per_packet)
        and policy.default is Verdict.ALLOW
    ):
        flags |= Flag.COUNT_ONLY
    flags |= Flag.BUDGET if limits else Flag(0)
    flags |= Flag.INBOUND if inbound or places & Where.IN else Flag(0)
    flags |= Flag.RAW if policy.raw else Flag(0)
    flags |= Flag.PER_PACKET if policy.per_packet else Flag(0)
    flags |= Flag.FLOWS if policy.flows else Flag(0)
    return flags, binds


# -- packing -------------------------------------------------------------------------------------------------------


def pack_list(lines: tuple[Line, ...], redirects: dict[int, int]) -> bytes:
    """struct np_list. ``redirects``: number in the lines -> index in np_redirects."""
    packed = b"".join(_ENTRY.pack(lo, hi, p, wv, redirects.get(n, 0)) for lo, hi, p, wv, n in lines)
    return (_HEAD.pack(len(lines), 0) + packed).ljust(_HEAD.size + LIST_MAX * _ENTRY.size, b"\0")


def pack_keys(ruleset: int, prefixes: tuple[tuple[bytes, int, int], ...], version: int) -> bytes:
    """struct np_key4[] or np_key6[]."""
    pack = (_KEY4 if version == 4 else _KEY6).pack
    return b"".join([pack(32 + length, ruleset, address) for address, length, _ in prefixes])


def pack_rules(prefixes: tuple[tuple[bytes, int, int], ...], numbers: list[int]) -> bytes:
    """struct np_rule[]: ``numbers`` maps an index of Compiled.lists to a number in np_lists."""
    return struct.pack(f"={2 * len(prefixes)}I", *[x for _, _, index in prefixes for x in (numbers[index], 0)])


def address_bytes(address: Address) -> bytes:
    """16 bytes, IPv4 as ::ffff:a.b.c.d."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def address_of(packed: bytes) -> Address:
    """The other way."""
    return (
        ipaddress.IPv4Address(packed[12:]) if packed[:12] == b"\0" * 10 + b"\xff\xff" else ipaddress.IPv6Address(packed)
    )
