"""Ports, endpoints, targets, limits and host names as users write them; what means nothing is one line that says so."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.network.rules import NetworkPolicy, parse_target
from pytest_isolate.network.spelling import host_name, is_host_name, parse_ports, split_endpoint


def test_ports_as_users_write_them() -> None:
    assert parse_ports([80, "443", "8000-8100"]) == ((80, 80), (443, 443), (8000, 8100))
    assert parse_ports(range(80, 82)) == ((80, 80), (81, 81))
    assert parse_ports(53) == ((53, 53),)
    assert parse_ports(True) == ((0, 65535),) == parse_ports("*")


@pytest.mark.parametrize(
    "written",
    [-1, 65536, 10**30, "http", "90-80", "1-2-3", [True], False, 1.5, 80.5, "80-", "-80", "8_0", "8 0", "", b"80", {80: 1},
     "\N{ARABIC-INDIC DIGIT EIGHT}", " 80", "9" * 5000],
)  # fmt: skip
def test_what_is_no_port_is_refused_in_one_line(written: Any) -> None:
    with pytest.raises(PolicyError, match=r"^tcp: .* (is not a port|is out of range|is upside down)\. Write [^\n]*$"):
        parse_ports(written, "tcp")


def test_endpoints() -> None:
    assert split_endpoint("api.test:443") == ("api.test", (443, 443))
    assert split_endpoint("[2001:db8::1]:80") == ("2001:db8::1", (80, 80))
    assert split_endpoint("[2001:db8::1]") == ("2001:db8::1", (0, 65535))
    assert split_endpoint("10.0.0.0/8") == ("10.0.0.0/8", (0, 65535))
    assert split_endpoint("2001:db8::1") == ("2001:db8::1", (0, 65535))


@pytest.mark.parametrize("written", ["[::1", "[::1]80", "api.test:", "api.test:80-", "api.test:443/tcp", None, 80])
def test_what_is_no_endpoint_is_refused(written: object) -> None:
    with pytest.raises(PolicyError):
        split_endpoint(written)


@pytest.mark.parametrize("written", [("127.0.0.1", 80), ["127.0.0.1", 80], ("127.0.0.1", "80"), "127.0.0.1:80"])
def test_targets_of_a_redirect(written: Any) -> None:
    assert str(parse_target(written)) == "127.0.0.1:80"
    assert parse_target("127.0.0.1").port == parse_target(("127.0.0.1", 0)).port == 0


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (("127.0.0.1", "http"), "'http' is not a port"),
        (("127.0.0.1", 70000), "70000 is out of range"),
        (("127.0.0.1", "80-90"), "80-90 are several ports"),
        ("127.0.0.1:80-90", "80-90 are several ports"),
        (("127.0.0.1",), "no pair of an address and a port"),
        (("127.0.0.1", None), "None is not a port"),
        (("localhost", 80), "'localhost' is no address"),
        ((5, 80), "5 is no address"),
        (("fe80::1%lo", 80), "an address with a zone"),
        (None, "no pair of an address and a port"),
    ],
)
def test_what_is_no_target_says_what_of_it_is_wrong(written: Any, why: str) -> None:
    with pytest.raises(PolicyError, match=f"^redirect to .*{re.escape(why)}"):
        NetworkPolicy().redirect("203.0.113.7:443", to=written)


def test_limits_hold_as_they_are_written() -> None:
    policy = NetworkPolicy().limit(pps=5).limit(connections=2**32 - 1).limit(bytes="64K")
    assert (policy.limit_pps, policy.limit_connections, policy.limit_bytes) == (5, 2**32 - 1, 65536)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("pps", "bytes", "connections") for value in (0, -1, True, False, 1.5, "x", 2**64)]
    + [("connections", 2**32), ("connections", 2**32 + 1), ("pps", "64K")],
)
def test_what_is_no_limit_is_refused_and_never_cut_to_another_one(name: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=rf"^limit {name}: "):
        NetworkPolicy().limit(**{name: value})
    if value is not False and value != 0:  # in the value itself, 0 is no limit
        with pytest.raises(PolicyError, match=rf"^limit {name}: "):
            NetworkPolicy(**{f"limit_{name}": value})


@pytest.mark.parametrize("name", ["db.test", "a-b.example.com.", "x", "_srv.test", "localhost."])
def test_host_names(name: str) -> None:
    assert is_host_name(name)


@pytest.mark.parametrize(
    "name", ["10.0.0.1", "a..b", "a..", "", ".", "a b", "x" * 64, "a/b", "localhost", "Localhost", "1.2.3", "ü" * 63, None]
)  # fmt: skip
def test_what_is_no_host_name(name: object) -> None:
    assert not is_host_name(name)


def test_a_name_of_other_letters_is_the_one_that_programs_ask_for() -> None:
    assert host_name("Bücher.Test.") == "xn--bcher-kva.test"
    assert NetworkPolicy().allow_host("bücher.test") == NetworkPolicy().allow_host("xn--bcher-kva.test")
    to = ("127.0.0.1", 9)
    assert NetworkPolicy().redirect("bücher.test:80", to=to) == NetworkPolicy().redirect("XN--bcher-kva.test:80", to=to)
