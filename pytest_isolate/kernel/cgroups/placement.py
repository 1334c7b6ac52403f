"""Finding where we may make cgroups, by trying, and making the run's directory there.

Owns: Branch, the run's directory in one hierarchy, and undoing whatever made it possible.
Refuses: to trust anything but having done it: each place is tried with a throw-away cgroup and a child that joins it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel.cgroups import cgroupfs, delegation, stale, v1, v2
from pytest_isolate.kernel.cgroups.layout import CONTROLLERS, Hierarchy, Layout, is_machine_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_isolate.kernel.cgroups.volunteer import Volunteer

#: Enabled for every run on v2; the others only when a limit asks, since each makes every mkdir dearer.
USUAL = frozenset({"memory", "pids", "cpu"})
PROBE = "probe"


@dataclass(slots=True)
class Branch:
    """The run's directory in one hierarchy; owner of ``fd``, and of undoing (``undo``) what made it possible.

    Attributes:
        parent: the directory it is in. controllers: what its children have, or can be given (``enable``).
        enabled: those already on in its children. inherited: v1 cpuset values every child starts from.
    """

    version: int
    parent: str
    name: str
    controllers: frozenset[str]
    fd: int = -1
    enabled: frozenset[str] = frozenset()
    inherited: dict[str, str] = field(default_factory=dict)
    left_behind: list[str] = field(default_factory=list)
    undo: ExitStack = field(default_factory=ExitStack)
    enable_above: Callable[[frozenset[str]], None] | None = None

    @property
    def path(self) -> str:
        return f"{self.parent}/{self.name}"

    def make(self, name: str) -> None:
        """Make a cgroup for one sandbox. A v1 cpuset takes no process before it has CPUs and memory nodes."""
        cgroupfs.make(self.fd, name)
        for file, value in self.inherited.items():
            cgroupfs.write(self.fd, f"{name}/{file}", value)

    def reopen(self) -> None:
        """Have ``fd`` mean what the path means to this process, a forked child with another view; where it means nothing, the
        fd is of a directory without cgroups.
        """
        with contextlib.suppress(OSError):  # closed before (close_fds)
            os.close(self.fd)  # first of all: under RLIMIT_NOFILE there may be no room for another
        with contextlib.suppress(OSError):
            try:
                fd = cgroupfs.open_directory(self.path)
            except OSError:
                fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if fd != self.fd:
                with contextlib.suppress(OSError):  # a number beyond that limit
                    os.dup2(fd, self.fd, inheritable=False)
                os.close(fd)

    def enable(self, wanted: frozenset[str]) -> None:
        """Give the children the controllers in ``wanted`` (v2: cgroup.subtree_control); fine when they have them."""
        missing = (wanted & self.controllers) - self.enabled - {"freezer"}
        if self.version == 1 or not missing:
            return
        if self.enable_above is not None:
            self.enable_above(missing)
        cgroupfs.write(self.fd, "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(missing)))
        self.enabled |= missing


def place_v1(hierarchy: Hierarchy, run: str, volunteer: Volunteer) -> Branch:
    """Make the run's directory in our own cgroup of a v1 hierarchy.

    Raises:
        SetupError: why not; nothing is left then.
    """
    parent = _own_directory(hierarchy)
    branch = Branch(
        version=1, parent=parent, name=run, controllers=hierarchy.controllers, enabled=hierarchy.controllers
    )
    branch.left_behind = stale.sweep(parent, 1, hierarchy.controllers)
    with undone_on_error(branch.undo):
        _make_run(branch)
        if "cpuset" in branch.controllers:
            branch.inherited = _cpuset_of(parent)
            for file, value in branch.inherited.items():
                cgroupfs.write(branch.fd, file, value)
        if "memory" in branch.controllers and cgroupfs.read(branch.fd, "memory.use_hierarchy") == "0\n":
            cgroupfs.write(branch.fd, "memory.use_hierarchy", "1")  # before Linux 5.11 a choice of each subtree
        _try_out(branch, v1.NEUTRAL, volunteer)
    return branch


def place_v2(hierarchy: Hierarchy, run: str, volunteer: Volunteer, elsewhere: frozenset[str]) -> Branch:
    """Make the run's directory in v2, where most of the usual controllers can be had. ``elsewhere``: they are in v1.

    Raises:
        SetupError: why not; nothing is left then.
    """
    own = _own_directory(hierarchy)
    # A dead run may have been alone here, or not, and so have made its directory further up.
    places = list(delegation.candidates(own, hierarchy.mount))
    left_behind = [text for place in places for text in stale.sweep(place, 2, frozenset({"pids"}) - elsewhere)]
    first: SetupError | None = None
    for parent in sorted(places, key=lambda place: -len(delegation.offers(place, own) & (USUAL - elsewhere))):
        try:
            branch = _grow(parent, own, run, volunteer, elsewhere)
        except SetupError as error:
            first = first or error
        else:
            branch.left_behind = left_behind
            return branch
    assert first is not None  # there is always at least our own
    raise first


def sweep(layout: Layout) -> None:
    """Remove what dead runs left wherever this process would look for a place."""
    for hierarchy in layout.v1:
        if hierarchy.directory is not None and not hierarchy.read_only:
            stale.sweep(hierarchy.directory, 1, hierarchy.controllers)
    if layout.v2 is not None and layout.v2.directory is not None and not layout.v2.read_only:
        elsewhere = frozenset().union(*(hierarchy.controllers for hierarchy in layout.v1))
        for place in delegation.candidates(layout.v2.directory, layout.v2.mount):
            stale.sweep(place, 2, frozenset({"pids"}) - elsewhere)


def _grow(parent: str, own: str, run: str, volunteer: Volunteer, elsewhere: frozenset[str]) -> Branch:
    branch = Branch(version=2, parent=parent, name=run, controllers=frozenset())
    with undone_on_error(branch.undo):
        if parent == own and delegation.may_move(own):
            delegation.step_aside(own, branch.undo)
        if parent == own and (is_machine_root(own) or delegation.may_move(own, already=True)):
            branch.enable_above = delegation.enabler(own, branch.undo)
        branch.controllers = (delegation.offers(parent, own) & frozenset(CONTROLLERS)) - elsewhere | {"freezer"}
        if branch.enable_above is not None:
            branch.enable_above(USUAL & branch.controllers)
        _make_run(branch)
        if cgroupfs.read(branch.fd, "cgroup.freeze") is None:  # Linux 5.2
            branch.controllers -= {"freezer"}
        branch.enable(USUAL & branch.controllers)
        _try_out(branch, v2.NEUTRAL, volunteer)
    return branch


def _own_directory(hierarchy: Hierarchy) -> str:
    if hierarchy.directory is None:
        error = FileNotFoundError(errno.ENOENT, "hidden")
        raise cgroupfs.fault("lookup", error, f"our own cgroup {hierarchy.path} is not shown by {hierarchy.mount}")
    if hierarchy.read_only:
        raise cgroupfs.fault("mkdir", OSError(errno.EROFS, "read-only"), hierarchy.directory)
    return hierarchy.directory


def _make_run(branch: Branch) -> None:
    """Make and open the run's directory."""
    with cgroupfs.opened(branch.parent) as parent_fd:
        cgroupfs.make(parent_fd, branch.name, branch.path)
        branch.undo.callback(_remove_run, branch)
        branch.fd = cgroupfs.open_directory(branch.name, parent_fd)
        branch.undo.callback(os.close, branch.fd)


