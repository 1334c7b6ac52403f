"""Policies as values: what users write, what it means, and the error for what means nothing."""

from __future__ import annotations

import ipaddress

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel.bpf.layout import Flag, Protocol
from pytest_isolate.network.compile import address_bytes, address_of, compile_policy
from pytest_isolate.network.resolver import nameservers
from pytest_isolate.network.rules import NetworkPolicy, Verdict, parse_errno, parse_networks


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("10.0.0.0/8", ["10.0.0.0/8"]),
        ("203.0.113.7", ["203.0.113.7/32"]),
        ("2001:db8::/32", ["2001:db8::/32"]),
        ("[2001:db8::1]", ["2001:db8::1/128"]),
        ("::ffff:203.0.113.0/120", ["203.0.113.0/24"]),
        ("*", ["0.0.0.0/0", "::/0"]),
        ("localhost", ["127.0.0.0/8", "::1/128"]),
    ],
)
def test_networks_as_users_write_them(written, meant):
    assert [str(n) for n in parse_networks(written)] == meant


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("db.test", "allow_host"),
        ("10.0.0.256", "Write an address"),
        ("", "Write an address"),
        ("10.0.0.0/33", "Write an address"),
        ("[::1", "Write an address"),
        ("::1]", "Write an address"),
        ("fe80::1%lo", "Leave out %"),
        ("[[::1]]", "Write an address"),
        (1, "Write an address"),
        (None, "Write an address"),
        (["127.0.0.1"], "Write an address"),
    ],
)
def test_what_is_no_network_names_a_remedy(written, remedy):
    with pytest.raises(PolicyError, match=remedy):
        parse_networks(written)


def test_errno_by_name():
    assert parse_errno("econnrefused") == 111
    for bad in ("EWHAT", 9999, True):
        with pytest.raises(PolicyError, match="ECONNREFUSED"):
            parse_errno(bad)


def test_a_policy_is_a_value():
    one = NetworkPolicy()
    two = one.allow("10.0.0.0/8")
    assert (one.rules, len(two.rules)) == ((), 1)
    assert two == NetworkPolicy().allow("10.0.0.0/8")


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.allow("10.0.0.0/8", tcp=[]),
        lambda p: p.redirect("10.0.0.1:80", to=("::1", 80)),
        lambda p: p.redirect("10.0.0.1:80", to=("nowhere", 80)),
        lambda p: p.allow_host("10.0.0.1"),
        lambda p: NetworkPolicy(errno=0),
    ],
)
def test_what_cannot_be_meant_is_refused(make):
    with pytest.raises(PolicyError):
        make(NetworkPolicy())


def test_a_longer_prefix_holds_the_lines_of_those_that_cover_it():
    compiled = compile_policy(NetworkPolicy().allow("10.0.0.0/8").deny("10.1.0.0/16", tcp=[22]))
    lists = {length: compiled.lists[index] for _, length, index in compiled.prefixes4}
    assert [line[:2] for line in lists[8]] == [(0, 65535)]
    assert [line[:2] for line in lists[16]] == [(22, 22), (0, 65535)]


def test_equal_port_lists_are_stored_once():
    compiled = compile_policy(NetworkPolicy().allow("10.0.0.0/24", tcp=[80]).allow("10.0.1.0/24", tcp=[80]))
    assert (len(compiled.lists), len(compiled.prefixes4)) == (1, 2)


@pytest.mark.parametrize(
    ("policy", "flags"),
    [
        (NetworkPolicy(default=Verdict.ALLOW), Flag.COUNT_ONLY),
        (NetworkPolicy(), Flag(0)),
        (NetworkPolicy(inbound=Verdict.DENY, default=Verdict.ALLOW), Flag.INBOUND),
        (NetworkPolicy(default=Verdict.ALLOW, limit_bytes=1), Flag.BUDGET),
        (NetworkPolicy(default=Verdict.ALLOW, bind=Verdict.DENY), Flag(0)),
        (NetworkPolicy(raw=True, per_packet=True), Flag.RAW | Flag.PER_PACKET),
    ],
)
def test_flags_say_what_the_hooks_must_look_at(policy, flags):
    assert compile_policy(policy).flags == flags


def test_the_deciding_rule_is_named_as_it_was_written():
    policy = NetworkPolicy().allow("10.0.0.0/8", tcp=[80, "8000-8100"])
    rule = policy.rule_for(ipaddress.ip_address("10.2.3.4"), 8050, Protocol.TCP)
    assert str(rule) == "allow(\"10.0.0.0/8\", tcp=[80, '8000-8100'])"
    assert policy.rule_for(ipaddress.ip_address("10.2.3.4"), 81, Protocol.TCP) is None


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::7", "::1"])
def test_addresses_survive_the_trip(address):
    assert address_of(address_bytes(ipaddress.ip_address(address))) == ipaddress.ip_address(address)


def test_nameservers_of_a_resolv_conf(tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_text("# x\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver junk\nsearch test\n")
    assert [str(n) for n in nameservers(str(path))] == ["192.0.2.1/32", "fe80::1/128"]
