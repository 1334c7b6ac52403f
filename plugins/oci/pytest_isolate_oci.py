"""The backend `oci`: programs under an OCI runtime, crun or runc, in a root made of the host's directories.

Owns: the choice of the runtime, found by trying, and its command line. Refuses: images; the root is the policy's view.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

import pluggy

from pytest_isolate.capability import CONTAINER, Capability
from pytest_isolate.oci import bundle, runtime_fault
from pytest_isolate.policy import Policy
from pytest_isolate.tool import Exited, Run, ToolBackend

hookimpl = pluggy.HookimplMarker("pytest")
#: In order of preference. crun starts three times as fast; before 1.9 it refuses hosts with both kinds of cgroups.
RUNTIMES = {"crun": ("--cgroup-manager=cgroupfs",), "runc": ()}


@hookimpl
def pytest_isolate_backends() -> list[ToolBackend]:
    return [Oci()]


class Oci(ToolBackend):
    """See the module. ``tool`` is the first runtime that starts a container here."""

    name = "oci"
    quality = 50
    install = "Install one: apt-get install crun, or runc"
    sets_rlimits = True
    enforces = CONTAINER
    #: A runtime puts a container into cgroups below the caller's, on hosts with both kinds into those of v1 alone.
    undoes = frozenset({Capability.NETWORK_RULES})

    def __init__(self, runtimes: Sequence[str] = tuple(RUNTIMES)) -> None:
        self._installed = [name for name in runtimes if shutil.which(name)]
        self.tool = self._installed[0] if self._installed else "crun"
        self._settled = len(self._installed) < 2

    def lacks(self, policy: Policy) -> list[str]:
        """The first runtime that can is kept; where none can, what the last one said."""
        if self._settled:
            return super().lacks(policy)
        reasons = []
        for name in self._installed:
            self.tool = name
            self.__dict__.pop("path", None)
            if not (lacking := super().lacks(policy)):
                self._settled = True
                return []
            reasons.append("; ".join(lacking))
        return list(dict.fromkeys(reasons))

    @property
    def relays_output(self) -> bool:  # type: ignore[override] # known when the runtime is
        """runc copies what a container without a terminal writes (utils_linux.go, setupProcessPipes); crun hands on its own."""
        return self.tool == "runc"

    def command(self, policy: Policy, argv: Sequence[str], run: Run) -> list[str]:
        directory = bundle(policy, argv, run)
        log = ("--log", os.path.join(directory, "log"), "--log-format", "json")
        where = ("--bundle", directory, os.path.basename(directory))
        words = ["--root", os.path.join(directory, "state"), *log, *RUNTIMES[self.tool]]
        run.undo.callback(forget, [self.path, *words], directory)
        return [*words, "run", *where]

    def fault(self, exited: Exited, run: Run) -> str:
        return runtime_fault(run)


def forget(runtime: Sequence[str], directory: str) -> None:
    """Where the runtime was killed: let it give back the container's cgroups, which its own end does else."""
    name = os.path.basename(directory)
    if os.path.exists(os.path.join(directory, "state", name)):
        subprocess.run([*runtime, "delete", "--force", name], capture_output=True, timeout=10)
