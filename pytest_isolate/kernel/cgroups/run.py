"""The cgroups of one pytest run: where they can be, making one per sandbox, and leaving nothing behind.

Owns: the run's directory in each hierarchy, the removal that had to wait, the one cgroup that is made in advance, and
what this host can enforce and why not.
Refuses: to enforce less than asked: a limit without its controller is an error that names the remedy.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_isolate.errors import BackendUnavailable, CleanupError, IsolateError, PolicyError, SetupError
from pytest_isolate.kernel.cgroups import cgroupfs, placement, processes, stale
from pytest_isolate.kernel.cgroups.group import Cgroup, Recipe, table_of
from pytest_isolate.kernel.cgroups.layout import CONTROLLERS, Hierarchy, Layout, discover
from pytest_isolate.kernel.cgroups.processes import Place
from pytest_isolate.kernel.cgroups.settings import controllers_for
from pytest_isolate.kernel.cgroups.volunteer import Volunteer
from pytest_isolate.policy import Limits

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from pytest_isolate.kernel.cgroups.placement import Branch

Mode = Literal["auto", "v1", "v2", "systemd"]
MODES: tuple[Mode, ...] = ("auto", "v1", "v2", "systemd")
#: Counted for every sandbox, limited or not. cpuacct is needed only where there is no v2, whose cpu.stat has it all.
ACCOUNTING = frozenset({"memory", "pids", "cpuacct"})
_NAME_LENGTH = 120
#: Removals that may wait for a call of tidy() before create() does them itself.
_BACKLOG = 32
#: Recipes kept; a run with more different limits forgets them all and starts anew.
_RECIPES = 256
_NOTHING = Limits()
_DELEGATE = "use --isolate-cgroup=systemd, or systemd-run --user --scope -p Delegate=yes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """Whether one controller can be used here; if not, why, and what would make it so."""

    name: str
    available: bool
    reason: str = ""
    remedy: str = ""


def open_manager(run_id: str, *, mode: Mode = "auto", layout: Layout | None = None) -> CgroupManager:
    """Find by trying where cgroups may be made, make the run's directories there, sweep those of dead runs.

    ``auto`` takes each controller where it is; ``v1`` and ``v2`` only those there; ``systemd`` first asks the user's
    service manager for a delegated scope, into which this process moves until it ends.

    Raises:
        BackendUnavailable: an explicit mode that this host cannot do. ``auto`` returns a manager without capabilities.
    """
    if mode not in MODES:
        raise PolicyError(f"cgroup mode {mode!r}", "unknown", "use " + ", ".join(MODES))
    if mode == "systemd":
        from pytest_isolate.kernel.cgroups import systemd

        systemd.enter_scope(run_id)
    manager = CgroupManager(run_id, mode, layout or discover())
    if mode != "auto" and not manager.branches:
        with manager:
            reasons = (
                "; ".join(sorted({_reason(e) for e in manager.refusals.values()})) or f"no {mode} hierarchy is mounted"
            )
        raise BackendUnavailable(f"cgroup mode {mode}", reasons, "try --isolate-cgroup=auto")
    return manager


def sweep() -> None:
    """Remove what dead runs left beside where this process's own is or would be."""
    placement.sweep(discover())


