"""What Python says of a policy is what the kernel does: random policies, every answer compared.

sendto(2) is judged before a route is looked for, so it is an oracle that costs microseconds.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import time

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.bpf.layout import LIST_MAX, Protocol
from pytest_isolate.network import NetworkPolicy, Rule, Verdict
from tests.kernel.network.conftest import attempt

NETWORKS = [
    "203.0.113.0/24", "203.0.113.0/28", "203.0.113.7/32", "203.0.112.0/22", "0.0.0.0/0", "127.0.0.0/8", "203.0.113.4/30",
    "2001:db8::/32", "2001:db8::/120", "2001:db8::7/128", "::/0", "::1/128",
]  # fmt: skip
HOSTS = ["203.0.113.1", "203.0.113.5", "203.0.113.7", "203.0.113.20", "127.0.0.1", "2001:db8::7", "2001:db8::1", "::1"]
PORTS = [1, 79, 80, 81, 443, 8000, 8050, 8100, 65535]
RANGES = [80, "1-1023", "8000-8100", "8050-8200", 443, "80-81", True]


def _random_policy(draw: random.Random) -> NetworkPolicy:
    policy = NetworkPolicy(default=draw.choice([Verdict.ALLOW, Verdict.DENY]))
    for _ in range(draw.randint(0, 12)):
        add = draw.choice([policy.allow, policy.deny, policy.log])
        ports = draw.choice(
            [{}, {"udp": draw.choice(RANGES)}, {"tcp": draw.choice(RANGES)}, {"udp": [53, draw.choice(RANGES[:-1])]}]
        )
        policy = add(draw.choice(NETWORKS), **ports)
    return policy


def _sends(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as made:
        return attempt(lambda: made.sendto(b"x", (host, port)))[0] != "EPERM"


def _expected(policy: NetworkPolicy, host: str, port: int) -> bool:
    rule = policy.rule_for(ipaddress.ip_address(host), port, Protocol.UDP)
    return (rule.verdict if rule else policy.default) is not Verdict.DENY


@pytest.mark.parametrize("seed", range(40))
def test_the_kernel_decides_as_the_value_says(box, seed):
    draw = random.Random(seed)
    policies = [_random_policy(draw) for _ in range(5)]
    spots = [(h, p) for h in HOSTS for p in PORTS]
    for policy in policies:
        with box.attach(policy):
            answers = box.run(lambda: [_sends(h, p) for h, p in spots])
        assert answers == [_expected(policy, h, p) for h, p in spots], policy.rules


def test_the_longest_prefix_wins_then_the_narrower_ports_then_deny(box):
    policy = (
        NetworkPolicy()
        .allow("203.0.113.0/24")
        .deny("203.0.113.0/28")
        .allow("203.0.113.0/28", udp=[80])
        .allow("203.0.113.0/28", udp=[81])
        .deny("203.0.113.0/28", udp=[81])
    )
    with box.attach(policy):
        spots = [("203.0.113.20", 1), ("203.0.113.7", 1), ("203.0.113.7", 80), ("203.0.113.7", 81)]
        assert box.run(lambda: [_sends(h, p) for h, p in spots]) == [True, False, True, False]


def test_ten_thousand_rules_are_in_force(box):
    rules = tuple(
        Rule(Verdict.ALLOW, ipaddress.ip_network((0xC6120000 + 2 * i, 32)), Protocol.ANY) for i in range(10_000)
    )  # every other address of 198.18.0.0/15
    begin = time.perf_counter()
    with box.attach(NetworkPolicy(rules=rules)):
        attached_s = time.perf_counter() - begin
        hosts = [str(ipaddress.ip_address(0xC6120000 + i)) for i in (0, 1, 9998, 9999, 19998, 19999, 20000, 20001)]
        assert box.run(lambda: [_sends(h, 80) for h in hosts]) == [
            True,
            False,
            True,
            False,
            True,
            False,
            False,
            False,
        ]
    assert attached_s < 2


def test_more_ports_on_one_prefix_than_a_list_holds_names_the_limit(box):
    with pytest.raises(PolicyError, match=f"more than {LIST_MAX}"):
        box.attach(NetworkPolicy().allow("203.0.113.7", tcp=list(range(2, 200, 2))))


def test_more_rules_than_the_maps_hold_names_the_limit(box):
    rules = tuple(Rule(Verdict.ALLOW, ipaddress.ip_network((0x0A000000 + i, 32)), Protocol.ANY) for i in range(20_000))
    with pytest.raises(PolicyError, match="16384"):
        box.attach(NetworkPolicy(rules=rules))


def test_more_different_port_lists_than_the_maps_hold_names_the_limit_and_leaves_the_rest(box, engine):
    rules = tuple(
        Rule(Verdict.ALLOW, ipaddress.ip_network((0x0A000000 + i, 32)), Protocol.UDP, (i + 1, i + 1))
        for i in range(3000)
    )
    with pytest.raises(PolicyError, match="port lists"):
        box.attach(NetworkPolicy(rules=rules))
    with box.attach(NetworkPolicy().allow("203.0.113.7")):
        assert box.run(lambda: _sends("203.0.113.7", 80))


def test_rules_of_one_policy_do_not_leak_into_another(box, other_box):
    with (
        box.attach(NetworkPolicy().allow("203.0.113.7", udp=[80])),
        other_box.attach(NetworkPolicy().allow("203.0.113.7", udp=[81])),
    ):
        assert box.run(lambda: [_sends("203.0.113.7", p) for p in (80, 81)]) == [True, False]
        assert other_box.run(lambda: [_sends("203.0.113.7", p) for p in (80, 81)]) == [False, True]
