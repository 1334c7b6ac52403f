"""An honest skip: it names what is missing, and is a failure where that was promised.

Owns: ISOLATE_REQUIRE, the features without which a run is worthless. Refuses: to find out what is there; the caller has.
"""

from __future__ import annotations

import os

import pytest


def required_features() -> frozenset[str]:
    """The features named in ISOLATE_REQUIRE."""
    return frozenset(os.environ.get("ISOLATE_REQUIRE", "").replace(",", " ").split())


def require(feature: str, available: bool, reason: str) -> None:
    """Skip the test, naming ``feature``, where it is not available; fail instead when ISOLATE_REQUIRE names it.

    Raises:
        ValueError: a name that ISOLATE_REQUIRE cannot hold, whose words are names.
    """
    if feature.split() != [feature] or "," in feature:
        raise ValueError(f"feature {feature!r}: ISOLATE_REQUIRE cannot name it; write one word")
    if available:
        return
    if feature in required_features():
        pytest.fail(f"ISOLATE_REQUIRE names {feature!r}, which is missing here: {reason}", pytrace=False)
    pytest.skip(f"needs {feature}: {reason}")