class CgroupManager:
    """Maker and remover of one run's cgroups. Context manager; in a forked child it is inert."""

    def __init__(self, run_id: str, mode: Mode, layout: Layout) -> None:
        self.mode = mode
        self.layout = layout
        self.branches: list[Branch] = []
        self.refusals: dict[str, SetupError] = {}  # by controller, or "v2" for the tree itself
        self._home: dict[str, Branch] = {}
        self._live: dict[str, Cgroup] = {}
        self._doomed: deque[Place] = deque()
        self._ready: deque[tuple[str, Recipe, Cgroup]] = deque()  # at most one
        self._making_ready = threading.Lock()
        self._serial = itertools.count(1)
        self._recipes: dict[tuple[int, frozenset[str]], Recipe] = {}
        self._owner = os.getpid()
        self._closed = False
        run = stale.run_name(run_id)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._place_all(run)
            stack.pop_all()

    def _place_all(self, run: str) -> None:
        """v2 first: there this process may have to step aside before it has a child."""
        with Volunteer() as volunteer:
            if self.mode != "v1" and self.layout.v2 is not None:
                self._try(self.layout.v2, run, volunteer)
            if self.mode in ("auto", "v1"):
                for hierarchy in self.layout.v1:
                    self._try(hierarchy, run, volunteer)
        for branch in self.branches:
            cgroupfs.remove(branch.fd, placement.PROBE)

    def _try(self, hierarchy: Hierarchy, run: str, volunteer: Volunteer) -> None:
        try:
            if hierarchy.version == 1:
                branch = placement.place_v1(hierarchy, run, volunteer)
            else:
                elsewhere = frozenset().union(*(h.controllers for h in self.layout.v1))
                branch = placement.place_v2(hierarchy, run, volunteer, elsewhere)
        except SetupError as error:
            self.refusals |= dict.fromkeys(hierarchy.controllers | ({"v2"} if hierarchy.version == 2 else set()), error)
            return
        self.branches.append(branch)
        # v2's freezer, in every cgroup of that tree, goes before v1's, which needs a hierarchy of its own.
        self._home = dict.fromkeys(branch.controllers, branch) | self._home

    @property
    def version_of(self) -> dict[str, int]:
        """Where each usable controller is: 1 or 2."""
        return {name: branch.version for name, branch in sorted(self._home.items())}

    @property
    def left_behind(self) -> list[str]:
        """Directories of dead runs that the sweep at the start could not remove."""
        return [path for branch in self.branches for path in branch.left_behind]

    def capabilities(self) -> dict[str, Capability]:
        """Every controller this package knows: usable here, or why not."""
        return {name: self._capability(name) for name in CONTROLLERS}

    def _capability(self, name: str) -> Capability:
        branch = self._home.get(name)
        if branch is not None:
            note = "v1 holds reads and direct writes, not buffered ones" if (name, branch.version) == ("io", 1) else ""
            return Capability(name=name, available=True, reason=note)
        if name == "cpuacct" and any(branch.version == 2 for branch in self.branches):
            return Capability(name=name, available=True, reason="cgroup v2 counts CPU time in every cgroup")
        return Capability(name=name, available=False, reason=self._why_not(name), remedy=self._remedy(name))

    def _why_not(self, name: str) -> str:
        hierarchy = self.layout.where(name)
        if name in self.layout.disabled:
            return "switched off at boot (cgroup_disable=)"
        if self.mode in ("v1", "v2") and hierarchy is not None and self.mode != f"v{hierarchy.version}":
            return f"it is in cgroup v{hierarchy.version}, and mode {self.mode} was asked for"
        if refusal := self.refusals.get(name) or self.refusals.get("v2"):
            return _reason(refusal)
        if self.layout.kind == "none":
            return "no cgroup file system is mounted"
        there = hierarchy is not None or self.layout.v2 is not None
        return "not delegated to this cgroup" if there else "the kernel or the host does not mount it"

    def _remedy(self, name: str) -> str:
        if name in self.layout.disabled:
            return "boot without cgroup_disable"
        if self.layout.kind == "none":
            return "mount cgroup2 on /sys/fs/cgroup"
        if refusal := self.refusals.get(name) or self.refusals.get("v2"):
            return refusal.remedy
        return _DELEGATE if self.mode != "systemd" else "add it to Delegate= of user@.service"

    def create(self, name: str, limits: Limits | None = None, *, accounting: frozenset[str] = ACCOUNTING) -> Cgroup:
        """Make a cgroup with ``limits`` for one sandbox. ``name`` says worker and test; ``accounting`` what to count.

        Raises:
            BackendUnavailable: a limit whose controller cannot be used here. Nothing is made.
            SetupError: step ``cgroup mkdir`` or ``cgroup <file>``, with errno. Nothing is left.
        """
        if len(self._doomed) > _BACKLOG:
            self.tidy()
        if self._closed:
            raise SetupError("cgroup create", 9, detail="(the run's cgroups are closed)")
        recipe = self.recipe(limits or _NOTHING, accounting)
        return self._take_ready(name, recipe) or self._make(name, recipe)

    def _make(self, name: str, recipe: Recipe) -> Cgroup:
        serial = next(self._serial)
        cgroup = Cgroup(f"{serial}-{stale.safe(name, _NAME_LENGTH)}", self._home, self._forget)
        cgroup.make(recipe)
        self._live[cgroup.name] = cgroup
        return cgroup

    def make_ready(self, name: str, limits: Limits, *, accounting: frozenset[str] = ACCOUNTING) -> None:
        """Make in advance what create() will be asked for in the same words: for moments in which the caller would only wait.

        One is kept, until create() is asked for it or for another. What cannot be made now is left for create() to say.
        """
        if self._closed or not self.is_ours or not self._making_ready.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(IsolateError):
                if not self._ready:
                    recipe = self.recipe(limits, accounting)
                    self._ready.append((name, recipe, self._make(name, recipe)))
        finally:
            self._making_ready.release()

    def _take_ready(self, name: str, recipe: Recipe) -> Cgroup | None:
        """The one made in advance, if it is such a one, and still there. Another is removed at once: it may hold the last place
        there is.
        """
        try:
            its_name, its_recipe, cgroup = self._ready.pop()
        except IndexError:
            return None
        if its_name == name and its_recipe is recipe and self.is_ours and cgroup.is_there():
            return cgroup
        cgroup.close()
        return None

    def drop_ready(self) -> None:
        """Remove what was made in advance: it will not be asked for."""
        with contextlib.suppress(IndexError):
            while True:
                self._ready.pop()[-1].close()

    @property
    def is_ours(self) -> bool:
        """False in a forked child, which inherits all this and is to have cgroups of its own."""
        return os.getpid() == self._owner

    def leave_in_child(self) -> None:
        """In a forked child: give up the descriptors of cgroup directories, each a way around a read-only /sys of the child's.

        What can still be looked at is looked at by its path, as the child sees it.
        """
        for cgroup in tuple(self._live.values()):
            cgroup.close_descriptors()
        for branch in self.branches:
            branch.reopen()

    def recipe(self, limits: Limits, accounting: frozenset[str] = ACCOUNTING) -> Recipe:
        """What to make and to write for ``limits``: a run has few of them, and many sandboxes of each.

        Raises:
            BackendUnavailable: a limit whose controller cannot be used here.
        """
        known = self._recipes.get((id(limits), accounting))
        if known is not None:
            return known
        needed = controllers_for(limits)
        self._require(needed)
        wanted = needed | self._counted(accounting)
        branches = [branch for branch in self.branches if branch.version == 2 or branch.controllers & wanted]
        for branch in branches:
            branch.enable(needed)
        if len(self._recipes) >= _RECIPES:
            self._recipes.clear()
        table = table_of(self._home, needed, limits)
        early, late = ([row for row in table if row[1].late is wanted] for wanted in (False, True))
        recipe = Recipe(limits, needed, tuple(branches), tuple(early), tuple(late))
        self._recipes[id(limits), accounting] = recipe  # it keeps the limits, so that their id stays theirs
        return recipe

    def _forget(self, name: str, held: list[Place]) -> None:
        """A cgroup was closed; ``held`` are the directories that could not go yet."""
        self._live.pop(name, None)
        self._doomed.extend(held)

    def _require(self, needed: frozenset[str]) -> None:
        for controller in sorted(needed - self._home.keys()):
            missing = self._capability(controller)
            raise BackendUnavailable(f"cgroup controller {controller}", missing.reason, missing.remedy)

    def _counted(self, accounting: frozenset[str]) -> frozenset[str]:
        """v1 hierarchies worth a directory in every sandbox; a freezer only where nothing else stops forks for a kill."""
        if any(branch.version == 2 for branch in self.branches):
            return accounting - {"cpuacct"}
        return accounting if "pids" in accounting and "pids" in self._home else accounting | {"freezer"}

    def tidy(self) -> None:
        """Try once to remove what close() left: for the moments in which the caller would only wait."""
        with contextlib.suppress(IndexError):  # another thread was faster
            for _ in range(len(self._doomed)):
                place = self._doomed.popleft()
                if not cgroupfs.remove(place.dir_fd, place.name):
                    self._doomed.append(place)

    def close(self, deadline_s: float = 5.0) -> None:
        """Kill what still runs, remove every directory, give back what was changed. Waits at most ``deadline_s``.

        Raises:
            CleanupError: names the directories that remain, and who is in them.
        """
        if self._closed or not self.is_ours:
            return
        self._closed = True
        end = time.monotonic() + deadline_s
        faults = [text for cgroup in list(self._live.values()) if (text := _end(cgroup, deadline_s))]
        while self._doomed and time.monotonic() < end:
            processes.kill(self._doomed, max(0.0, end - time.monotonic()))
            self.tidy()
            if self._doomed:
                time.sleep(0.001)
        faults += [self._leave(branch, end) for branch in reversed(self.branches)]
        remaining = [text for text in faults if text]
        if remaining:
            raise CleanupError("cgroups of this run", "; ".join(remaining), "end these processes, then rmdir")

    def _leave(self, branch: Branch, end: float) -> str:
        """Remove the run's directory and undo what made it possible; a text when something remains."""
        text = ""
        fd = cgroupfs.open_directory(branch.parent) if os.path.isdir(branch.parent) else -1
        if fd >= 0:
            try:
                while not cgroupfs.remove(fd, branch.name):
                    place = Place(fd, branch.name, branch.version, branch.controllers)
                    left = processes.kill([place], max(0.0, end - time.monotonic()))
                    if time.monotonic() > end:
                        text = f"{branch.path} is held by pids {left}"
                        break
                    time.sleep(0.001)
            except IsolateError as error:
                text = str(error)
            finally:
                os.close(fd)
        branch.undo.close()
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def describe(self) -> dict[str, object]:
        """What was found and taken, for the header and for people: plain data."""
        return {
            "mode": self.mode,
            "layout": self.layout.kind,
            "directories": {branch.path: sorted(branch.controllers) for branch in self.branches},
            "version_of": self.version_of,
            "left_behind": self.left_behind,
        }


def _reason(refusal: SetupError) -> str:
    return f"{refusal.what.removeprefix('sandbox setup failed at ')}: {refusal.why}"


def _end(cgroup: Cgroup, deadline_s: float) -> str:
    try:
        cgroup.kill(deadline_s)
    except IsolateError as error:
        return str(error)
    finally:
        cgroup.close()
    return ""
