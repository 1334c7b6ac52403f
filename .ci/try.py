"""`make try`: runs `pytest --isolate examples/` and says whether every catch it demonstrates has happened, and that nothing is left.

`make try ARGS=--isolate-backend=gvisor` does the same by another backend.

Owns: reading examples/EXPECTED (one line per test: its name, its outcome, and words that must be in the report) and comparing it
with the run's junit file; the look at the host before and after (tests/host_state.py).
Refuses: to call a failure expected that is not listed, or a catch that did not happen.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = ROOT / "examples" / "EXPECTED"
sys.path.insert(0, str(ROOT))

from tests import host_state  # noqa: E402 (marks the environment, so that what the run starts is known for its)

#: junit's words before those of an error: they repeat what the test's name says.
_PYTEST_SAYS = re.compile(r'^failed on (setup|teardown) with "')


@dataclass(frozen=True)
class Expected:
    """A line of EXPECTED: any one of ``words`` must be in the report."""

    outcome: str
    words: tuple[str, ...]

    def is_in(self, text: str) -> str | None:
        """The line of ``text`` that holds one of the words."""
        lines = (line.removeprefix("E ").strip().strip('"') for line in text.splitlines())
        return next((_PYTEST_SAYS.sub("", line) for line in lines if any(word in line for word in self.words)), None)


@dataclass(frozen=True)
class Seen:
    """What the junit file says of one test."""

    outcome: str
    text: str


def expectations() -> dict[str, Expected]:
    """By test name. Empty lines and lines that start with # are comments."""
    found = {}
    for line in EXPECTED.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, outcome, *rest = line.split(maxsplit=2)
            found[name] = Expected(outcome, tuple(word.strip() for word in (rest[0] if rest else "").split(" | ")))
    return found


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


def surprises(expected: dict[str, Expected], run: dict[str, Seen]) -> Iterator[str]:
    for name, want in expected.items():
        if name not in run:
            yield f"{name}: did not run"
        elif run[name].outcome != want.outcome:
            yield f"{name}: {run[name].outcome}, expected {want.outcome}"
        elif any(want.words) and want.is_in(run[name].text) is None:
            yield f"{name}: {want.outcome} as expected, but its report does not say {' or '.join(map(repr, want.words))}"
    for name in run.keys() - expected.keys():
        if run[name].outcome != "passed":
            yield f"{name}: {run[name].outcome}, and nothing of the kind is expected"


def table(expected: dict[str, Expected], run: dict[str, Seen]) -> Iterator[str]:
    """What happened to each example, in the words of its own report."""
    width = max(map(len, expected))
    for name, want in expected.items():
        line = want.is_in(run[name].text) if any(want.words) else None
        said = "passed, as it should" if line is None else f"caught: {line}"
        yield f"  {name:<{width}}  {said}"


def run_examples(junit: Path, args: list[str]) -> int:
    """Run them as the line it prints says; the pid that pytest had."""
    named = any(arg.startswith("--isolate-backend") for arg in args)  # which asks for isolation, too
    asked = [*([] if named else ["--isolate"]), *args, "examples/"]
    print(f"$ pytest {shlex.join(asked)}\n", flush=True)
    command = [sys.executable, "-m", "pytest", *asked, f"--junitxml={junit}"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL) as process:
        process.wait()
    return process.pid


def left_behind(before: host_state.HostState, pid: int) -> list[str]:
    """What is there and was not. A cgroup carries the pid of its run: those of other runs on this machine are not ours."""
    lines = host_state.remains(before)
    return [line for line in lines if not line.startswith("cgroup: ") or f"-{pid}-" in line]


def explain_the_host() -> None:
    print("\nerror: the examples did not run. What this host can isolate, and what is in the way:\n", flush=True)
    program = "import sys; from pytest_isolate.cli import main; sys.exit(main(['doctor']))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.DEVNULL)


def main(args: list[str]) -> int:
    before = host_state.observe()
    with tempfile.TemporaryDirectory() as place:
        junit = Path(place) / "junit.xml"
        pid = run_examples(junit, args)
        if not junit.exists():
            explain_the_host()
            return 1
        run = seen(junit)
    expected = expectations()
    wrong = list(surprises(expected, run))
    wrong += [f"left behind: {line}" for line in left_behind(before, pid)]
    print()
    for line in wrong:
        print(f"not as expected: {line}")
    if wrong:
        return 1
    caught = sum(want.outcome != "passed" for want in expected.values())
    print("The failures above are the demonstration. Each example, and what became of it:\n")
    print("\n".join(table(expected, run)))
    print(f"\nAll {caught} catches happened, and the run went on after each. Of all that the tests started and made,")
    print("no process, mount, cgroup or network is left. Each file in examples/ says what plain")
    print("pytest would have done. Next: docs/tutorial.md, and `pytest-isolate doctor` for what your host can do.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
