"""How a forked child of a test joins a cgroup that exists already; the product starts its children inside."""

from __future__ import annotations

import os

from pytest_isolate.kernel.cgroups import Cgroup


def join(cgroup: Cgroup) -> None:
    """Move this process there, in every hierarchy."""
    if cgroup.dir_fd >= 0:
        procs_fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup.dir_fd)
        os.write(procs_fd, b"0")
        os.close(procs_fd)
    for fd in cgroup.procs_fds:
        os.write(fd, b"0")
