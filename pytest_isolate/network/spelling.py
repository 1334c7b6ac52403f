"""What users write for ports, endpoints, limits and host names, as numbers and names.

Owns: the grammar of each, and the error for what is none. Refuses: addresses, rules and precedence (rules.py), and to guess:
a number is written in digits, a name as DNS has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pytest_isolate.errors import PolicyError
from pytest_isolate.units import size_bytes

#: What users write for ports: 80, "80", "8000-8100", several of them, "*" or True for all.
Ports = int | str | Iterable[int | str] | Literal[True] | None

ALL_PORTS = (0, 65535)
#: Names that stand for addresses, and are no host's.
NAMES = ("*", "any", "localhost", "loopback")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
#: Largest value of each limit. Source: struct np_policy (bpf/np_abi.h).
_MOST = {"pps": 2**63 - 1, "connections": 2**32 - 1}


def parse_ports(ports: Ports, what: str = "ports") -> tuple[tuple[int, int], ...]:
    """Ranges of ports: 80, "80", "8000-8100", a list of those; True or "*" for all.

    Raises:
        PolicyError: not a port, out of range, or a range upside down.
    """
    if ports is True or ports == "*":
        return (ALL_PORTS,)
    if ports is None:
        return ()
    if isinstance(ports, bytes | dict | str) or not isinstance(ports, Iterable):
        return (port_range(ports, what),)
    return tuple(port_range(p, what) for p in ports)


def port_range(port: object, what: str) -> tuple[int, int]:
    """(first, last) of 80, "80" or "8000-8100". Raises PolicyError."""
    whole = isinstance(port, int | str) and not isinstance(port, bool)
    match = _RANGE.fullmatch(str(port)) if whole else None
    if match is None:
        if isinstance(port, int) and whole:
            raise PolicyError(what, f"{port!r} is out of range", "write 0 to 65535")
        raise PolicyError(what, f"{port!r} is not a port", 'write a number, or a range such as "8000-8100"')
    first, last = int(match[1]), int(match[2] or match[1])
    if first > 65535 or last > 65535:
        raise PolicyError(what, f"{port!r} is out of range", "write 0 to 65535")
    if first > last:
        raise PolicyError(what, f"{port!r} is upside down", f'write "{last}-{first}"')
    return (first, last)


def split_endpoint(text: object) -> tuple[str, tuple[int, int]]:
    """``host:port``, ``[v6]:port``, ``cidr:port`` or without a port (all). Raises PolicyError."""
    if not isinstance(text, str):
        raise PolicyError(f"destination {text!r}", "it is no text", 'write "203.0.113.7:443" or "api.test:443"')
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise PolicyError(f"destination {text!r}", "the ] is missing", 'write "[2001:db8::1]:443"')
        if rest and not rest.startswith(":"):
            raise PolicyError(
                f"destination {text!r}", "something stands between ] and :", 'write "[2001:db8::/32]:443"'
            )
        return host, port_range(rest[1:], "port") if rest else ALL_PORTS
    host, colon, port = text.rpartition(":")
    if not colon or ":" in host:
        return text, ALL_PORTS
    return host, port_range(port, "port")


def parse_limit(name: str, value: object) -> int:
    """A limit of ``limit()``: a number from 1 on; for ``bytes`` also a size such as "64K".

    Raises:
        PolicyError: not a number, below 1, or more than the programs can count.
    """
    what = f"limit {name}"
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, str) and name != "bytes"):
        raise PolicyError(what, f"{value!r} is not a number", "write a whole number of at least 1")
    if isinstance(value, int) and value < 1:
        raise PolicyError(what, f"{value} is below 1", 'leave it out for no limit; deny("*") refuses all')
    if name == "bytes":
        return size_bytes(value, what=what)
    assert isinstance(value, int)
    if value > _MOST[name]:
        raise PolicyError(what, f"{value} is more than {_MOST[name]}", "write less, or leave it out for no limit")
    return value


def host_name(text: object) -> str:
    """The name as programs ask for it: lower case, no final dot, other letters than ASCII by IDNA; "" for what is none.

    ``localhost`` stands for addresses here; with a final dot it is the name.

    IDNA as Python's own resolver functions encode it. Source: RFC 3490, RFC 1035 section 2.3.1 and the underscore of RFC 2782.
    """
    if not isinstance(text, str):
        return ""
    name = text.removesuffix(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return ""
    labels = name.lower().split(".")
    fits = all(0 < len(x) <= 63 and x.replace("-", "a").replace("_", "a").isalnum() for x in labels)
    return name.lower() if fits and len(name) <= 253 and not labels[-1].isdigit() and text.lower() not in NAMES else ""


def is_host_name(text: object) -> bool:
    """True for what can only be a name: letters, dots, hyphens; no slash, not all digits and dots."""
    return bool(host_name(text))
