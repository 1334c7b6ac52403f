"""Child side of ``net_policy``: the test's words go to the parent, which alone holds the maps, and take effect at once.

Owns: NetPolicy. Refuses: descriptors of eBPF maps: with one, a test could change the policy of every other, and numbers
given out here would be given out there once more.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pytest_isolate import errors, wire
from pytest_isolate.errors import BackendUnavailable, IsolateError, PolicyError
from pytest_isolate.policy import unknown

if TYPE_CHECKING:
    from pytest_isolate.network import Event, FlowRecord, Stats
    from pytest_isolate.network.rules import Destination
    from pytest_isolate.network.spelling import Ports
    from pytest_isolate.runner.reporter import Reporter


_SETTINGS = ("default", "inbound", "bind", "errno", "raw")


class NetPolicy:
    """What the running test may do on the network. Everything is denied but what the marker and the test itself allow.

    Each call holds at once, for open connections too, and for every process the test has started.
    """

    __slots__ = ("_lock", "_owner", "_reader", "_reporter")

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._reader = wire.Reader(reporter.link.command_fd)

    def allow(self, where: Destination, *, tcp: Ports = None, udp: Ports = None, icmp: bool | None = None) -> None:
        """Allow opening to an address, a CIDR, ``"localhost"`` or ``"*"``; all protocols when none is named.

        Raises:
            PolicyError: no such address, or more rules than the kernel's maps hold.
        """
        self._ask("allow", _text(where), tcp=_ports(tcp, "tcp"), udp=_ports(udp, "udp"), icmp=icmp)

    def deny(self, where: Destination, *, tcp: Ports = None, udp: Ports = None, icmp: bool | None = None) -> None:
        """Deny opening to ``where``; the longest prefix wins, then deny."""
        self._ask("deny", _text(where), tcp=_ports(tcp, "tcp"), udp=_ports(udp, "udp"), icmp=icmp)

    def log(self, where: Destination, *, tcp: Ports = None, udp: Ports = None, icmp: bool | None = None) -> None:
        """Allow, and have an event of each flow."""
        self._ask("log", _text(where), tcp=_ports(tcp, "tcp"), udp=_ports(udp, "udp"), icmp=icmp)

    def allow_inbound(self, peers: Destination = "*", *, tcp: Ports = None, udp: Ports = None) -> None:
        """Let peers open to these ports of the test, after ``inbound = "deny"``."""
        self._ask("allow_inbound", _text(peers), tcp=_ports(tcp, "tcp"), udp=_ports(udp, "udp"))

    def deny_inbound(self, peers: Destination = "*", *, tcp: Ports = None, udp: Ports = None) -> None:
        """Keep peers from these ports of the test."""
        self._ask("deny_inbound", _text(peers), tcp=_ports(tcp, "tcp"), udp=_ports(udp, "udp"))

    def allow_bind(self, address: Destination = "*", *, tcp: Ports = None, udp: Ports = None) -> None:
        """Let the test bind these ports, after ``bind = "deny"``."""
        self._ask("allow_bind", _text(address), tcp=_ports(tcp, "tcp"), udp=_ports(udp, "udp"))

    def deny_bind(self, address: Destination = "*", *, tcp: Ports = None, udp: Ports = None) -> None:
        """Keep the test from binding these ports."""
        self._ask("deny_bind", _text(address), tcp=_ports(tcp, "tcp"), udp=_ports(udp, "udp"))

    def allow_host(self, name: str, *, tcp: Ports = None, udp: Ports = None) -> None:
        """Allow a host by name. From then on a resolver of the fixture answers the test's DNS, and no other."""
        self._ask("allow_host", name, tcp=_ports(tcp, "tcp"), udp=_ports(udp, "udp"))

    def redirect(self, what: str, *, to: tuple[str, int] | str) -> None:
        """Send what goes to ``address:port`` or ``name:port`` to ``to``; the test sees the address it asked for."""
        from pytest_isolate.network.rules import parse_target

        parse_target(to)
        self._ask("redirect", what, to=to)

    def limit(
        self,
        *,
        pps: int | None = None,
        bytes: int | str | None = None,  # noqa: A002 - the user's word
        connections: int | None = None,
    ) -> None:
        """Bound packets per second, L3 bytes in all (a number, or a size such as "64K"), or connections; each from 1 on."""
        self._ask("limit", pps=pps, bytes=bytes, connections=connections)

    def reset(self) -> None:
        """Back to what options and markers say; limits have nothing used up."""
        self._ask("reset")

    def begin(self) -> None:
        """Reset it now, and after the last of the test's fixtures: those older than this one may still need what it allowed."""
        self.reset()  # where --isolate-missing=warn gave the policy up, it is an error now, and not a surprise later
        self._reporter.undo = self.reset

    def _setter(name: str, text: str) -> Any:  # type: ignore[misc]  # noqa: N805
        def write(self: NetPolicy, value: Any) -> None:
            self._ask("set", name, value)

        return property(None, write, doc=text)

    default = _setter("default", "``deny`` (so at the start) or ``allow``: for what no rule speaks of.")
    inbound = _setter("inbound", "``allow`` or ``deny``: for what peers open.")
    bind = _setter("bind", "``allow`` or ``deny``: for bind(2) to a port of one's choice.")
    errno = _setter("errno", "What a denied call answers: a number, or a name such as ``ECONNREFUSED``.")
    raw = _setter("raw", "True: raw sockets may be made.")

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises PolicyError for what is no setting: a slip of the pen would leave the policy as it was."""
        if name not in self.__slots__ and name not in _SETTINGS:
            raise unknown("net_policy setting", name, _SETTINGS)
        object.__setattr__(self, name, value)

    @property
    def stats(self) -> Stats:
        """Exact counts since the test began."""
        from pytest_isolate.network import Stats

        return Stats(**self._ask("stats"))

    def events(self) -> list[Event]:
        """Every refused and logged flow so far, oldest first: pid, comm, destination, rule."""
        return [_event(row) for row in self._ask("events")]

    @property
    def denied(self) -> list[Event]:
        """Refused flows so far: ``assert net_policy.denied == []``."""
        return [event for event in self.events() if event.verdict.name == "DENY"]

    def flows(self) -> list[FlowRecord]:
        """Conversations of the test so far, with packets and bytes of each."""
        return [_flow(row) for row in self._ask("flows")]

    def attach_program(self, text: str, *, hook: str, function: str = "") -> Program:
        """Compile a C program of yours with bcc and attach it to the test beside the policy, until the test's end.

        Args:
            text: C as bcc takes it; maps by ``BPF_HASH(name, key, value)`` and the like, read back by ``program["name"]``.
            hook: ``egress``, ``ingress`` (struct __sk_buff), ``connect4``, ``connect6``, ``sendmsg4``, ``bind4`` ...
                (struct bpf_sock_addr), ``sock_create`` (struct bpf_sock), ``sockops``. The function answers 1 to let
                it pass, 0 to refuse: it can take away from the policy, not add to it.
            function: its name, where the text has several.

        Raises:
            PolicyError: it does not compile; clang's words follow. SetupError's words: the verifier refused it.
            BackendUnavailable: no bcc, or no kernel headers; with what to install.
        """
        answer = self._ask("attach_program", text, hook, function)
        return Program(self, answer["number"], answer["maps"])

    def _ask(self, call: str, *args: Any, **words: Any) -> Any:
        if os.getpid() != self._owner:
            raise PolicyError("net_policy", "this is another process than the test's", "use it in the test itself")
        words = {name: value for name, value in words.items() if value is not None}
        with self._lock:
            self._reporter.send("network", {"call": call, "args": list(args), "words": words})
            answer = self._answer()
        if "error" in answer:
            raise _error(*answer["error"])
        return answer["value"]

    def _answer(self) -> dict[str, Any]:
        while not self._reader.eof:
            for kind, data in self._reader.frames():
                if kind == "network":
                    return dict(data)
        raise BackendUnavailable("net_policy", "pytest's process is gone", "")


class Program:
    """A program that attach_program() attached: its maps by name."""

    def __init__(self, policy: NetPolicy, number: int, maps: list[str]) -> None:
        self._maps = {name: ProgramMap(policy, number, name) for name in maps}

    def __getitem__(self, name: str) -> ProgramMap:
        """The map of this name. Raises PolicyError."""
        if name not in self._maps:
            raise unknown("map", name, self._maps)
        return self._maps[name]


class ProgramMap:
    """A map of a user's program: keys and values are numbers, dicts by field, lists; a list for each CPU where it has them."""

    def __init__(self, policy: NetPolicy, number: int, name: str) -> None:
        self._policy, self._place = policy, (number, name)

    def __getitem__(self, key: Any) -> Any:
        """Raises KeyError where there is no entry."""
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self._policy._ask("map", *self._place, "set", key, value)

    def __delitem__(self, key: Any) -> None:
        if not self._policy._ask("map", *self._place, "delete", key):
            raise KeyError(key)

    def get(self, key: Any) -> Any:
        """The value, None where there is no entry."""
        return self._policy._ask("map", *self._place, "get", key)

    def items(self) -> list[tuple[Any, Any]]:
        """Every entry."""
        return [tuple(pair) for pair in self._policy._ask("map", *self._place, "items")]


