"""The cgroups of this process's run: opened at the first need, one group per sandbox, closed at the end.

Owns: the one CgroupManager of the process and of this mode, and the decision which memory limit holds: the group's, else the rlimit's.
Refuses: to let a group limit go unenforced: ``settle`` raises where nothing can hold it.
"""

from __future__ import annotations

import atexit
import errno
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_isolate.errors import BackendUnavailable, IsolateError, PolicyError, SetupError
from pytest_isolate.kernel import forks
from pytest_isolate.policy import Limits, Policy
from pytest_isolate.remembered import Remembered
from pytest_isolate.units import format_bytes

if TYPE_CHECKING:
    from pytest_isolate.backend import Backend
    from pytest_isolate.kernel.cgroups import Cgroup, CgroupManager

#: What remains where no memory controller can be used; by the words of the option that asks for it.
_BY_RLIMIT = "--isolate-cgroup=none holds memory by RLIMIT_DATA, for each process and without MAP_SHARED"

#: Limits that one controller holds, or that mean something only together.
_TOGETHER = (
    ("memory_bytes", "swap_bytes"),
    ("memory_high_bytes",),
    ("pids",),
    ("cpu_cores", "cpu_weight"),
    ("cpuset",),
    ("io",),
    ("hugetlb_bytes",),
)
_NOTHING = Limits()
#: The kernel charges memory in batches, so a peak may be this much above what was used (MEMCG_CHARGE_BATCH pages).
_CHARGED_AHEAD_BYTES = 64 * 4096


def group_part(limits: Limits) -> Limits:
    """What of a settled policy's limits its group holds: not memory, where RLIMIT_DATA does."""
    return replace(limits, memory_bytes=None) if limits.memory_fallback == "rlimit" else limits


