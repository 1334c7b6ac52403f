"""What holds a network policy where eBPF cannot: no sockets at all, ports alone, or a loopback of its own.

Owns: what each of these means can say of a policy's rules, and what it cannot, in words.
Refuses: to choose one (networks.py), and to count: where a tier holds the rules, every count is "not available".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pytest_isolate.hardening import Landlock, SeccompProfile
from pytest_isolate.kernel.bpf.layout import Protocol, Verdict
from pytest_isolate.network.rules import ANYWHERE, LOOPBACK, NetworkPolicy, Rule
from pytest_isolate.network.written import policy_of
from pytest_isolate.policy import Namespace, Network, Policy

#: Landlock takes one rule for each port.
PORTS_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """``policy``, which needs no eBPF, instead of one that does.

    Attributes:
        held: by what, in words.
        cut: what the rules allow and this tier does not let through.
        lost: what the rules refuse and this tier does not.
    """

    policy: Policy
    held: str
    cut: str = ""
    lost: str = ""

    @property
    def whole(self) -> bool:
        """True when it refuses what the rules refuse, and nothing they allow."""
        return not (self.cut or self.lost)

    def __str__(self) -> str:
        less = [f"not held: {self.lost}"] if self.lost else []
        more = [f"out of reach though allowed: {self.cut}"] if self.cut else []
        return "; ".join([self.held, *more, *less, "nothing is counted"])


def tiers(policy: Policy) -> Iterator[Tier]:
    """What could hold the network rules of ``policy`` without eBPF: the whole ones, the stricter ones, the weaker ones.

    Whether this kernel has what they need is for a backend to say.
    """
    network = policy.network
    if network.adjustable:
        return  # the test will change its rules, which only eBPF can
    if not network.ruled:
        yield from _of_mode(policy)
        return
    rules = policy_of(network)
    if network.mode == "none":
        yield _tier(policy, "a network without an interface", mode="none")
    elif not _opens(rules) and rules.default is Verdict.DENY:
        yield _no_sockets(policy)
    else:
        yield from sorted(_of_rules(policy, rules), key=lambda tier: 2 if tier.lost else 1 if tier.cut else 0)


def _of_mode(policy: Policy) -> Iterator[Tier]:
    """Of what is asked for beside rules: a count, a wire."""
    if policy.network.mode == "private":
        yield _tier(policy, _OWN_LOOPBACK, cut="the host's end of the wire", mode="loopback")
    elif policy.network.mode == "shared":
        yield _tier(policy, "nothing, for nothing was to be refused", lost="counts", mode="host")


_OWN_LOOPBACK = "a network namespace: 127.0.0.1 and ::1 of its own, no other interface"


def _of_rules(policy: Policy, rules: NetworkPolicy) -> Iterator[Tier]:
    opens, ports = _opens(rules), _tcp_ports(rules)
    host = "host" if policy.network.mode in ("policy", "shared") else policy.network.mode
    if ports is not None and host == "host":
        lost = [] if _anywhere(opens) and not rules.hosts else ["addresses (these ports are open to all of them)"]
        lost += ["deny rules"] if _denies(rules) else []
        lost += ["log rules"] if any(rule.verdict is Verdict.LOG for rule in opens) else []
        yield _by_ports(policy, ports, _by_port_words(ports), lost=", ".join(lost), mode=host)
    if rules.default is Verdict.DENY and not rules.hosts and all(_is_loopback(rule) for rule in opens):
        cut = "" if host == "loopback" else "what listens on the host's loopback"
        if ports is not None and not _denies(rules):
            yield _by_ports(policy, ports, f"{_OWN_LOOPBACK}, {_by_port_words(ports)}", cut=cut, mode="loopback")
        else:
            within = "" if not _denies(rules) and _all_of_loopback(opens) else "rules within that loopback"
            yield _tier(policy, _OWN_LOOPBACK, cut=cut, lost=within, mode="loopback")
    kept = _OWN_LOOPBACK if host in ("private", "loopback") else "nothing"
    yield _tier(policy, kept, lost="the rules", mode="loopback" if host == "private" else host)


def _tier(policy: Policy, held: str, *, mode: str, cut: str = "", lost: str = "") -> Tier:
    own = {Namespace.NET} if mode in ("none", "loopback") else set()
    without = replace(
        policy, network=Network(mode=mode), namespaces=frozenset(policy.namespaces - {Namespace.NET} | own)
    )
    made = Tier(policy=without, held=held, cut=cut, lost=lost)
    return replace(made, policy=replace(without, network=Network(mode=mode, tier=str(made))))


def _no_sockets(policy: Policy) -> Tier:
    mode = "loopback" if policy.network.mode in ("private", "loopback") else "host"
    return _with_seccomp(_tier(policy, "seccomp: no sockets but AF_UNIX", mode=mode), "unix")


def _by_ports(policy: Policy, ports: tuple[int, ...], held: str, *, mode: str, cut: str = "", lost: str = "") -> Tier:
    tier = _with_seccomp(_tier(policy, held, mode=mode, cut=cut, lost=lost), "tcp")
    hardening = tier.policy.hardening
    asked = hardening.landlock or Landlock(write=("/",))
    allowed = ports if asked.connect_tcp is None else tuple(port for port in ports if port in asked.connect_tcp)
    hardening = replace(hardening, landlock=replace(asked, connect_tcp=allowed))
    return replace(tier, policy=replace(tier.policy, hardening=hardening))


def _with_seccomp(tier: Tier, sockets: str) -> Tier:
    """Beside what is asked for already: the stricter answer holds."""
    asked = tier.policy.hardening.seccomp
    if isinstance(asked, str):
        asked = SeccompProfile(name=asked, base=asked)  # type: ignore[arg-type]
    before = "" if asked.name == "none" else f"{asked.name}, "
    profile = replace(asked, sockets=sockets, name=f"{before}{sockets} sockets only")  # type: ignore[arg-type]
    hardening = replace(tier.policy.hardening, seccomp=profile)
    return replace(tier, policy=replace(tier.policy, hardening=hardening))


def _by_port_words(ports: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, ports[:8])) + (f" and {len(ports) - 8} more" if len(ports) > 8 else "")
    return f"Landlock: TCP to port {shown}, and seccomp: no other protocol"


# -- what rules say ------------------------------------------------------------------------------------------------


def _opens(rules: NetworkPolicy) -> list[Rule]:
    """The rules that let something through; hosts apart."""
    found = [rule for rule in rules.rules if rule.verdict is not Verdict.DENY]
    hosts = [Rule(Verdict.ALLOW, ANYWHERE[0], host.protocols, host.ports) for host in rules.hosts]
    return found + hosts


def _denies(rules: NetworkPolicy) -> bool:
    return any(rule.verdict is Verdict.DENY for rule in rules.rules)


def _tcp_ports(rules: NetworkPolicy) -> tuple[int, ...] | None:
    """The ports that rules open, where they open TCP alone and few; None: Landlock cannot say it."""
    if rules.default is not Verdict.DENY:
        return None
    ports: set[int] = set()
    for rule in _opens(rules):
        low, high = rule.ports
        if rule.protocols != Protocol.TCP or high - low >= PORTS_MAX:
            return None
        ports.update(range(low, high + 1))
    return tuple(sorted(ports)) if len(ports) <= PORTS_MAX else None


def _anywhere(opens: list[Rule]) -> bool:
    """True when every port is open to every address, by IPv4 and by IPv6."""
    told = {(rule.network, rule.ports) for rule in opens}
    return all((network, rule.ports) in told for rule in opens for network in ANYWHERE)


def _is_loopback(rule: Rule) -> bool:
    return any(rule.network.version == own.version and rule.network.subnet_of(own) for own in LOOPBACK)  # type: ignore[arg-type]


def _all_of_loopback(opens: list[Rule]) -> bool:
    told = {rule.network for rule in opens if rule.protocols == Protocol.ANY}
    return told >= set(LOOPBACK)


__all__ = ["Tier", "tiers"]
