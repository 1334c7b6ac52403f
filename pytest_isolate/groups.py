"""The cgroups of this process's run: opened at the first need, one group per sandbox, closed at the end.

Owns: the one CgroupManager of the process, and the decision which memory limit holds: the group's, else the rlimit's.
Refuses: to let a group limit go unenforced: ``settle`` raises where nothing can hold it.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.policy import Limits, Policy

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import Cgroup, CgroupManager


class Groups:
    """See the module. ``mode`` as ``--isolate-cgroup``: auto, v1, v2, systemd; ``none`` for no cgroups at all."""

    def __init__(self, mode: str = "auto", run_id: str = "") -> None:
        self.mode = mode
        self._run_id = run_id or "run"
        self._manager: CgroupManager | None = None
        self._settled: dict[int, tuple[Policy, Policy]] = {}

    def manager(self) -> CgroupManager:
        """The run's manager; made, and dead runs swept, at the first call.

        Raises:
            BackendUnavailable: the mode asked for is not to be had on this host.
        """
        if self._manager is None:
            from pytest_isolate.kernel.cgroups import open_manager

            if self.mode == "none":
                raise BackendUnavailable("cgroups", "they are switched off (--isolate-cgroup=none)", "use auto")
            self._manager = open_manager(self._run_id, mode=self.mode)  # type: ignore[arg-type]
            atexit.register(self.close)
        return self._manager

    def settle(self, policy: Policy) -> Policy:
        """``policy`` with its memory limit's holder decided: a cgroup where there is one, else, if allowed, the rlimit.

        Raises:
            BackendUnavailable: a group limit that nothing on this host can hold; names controller and remedy.
        """
        if not policy.limits.needs_cgroup:
            return policy
        known = self._settled.get(id(policy))
        if known is None:
            known = self._settled[id(policy)] = (policy, self._settle(policy))
        return known[1]

    def _settle(self, policy: Policy) -> Policy:
        try:
            self._try(policy.limits)
        except BackendUnavailable:
            if policy.limits.memory_fallback != "rlimit" or not _memory_only(policy.limits):
                raise
            return policy
        return replace(policy, limits=replace(policy.limits, memory_fallback="none"))

    def _try(self, limits: Limits) -> None:
        """Make a group with these very limits, and remove it: what the kernel refuses shows now."""
        self.manager().create("probe", limits).close()

    def enter(self, name: str, policy: Policy) -> Cgroup | None:
        """A group for one sandbox; None when the settled policy asks for no group limit and counts no traffic."""
        limits = policy.limits
        if limits.needs_cgroup and limits.memory_fallback != "rlimit":
            return self.manager().create(name, limits)
        if policy.network.counted:
            return self.bare(name)
        return None

    def bare(self, name: str) -> Cgroup | None:
        """A group without limits, to hang a network policy on; None where there is no v2 hierarchy of ours."""
        if self.v2_directory() is None:
            return None
        return self.manager().create(name, Limits(), accounting=frozenset())

    def v2_directory(self) -> str | None:
        """The run's directory in the v2 hierarchy; None without one."""
        if self.mode == "none":
            return None
        return next((branch.path for branch in self.manager().branches if branch.version == 2), None)

    def tidy(self) -> None:
        """Remove what closed groups left; for idle moments."""
        if self._manager is not None:
            self._manager.tidy()

    def close(self) -> None:
        """End and remove every group of the run.

        Raises:
            CleanupError: names the directories that remain.
        """
        manager, self._manager = self._manager, None
        if manager is not None:
            atexit.unregister(self.close)
            manager.close()


def _memory_only(limits: Limits) -> bool:
    return not replace(limits, memory_bytes=None).needs_cgroup


_process: Groups | None = None
_owner = 0


def of_this_process() -> Groups:
    """The Groups that sandboxes use when nothing else is said; a forked child gets one of its own."""
    global _process, _owner
    if _process is None or _owner != os.getpid():
        _process, _owner = Groups(run_id="sandbox"), os.getpid()
    return _process
