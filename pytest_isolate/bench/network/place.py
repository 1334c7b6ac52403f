"""Where the network is measured: a cgroup and network namespaces of the benchmark's own, the traffic program, the competitors.

Owns: what it makes, and the figures that were found. Refuses: the machine's own cgroups and interfaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pytest_isolate.bench.table import Table
from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.groups import of_this_process
from pytest_isolate.kernel.bpf.dataplane import OBJECTS
from pytest_isolate.kernel.bpf.objects import AttachType, ProgramSpec, ProgramType
from pytest_isolate.kernel.interfaces import Netns, loopback_up
from pytest_isolate.kernel.namespaces import CLONE_NEWNET, setns

_SKB = ProgramType.CGROUP_SKB
_OUT, _IN = AttachType.CGROUP_INET_EGRESS, AttachType.CGROUP_INET_INGRESS
#: Programs of bpf/baseline.bpf.c: what the product is measured against.
BASELINES = {
    **{f"base_{n}_out": ProgramSpec(_SKB, _OUT) for n in ("floor", "session", "systemd")},
    **{f"base_{n}_in": ProgramSpec(_SKB, _IN) for n in ("floor", "session", "systemd")},
}
GENERATOR = {"base_generate": ProgramSpec(ProgramType.XDP, AttachType.XDP)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number, and the target it is held against (None: for comparison only)."""

    what: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        reached = self.value >= self.target if self.at_least else self.value <= self.target
        return "reached" if reached else "MISSED"

    @property
    def row(self) -> tuple[str, ...]:
        goal = "" if self.target is None else f"{'>=' if self.at_least else '<='} {self.target:g}"
        return self.what, f"{self.value:.2f}".rstrip("0").rstrip("."), self.unit, goal, self.verdict, self.note


def table(title: str, figures: list[Figure], notes: tuple[str, ...] = ()) -> Table:
    """Figures as a table of `pytest-isolate bench`."""
    head = ("what", "value", "unit", "target", "verdict", "spread")
    return Table(title=title, head=head, rows=tuple(figure.row for figure in figures), notes=notes)


@dataclass(slots=True)
class Place:
    """``home``: an empty cgroup v2 directory. ``effort``: 1 is the full measurement, less is a part of it."""

    home: Path
    work: Path
    effort: float
    figures: list[Figure] = field(default_factory=list)

    @property
    def traffic(self) -> str:
        """The program that makes traffic, built with the package.

        Raises:
            BackendUnavailable: it was not.
        """
        found = OBJECTS / "net_traffic"
        if not found.is_file():
            raise BackendUnavailable(
                "bench network", "net_traffic is not in the package", "build it with `make -C bpf`"
            )
        return str(found)

    def times(self, most: int, least: int = 1) -> int:
        """A count of the full measurement, for this effort."""
        return max(least, int(most * self.effort))


@contextlib.contextmanager
def made(effort: float) -> Iterator[Place]:
    """A place for one run; nothing of it is left.

    Raises:
        BackendUnavailable: not root, or no cgroup v2.
    """
    if os.geteuid():
        raise BackendUnavailable("bench network", "it makes namespaces and attaches eBPF", "run as root")
    root = of_this_process().v2_directory()
    if root is None:
        raise BackendUnavailable("bench network", "there is no cgroup v2 hierarchy", "see `pytest-isolate doctor`")
    home = Path(root) / "bench-network"
    home.mkdir()
    try:
        with tempfile.TemporaryDirectory(prefix="isolate-bench-") as work:
            yield Place(home, Path(work), effort)
    finally:
        home.rmdir()


@contextlib.contextmanager
def competitor(place: Place, name: str) -> Iterator[tuple[Path, Netns, int]]:
    """A cgroup and a namespace of one competitor's own: (directory, namespace, descriptor of the directory)."""
    path = place.home / name
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    try:
        with Netns() as namespace:
            loopback_up(namespace.fd)
            yield path, namespace, fd
    finally:
        os.close(fd)
        for _ in range(100):
            with contextlib.suppress(OSError):
                path.rmdir()
                break
            time.sleep(0.02)


def in_child(work: Callable[[], object]) -> None:
    """Run in a forked child; its failure is ours."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a child failed")


def nft(rules: str, netns: Netns) -> None:
    """Load rules into a namespace."""

    def work() -> None:
        setns(netns.fd, CLONE_NEWNET)
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)

    in_child(work)


def has_nft() -> bool:
    return shutil.which("nft") is not None
