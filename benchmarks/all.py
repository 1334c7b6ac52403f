"""`python benchmarks/all.py [--write] [SECTION ...]`: runs what measures, and puts its Markdown into docs/PERFORMANCE.md.

Owns: the marked sections of that page, each with the command that fills it and each written by itself: a section that is not
named stays as it is. Refuses: to touch the rest of the page, and to make up a figure: what did not run is not there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "PERFORMANCE.md"
_BENCH = ("-m", "pytest_isolate.cli", "bench", "--markdown")

#: section -> the words after `python`; it prints Markdown, with machine and date in its first line.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "forkexec": (*_BENCH, "forkexec"),
    "user": (*_BENCH, "forkexec", "--as-user", "--only=standard,pid,user,all,all+pivot"),
    "load": (*_BENCH, "forkexec", "--load", "--only=standard,pid,all,all+pivot"),
    "parallel": (*_BENCH, "parallel"),
    "memory": (*_BENCH, "memory"),
    "pidns": (*_BENCH, "pidns"),
    "lookup": (*_BENCH, "lookup"),
    "network": (*_BENCH, "network"),
    "resources": ("benchmarks/resources.py", "--markdown", "--gap-ms=0"),
    "soak": (*_BENCH, "soak", "--load", "--seconds=600"),
}


def marks(section: str) -> tuple[str, str]:
    return f"<!-- begin: {section} -->", f"<!-- end: {section} -->"


def measured(section: str, extra: list[str]) -> str:
    """What the section's command prints."""
    command = [sys.executable, *SECTIONS[section], *extra]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def written(page: str, section: str, text: str) -> str:
    """The page with ``text`` between the marks of ``section``."""
    first, last = marks(section)
    head, begin, rest = page.partition(first)
    _, end, tail = rest.partition(last)
    if not begin or not end:
        raise SystemExit(f"{PAGE} has no marks {first} and {last}")
    return f"{head}{first}\n{text.strip()}\n{last}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Further options go to the commands, as --rounds=20.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"all of them: {', '.join(SECTIONS)}")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    arguments, extra = parser.parse_known_args()
    for section in arguments.sections or SECTIONS:
        if section not in SECTIONS:
            parser.error(f"no section {section!r}; there are {', '.join(SECTIONS)}")
        text = measured(section, extra)
        if arguments.write:
            PAGE.write_text(written(PAGE.read_text(), section, text))
            print(f"written: {section} in {PAGE.relative_to(ROOT)}", flush=True)
        else:
            print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
