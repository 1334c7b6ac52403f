"""Rule sets in the kernel's maps: numbered, shared, kept for the next test with the same policy.

Owns: the numbers of rule sets, port lists and redirects, and who uses them.
Refuses: to know cgroups. A rule set is never changed: a change of policy is another rule set, and the switch is one store.
"""

from __future__ import annotations

import errno
import itertools
import struct
from collections import OrderedDict
from dataclasses import dataclass, field

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.bpf import Dataplane
from pytest_isolate.kernel.bpf.layout import LISTS, REDIRECTS, RULES, Redirect
from pytest_isolate.network.compile import (
    Compiled,
    Line,
    address_bytes,
    compile_policy,
    pack_keys,
    pack_list,
    pack_rules,
)
from pytest_isolate.network.rules import NetworkPolicy, Target

_IDLE_MAX = 64


@dataclass(slots=True)
class Ruleset:
    """A policy's rules as they stand in the maps."""

    number: int
    policy: NetworkPolicy
    compiled: Compiled
    users: int = 0
    lists: list[bytes] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)


class _Pool:
    """Numbers 1..limit-1 given to values, shared by equal values, counted."""

    def __init__(self, what: str, limit: int) -> None:
        self._what, self._limit = what, limit
        self._free = list(range(limit - 1, 0, -1))
        self._numbers: dict[object, int] = {}
        self._users: dict[object, int] = {}

    def take(self, value: object) -> tuple[int, bool]:
        """(number, True when it is new)."""
        if value in self._numbers:
            self._users[value] += 1
            return self._numbers[value], False
        if not self._free:
            raise PolicyError(
                "network policy", f"more than {self._limit - 1} different {self._what}", f"use fewer {self._what}"
            )
        self._numbers[value] = number = self._free.pop()
        self._users[value] = 1
        return number, True

    def give_back(self, value: object) -> None:
        self._users[value] -= 1
        if not self._users[value]:
            del self._users[value]
            self._free.append(self._numbers.pop(value))


class Rulesets:
    """Every rule set of one engine."""

    def __init__(self, plane: Dataplane) -> None:
        self._plane = plane
        self._next = itertools.count(1)
        self._known: OrderedDict[int, Ruleset] = OrderedDict()  # id(policy) -> rule set, least recently used first
        self._lists = _Pool("port lists", LISTS)
        self._targets = _Pool("redirects", REDIRECTS)

    def acquire(self, policy: NetworkPolicy) -> Ruleset:
        """The rule set of ``policy``, written if it is not there yet.

        Raises:
            PolicyError: more than the maps hold, even after the unused are gone.
        """
        ruleset = self._known.get(id(policy))
        if ruleset is None:
            ruleset = self._write(policy)
            self._known[id(policy)] = ruleset  # holds the policy, so the id stays its own
        self._known.move_to_end(id(policy))
        ruleset.users += 1
        return ruleset

    def release(self, ruleset: Ruleset) -> None:
        """One user less; the rules stay for the next one until room is needed."""
        ruleset.users -= 1
        idle = [r for r in self._known.values() if not r.users]
        for extra in idle[: max(0, len(idle) - _IDLE_MAX)]:
            self._remove(extra)

    def _write(self, policy: NetworkPolicy) -> Ruleset:
        compiled = compile_policy(policy)
        try:
            return self._try(policy, compiled)
        except PolicyError:
            if not self._drop_idle():
                raise
        return self._try(policy, compiled)

    def _try(self, policy: NetworkPolicy, compiled: Compiled) -> Ruleset:
        """All of it is written, or nothing is left."""
        ruleset = Ruleset(next(self._next), policy, compiled)
        try:
            self._store(ruleset)
        except PolicyError:
            self._erase(ruleset)
            raise
        except OSError as error:
            self._erase(ruleset)
            if error.errno not in (errno.ENOSPC, errno.E2BIG):
                raise
            remedy = f"a run holds {RULES} prefixes of each family: use fewer"
            raise PolicyError("network policy", "the rules of all policies in force do not fit", remedy) from error
        return ruleset

    def _store(self, ruleset: Ruleset) -> None:
        compiled, maps = ruleset.compiled, self._plane.maps
        redirects = {i: self._target(ruleset, target) for i, target in enumerate(compiled.targets, 1)}
        numbers = [self._list(ruleset, lines, redirects) for lines in compiled.lists]
        for version, prefixes in ((4, compiled.prefixes4), (6, compiled.prefixes6)):
            maps[f"np_rules{version}"].update_batch(
                pack_keys(ruleset.number, prefixes, version), pack_rules(prefixes, numbers)
            )

    def _target(self, ruleset: Ruleset, target: Target) -> int:
        number, new = self._targets.take(target)
        ruleset.targets.append(target)
        if new:
            words = struct.unpack("=4I", address_bytes(target.address))
            value = Redirect(address=words, port=target.port)
            self._plane.maps["np_redirects"].update(struct.pack("=I", number), value)
        return number

    def _list(self, ruleset: Ruleset, lines: tuple[Line, ...], redirects: dict[int, int]) -> int:
        packed = pack_list(lines, redirects)
        number, new = self._lists.take(packed)
        ruleset.lists.append(packed)
        if new:
            self._plane.maps["np_lists"].update(struct.pack("=I", number), packed)
        return number

    def _drop_idle(self) -> int:
        idle = [r for r in self._known.values() if not r.users]
        for ruleset in idle:
            self._remove(ruleset)
        return len(idle)

    def _remove(self, ruleset: Ruleset) -> None:
        del self._known[id(ruleset.policy)]
        self._erase(ruleset)

    def _erase(self, ruleset: Ruleset) -> None:
        compiled, maps = ruleset.compiled, self._plane.maps
        for version, prefixes in ((4, compiled.prefixes4), (6, compiled.prefixes6)):
            maps[f"np_rules{version}"].delete_batch(pack_keys(ruleset.number, prefixes, version))
        while ruleset.lists:
            self._lists.give_back(ruleset.lists.pop())
        while ruleset.targets:
            self._targets.give_back(ruleset.targets.pop())