def _remove_run(branch: Branch) -> None:
    with contextlib.suppress(SetupError), cgroupfs.opened(branch.parent) as parent_fd:
        cgroupfs.remove(parent_fd, branch.name)


def _try_out(branch: Branch, neutral: dict[str, tuple[str, str]], volunteer: Volunteer) -> None:
    """Do what every sandbox will need once, in a throw-away cgroup: make, limit, join."""
    branch.make(PROBE)
    branch.undo.callback(cgroupfs.remove, branch.fd, PROBE)
    for controller in sorted(branch.enabled & neutral.keys()):
        file, value = neutral[controller]
        cgroupfs.write(branch.fd, f"{PROBE}/{file}", value)
    volunteer.join(f"{branch.path}/{PROBE}", branch.version)


def _cpuset_of(parent: str) -> dict[str, str]:
    found = {}
    for file, effective in (
        ("cpuset.mems", "cpuset.effective_mems"),
        ("cpuset.cpus", "cpuset.effective_cpus"),
    ):
        with contextlib.suppress(SetupError), cgroupfs.opened(parent) as fd:
            found[file] = (cgroupfs.read(fd, effective) or cgroupfs.read(fd, file) or "").strip()
    return found


@contextlib.contextmanager
def undone_on_error(undo: ExitStack) -> Iterator[None]:
    """Unwind ``undo`` when the block fails; leave it to its owner when it succeeds."""
    try:
        yield
    except BaseException:
        undo.close()
        raise
