"""The clients once more, by the other front end: a run has one, so this is a run of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import require_front_end

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: A minute when the machine is busy: bcc compiles, and PostgreSQL makes its files.
ENDS_S = 300.0


def test_every_client_is_held_by_bcc_s_programs_too() -> None:
    require_front_end("bcc")
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:randomly", "-p", "no:cacheprovider", "-rs"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "--isolate-bpf=bcc"]
    done = subprocess.run(
        [*command, str(HERE / "test_clients.py")], cwd=ROOT, capture_output=True, text=True, timeout=ENDS_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "isolate: network policies in eBPF by bcc" in done.stdout
