"""What every start of a sandbox's process shares, of a program and of a test: what it joins, what it will see, why it did not fit.

Owns: these three answers. Refuses: to enter guards and to start anything (sandbox.py, runner/workers.py).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_isolate.backend import Backend
from pytest_isolate.errors import PolicyError, SetupError
from pytest_isolate.kernel.native import Joined
from pytest_isolate.policy import UNLIMITED, Limits, Policy
from pytest_isolate.units import MAX_BYTES, format_bytes

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import Cgroup
    from pytest_isolate.kernel.filesystem import MountPlan
    from pytest_isolate.sandbox_network import SandboxNetwork


@contextlib.contextmanager
def no_room_said(limits: Limits) -> Iterator[None]:
    """A start that ran out of memory, processes, descriptors or stack under a limit of the user's is the user's to change.

    Raises:
        PolicyError: instead of a SetupError, when it names what such a limit refuses.
    """
    try:
        yield
    except SetupError as error:
        if (instead := _no_room(error, limits)) is not None:
            raise instead from error
        raise


def _no_room(error: SetupError, limits: Limits) -> PolicyError | None:
    if error.errno == errno.ENOMEM and limits.memory_bytes:
        asked = f"memory limit of {format_bytes(limits.memory_bytes)}"
        return PolicyError(asked, f"the sandbox itself does not fit into it ({error})", "raise it")
    if error.errno == errno.EAGAIN and limits.pids:
        return PolicyError(f"limit of {limits.pids} processes", f"the sandbox itself needs more ({error})", "raise it")
    for name, most in _REFUSES.get(error.errno or 0, {}).items() if error.step in _AFTER_RLIMITS else ():
        soft, _ = limits.rlimits.get(name, (UNLIMITED, UNLIMITED))
        if UNLIMITED < soft <= most and (error.errno != errno.EBADF or soft <= error.index):
            return PolicyError(f"rlimit {name} of {soft}", f"the program does not start under it ({error})", "raise it")
    return None


#: The steps that the child takes when its rlimits are set, and that they can refuse.
_AFTER_RLIMITS = ("stdio", "fds", "exec")
#: errno of such a refusal -> the rlimits that it is sure to come from, up to so much. Source: getrlimit(2); dup2(2), where the
#: new number (the step's index) is beyond NOFILE, else the caller's is bad; execve(2): strings up to 128 KiB each, all in a
#: quarter of the stack; the first pages of an image.
_REFUSES = {
    errno.EBADF: {"NOFILE": 2},
    errno.EMFILE: {"NOFILE": MAX_BYTES},
    errno.E2BIG: {"STACK": 4 * 128 << 10},
    errno.ENOMEM: {"AS": 1 << 20, "DATA": 1 << 20},
    errno.EAGAIN: {"NPROC": MAX_BYTES},
}


def view_of(backend: Backend, policy: Policy) -> MountPlan | None:
    """What paths mean inside; None where they mean what they mean here, or the backend does not tell."""
    ask = getattr(backend, "view", None)
    view: MountPlan | None = None if ask is None else ask(policy)
    return view


def joined(
    cgroup: Cgroup | None, network: SandboxNetwork | None = None, keep_fds: tuple[int, ...] = ()
) -> Joined | None:
    """The descriptors through which a child starts in the group and in its network; ``keep_fds`` it has open then."""
    netns_fd = -1 if network is None else network.netns_fd
    if cgroup is None:
        return Joined(netns_fd=netns_fd, keep_fds=keep_fds) if netns_fd >= 0 or keep_fds else None
    return Joined(cgroup.dir_fd, cgroup.procs_fds, netns_fd, keep_fds)
