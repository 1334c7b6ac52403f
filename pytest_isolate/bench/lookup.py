"""What stat(2) costs by the number of components, on the host and inside each kind of view; and what is paid per component.

Owns: the tree of directories, the views, the line through the medians. Source of the question: a user-space kernel's table for
1, 2, 3, 8, 64 and 100 components on a memory file system, and across a mount at the last one.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_isolate.bench.measure import Batch, Effort, Samples, bench, in_turns, lines_of
from pytest_isolate.bench.table import Table
from pytest_isolate.policy import Bind, Filesystem, Overlay, Policy, Tmpfs
from pytest_isolate.profile import STANDARD, vary
from pytest_isolate.sandbox import Sandbox

COMPONENTS = (1, 2, 3, 8, 64, 100)
_FOUNDING = {
    "user-space kernel, as published": (197, 233, 268, 477, 2592, 4045),
    "the same, across a mount": (317, 361, 387, 582, 2699, 4133),
}

#: A shell script that makes the file $0 and becomes the program that follows.
_MAKE = 'mkdir -p "$(dirname "$0")" && touch "$0" && exec "$@"'


def measure(effort: Effort) -> list[Table]:
    """One table: a row a view, a column a number of components; nanoseconds."""
    with tempfile.TemporaryDirectory(prefix="isolate-bench-", dir="/dev/shm") as base:
        _make_tree(Path(base))
        found = {count: in_turns(dict(_views(base, count)), effort) for count in COMPONENTS}
    views = list(found[1])
    rows = [(view, *_row([found[count][view] for count in COMPONENTS]), _worst(view, found)) for view in views]
    published = [(name, *_figures(list(map(float, figures))), "-") for name, figures in _FOUNDING.items()]
    return [
        Table(
            title="path look-up: stat(2), ns by components; the fastest of each round",
            head=("where", *map(str, COMPONENTS), "constant", "per component", "x host, worst"),
            rows=(*rows, *published),
            notes=(_crossing(found),),
        )
    ]


def _path(count: int) -> str:
    """A relative path of that many components."""
    return "d/" * (count - 1) + "f"


def _make_tree(base: Path) -> None:
    deepest = base / ("d/" * (max(COMPONENTS) - 1))
    deepest.mkdir(parents=True)
    for count in COMPONENTS:
        (base / _path(count)).touch()


def _row(samples: list[Samples]) -> Iterator[str]:
    if any(one.errors or not one.times_ns for one in samples):
        return iter(["-"] * (len(COMPONENTS) + 2))
    return iter(_figures([one.fastest_median_ns for one in samples]))


def _worst(view: str, found: dict[int, dict[str, Samples]]) -> str:
    """Of the six numbers of components, the one that is furthest from the host's."""
    times = [found[count][view].fastest_over(found[count]["host, tmpfs"]) for count in COMPONENTS]
    return "-" if any(one != one for one in times) else f"{max(times, key=lambda one: abs(one - 1)):.3f}"


def _figures(medians: list[float]) -> list[str]:
    slope, constant = statistics.linear_regression(COMPONENTS, medians)
    return [*(f"{median:.0f}" for median in medians), f"{constant:.0f}", f"{slope:.1f}"]


def _crossing(found: dict[int, dict[str, Samples]]) -> str:
    differences = [
        found[count]["across a mount"].fastest_median_ns - found[count]["host, tmpfs"].fastest_median_ns
        for count in COMPONENTS
    ]
    return f"A mount at the last component costs {statistics.median(differences):.0f} ns."


def _views(base: str, count: int) -> Iterator[tuple[str, Batch]]:
    path = _path(count)
    yield "host, tmpfs", lambda operations: lines_of(bench("lookup", operations, path), cwd=base)
    here = Bind(source=base, target=base)
    yield "bind", _inside(base, path, lambda: vary(STANDARD, fs=Filesystem(binds=(here,), proc=False)))
    sealed = Filesystem(root="readonly", binds=(here,), proc=False)  # which has a /dev/shm of its own
    yield "read-only root", _inside(base, path, lambda: vary(STANDARD, fs=sealed))
    yield "minimal root", _inside(base, path, lambda: vary(STANDARD, fs=_minimal(here)))
    yield (
        "overlay",
        _inside(base, path, lambda: vary(STANDARD, fs=Filesystem(overlays=(Overlay(target=base),), proc=False))),
    )
    view = Filesystem(tmpfs=(Tmpfs(target=base),), proc=False)
    yield "private tmpfs", _inside(base, path, lambda: vary(STANDARD, fs=view), make=True)
    file = os.path.join(base, path)
    across = Filesystem(binds=(Bind(source=os.path.join(base, "f"), target=file),), proc=False)
    yield "across a mount", _inside(base, path, lambda: vary(STANDARD, fs=across))
    if (runsc := shutil.which("runsc")) is not None:
        words = [runsc, "--root", f"{base}/.runsc", "--platform=ptrace", "--network=none", "--ignore-cgroups", "do"]
        words += ["/bin/sh", "-c", f"mkdir /dev/shm/b && cd /dev/shm/b && {_MAKE}", path, *bench("lookup", 3, path)]
        yield "gVisor's tmpfs (runsc, ptrace)", _first_rounds(lambda _: lines_of(words))


def _first_rounds(batch: Batch, rounds: int = 2) -> Batch:
    """Only these: one of its takes a second, and its look-ups are a hundred times those of the others."""
    turns = iter(range(rounds))
    return lambda count: batch(count) if next(turns, None) is not None else []


def _minimal(here: Bind) -> Filesystem:
    beside = os.path.dirname(bench()[0])
    binds = tuple(Bind(source=path, target=path) for path in ("/usr", "/lib", "/lib64", "/bin", beside))
    return Filesystem(root="minimal", binds=(*binds, here), proc=False)


def _inside(base: str, path: str, policy: Callable[[], Policy], *, make: bool = False) -> Batch:
    chosen = policy()

    def batch(operations: int) -> list[int]:
        command = bench("lookup", operations, path)
        if make:
            command = ["/bin/sh", "-c", _MAKE, path, *command]
        with Sandbox(chosen, name="bench") as sandbox:
            outcome = sandbox.run(command, cwd=base)
            return [int(line) for line in outcome.stdout.split()] if outcome.status.code == 0 else [-1]

    return batch
