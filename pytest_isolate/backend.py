"""The extension contract's values: what a backend is, and what it gives back.

Owns: the protocols Backend and Process, and Launch. Refuses: to choose (registry.py) or to start anything itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pytest_isolate.outcome import Leftover
from pytest_isolate.policy import Policy

if TYPE_CHECKING:
    from pytest_isolate.kernel.native import Exited, Joined

#: What a backend can start: programs, test functions (a fork of this very interpreter), and fresh interpreters: programs
#: whose standard input is the writing end of a pipe.
Kind = Literal["programs", "tests", "fresh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One start of a sandbox, as the hooks see it.

    ``args``: program and arguments, or for a test function its node id. ``item``: the pytest.Item that is run, or that
    is known to have asked for the program; None else. Where a child serves a class or a module, its first test.
    """

    name: str
    kind: Kind
    args: tuple[str, ...]
    policy: Policy
    backend: str
    item: Any = None


@runtime_checkable
class Process(Protocol):
    """A process that was started under a policy. Owns its file descriptors; ``close`` may be called twice.

    ``pid`` is the host's number of the program or test; ``pidfd`` becomes readable when it ends.
    """

    @property
    def pid(self) -> int: ...
    @property
    def pidfd(self) -> int: ...
    def wait(self, timeout_s: float | None = None) -> Exited | None:
        """Return how it ended, or None when it still runs after ``timeout_s`` (None: wait for ever)."""

    def signal(self, signum: int) -> None:
        """Send a signal to the program alone; one that has ended is no error."""

    def kill(self) -> None:
        """SIGKILL the whole tree, as far as the backend can see it."""

    def leftovers(self) -> list[Leftover]:
        """What else still lives in the sandbox."""

    def reap(self, block: bool) -> bool:
        """Collect what has ended; True when nothing is left to collect."""

    def close(self) -> None:
        """Close every descriptor, and remove what was made for it; in a process that was forked from its owner's, only the former."""


class Backend(Protocol):
    """A way to start processes under a policy.

    ``quality`` orders backends that enforce the same: the native one has 100, fork 10. ``runs``: what it can start; the
    method of a kind that is not in it is never called.

    Optional: ``profile``, the profile where such backends alone are named and no profile is chosen; ``adds(policy)``, what holds
    besides the policy, in words for the header; ``hides_processes(policy)``, True when nobody outside sees what is inside;
    ``view(policy)``, the mounts that a program will find, None where they are the host's; ``relays_output``, True when what
    a program writes goes through pipes of the backend's own: where its two streams are one file, their order is not kept, and
    what it is given as standard input it can only read.
    """

    name: str
    quality: int
    runs: frozenset[Kind]

    def lacks(self, policy: Policy) -> list[str]:
        """What of ``policy`` it cannot enforce on this host, each as ``what: why. remedy``; empty when it can."""

    def fork(self, policy: Policy, joined: Joined | None = None) -> Process | None:
        """Fork the calling interpreter into a sandbox; None in the child, which ends here where it cannot be made ready.

        Raises:
            SetupError: the sandbox could not be made; names step and errno.
        """

    def spawn(
        self,
        policy: Policy,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        joined: Joined | None = None,
        stdin_fd: int = -1,
        stdout_fd: int = -1,
        stderr_fd: int = -1,
    ) -> Process:
        """Start a program in a sandbox. A descriptor of -1 is inherited.

        Raises:
            SetupError: the sandbox could not be made or the program not executed; names step and errno.
        """
