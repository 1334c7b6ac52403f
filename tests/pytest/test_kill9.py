"""kill -9 of pytest leaves nothing behind; tests/kill9.py does it 200 times, here ten are enough."""

from __future__ import annotations

import re
import subprocess
import sys

from .conftest import ROOT


def test_nothing_lives_a_second_after_pytest_was_killed() -> None:
    done = subprocess.run(
        [sys.executable, f"{ROOT}/tests/kill9.py", "--times", "10"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    alive = re.search(r": (\d+) processes were alive when it was killed, 0 one second later; 0 mounts", done.stdout)
    assert alive is not None
    assert int(alive[1]) > 20, "the run had hardly begun"
