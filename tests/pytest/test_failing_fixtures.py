"""Wide fixtures that fail when they are made, and when their last parameter is torn down: told of the same tests as plainly."""

from __future__ import annotations

import re

import pytest

from .conftest import Run

SUITE = """
import pytest, sys

@pytest.fixture(scope="module", params=["a", "b"])
def letter(request):
    yield request.param
    if request.param == "a":
        raise ValueError("a went wrong at its end")

@pytest.fixture(scope="session")
def database():
    sys.exit("set DATABASE_URL first")

@pytest.fixture(scope="module")
def broken():
    raise RuntimeError("never made")

@pytest.fixture(scope="session")
def leaver():
    yield
    sys.exit("at the very end")

def test_letter(letter): pass
def test_letter_again(letter): pass
def test_database(database): pass
class TestBroken:
    def test_one(self, broken): pass
    def test_two(self, broken): pass
def test_leaver(leaver): pass
"""


def summary(result: pytest.RunResult) -> list[str]:
    """What failed and why, and how often, without how long it took."""
    lines = [line for line in result.outlines if line.startswith(("FAILED", "ERROR "))]
    return [*lines, re.sub(r" in .*", "", result.outlines[-1])]


@pytest.mark.parametrize(
    "args", [(), ("--isolate-jobs=2",), ("--isolate-scope=class",), ("--isolate-scope=module",)], ids=str
)
def test_each_error_is_the_test_s_whose_it_is_plainly(
    pytester: pytest.Pytester, isolated: Run, plain: Run, args: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_it=SUITE)
    expected = summary(plain())
    assert len(expected) == 6  # four set-ups, one tear-down, the totals
    result = isolated(*args)
    assert summary(result) == expected
    result.stdout.fnmatch_lines(["E*SystemExit: set DATABASE_URL first"])
    result.stdout.no_re_match_line(r".*pytest_isolate/.*\.py.*")
