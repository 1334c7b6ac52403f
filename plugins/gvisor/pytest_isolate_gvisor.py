"""The backend `gvisor`: programs under runsc, a kernel in user space. Their system calls do not reach the host's kernel.

Owns: the platform (found by trying: kvm, systrap, ptrace) and the command line of runsc. Refuses: test functions and
fresh interpreters, for runsc passes no descriptors but the standard three. The network is always gVisor's own, with 127.0.0.1
and nothing else, also where the policy would leave the host's.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence

import pluggy

from pytest_isolate.capability import Capability
from pytest_isolate.oci import bundle, runtime_fault
from pytest_isolate.policy import Policy
from pytest_isolate.tool import Exited, Run, ToolBackend

hookimpl = pluggy.HookimplMarker("pytest")
#: Fastest first. Debian's runsc of 2022 knows no systrap, and its kvm does not start on a kernel of today.
PLATFORMS = ("systrap", "kvm", "ptrace")


@hookimpl
def pytest_isolate_backends() -> list[ToolBackend]:
    return [Gvisor()]


class Gvisor(ToolBackend):
    """See the module."""

    name = "gvisor"
    quality = 40
    tool = "runsc"
    install = "Install it: apt-get install runsc, or see https://gvisor.dev/docs/user_guide/install"
    sets_rlimits = True
    enforces = frozenset(
        {
            Capability.NAMESPACE_PID,
            Capability.NAMESPACE_UTS,
            Capability.NAMESPACE_CGROUP,
            Capability.NAMESPACE_IPC,
            Capability.NAMESPACE_MNT,
            Capability.NAMESPACE_NET,
            Capability.HOSTNAME,
            Capability.ROOT_READONLY,
            Capability.ROOT_MINIMAL,
            Capability.BINDS,
            Capability.TMPFS,
            Capability.MASKS,
            Capability.FRESH_PROC,
            Capability.NETWORK_LOOPBACK,
            Capability.CAPABILITIES,
            Capability.NO_NEW_PRIVS,
        }
    )

    #: What never leaves gVisor's own network meets no rule of the host's; its kernel starts with a umask of its own.
    undoes = frozenset({Capability.NETWORK_RULES, Capability.UMASK})

    def __init__(self) -> None:
        self.platform = ""
        self._refused: list[str] = []

    def lacks_more(self, policy: Policy) -> list[str]:
        if os.geteuid() != 0:
            return ["sandboxes of a plain user: runsc run makes none. Run as root"]
        if not self.platform and not self._refused:
            self._choose_platform()
        return [] if self.platform else [f"a platform: {'; '.join(self._refused)}"]

    def _choose_platform(self) -> None:
        """The first with which a program that leaves at once does so."""
        for platform in PLATFORMS:
            trial = [self.path, f"--platform={platform}", "--network=none", "--ignore-cgroups", "do", "true"]
            try:
                done = subprocess.run(trial, capture_output=True, text=True, timeout=5)
            except subprocess.TimeoutExpired:
                self._refused.append(f"{platform} hangs")
                continue
            if done.returncode == 0:
                self.platform = platform
                return
            said = re.sub(r"\s+", " ", done.stderr.strip().partition("\n")[0])[:120]
            self._refused.append(f"{platform}: {said or done.returncode}")

    def command(self, policy: Policy, argv: Sequence[str], run: Run) -> list[str]:
        directory = bundle(policy, argv, run, own_kernel=True)
        how = (f"--platform={self.platform}", "--network=none", "--ignore-cgroups", "--file-access=shared")
        log = ("--log", os.path.join(directory, "log"), "--log-format", "json")
        where = ("--bundle", directory, os.path.basename(directory))
        return ["--root", os.path.join(directory, "state"), *how, *log, "run", *where]

    def fault(self, exited: Exited, run: Run) -> str:
        """runsc ends with 128 where it could not start the program, and says why in its log."""
        return runtime_fault(run) if exited.status.code == 128 else ""
