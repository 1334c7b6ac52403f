"""What tests of lanes share: how an inner test waits for another, and how they are told of.

Owns: MEETING, a module that inner tests import; JOBS; ``passed``. Refuses: fixtures (conftest.py) and tests.
"""

from __future__ import annotations

import re

import pytest

JOBS = "--isolate-jobs=2"

#: A test that waits for another one to have begun passes only where both run at once.
MEETING = """
    import os, pathlib, time

    def here(name):
        pathlib.Path(name).touch()

    def waits_for(name, patience_s=20):
        end = time.monotonic() + patience_s
        while not pathlib.Path(name).exists():
            assert time.monotonic() < end, f"{name} did not come"
            time.sleep(0.01)

    def meets(mine, other):
        here(mine)
        waits_for(other)
"""


def passed(result: pytest.RunResult) -> list[str]:
    """The tests in the order in which -v told of them."""
    return [
        line.split("::")[-1].split()[0] for line in result.outlines if re.search(r"::\S+ (PASSED|FAILED|XPASS)", line)
    ]
