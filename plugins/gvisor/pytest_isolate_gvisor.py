"""The backend `gvisor`: programs under runsc, a kernel in user space. Their system calls do not reach the host's kernel.

Owns: the platform (found by trying: kvm, systrap, ptrace) and the command line of runsc. Refuses: test functions of a warm
fork. The network is always gVisor's own, with 127.0.0.1 and nothing else, also where the policy would leave the host's.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence

import pluggy

from pytest_isolate.capability import CONTAINER, Capability
from pytest_isolate.oci import bundle, runtime_fault
from pytest_isolate.policy import Filesystem, Policy
from pytest_isolate.tool import Exited, Run, ToolBackend

hookimpl = pluggy.HookimplMarker("pytest")
#: Fastest first. Debian's runsc of 2022 knows no systrap, and its kvm does not start on a kernel of today.
PLATFORMS = ("systrap", "kvm", "ptrace")
#: What a platform is tried with.
LEAST = Policy(filesystem=Filesystem(proc=False))
#: What a platform may take to run a program that leaves at once.
TRIAL_S = 5.0


@hookimpl
def pytest_isolate_backends() -> list[ToolBackend]:
    return [Gvisor()]


def _words(platform: str, policy: Policy, argv: Sequence[str], run: Run) -> list[str]:
    """The arguments of runsc."""
    directory = bundle(policy, argv, run, own_kernel=True)
    how = (f"--platform={platform}", "--network=none", "--ignore-cgroups", "--file-access=shared")
    log = ("--log", os.path.join(directory, "log"), "--log-format", "json")
    where = ("--bundle", directory, os.path.basename(directory))
    return ["--root", os.path.join(directory, "state"), *how, *log, "run", *where]


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """Of runsc itself. Over the temporary directory it mounts its root, as user nobody, who does not get everywhere: /tmp will do."""
    return {name: value for name, value in env.items() if name != "TMPDIR"}


class _Trial:
    """A program that leaves at once, under one platform. ``close`` ends it."""

    def __init__(self, runsc: str, platform: str) -> None:
        self.platform = platform
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by close()
        self._run = Run(os.environ, "/")
        self._process = subprocess.Popen(
            [runsc, *_words(platform, LEAST, ["true"], self._run)],
            stdin=self._said,  # not the machine's /dev/null, see owns_stdio
            stdout=self._said,
            stderr=self._said,
            start_new_session=True,
            env=_environment(os.environ),
        )

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def works(self) -> bool:
        return self._process.poll() == 0

    def refusal(self) -> str:
        if self.runs:
            return f"{self.platform} hangs"
        self._said.seek(0)
        said = re.sub(r"\s+", " ", runtime_fault(self._run) or self._said.read().strip().partition("\n")[0])[:120]
        return f"{self.platform}: {said or self._process.returncode}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()
        self._run.undo.close()


class Gvisor(ToolBackend):
    """See the module."""

    name = "gvisor"
    quality = 40
    tool = "runsc"
    install = "Install it: apt-get install runsc, or see https://gvisor.dev/docs/user_guide/install"
    sets_rlimits = True
    opaque = True
    #: It gives them to nobody, as whom the sandbox runs. Source: createSandboxProcess(), runsc/sandbox/sandbox.go.
    owns_stdio = True
    enforces = CONTAINER
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
        """The fastest with which a program that leaves at once does so. All are tried at the same time, for some hang."""
        trials = [_Trial(self.path, platform) for platform in PLATFORMS]
        began = time.monotonic()
        give_up = began + TRIAL_S
        try:
            while time.monotonic() < give_up and any(trial.runs for trial in trials):
                if any(trial.works for trial in trials):  # a faster one has as long again, and a little
                    give_up = min(give_up, 2 * time.monotonic() - began + 0.5)
                    if next(trial for trial in trials if trial.runs or trial.works).works:
                        break
                time.sleep(0.01)
            self.platform = next((trial.platform for trial in trials if trial.works), "")
            self._refused = [] if self.platform else [trial.refusal() for trial in trials]
        finally:
            for trial in trials:
                trial.close()

    def command(self, policy: Policy, argv: Sequence[str], run: Run) -> list[str]:
        return _words(self.platform, policy, argv, run)

    def environment(self, env: Mapping[str, str] | None) -> Mapping[str, str]:
        return _environment(os.environ if env is None else env)

    def fault(self, exited: Exited, run: Run) -> str:
        """runsc ends with 128 where it could not start the program, and says why in its log."""
        return runtime_fault(run) if exited.status.code == 128 else ""
