"""`make try`: runs `pytest --isolate examples/` and says whether every catch it demonstrates has happened.

Owns: reading examples/EXPECTED (one line per test: its name, its outcome, and words that must be in the report) and comparing it
with the run's junit file. Refuses: to call a failure expected that is not listed, or a catch that did not happen.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = ROOT / "examples" / "EXPECTED"


@dataclass(frozen=True)
class Seen:
    """What the junit file says of one test."""

    outcome: str
    text: str


def expectations() -> dict[str, tuple[str, str]]:
    """Test name -> (outcome, words). Empty lines and lines that start with # are comments."""
    lines = [
        line.split(maxsplit=2)
        for line in EXPECTED.read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return {name: (outcome, rest[0] if rest else "") for name, outcome, *rest in lines}


def seen(junit: Path) -> dict[str, Seen]:
    """Every test of the run. Of a test with more than one entry (call and teardown) the first that is not passed counts."""
    found: dict[str, Seen] = {}
    for case in ET.parse(junit).iter("testcase"):  # noqa: S314 (our own file)
        name = case.get("name", "")
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = {"failure": "failed", "error": "error", "skipped": "skipped"}[bad[0].tag] if bad else "passed"
        if name not in found or found[name].outcome == "passed":
            found[name] = Seen(outcome, "\n".join(f"{child.get('message', '')}\n{child.text or ''}" for child in case))
    return found


def surprises(expected: dict[str, tuple[str, str]], run: dict[str, Seen]) -> Iterator[str]:
    for name, (outcome, words) in expected.items():
        if name not in run:
            yield f"{name}: did not run"
        elif run[name].outcome != outcome:
            yield f"{name}: {run[name].outcome}, expected {outcome}"
        elif words not in run[name].text:
            yield f"{name}: {outcome} as expected, but its report does not say {words!r}"
    for name in run.keys() - expected.keys():
        if run[name].outcome != "passed":
            yield f"{name}: {run[name].outcome}, and nothing of the kind is expected"


def main(args: list[str]) -> int:
    if not EXPECTED.exists():
        print(
            f"error: {EXPECTED.relative_to(ROOT)} does not exist: nothing says which catches are to be seen",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory() as place:
        junit = Path(place) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "--isolate", "examples/", f"--junitxml={junit}", *args]
        print("$ pytest --isolate examples/\n", flush=True)
        subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL)
        if not junit.exists():
            print("\nerror: pytest did not get as far as writing its results", file=sys.stderr)
            return 1
        run = seen(junit)
    expected = expectations()
    wrong = list(surprises(expected, run))
    print()
    for line in wrong:
        print(f"not as expected: {line}")
    caught = sum(outcome != "passed" for outcome, _ in expected.values())
    if not wrong:
        print(
            f"The failures above are the demonstration: all {caught} happened, and the run went on. Nothing else failed."
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
