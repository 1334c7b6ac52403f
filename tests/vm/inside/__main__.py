"""``python -m tests.vm.inside [CHECK ...]``: what this kernel enforces, one JSON line per check.

Owns: the list of checks. Refuses: to import anything of pytest_isolate.
"""

from __future__ import annotations

import functools
import sys

from . import groups, limits, privileges
from .telling import tell


def main(names: list[str]) -> None:
    layout = groups.Layout.find()
    checks = {**limits.CHECKS, **privileges.CHECKS}
    chosen = {name: functools.partial(checks[name], layout) for name in names or checks}
    tell("kernel", {"machine": layout.describe, **chosen})


main(sys.argv[1:])