class Groups:
    """See the module. ``mode`` as ``--isolate-cgroup``: auto, v1, v2, systemd; ``none`` for no cgroups at all."""

    def __init__(self, mode: str = "auto", run_id: str = "", *, account: bool = False) -> None:
        self.mode = mode
        self.account = account  # give every sandbox a group, limited or not, to know its cost
        self._run_id = run_id or "run"
        self._manager: CgroupManager | None = None
        self._opening = forks.own_lock(self, "_opening")
        self._uncounted: str | None = None
        self._settled: Remembered[Policy] = Remembered()
        self._asked: tuple[str, Limits] | None = None  # of the last sandbox
        self._again = False  # the one before it asked for the same
        _all.add(self)
        self._bereaved = False

    def manager(self) -> CgroupManager:
        """The run's manager; made, and dead runs swept, at the first call.

        Raises:
            BackendUnavailable: the mode asked for is not to be had on this host.
        """
        manager = self._manager
        if manager is None or not manager.is_ours:
            manager = self._open()
        return manager

    def _open(self) -> CgroupManager:
        from pytest_isolate.kernel.cgroups import open_manager

        if self.mode == "none":
            raise BackendUnavailable("cgroups", "they are switched off (--isolate-cgroup=none)", "use auto")
        if self._manager is not None and not self._manager.is_ours:
            self.leave_in_child()
        with self._opening:
            if self._manager is None:
                self._manager = open_manager(self._run_id, mode=self.mode)  # type: ignore[arg-type]
                atexit.register(self.close)
            return self._manager

    def leave_in_child(self) -> None:
        """In a forked child: what was made before is the parent's; sandboxes that start here get groups of their own."""
        manager, self._manager = self._manager, None
        if manager is not None:
            atexit.unregister(self.close)
            manager.leave_in_child()

    def settle(self, policy: Policy) -> Policy:
        """``policy`` with its memory limit's holder decided: a cgroup where there is one, else, if allowed, the rlimit.

        Raises:
            BackendUnavailable: a group limit that nothing on this host can hold; names controller and remedy.
        """
        if not policy.limits.needs_cgroup:
            return policy
        return self._settled.of(policy, lambda: self._settle(policy))

    def _settle(self, policy: Policy) -> Policy:
        try:
            self._try(policy.limits)
        except BackendUnavailable as error:
            if policy.limits.memory_fallback == "rlimit":
                self._try(group_part(policy.limits))
                return policy
            if not error.remedy and policy.limits.memory_bytes:
                raise BackendUnavailable(error.what, error.why, _BY_RLIMIT) from error
            raise
        return replace(policy, limits=replace(policy.limits, memory_fallback="none"))

    def _try(self, limits: Limits) -> None:
        """Make a group with these very limits, and remove it: what the kernel refuses shows now."""
        if not limits.needs_cgroup:
            return
        self.manager().create("probe", limits).close()

    def enter(self, name: str, policy: Policy) -> Cgroup | None:
        """A group for one sandbox; None when the settled policy asks for no group limit and nothing is counted."""
        limits = group_part(policy.limits)
        if limits.needs_cgroup or (self.account and self.why_not_counted() == ""):
            before, self._asked = self._asked, (name, limits)
            self._again = before is not None and before[0] == name and before[1] is limits
            cgroup = self.manager().create(name, limits, accounting=self._accounting())
            cgroup.accounts = self.account
            return cgroup
        return self.bare(name) if policy.network.counted else None

    def bare(self, name: str) -> Cgroup | None:
        """A group without limits, to hang a network policy on; None where there is no v2 hierarchy of ours."""
        if self.v2_directory() is None:
            return None
        return self.manager().create(name, accounting=frozenset())

    def v2_directory(self) -> str | None:
        """The run's directory in the v2 hierarchy; None without one."""
        if self.mode == "none":
            return None
        return next((branch.path for branch in self.manager().branches if branch.version == 2), None)

    def held(self, policy: Policy) -> tuple[Policy, list[str]]:
        """``policy`` without the group limits that nothing here holds, and what was given up, in words.

        Memory is then left to RLIMIT_DATA, which is less: it sees one process, and no shared memory.
        """
        limits, given_up = policy.limits, []
        for names in _TOGETHER:
            alone = Limits(**{name: getattr(limits, name) for name in names})
            try:
                self._try(alone)
            except BackendUnavailable as error:
                lifted = {name: getattr(_NOTHING, name) for name in names}
                instead = ""
                if alone.memory_bytes:
                    lifted |= {"memory_bytes": limits.memory_bytes, "memory_fallback": "rlimit"}
                    instead = " as asked but by RLIMIT_DATA, for each process and without MAP_SHARED"
                limits = replace(limits, **lifted)
                asked = ", ".join(name for name in names if getattr(alone, name) != getattr(_NOTHING, name))
                given_up.append(f"{asked} not held{instead}: {error.what}: {error.why}")
        return replace(policy, limits=limits), given_up

    def _accounting(self) -> frozenset[str]:
        from pytest_isolate.kernel.cgroups import ACCOUNTING

        return ACCOUNTING | {"io"} if self.account else ACCOUNTING

    def why_not_counted(self) -> str:
        """Why no group can count the cost of a sandbox here; empty when one can. Found out by making one."""
        if self._uncounted is None:
            try:
                self.manager().create("probe", Limits(), accounting=self._accounting()).close()
                self._uncounted = ""
            except IsolateError as error:
                self._uncounted = str(error)
        return self._uncounted

    def check_room(self, policy: Policy, backend: Backend) -> None:
        """Start a child that leaves at once in the policy's group: does a fork of this very process fit into it?

        Raises:
            PolicyError: it does not; names what a start takes, measured without the limit.
        """
        if not policy.limits.memory_bytes or policy.limits.memory_fallback == "rlimit":
            return
        takes = self._start_takes(policy, backend, Limits())  # without the limit first: that is the figure to tell
        fits = not takes or policy.limits.memory_bytes + _CHARGED_AHEAD_BYTES >= takes
        if fits and self._start_takes(policy, backend, policy.limits) is not None:
            return
        least = f", and takes {format_bytes(takes)}" if takes else ""
        raise PolicyError(
            f"memory limit of {format_bytes(policy.limits.memory_bytes)}",
            f"a process forked from this one does not even start in it{least}",
            "write several times as much",
        )

    def _start_takes(self, policy: Policy, backend: Backend, limits: Limits) -> int | None:
        """The peak of a fork of this process that does nothing; None when it does not live to its end."""
        from pytest_isolate.backends.forked import end_of
        from pytest_isolate.kernel.native import Joined

        with self.manager().create("probe", limits) as cgroup:
            try:
                exited = end_of(backend, policy, Joined(cgroup.dir_fd, cgroup.procs_fds), meanwhile=cgroup.started)
            except SetupError as error:
                if error.errno == errno.ENOMEM:
                    return None
                raise
            cgroup.kill()
            return (cgroup.usage().memory_peak_bytes or 0) if exited is not None and exited.status.code == 0 else None

    def tidy(self) -> None:
        """Remove what closed groups left; for idle moments."""
        if self._manager is not None:
            self._manager.tidy()

    def make_ready(self) -> None:
        """Make the next group in advance when one sandbox is started again and again; for idle moments."""
        if self._again and self._asked is not None and self._manager is not None:
            name, limits = self._asked
            self._manager.make_ready(name, limits, accounting=self._accounting())

    def drop_ready(self) -> None:
        """Nothing more is started here, for now: remove what was made in advance."""
        self._asked, self._again = None, False
        if self._manager is not None:
            self._manager.drop_ready()

    def bereave(self) -> None:
        """A forked child of ours died, or left company: what it held its own sandboxes by is removed at the end."""
        self._bereaved = True

    def close(self) -> None:
        """End and remove every group of the run, and those of children that did not live to do so.

        Raises:
            CleanupError: names the directories that remain.
        """
        bereaved, self._bereaved = self._bereaved, False
        try:
            if bereaved and self.mode != "none":
                from pytest_isolate.kernel.cgroups import sweep

                sweep()  # now, while we are where they were forked; what does not go is left to the next run's start
        finally:
            manager, self._manager = self._manager, None
            if manager is not None:
                atexit.unregister(self.close)
                manager.close()


#: Of this process, and of the one it was forked from.
_all: weakref.WeakSet[Groups] = weakref.WeakSet()
_process: Groups | None = None
_owner: object = None


def of_this_process() -> Groups:
    """The Groups that sandboxes use when nothing else is said; a forked child gets one of its own."""
    global _process, _owner
    if _process is None or _owner is not forks.here:
        _process, _owner = Groups(run_id="sandbox"), forks.here
    return _process


def close_those_of_this_process() -> None:
    """Close the Groups that sandboxes of this process used, if there were any."""
    if _process is not None and _owner is forks.here:
        _process.close()


def leave_in_child() -> None:
    """In a forked child, before anything else runs there: no Groups of the parent's is a way to the parent's cgroups."""
    for each in tuple(_all):
        each.leave_in_child()
