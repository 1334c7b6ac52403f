"""``python -m tests.vm.ours MODE``: what the product enforces here, one JSON line per check.

MODE is the value of --isolate-cgroup: auto, v1, v2 or systemd.
Owns: the order. Refuses: to choose a mode by itself; the row says which.
"""

from __future__ import annotations

import functools
import sys

from tests.vm.inside.telling import SUITE_DEADLINE_S, tell

from . import limits, suite


def main(mode: str) -> None:
    limit_checks = {name: functools.partial(limits.hit, mode, check) for name, check in limits.CHECKS.items()}
    tell("ours", limit_checks)
    tell("ours", {"header": suite.header, "tests": suite.own_tests}, SUITE_DEADLINE_S)


main(sys.argv[1])
