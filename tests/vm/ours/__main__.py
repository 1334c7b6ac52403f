"""``python -m tests.vm.ours MODE [CHECK ...] [PATH ...]``: what the product enforces here, one JSON line per check.

MODE is the value of --isolate-cgroup: auto, v1, v2 or systemd; PATHs are the project's own tests, for the check ``tests``.
Owns: the order. Refuses: to choose a mode by itself; the row says which.
"""

from __future__ import annotations

import functools
import sys

from tests.vm.inside.telling import DEADLINE_S, SUITE_DEADLINE_S, tell

from . import limits, suite


def main(mode: str, words: list[str]) -> None:
    paths, names = [word for word in words if "/" in word], [word for word in words if "/" not in word]
    quick = {name: functools.partial(limits.hit, mode, check) for name, check in limits.CHECKS.items()}
    slow = {"header": suite.header, "landlock": suite.landlock, "tests": functools.partial(suite.own_tests, paths)}
    for checks, deadline_s in ((quick, DEADLINE_S), (slow, SUITE_DEADLINE_S)):
        tell("ours", {name: check for name, check in checks.items() if not names or name in names}, deadline_s)


main(sys.argv[1], sys.argv[2:])
