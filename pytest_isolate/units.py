"""Sizes, durations and shares as users write them, and as reports print them.

Owns: the grammar ("64M", "64 MiB", "0.5", "90s", "2m") and its error text.
Refuses: to know what a number is for; the callers check ranges.
"""

from __future__ import annotations

import math
import re

from pytest_isolate.errors import PolicyError

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<prefix>[kmgtp]?)(?:i?b)?", re.IGNORECASE)
_SIZE_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>us|ms|s|m|min|h|d)?", re.IGNORECASE)
_DURATION_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_LONGEST_SHOWN = 80
_ENDLESS = 10**300  # an int beyond it is no float
#: The largest size the kernel's rlimits and cgroup files take (a signed 64-bit count of bytes).
MAX_BYTES = 2**63 - 1


def shown(value: object) -> str:
    """``value`` as its author wrote it, for an error: at most one short line."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python writes out
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def size_bytes(value: str | int, *, what: str = "size") -> int:
    """Return bytes for ``64M``, ``64 MB``, ``64MiB``, ``1.5G`` or a plain count.

    ``K``, ``KB`` and ``KiB`` all mean 1024 bytes, as in cgroup files and systemd units.

    Raises:
        PolicyError: not a size, zero, negative, or more than 2**63 - 1 bytes.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise PolicyError(what, f"{shown(value)} is not a size", "write a number of bytes or a size such as 64M")
    if isinstance(value, int):
        count = value
    else:
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise PolicyError(what, f"{shown(value)} is not a size", "write a positive size such as 64M or 1.5G")
        scale: int = 1024 ** _SIZE_POWER[match["prefix"].lower()]
        whole = match["number"].isdigit() and len(match["number"]) <= len(str(MAX_BYTES))
        product = int(match["number"]) * scale if whole else float(match["number"]) * scale
        count = int(product) if product <= MAX_BYTES else MAX_BYTES + 1
    if count <= 0:
        raise PolicyError(what, f"{shown(value)} is not positive", "write a size of at least one byte, such as 64M")
    if count > MAX_BYTES:
        raise PolicyError(what, f"{shown(value)} is more than the kernel can count", "write less than 8192P")
    return count


def duration_s(value: str | float, *, what: str = "duration") -> float:
    """Return seconds for ``1.5``, ``500ms``, ``90s``, ``2m``, ``1h`` or ``1d``.

    Raises:
        PolicyError: not a duration, zero, negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PolicyError(what, f"{shown(value)} is not a duration", "write seconds, such as 1.5 or 90s")
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise PolicyError(
                what, f"{shown(value)} is not a duration", "write positive seconds, such as 1.5, 500ms or 2m"
            )
        seconds = float(match["number"]) * _DURATION_S[(match["unit"] or "s").lower()]
    else:
        seconds = float(value) if abs(value) < _ENDLESS else math.inf
    if not math.isfinite(seconds) or seconds <= 0:
        raise PolicyError(what, f"{shown(value)} is not a positive, finite time", "write seconds, such as 1.5 or 90s")
    return seconds


def count(value: str | float, *, what: str = "count", write: str = "write a whole number") -> int:
    """Return a whole number, of a text or a number that is one; ``write`` says in the error what to write instead.

    Raises:
        PolicyError: not a whole number.
    """
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: infinity
        number = None
    if number is None or isinstance(value, bool) or (number != value and not isinstance(value, str)):
        raise PolicyError(what, f"{shown(value)} is not a whole number", write)
    return number


def format_bytes(count_bytes: int) -> str:
    """``412 MiB``: three significant figures, binary prefixes."""
    value, unit = float(count_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def format_seconds(seconds: float) -> str:
    """``1.5 s``, ``12 ms`` or ``2 m 5 s``: what a reader of a report needs, no more."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest} s"
