"""A DNS server for one test: answers for the names its policy names, and says which addresses it is about to answer.

Owns: two sockets (UDP and TCP on one loopback port, in the test's network namespace) and one thread.
Refuses: any other name (NXDOMAIN at once, never a time-out), zone transfers, recursion for others; to wait for one client,
or one name, while others ask; and in its thread every call that takes a lock of the C library (tests are forked meanwhile).
Snooping foreign answers would race with the connect that follows; a resolver of ours cannot.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_isolate.errors import IsolateError, PolicyError, SetupError
from pytest_isolate.kernel import forks
from pytest_isolate.kernel.bpf.layout import Protocol, Reason, Verdict, Where
from pytest_isolate.kernel.namespaces import inside_netns
from pytest_isolate.network import dns
from pytest_isolate.network.compile import compile_policy
from pytest_isolate.network.dns import parse_question
from pytest_isolate.network.lookups import Found, Lookups
from pytest_isolate.network.rules import ANYWHERE, Address, HostRule, NetworkPolicy, Rule, Target, unmapped
from pytest_isolate.network.streams import Streams
from pytest_isolate.network.traffic import Event

_DATAGRAM = 4096
_FAKE = ipaddress.ip_network("198.18.0.0/15")  # RFC 2544: never a real destination
_TCP_OR_UDP = Protocol.TCP | Protocol.UDP
_FAMILY = {dns.A: 4, dns.AAAA: 6}


@dataclass(frozen=True, slots=True)
class _Known:
    """What a name's look-up came to: good until then, and for these rows of the policy."""

    until: float
    rows: tuple[HostRule, ...]
    code: int
    addresses: tuple[Address, ...]


