"""Rules as users write them in one text: ``10.0.0.0/8:8000-8100/tcp``, ``db.test:5432``, ``[2001:db8::1]:443``.

Owns: that grammar. Refuses: addresses, ports and precedence (rules.py).
"""

from __future__ import annotations

import functools
from typing import Any

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.bpf.layout import Verdict
from pytest_isolate.network.rules import NetworkPolicy, parse_errno
from pytest_isolate.network.spelling import ALL_PORTS, is_host_name, split_endpoint
from pytest_isolate.policy import Network

_PROTOCOLS = ("tcp", "udp", "icmp")
_DEFAULTS = {"": Verdict.DENY, "deny": Verdict.DENY, "allow": Verdict.ALLOW}


@functools.lru_cache(maxsize=256)
def policy_of(network: Network) -> NetworkPolicy:
    """The policy that ``network`` says; the same value gives the same object, so that its rule set is shared.

    Raises:
        PolicyError: a rule without meaning.
    """
    if not network.ruled:
        return NetworkPolicy(default=Verdict.ALLOW)
    errno = parse_errno("EPERM" if network.errno is None else network.errno)
    policy = NetworkPolicy(default=_DEFAULTS[network.default], flows=True, errno=errno)
    for verb, texts in (("allow", network.allow), ("deny", network.deny), ("log", network.log)):
        for text in texts:
            policy = add_written(policy, verb, text)
    return policy


def add_written(policy: NetworkPolicy, verb: str, text: str) -> NetworkPolicy:
    """``policy`` with one more rule; a port without a protocol means TCP and UDP.

    Raises:
        PolicyError: names what of ``text`` has no meaning.
    """
    where, ports, protocols = _parts(text)
    named: dict[str, Any] = {name: True if name == "icmp" else [ports] for name in protocols}
    if is_host_name(where):
        if verb != "allow":
            raise PolicyError(f"{verb} {text!r}", "a host name can only be allowed", "write its address")
        if "icmp" in named:
            raise PolicyError(
                f"{verb} {text!r}", "a host name is allowed by ports", "leave /icmp out, or add its address"
            )
        return policy.allow_host(where, **named)
    changed: NetworkPolicy = getattr(policy, verb)(where, **named)
    return changed


def _parts(text: str) -> tuple[str, str, tuple[str, ...]]:
    """(address or name, ports as ``80`` or ``80-90``, protocols; none: every one)."""
    what, slash, protocol = text.strip().rpartition("/")
    if not slash or protocol not in _PROTOCOLS:
        what, protocol = text.strip(), ""
    where, (low, high) = split_endpoint(what)
    some = (low, high) != ALL_PORTS
    if protocol == "icmp" and some:
        raise PolicyError(f"rule {text!r}", "ICMP has no ports", "leave the port out")
    if not where:
        raise PolicyError(f"rule {text!r}", "it names no destination", 'write "*:443" for any')
    protocols = (protocol,) if protocol else ("tcp", "udp") if some else ()
    return where, f"{low}-{high}", protocols
