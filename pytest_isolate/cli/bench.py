"""`pytest-isolate bench`: measures on this machine and prints the tables.

Owns: the options, the head line (machine, kernel, date), the load. Refuses: to measure by itself (pytest_isolate/bench).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime as dt
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pytest_isolate.bench import TABLES
from pytest_isolate.bench.measure import Effort
from pytest_isolate.cli import EXIT_OK

_PR_SET_DUMPABLE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `bench`."""
    parser.add_argument("tables", nargs="+", choices=sorted(TABLES), metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--rounds", type=int, default=10, help="turns of each competitor (10)")
    parser.add_argument("--batch", type=int, default=20, help="operations in a turn (20)")
    parser.add_argument("--only", default="", help="rows, as pid,all+pivot")
    parser.add_argument("--seconds", type=float, default=60.0, help="of soak (60)")
    parser.add_argument("--load", action="store_true", help="with every core busy")
    parser.add_argument("--as-user", action="store_true", help="give up root first: the figures of a plain user")
    parser.add_argument("--markdown", action="store_true", help="as in docs/PERFORMANCE.md")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit status."""
    only = frozenset(word for word in arguments.only.split(",") if word)
    effort = Effort(
        rounds=max(1, arguments.rounds), batch=max(1, arguments.batch), only=only, seconds=arguments.seconds
    )
    if arguments.as_user and os.geteuid() == 0:
        for (
            name
        ) in arguments.tables:  # what Python loads late: a plain user may not be able to read root's installation
            TABLES[name](Effort(rounds=1, batch=1, only=only, seconds=0))
        _become_nobody()
    print(f"{machine()}{', every core busy' if arguments.load else ''}")
    with _busy_cores() if arguments.load else contextlib.nullcontext():
        for name in arguments.tables:
            for table in TABLES[name](effort):
                print()
                print("\n".join(table.markdown() if arguments.markdown else table.text()), flush=True)
    return EXIT_OK


def machine() -> str:
    """Where and when: a figure without it means nothing."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    now = dt.datetime.now(dt.timezone.utc).date()
    who = "root" if os.geteuid() == 0 else "a plain user"
    return (
        f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}, {who}, {now}"
    )


def _become_nobody() -> None:
    """For good. A process that changed its user is not dumpable, and its own /proc then belongs to root."""
    nobody = 65534
    os.setgroups([])
    os.setresgid(nobody, nobody, nobody)
    os.setresuid(nobody, nobody, nobody)
    os.environ["HOME"] = "/"
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


@contextlib.contextmanager
def _busy_cores() -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