class Resolver:
    """Answers for ``hosts``.

    In the resolver's thread ``learned`` is called with the rules an answer needs, and ``told`` with what went wrong with a name.
    """

    def __init__(
        self, netns_fd: int, learned: Callable[[tuple[Rule, ...]], None], told: Callable[[Event], None]
    ) -> None:
        self.hosts: tuple[HostRule, ...] = ()
        self._learned, self._told = learned, told
        self._known: dict[str, _Known] = {}
        self._forgotten = 0  # how often what was known was given up
        self._waiting: dict[str, list[Callable[[_Known], None]]] = {}
        self._lookups = Lookups(self._found)
        self._fakes: dict[str, Address] = {}
        self._udp, self._tcp = _listen(netns_fd)
        self.port: int = self._udp.getsockname()[1]
        self._streams = Streams(self._tcp, self._ask)
        self._stop_r, self._stop_w = os.pipe2(os.O_CLOEXEC)
        self._owner = forks.here
        self._thread = threading.Thread(target=self._serve, name="pytest-isolate-resolver", daemon=True)
        self._thread.start()

    def fds(self) -> list[int]:
        """Descriptors a child must not keep."""
        own = [self._udp.fileno(), self._tcp.fileno(), self._stop_r, self._stop_w]
        return own + self._streams.fds() + self._lookups.fds() + self._lookups.pidfds()

    def close(self) -> None:
        """Stop and free the port. Idempotent; nothing in a forked child, whose word would stop its parent's."""
        if self._stop_w < 0 or self._owner is not forks.here:
            return
        os.write(self._stop_w, b"x")  # its close would not do: a process forked meanwhile may have it open
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
        try:
            while self._turn():
                pass
        finally:
            self._lookups.close()
            self._streams.close()

    def _turn(self) -> bool:
        """Wait for whatever is next, and do it; False when told to stop. Nobody's mistake ends the thread."""
        poller = select.poll()
        udp, tcp = self._udp.fileno(), self._tcp.fileno()
        watched = (udp, tcp, self._stop_r, *self._streams.fds(), *self._lookups.fds())
        for fd in watched:
            poller.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(self._wait_ms())]
        if self._stop_r in ready:
            return False
        for fd in ready:
            with self._going_on():
                if fd == udp:
                    self._datagram()
                elif not self._streams.heard(fd):
                    self._lookups.heard(fd)
        with self._going_on():
            self._lookups.keep_time()
            self._streams.keep_time()
        return True

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """One question's end is not that of the others. A client that is gone is nobody's fault; what is ours is told."""
        try:
            yield
        except OSError:
            pass
        except Exception as error:
            text = f"the resolver failed: {type(error).__name__}: {error}"
            self._told(Event.without_peer(Reason.NAME, text, verdict=Verdict.LOG, name="a name"))

    def _wait_ms(self) -> int | None:
        ends = [at for at in (self._lookups.next_at(), self._streams.next_at()) if at is not None]
        return max(0, int((min(ends) - time.monotonic()) * 1000) + 1) if ends else None

    def _datagram(self) -> None:
        query, peer = self._udp.recvfrom(_DATAGRAM)
        self._ask(query, lambda answer: self._send(answer, peer))

    def _send(self, answer: bytes, peer: Any) -> None:
        with contextlib.suppress(OSError):  # nobody is there any more
            self._udp.sendto(answer[:_DATAGRAM], peer)

    def _ask(self, query: bytes, answer: Callable[[bytes], None]) -> None:
        """Answer now, or when the name has been looked up."""
        try:
            name, kind, end = parse_question(query)
        except ValueError:
            answer(dns.refusal(query))
            return

        def say(known: _Known) -> None:
            found = [a for a in known.addresses if a.version == _FAMILY[kind]] if kind in _FAMILY else []
            answer(dns.reply(query, end, known.code, found))

        known = self._now(name)
        if known is not None:
            say(known)
        elif kind not in _FAMILY:
            answer(dns.reply(query, end, dns.NOERROR))
        else:
            self._look_up(name, say)

    def _rows(self, name: str) -> tuple[HostRule, ...]:
        return tuple(h for h in self.hosts if h.name == name)

    def _now(self, name: str) -> _Known | None:
        """What can be said without a look-up."""
        rows = self._rows(name)
        if not rows:
            return _Known(0, rows, dns.NXDOMAIN, ())
        if any(h.to is not None for h in rows):
            return _Known(0, rows, dns.NOERROR, (self._fake(name),))
        known = self._known.get(name)
        return known if known and known.rows == rows and time.monotonic() < known.until else None

    def forget(self) -> None:
        """What was allowed for a name is not allowed any more: it is looked up, and allowed, anew."""
        self._forgotten += 1
        self._known.clear()

    def _look_up(self, name: str, say: Callable[[_Known], None]) -> None:
        self._waiting.setdefault(name, []).append(say)
        try:
            self._lookups.ask(name)
        except OSError as error:
            self._found(name, Found(why=str(error), temporary=True))

    def _found(self, name: str, found: Found) -> None:
        """A look-up is over: allow what it found, say what went wrong, answer those who wait."""
        rows, forgotten = self._rows(name), self._forgotten
        code = self._admitted(name, rows, found)
        addresses = found.addresses if code == dns.NOERROR else ()
        known = _Known(time.monotonic() + dns.TTL_S, rows, code, addresses)
        if forgotten == self._forgotten:  # else what was allowed just now may be so no more
            self._known[name] = known
        for say in self._waiting.pop(name, ()):
            with self._going_on():
                say(known)

    def _admitted(self, name: str, rows: tuple[HostRule, ...], found: Found) -> int:
        """The code of the answer, once its addresses are allowed."""
        asked = f'allow_host("{name}")'
        if not found.addresses:
            what = "could not be looked up now" if found.temporary else "this host knows no address of it"
            self._told(Event.without_peer(Reason.NAME, f"{asked}: {what}: {found.why}", verdict=Verdict.LOG, name=name))
            return dns.SERVFAIL if found.temporary else dns.NOERROR
        try:
            self._learned(allowing(rows, (ipaddress.ip_network(unmapped(a)) for a in found.addresses)))
        except Exception as error:
            why = error.why if isinstance(error, IsolateError) else str(error)
            text = f"{asked}: its addresses could not be allowed: {why}"
            self._told(Event.without_peer(Reason.NAME, text, verdict=Verdict.DENY, name=name))
            return dns.SERVFAIL
        return dns.NOERROR


def allowing(
    rows: Iterable[HostRule], networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> tuple[Rule, ...]:
    """The rules that allow what ``rows`` say of one name, at these addresses."""
    rows = tuple(rows)
    return tuple(Rule(Verdict.ALLOW, n, h.protocols, h.ports, Where.OUT, None, h.text) for n in networks for h in rows)


def check_fit(policy: NetworkPolicy, own: tuple[Rule, ...]) -> None:
    """Refuse hosts whose ports do not fit beside what holds of every address, whichever they turn out to have.

    Raises:
        PolicyError: names the host.
    """
    everywhere = tuple(r for r in (*policy.rules, *own) if not r.network.prefixlen)
    for name in dict.fromkeys(h.name for h in policy.hosts if h.to is None):
        rows = [h for h in policy.hosts if h.name == name]
        trial = allowing(rows, (ipaddress.ip_network("0.0.0.1"), ipaddress.ip_network("::2")))
        try:
            compile_policy(dataclasses.replace(policy, rules=(*everywhere, *trial), hosts=()))
        except PolicyError as error:
            raise PolicyError(f'allow_host("{name}")', error.why, error.remedy) from error


def _static(host: HostRule) -> tuple[Rule, ...]:
    """What the hosts file says of the name: programs read it before they ask anybody, so nothing would be learned."""
    return allowing([host], (ipaddress.ip_network(unmapped(address)) for address in hosts_file(host.name)))


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
                for each in (udp, tcp):
                    each.setblocking(False)
                return udp, tcp
    raise SetupError("resolver", why.errno or 0, detail="no port free for both UDP and TCP")
