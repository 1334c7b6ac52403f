"""`python benchmarks/all.py --write`: measures everything that `pytest-isolate bench` knows and puts it into docs/PERFORMANCE.md.

Owns: the marked part of that page. Refuses: to touch the rest of it, and to make up a figure: what did not run is not there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "PERFORMANCE.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
TABLES = ("forkexec", "pidns", "lookup")


def measured(extra: list[str]) -> str:
    """The tables, as Markdown, with the machine in the first line."""
    command = [sys.executable, "-m", "pytest_isolate.cli", "bench", *TABLES, "--markdown", *extra]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def written(page: str, tables: str) -> str:
    """The page with the new tables between its marks."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} has no marks {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{tables.strip()}\n{END}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    arguments, extra = parser.parse_known_args()
    tables = measured(extra)
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(), tables))
        print(f"written: {PAGE.relative_to(ROOT)}")
    else:
        print(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
