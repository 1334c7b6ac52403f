"""`pytest-isolate bench network`: what the network policy costs, against the targets it was given and against its peers.

Owns: the order of its parts, and the effort. Refuses: to hide: a target that is missed is printed as MISSED; none is asserted.
Everything runs in cgroups and network namespaces made here. Differences to the floor repeat, absolute figures drift.
"""

from __future__ import annotations

from pytest_isolate.bench.measure import Effort
from pytest_isolate.bench.table import Table

PARTS = ("frames", "live", "packets", "exact", "pertest")


def measure(effort: Effort) -> list[Table]:
    """Tables of every part, or of those that ``only`` names; ``rounds`` of 10 is the full measurement."""
    from pytest_isolate.bench.network import frames, live, packets, per_test, place

    parts = {
        "frames": frames.measure,
        "live": live.measure,
        "packets": packets.measure,
        "exact": packets.exactness,
        "pertest": per_test.measure,
    }
    found: list[Table] = []
    with place.made(min(1.0, effort.rounds / 10)) as here:
        for name in PARTS:
            if effort.wants(name):
                found += parts[name](here)
    return found