def of(reporter: Reporter | None) -> NetPolicy:
    """The fixture's value, in the test's own process.

    Raises:
        PolicyError: the test is not isolated, so nothing can be enforced for it alone.
    """
    if reporter is None or reporter.link.command_fd < 0:
        raise PolicyError("net_policy", "the test is not isolated in a fork", "drop --no-isolate and mode=fresh")
    return NetPolicy(reporter)


def _ports(ports: Ports, what: str) -> Any:
    """Numbers and texts, as the wire can hold them. Raises PolicyError."""
    from pytest_isolate.network.spelling import parse_ports

    several = isinstance(ports, Iterable) and not isinstance(ports, str | bytes | dict)
    found: Any = list(ports) if several else ports  # type: ignore[arg-type]
    parse_ports(found, what)
    return found


def _text(where: Destination) -> str:
    """An address as the wire can hold it. Raises PolicyError."""
    if isinstance(where, str):
        return where
    from pytest_isolate.network.rules import parse_networks

    parse_networks(where)
    return str(where)


def _error(kind: str, what: str, why: str, remedy: str) -> IsolateError:
    found = getattr(errors, kind, IsolateError)
    if found is errors.SetupError:
        found = IsolateError
    error: IsolateError = found(what, why, remedy)
    return error


def _event(row: dict[str, Any]) -> Event:
    from pytest_isolate.kernel.bpf.layout import Reason
    from pytest_isolate.network import Event, Verdict

    address = ipaddress.ip_address(row.pop("address"))
    return Event(address=address, verdict=Verdict(row.pop("verdict")), reason=Reason(row.pop("reason")), **row)


def _flow(row: dict[str, Any]) -> FlowRecord:
    from pytest_isolate.network import FlowRecord, Verdict

    peer, local = (ipaddress.ip_address(row.pop(name)) for name in ("peer", "local"))
    return FlowRecord(peer=peer, local=local, verdict=Verdict(row.pop("verdict")), **row)
