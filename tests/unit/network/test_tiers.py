"""What other means than eBPF can say of a policy's rules; what they do is tests/pytest/test_network_tiers.py."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_isolate.hardening import Landlock, SeccompProfile
from pytest_isolate.network.tiers import PORTS_MAX, tiers
from pytest_isolate.policy import Hardening, Namespace, Network, Policy


def found(**words: Any) -> list[tuple[str, bool, bool]]:
    """(the first word of what holds, whether something allowed is cut, whether something refused is lost)."""
    policy = Policy(network=Network(**{"mode": "policy", **words}))
    return [(tier.held.split(":")[0].split(",")[0], bool(tier.cut), bool(tier.lost)) for tier in tiers(policy)]


LANDLOCK, SECCOMP, LOOPBACK, NOTHING = "Landlock", "seccomp", "a network namespace", "nothing"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, [(SECCOMP, False, False)]),
        ({"deny": ("203.0.113.7",)}, [(SECCOMP, False, False)]),
        ({"allow": ("*:443/tcp",)}, [(LANDLOCK, False, False), (NOTHING, False, True)]),
        ({"allow": ("10.0.0.0/8:443/tcp",)}, [(LANDLOCK, False, True), (NOTHING, False, True)]),
        ({"allow": ("*:443/tcp",), "deny": ("10.0.0.0/8",)}, [(LANDLOCK, False, True), (NOTHING, False, True)]),
        ({"log": ("*:443/tcp",)}, [(LANDLOCK, False, True), (NOTHING, False, True)]),
        ({"allow": ("db.test:5432/tcp",)}, [(LANDLOCK, False, True), (NOTHING, False, True)]),
        ({"allow": ("localhost",)}, [(LOOPBACK, True, False), (NOTHING, False, True)]),
        ({"allow": ("localhost:80/tcp",)}, [(LOOPBACK, True, False), (LANDLOCK, False, True), (NOTHING, False, True)]),
        ({"allow": ("localhost:53",)}, [(LOOPBACK, True, True), (NOTHING, False, True)]),
        ({"allow": ("*:53/udp",)}, [(NOTHING, False, True)]),
        ({"allow": ("*:1-60000/tcp",)}, [(NOTHING, False, True)]),
        ({"allow": ("*",)}, [(NOTHING, False, True)]),
        ({"default": "allow", "deny": ("10.0.0.0/8",)}, [(NOTHING, False, True)]),
        ({"adjustable": True}, []),
        ({"mode": "none", "allow": ("*:80/tcp",)}, [("a network without an interface", False, False)]),
        ({"mode": "shared"}, [(NOTHING, False, True)]),
        ({"mode": "private"}, [(LOOPBACK, True, False)]),
        ({"mode": "loopback", "allow": ("localhost:80/tcp",)}, [(LOOPBACK, False, False), (LOOPBACK, False, True)]),
        ({"mode": "host"}, []),
    ],
)
def test_the_whole_come_first_then_the_stricter_then_the_weaker(words: Any, expected: Any) -> None:
    assert found(**words) == expected


def test_what_a_tier_leaves_asks_for_no_ebpf_and_says_who_holds() -> None:
    for allow in ((), ("*:443/tcp",), ("localhost",), ("*",)):
        for tier in tiers(Policy(network=Network(mode="policy", allow=allow))):
            network = tier.policy.network
            assert not any((network.ruled, network.counted, network.wired))
            assert network.tier == str(tier)
            assert network.tier.endswith("nothing is counted")


def test_what_was_asked_for_besides_is_only_made_stricter() -> None:
    own = SeccompProfile(name="own", refuse={"ptrace": "EPERM"})
    hardening = Hardening(seccomp=own, landlock=Landlock(read=("/usr",), write=("/tmp",), connect_tcp=(443,)))
    network = Network(mode="policy", allow=("*:442-444/tcp",))
    tier = next(tiers(Policy(network=network, hardening=hardening)))
    assert tier.policy.hardening.landlock == Landlock(read=("/usr",), write=("/tmp",), connect_tcp=(443,))
    profile = tier.policy.hardening.seccomp
    assert isinstance(profile, SeccompProfile)
    assert (profile.refuse, profile.sockets) == (own.refuse, "tcp")


def test_a_loopback_of_its_own_is_a_namespace_and_the_host_s_network_is_none() -> None:
    of_loopback, of_nothing = tiers(Policy(network=Network(mode="policy", allow=("localhost",))))
    assert Namespace.NET in of_loopback.policy.namespaces
    assert Namespace.NET not in of_nothing.policy.namespaces


def test_more_ports_than_a_ruleset_should_hold_are_not_landlock_s() -> None:
    allow = tuple(f"*:{port}/tcp" for port in range(1, PORTS_MAX + 2))
    assert found(allow=allow) == [(NOTHING, False, True)]
    assert found(allow=allow[1:])[0] == (LANDLOCK, False, False)
