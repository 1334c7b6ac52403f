"""`python benchmarks/backends.py`: what `sandbox.run(["true"])` costs under each backend, beside its tool called by hand.

Owns: the pairs (a backend, and the very command line that it gives to its tool, started by subprocess), their order (interleaved, so
that what the machine does meanwhile hits both alike), medians, and the table. Refuses: to judge; 300 us over the tool is the design.
Backends of plugins are those of the installed packages; one that is not there, or not able here, is named with its reason.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from pytest_isolate.errors import IsolateError
from pytest_isolate.policy import Policy
from pytest_isolate.profile import MINIMAL, STANDARD
from pytest_isolate.registry import backends, verdicts
from pytest_isolate.sandbox import Sandbox
from pytest_isolate.tool import Run, ToolBackend

PROFILES = {"minimal": MINIMAL, "standard": STANDARD}
TRUE = "/bin/true"
WARM_UP = 3  # the first ones pay for what is looked up once


def by_hand(backend: ToolBackend, policy: Policy) -> float:
    """The tool with the backend's own arguments, by subprocess: the fastest that a caller in Python can write himself.

    What has to be written for a start (a bundle, a memory file) is made in this time, too: the tool cannot do without.
    """
    began = time.perf_counter()
    run = Run(os.environ, "/")
    with run.undo:
        subprocess.run(
            [backend.path, *backend.command(policy, [TRUE], run)],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=run.passed_fds,
        )
    return time.perf_counter() - began


def plainly() -> float:
    """A program without any sandbox."""
    began = time.perf_counter()
    subprocess.run([TRUE], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.perf_counter() - began


def sandboxed(sandbox: Sandbox) -> float:
    began = time.perf_counter()
    outcome = sandbox.run([TRUE], cwd="/")
    spent_s = time.perf_counter() - began
    if not outcome.ok:
        raise SystemExit(f"error: {outcome.status} {outcome.stderr}")
    return spent_s


def rows(policy: Policy, names: Sequence[str], rounds: int) -> Iterator[tuple[str, list[float], list[float]]]:
    """(backend, times of sandbox.run, times of the tool by hand) in seconds; a backend that cannot is printed, and left out."""
    for backend in backends(names):
        (verdict,) = verdicts(policy, (backend.name,))
        if not verdict:
            print(f"without {backend.name}: {'; '.join(verdict.lacking)}")
            continue
        tool = getattr(backend, "backend", backend)  # of a plugin, without the registry's hand on it
        with Sandbox(policy, backends=[backend.name]) as sandbox:
            ours, theirs = [], []
            for _ in range(rounds + WARM_UP):
                ours.append(sandboxed(sandbox))
                if isinstance(tool, ToolBackend):
                    theirs.append(by_hand(tool, policy))
            del ours[:WARM_UP], theirs[:WARM_UP]
            yield backend.name, ours, theirs


def line(name: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The share by medians, and by the fastest of each: what else the machine does hits a session of its own harder."""
    median = statistics.median(ours)
    if not theirs:
        return f"{name:<14}{median * 1000:>12.2f}"
    hand = statistics.median(theirs)
    at_best = (min(ours) - min(theirs)) * 1e6
    return f"{name:<14}{median * 1000:>12.2f}{hand * 1000:>14.2f}{(median - hand) * 1e6:>9.0f} us{at_best:>9.0f} us"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks/backends.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="starts of each kind (40)")
    parser.add_argument("--backend", default="", help="only these, comma-separated")
    arguments = parser.parse_args(argv)
    names = tuple(filter(None, arguments.backend.split(",")))
    for profile, policy in PROFILES.items():
        print(f"\nprofile {profile}: medians of {arguments.rounds} starts of {TRUE}, interleaved, in ms")
        print(f"{'backend':<14}{'sandbox.run':>12}{'tool by hand':>14}{'our share':>12}{'at best':>12}")
        plain = statistics.median(plainly() for _ in range(arguments.rounds))
        print(f"{'(no sandbox)':<14}{'':>12}{plain * 1000:>14.2f}")
        try:
            for name, ours, theirs in rows(policy, names, arguments.rounds):
                print(line(name, ours, theirs))
        except IsolateError as error:
            raise SystemExit(f"error: {error}") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
