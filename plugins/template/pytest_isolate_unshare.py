"""The backend `unshare`: programs under unshare(1). A backend to start from; docs/how-to/write-a-backend.md explains it."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from pytest_isolate.capability import Capability
from pytest_isolate.policy import Namespace, Policy
from pytest_isolate.tool import Run, ToolBackend

hookimpl = pluggy.HookimplMarker("pytest")
OPTIONS = {Namespace.UTS: "--uts", Namespace.IPC: "--ipc", Namespace.NET: "--net", Namespace.CGROUP: "--cgroup"}


@hookimpl
def pytest_isolate_backends() -> list[ToolBackend]:
    return [Unshare()]


class Unshare(ToolBackend):
    """See the module."""

    name = "unshare"
    tool = "unshare"
    install = "Install it: apt-get install util-linux"
    signals_as_status = False  # it executes the program in its own place
    enforces = frozenset(Capability(f"namespace_{namespace.value}") for namespace in OPTIONS)

    def command(self, policy: Policy, argv: Sequence[str], run: Run) -> list[str]:
        asked = [option for namespace, option in OPTIONS.items() if namespace in policy.namespaces]
        return [*asked, "--", "env", f"--chdir={run.cwd}", *argv]
