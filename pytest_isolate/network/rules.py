"""What the user says of the network: rules and the policy they make. Values, and the parser of addresses.

Owns: Rule, NetworkPolicy, and the error for each thing that cannot be meant.
Refuses: the kernel, and how ports, limits and host names are written (spelling.py).
Order of precedence, decided here and nowhere else (see `Rule.rank`): the longest prefix wins, then
the narrower range of ports, then deny over redirect over log over allow.
"""

from __future__ import annotations

import dataclasses
import errno as _errno
import ipaddress
import re
from dataclasses import dataclass, field

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.bpf.layout import Protocol, Verdict, Where
from pytest_isolate.network.spelling import (
    ALL_PORTS,
    Ports,
    host_name,
    is_host_name,
    parse_limit,
    parse_ports,
    port_range,
    split_endpoint,
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Spot = tuple[int, int, int]  # IP version, prefix length, network address
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Destination = str | Network | Address

ANYWHERE: tuple[Network, ...] = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_BRACKETED = re.compile(r"\[[^][]*\]")
_NAMES = {"*": ANYWHERE, "any": ANYWHERE, "localhost": LOOPBACK, "loopback": LOOPBACK}
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_LIMITS = ("pps", "bytes", "connections")
_RANK = {Verdict.DENY: 0, Verdict.REDIRECT: 1, Verdict.LOG: 2, Verdict.ALLOW: 3}
#: errno names that make sense as the answer to a denied call.
ERRNOS = ("EPERM", "EACCES", "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "ETIMEDOUT", "EADDRNOTAVAIL", "ECONNRESET")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a redirect leads; port 0 keeps the port asked for."""

    address: Address
    port: int = 0

    def __str__(self) -> str:
        return endpoint(self.address, self.port)


@dataclass(frozen=True, slots=True)
class Rule:
    """One verdict on one range of addresses, ports and protocols at one place (Where)."""

    verdict: Verdict
    network: Network
    protocols: Protocol = Protocol.ANY
    ports: tuple[int, int] = ALL_PORTS
    where: Where = Where.OUT
    to: Target | None = None
    text: str = field(default="", compare=False)  # as the user wrote it
    #: Where it holds, and what it says there, as numbers: enums hash in Python, and policies have thousands of rules.
    spot: Spot = field(init=False, compare=False, repr=False)
    says: tuple[tuple[int, int], int, int, int, Target | None] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        network = self.network
        object.__setattr__(self, "spot", (network.version, network.prefixlen, int(network.network_address)))
        says = self.ports, int(self.protocols), int(self.where), int(self.verdict), self.to
        object.__setattr__(self, "says", says)

    @property
    def rank(self) -> tuple[int, int, int]:
        """Sorts the rule that decides first to the front."""
        return (-self.network.prefixlen, self.ports[1] - self.ports[0], _RANK[self.verdict])

    def asked_by(self, name: str = "") -> str:
        """``203.0.113.7:443``, ``10.0.0.0/8:80-90``, ``api.test``: what a redirect takes; ``name`` stands for the address."""
        single = self.network.prefixlen == self.network.max_prefixlen
        where = name or str(self.network.network_address if single else self.network)
        if self.ports == ALL_PORTS:
            return where
        low, high = self.ports
        return f"{f'[{where}]' if ':' in where else where}:{low}" + (f"-{high}" if high != low else "")

    def __str__(self) -> str:
        if self.text:
            return self.text
        ports = "" if self.ports == ALL_PORTS else f" ports {self.ports[0]}-{self.ports[1]}"
        return f"{self.verdict.name.lower()} {self.network}{ports}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    """What a test may do on the network. A value: each method answers a new policy with the rule added.

    Attributes:
        default: for a destination no rule speaks of. ``inbound``: for connections and datagrams that peers open;
            ``bind``: for bind(2) to a port of one's choice.
        errno: what a denied call answers. Packets (not calls) can only be answered EPERM, or are dropped.
        raw: raw sockets may be made. ``per_packet``: judge every packet, not only openings.
        limit_pps: packets per second both ways; ``limit_bytes``: L3 bytes both ways; ``limit_connections``: connects;
            0 for no limit.
        hosts: names the resolver of the engine answers, with what they may be used for.
    """

    rules: tuple[Rule, ...] = ()
    default: Verdict = Verdict.DENY
    inbound: Verdict = Verdict.ALLOW
    bind: Verdict = Verdict.ALLOW
    errno: int = _errno.EPERM
    raw: bool = False
    per_packet: bool = False
    flows: bool = False
    limit_pps: int = 0
    limit_bytes: int = 0
    limit_connections: int = 0
    hosts: tuple[HostRule, ...] = ()

    def __post_init__(self) -> None:
        for name in _LIMITS:
            if (value := getattr(self, f"limit_{name}")) != 0 or isinstance(value, bool):
                parse_limit(name, value)
        if not 0 < self.errno < 134:
            raise PolicyError("errno", f"{self.errno} is no error number", f"write one of {', '.join(ERRNOS)}")

    # -- rules -----------------------------------------------------------------------------------------------------

    def allow(
        self, where: Destination, *, tcp: Ports = None, udp: Ports = None, icmp: bool | None = None
    ) -> NetworkPolicy:
        """Allow opening to ``where``: a CIDR, an address, ``"*"`` or ``"localhost"``; all protocols when none is named."""
        return self._add(Verdict.ALLOW, where, tcp, udp, icmp)

    def deny(
        self, where: Destination, *, tcp: Ports = None, udp: Ports = None, icmp: bool | None = None
    ) -> NetworkPolicy:
        """Deny opening to ``where``."""
        return self._add(Verdict.DENY, where, tcp, udp, icmp)

    def log(
        self, where: Destination, *, tcp: Ports = None, udp: Ports = None, icmp: bool | None = None
    ) -> NetworkPolicy:
        """Allow, and report each flow."""
        return self._add(Verdict.LOG, where, tcp, udp, icmp)

    def allow_inbound(self, peers: Destination = "*", *, tcp: Ports = None, udp: Ports = None) -> NetworkPolicy:
        """Let ``peers`` reach these ports of the test (for UDP: the whole exchange through such a port, both ways)."""
        return self._add(Verdict.ALLOW, peers, tcp, udp, None, Where.IN)

    def deny_inbound(self, peers: Destination = "*", *, tcp: Ports = None, udp: Ports = None) -> NetworkPolicy:
        """Keep ``peers`` from reaching these ports of the test."""
        return self._add(Verdict.DENY, peers, tcp, udp, None, Where.IN)

    def allow_bind(self, address: Destination = "*", *, tcp: Ports = None, udp: Ports = None) -> NetworkPolicy:
        """Let the test bind these ports of its own (with ``bind=Verdict.DENY``)."""
        return self._add(Verdict.ALLOW, address, tcp, udp, None, Where.BIND)

    def deny_bind(self, address: Destination = "*", *, tcp: Ports = None, udp: Ports = None) -> NetworkPolicy:
        """Keep the test from binding these ports."""
        return self._add(Verdict.DENY, address, tcp, udp, None, Where.BIND)

    def redirect(self, what: str, *, to: tuple[str, int] | str) -> NetworkPolicy:
        """Send what goes to ``address:port`` or ``name:port`` elsewhere; its program sees the address it asked for.

        A name needs the resolver (engine): it is answered with an address of 198.18.0.0/15 (RFC 2544) of its own.
        """
        target = parse_target(to)
        host, ports = split_endpoint(what)
        if name := host_name(host):
            return dataclasses.replace(self, hosts=(*self.hosts, HostRule(name, Protocol(3), ports, target)))
        return dataclasses.replace(self, rules=(*self.rules, *_redirects(parse_networks(host), ports, target, what)))

    def allow_host(self, name: str, *, tcp: Ports = None, udp: Ports = None) -> NetworkPolicy:
        """Allow a host by name: the engine's resolver answers for it and allows the addresses it answered with."""
        asked = host_name(name)
        if not asked:
            remedy = 'write a name such as "db.test", or use allow() for addresses'
            raise PolicyError("allow_host", f"{name!r} is no host name", remedy)
        new = tuple(HostRule(asked, p, r) for p, r in _protocols(tcp, udp, None))
        return dataclasses.replace(self, hosts=(*self.hosts, *new))

    def limit(
        self,
        *,
        pps: int | None = None,
        bytes: int | str | None = None,  # noqa: A002 - the user's word
        connections: int | None = None,
    ) -> NetworkPolicy:
        """Bound packets per second, L3 bytes in all ("64K" too), or connects; each from 1 on. None leaves it as it is."""
        asked = {"pps": pps, "bytes": bytes, "connections": connections}
        limits = {f"limit_{name}": parse_limit(name, value) for name, value in asked.items() if value is not None}
        return dataclasses.replace(self, **limits)  # type: ignore[arg-type]

    def _add(
        self, verdict: Verdict, where: Destination, tcp: Ports, udp: Ports, icmp: bool | None, place: Where = Where.OUT
    ) -> NetworkPolicy:
        text = _written(verdict, where, tcp, udp, icmp, place)
        new = tuple(
            Rule(verdict, network, protocols, ports, place, None, text)
            for network in parse_networks(where)
            for protocols, ports in _protocols(tcp, udp, icmp)
        )
        return dataclasses.replace(self, rules=(*self.rules, *new))

    # -- answers ---------------------------------------------------------------------------------------------------

    def rule_for(self, address: Address, port: int, protocol: Protocol, where: Where = Where.OUT) -> Rule | None:
        """The rule that decides, None when it is the default: the same decision the kernel makes, for explaining it."""
        peer = unmapped(address)
        fitting = (
            r
            for r in self.rules
            if r.where & where and r.protocols & protocol and r.ports[0] <= port <= r.ports[1] and peer in r.network
        )
        return min(fitting, key=lambda r: r.rank, default=None)


@dataclass(frozen=True, slots=True)
class HostRule:
    """A host by name: allowed, or redirected when ``to`` is set."""

    name: str
    protocols: Protocol
    ports: tuple[int, int]
    to: Target | None = None

    @property
    def text(self) -> str:
        """That of the rules which come of it."""
        return f'allow_host("{self.name}")' if self.to is None else f"redirect {self.name} to {self.to}"


#: What a test without a policy gets: everything, counted.
COUNT_ONLY = NetworkPolicy(default=Verdict.ALLOW)


# -- parsing -------------------------------------------------------------------------------------------------------


def parse_networks(where: object) -> tuple[Network, ...]:
    """CIDR, address or ``*``/``localhost``; v4-mapped IPv6 becomes IPv4, as the kernel's hooks see it.

    Raises:
        PolicyError: malformed, or with host bits set.
    """
    if isinstance(where, Network | Address):
        return (_unmapped_network(ipaddress.ip_network(where)),)
    remedy = 'write an address, a CIDR such as "10.0.0.0/8", "localhost" or "*"'
    if not isinstance(where, str):
        raise PolicyError(f"network {where!r}", "it is no address and no text", remedy)
    if where.lower() in _NAMES:
        return _NAMES[where.lower()]
    text = where.strip()
    if "%" in text:
        raise PolicyError(f"network {where!r}", "rules know no zones", "leave out % and what follows it")
    try:
        return (_unmapped_network(ipaddress.ip_network(text[1:-1] if _BRACKETED.fullmatch(text) else text)),)
    except ValueError as error:
        if is_host_name(where):
            remedy = f"for a host name use allow_host({where!r})"
        elif "host bits" in str(error):
            remedy = f"write {ipaddress.ip_network(where, strict=False)}"
        raise PolicyError(f"network {where!r}", str(error), remedy) from None


def parse_target(to: object) -> Target:
    """``("127.0.0.1", 8080)`` or ``"127.0.0.1:8080"``; without a port, that asked for.

    Raises:
        PolicyError: no such pair, no address, or not one port.
    """
    what, remedy = f"redirect to {to!r}", 'write ("127.0.0.1", 8080)'
    if isinstance(to, str):
        host, ports = split_endpoint(to)
        first, last = (0, 0) if ports == ALL_PORTS else ports
    elif isinstance(to, tuple | list) and len(to) == 2:
        host, (first, last) = to[0], port_range(to[1], what)
    else:
        raise PolicyError(what, "it is no pair of an address and a port", remedy)
    if first != last:
        raise PolicyError(what, f"{first}-{last} are several ports", "name one, or none to keep the port asked for")
    try:
        address = unmapped(ipaddress.ip_address(str(host)))
    except ValueError:
        raise PolicyError(what, f"{host!r} is no address", remedy) from None
    if "%" in str(address):
        raise PolicyError(what, "an address with a zone cannot be a target", remedy)
    return Target(address, first)


def unmapped(address: Address) -> Address:
    """The IPv4 address in ::ffff:a.b.c.d, else the address itself."""
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address


def endpoint(address: Address, port: int) -> str:
    """``203.0.113.7:443`` or ``[2001:db8::1]:443``."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def parse_errno(value: int | str) -> int:
    """A number, or a name such as ``ECONNREFUSED``."""
    number = getattr(_errno, value.upper(), None) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool) or number not in _errno.errorcode:
        raise PolicyError(f"errno {value!r}", "unknown", f"write one of {', '.join(ERRNOS)}")
    return number


def _unmapped_network(network: Network) -> Network:
    if network.version == 6 and network.prefixlen >= 96 and network.subnet_of(_MAPPED):  # type: ignore[arg-type]
        low = ipaddress.IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return ipaddress.ip_network((low, network.prefixlen - 96))
    return network


def _protocols(tcp: Ports, udp: Ports, icmp: bool | None) -> tuple[tuple[Protocol, tuple[int, int]], ...]:
    if tcp is None and udp is None and icmp is None:
        return ((Protocol.ANY, ALL_PORTS),)
    rows = [(Protocol.TCP, r) for r in parse_ports(tcp, "tcp")] + [(Protocol.UDP, r) for r in parse_ports(udp, "udp")]
    if icmp:
        rows.append((Protocol.ICMP, ALL_PORTS))
    if not rows:
        raise PolicyError(
            "rule", "it names no port", "write tcp=[80], udp=[53], icmp=True, or none of them for everything"
        )
    return tuple(rows)


def _redirects(networks: tuple[Network, ...], ports: tuple[int, int], to: Target, what: str) -> tuple[Rule, ...]:
    for network in networks:
        if network.version == 4 and to.address.version == 6:
            raise PolicyError(
                f"redirect {what}", f"an IPv4 socket cannot reach {to.address}", "redirect to an IPv4 address"
            )
    text = f"redirect {what} to {to}"
    both = Protocol.TCP | Protocol.UDP
    rules = [Rule(Verdict.REDIRECT, n, both, ports, Where.OUT, to, text) for n in networks]
    kept = (to.port, to.port) if to.port else ports
    return (*rules, Rule(Verdict.ALLOW, ipaddress.ip_network(to.address), both, kept, Where.PACKET, None, text))


def _written(verdict: Verdict, where: Destination, tcp: Ports, udp: Ports, icmp: bool | None, place: Where) -> str:
    verb = verdict.name.lower() + {Where.IN: "_inbound", Where.BIND: "_bind"}.get(place, "")
    named = "".join(f", {n}={v!r}" for n, v in (("tcp", tcp), ("udp", udp), ("icmp", icmp)) if v is not None)
    return f'{verb}("{where}"{named})'
