"""``python -m tests.vm [ROW ...]``: boot the rows, print the table rows x limits, exit 1 unless every cell is as it should be.

Owns: the command line, the JSON of the run, and how many machines run at once: an emulated one keeps one CPU busy.
Refuses: to boot anything itself (run.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from . import debian, rows, run, table
from .machine import EMULATION, MachineError


def main(argv: Sequence[str]) -> int:
    asked = _parser().parse_args(argv)
    if asked.list:
        print("\n".join(f"{row.name:<18}{row.why}" for row in rows.ROWS))
        return 0
    try:
        chosen = rows.choose(asked.rows)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    if lacking := debian.missing_packages():
        print(f"this host lacks what boots a machine: apt-get install {' '.join(lacking)}", file=sys.stderr)
        return 2
    if lacking := run.missing_builds():
        print(f"this checkout is not built ({lacking[0]} is missing): pip install -e . first", file=sys.stderr)
        return 2
    if asked.run:
        return max(_run(row, asked) for row in chosen)
    tested = []
    for done in _filled(chosen, asked):
        print(table.evidence(done), end="\n\n", flush=True)
        tested.append(done)
    tested.sort(key=lambda done: chosen.index(done.row))
    print(table.render(tested), table.summary(tested), sep="\n\n")
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps([done.as_json() for done in tested], indent=1) + "\n")
    print(f"written to {asked.json}")
    return 0 if all(done.ok for done in tested) else 1


def _filled(chosen: Sequence[rows.Row], asked: argparse.Namespace) -> Iterator[table.Tested]:
    """The rows as they are done, ``asked.jobs`` of them at a time; the longest begin first."""
    with ThreadPoolExecutor(asked.jobs) as pool:
        longest_first = sorted(chosen, key=lambda row: -len(row.tests))
        doing = [pool.submit(run.fill, row, accelerator=asked.accel, refresh=asked.refresh) for row in longest_first]
        for done in as_completed(doing):
            yield done.result()


def _run(row: rows.Row, asked: argparse.Namespace) -> int:
    """One command in a row, ``python`` being the guest's; its output and its status."""
    machine = run.machine(row, accelerator=asked.accel, refresh=asked.refresh)
    try:
        done = machine.run(run.command(row, asked.run, row.launch))
    except MachineError as error:
        print(error, file=sys.stderr)
        return 125
    print(
        done.output,
        f"{row.name}: status {done.status}, boot {done.boot_s:.1f} s, command {done.command_s:.1f} s",
        sep="\n",
    )
    return done.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description="Boot real kernels and see each limit act.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="a row, or the part before a dash; default: all")
    parser.add_argument("--run", metavar="COMMAND", help="run this in the rows instead; python is the guest's")
    parser.add_argument("--list", action="store_true", help="print the rows and why each is there")
    parser.add_argument(
        "--json", type=Path, default=debian.cache_dir() / "last.json", help="where the cells go (%(default)s)"
    )
    parser.add_argument("--accel", default=EMULATION, help="kvm where that is real (%(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=_cpus(), metavar="N", help="machines at once, 2 GB of memory each (%(default)s)"
    )
    parser.add_argument("--refresh", action="store_true", help="fetch the suites' newest kernels again")
    return parser


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
