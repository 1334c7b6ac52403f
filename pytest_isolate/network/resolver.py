"""A DNS server for one test: answers for the names its policy names, and says which addresses it is about to answer.

Owns: two sockets (UDP and TCP on one loopback port, in the test's network namespace) and one thread.
Refuses: any other name (NXDOMAIN at once, never a time-out), zone transfers, recursion for others.
Snooping foreign answers would race with the connect that follows; a resolver of ours cannot.
Source: RFC 1035 sections 4.1 and 4.2.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel.bpf.layout import Protocol, Verdict, Where
from pytest_isolate.kernel.namespaces import inside_netns
from pytest_isolate.network.rules import ANYWHERE, Address, HostRule, NetworkPolicy, Rule, Target, unmapped

_A, _AAAA, _IN = 1, 28, 1
_NOERROR, _FORMERR, _NXDOMAIN, _NOTIMP = 0, 1, 3, 4
_TTL_S = 1
_DATAGRAM = 512
_FAKE = ipaddress.ip_network("198.18.0.0/15")  # RFC 2544: never a real destination
_TCP_OR_UDP = Protocol.TCP | Protocol.UDP


class Resolver:
    """Answers for ``hosts``. ``learned`` is called, in the resolver's thread, with the rules an answer needs."""

    def __init__(self, netns_fd: int, learned: Callable[[tuple[Rule, ...]], None]) -> None:
        self.hosts: tuple[HostRule, ...] = ()
        self._learned = learned
        self._fakes: dict[str, Address] = {}
        self._udp, self._tcp = _listen(netns_fd)
        self.port: int = self._udp.getsockname()[1]
        self._stop_r, self._stop_w = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="pytest-isolate-resolver", daemon=True)
        self._thread.start()

    def fds(self) -> list[int]:
        """Descriptors a child must not keep."""
        return [self._udp.fileno(), self._tcp.fileno(), self._stop_r, self._stop_w]

    def close(self) -> None:
        """Stop and free the port. Idempotent."""
        if self._stop_w < 0:
            return
        os.close(self._stop_w)
        self._thread.join()
        os.close(self._stop_r)
        self._stop_w = self._stop_r = -1
        self._udp.close()
        self._tcp.close()

    def rules(self, policy: NetworkPolicy) -> tuple[Rule, ...]:
        """What sends the test's DNS here: port 53 of everywhere, and of the nameservers of resolv.conf in particular."""
        to = Target(ipaddress.ip_address("127.0.0.1"), self.port)
        text = "DNS goes to the resolver of the test"
        rules = [
            Rule(Verdict.REDIRECT, n, _TCP_OR_UDP, (53, 53), Where.OUT, to, text) for n in (*ANYWHERE, *nameservers())
        ]
        here = ipaddress.ip_network(to.address)
        rules.append(Rule(Verdict.ALLOW, here, _TCP_OR_UDP, (self.port, self.port), Where.PACKET, None, text))
        for host in policy.hosts:
            rules += self._redirect(host) if host.to is not None else _static(host)
        return tuple(rules)

    def _redirect(self, host: HostRule) -> list[Rule]:
        fake, to = self._fake(host.name), host.to
        assert to is not None
        text = host.text
        ports = (to.port, to.port) if to.port else host.ports
        return [
            Rule(Verdict.REDIRECT, ipaddress.ip_network(fake), host.protocols, host.ports, Where.OUT, to, text),
            Rule(Verdict.ALLOW, ipaddress.ip_network(to.address), host.protocols, ports, Where.PACKET, None, text),
        ]

    def _fake(self, name: str) -> Address:
        return self._fakes.setdefault(name, _FAKE[len(self._fakes) + 1])

    def name_of(self, address: Address) -> str:
        """The name that is answered with this address of ours, ``""`` for any other."""
        return next((name for name, fake in self._fakes.items() if fake == address), "")

    def serves(self, address: Address, port: int) -> bool:
        """True for the end that the test's DNS is sent to."""
        return port == self.port and address == ipaddress.ip_address("127.0.0.1")

    # -- serving ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            watched = [self._udp.fileno(), self._tcp.fileno(), self._stop_r]
            ready, _, _ = select.select(watched, [], [])
            if self._stop_r in ready:
                return
            if watched[0] in ready:
                with contextlib.suppress(OSError):
                    query, peer = self._udp.recvfrom(4096)
                    self._udp.sendto(self._answer(query)[:4096], peer)
            if watched[1] in ready:
                with contextlib.suppress(OSError):
                    self._serve_tcp()

    def _serve_tcp(self) -> None:
        connection, _ = self._tcp.accept()
        with connection:
            connection.settimeout(1.0)  # a test that stalls here stalls only its own name service
            (length,) = struct.unpack("!H", _exactly(connection, 2))
            answer = self._answer(_exactly(connection, length))
            connection.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, query: bytes) -> bytes:
        try:
            name, kind, end = parse_question(query)
        except ValueError:
            return query[:2] + struct.pack("!HHHHH", 0x8180 | _FORMERR, 0, 0, 0, 0) if len(query) >= 2 else b""
        question = query[12:end]
        rows = [h for h in self.hosts if h.name == name]
        if not rows:
            return _reply(query, question, _NXDOMAIN, [])
        addresses = self._addresses(name, kind, rows)
        return _reply(query, question, _NOERROR, addresses)

    def _addresses(self, name: str, kind: int, rows: list[HostRule]) -> list[Address]:
        if any(h.to is not None for h in rows):
            return [self._fake(name)] if kind == _A else []
        family = {_A: socket.AF_INET, _AAAA: socket.AF_INET6}.get(kind)
        if family is None:
            return []
        found = look_up(name, family)
        networks = [ipaddress.ip_network(unmapped(a)) for a in found]
        self._learned(
            tuple(Rule(Verdict.ALLOW, n, h.protocols, h.ports, Where.OUT, None, h.text) for n in networks for h in rows)
        )
        return found


