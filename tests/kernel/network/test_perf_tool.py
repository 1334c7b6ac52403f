"""`bin/perf-test`: words without meaning are one line each, and what it prints of a short run holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require_front_end

ROOT = Path(__file__).parents[3]


def perf_test(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest_isolate.network.perf", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture(autouse=True)
def _loads() -> None:
    require_front_end("libbpf")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--interface", "nosuch0"), "--interface nosuch0: there is none of that name. Name one of lo"),
        (("--interval", "0"), "argument --interval: '0' is no time"),
        (("--duration", "-1"), "argument --duration: '-1' is no time"),
        (("--duration", "nan"), "argument --duration: 'nan' is no time"),
        (("--duration", "soon"), "argument --duration: 'soon' is no time"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_nothing_is_loaded(words: tuple[str, ...], why: str) -> None:
    done = perf_test(*words)
    assert done.returncode == 2
    assert why in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_short_run_counts_every_frame_and_loads_before_the_clock_of_attaching_starts() -> None:
    done = perf_test("--duration", "1", "--interval", "0.5", "--rate", "20000", "--policies", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^loaded 16 programs with libbpf in \d+ ms", done.stdout)  # 14, and both of an interface
    assert re.search(r"attached with 11 rules in \d+ us", done.stdout)
    assert re.search(r"generated (\d+) frames, counted \1, not counted 0", done.stdout)