def look_up(name: str, family: int) -> list[Address]:
    """Addresses of a name as this host knows them (hosts file, DNS); [] when it does not."""
    try:
        rows = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return list(dict.fromkeys(ipaddress.ip_address(str(row[4][0]).partition("%")[0]) for row in rows))


def _static(host: HostRule) -> list[Rule]:
    """What the hosts file says of the name: programs read it before they ask anybody, so nothing would be learned."""
    found = (ipaddress.ip_network(unmapped(address)) for address in hosts_file(host.name))
    return [Rule(Verdict.ALLOW, n, host.protocols, host.ports, Where.OUT, None, host.text) for n in found]


def hosts_file(name: str, path: str = "/etc/hosts") -> tuple[Address, ...]:
    """Addresses of a name in the hosts file. Source: hosts(5)."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path(path).read_text(errors="replace").splitlines():
            words = line.partition("#")[0].lower().split()
            if name in words[1:]:
                with contextlib.suppress(ValueError):
                    found.append(ipaddress.ip_address(words[0].partition("%")[0]))
    return tuple(found)


def nameservers(path: str = "/etc/resolv.conf") -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Addresses of the ``nameserver`` lines."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path(path).read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    found.append(ipaddress.ip_network(words[1].partition("%")[0]))
    return tuple(found)


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


def _reply(query: bytes, question: bytes, code: int, addresses: list[Address]) -> bytes:
    head = query[:2] + struct.pack("!HHHHH", 0x8580 | code, 1, len(addresses), 0, 0)
    body = b"".join(
        struct.pack("!HHHIH", 0xC00C, _A if a.version == 4 else _AAAA, _IN, _TTL_S, len(a.packed)) + a.packed
        for a in addresses
    )
    return head + question + body


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError("peer closed")
        data += more
    return data


def _listen(netns_fd: int) -> tuple[socket.socket, socket.socket]:
    """UDP and TCP on one free port of 127.0.0.1 in that namespace."""
    with inside_netns(netns_fd):
        for _ in range(16):
            tcp = socket.create_server(("127.0.0.1", 0))
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                udp.bind(tcp.getsockname())
            except OSError as error:
                why = error
                tcp.close()
                udp.close()
            else:
                return udp, tcp
    raise SetupError("resolver", why.errno or 0, detail="no port free for both UDP and TCP")
