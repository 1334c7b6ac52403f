"""Control groups by their files, v1 and v2, for the checks: where a group may be made, its files, its end.

Owns: finding this process's place, making a group below it, killing and removing it.
Refuses: to be clever: a file that is not there is Refused by name, a write that fails is the kernel's own errno.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .telling import Refused

MOUNT = "/sys/fs/cgroup"
V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "cpuset", "blkio", "freezer", "hugetlb")

#: File, frozen, thawed. A v1 group dies only when thawed.
_FREEZERS = (("cgroup.freeze", "1", "0"), ("freezer.state", "FROZEN", "THAWED"))


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def write(path: str, value: object) -> None:
    """Write to a kernel file that must exist: creating one in a cgroup directory answers EACCES, which misleads."""
    try:
        fd = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        raise Refused(f"no {os.path.basename(path)}") from None
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def fields(path: str) -> dict[str, int]:
    """A flat keyed file, such as memory.events or cpu.stat. Source: Documentation/admin-guide/cgroup-v2.rst."""
    return {line.split()[0]: int(line.split()[1]) for line in read(path).splitlines()}


@dataclass(frozen=True)
class Layout:
    """What hierarchies there are: ``v1`` maps controller to this process's directory; ``v2`` is its directory or None."""

    v1: dict[str, str]
    v2: str | None
    v2_controllers: frozenset[str]

    @classmethod
    def find(cls) -> Layout:
        """Read /proc/self/cgroup; on v2, take this process off the directory where groups will be made."""
        mounts = [line.split() for line in read("/proc/self/mounts").splitlines()]
        v2_mount = next((m[1] for m in mounts if m[2] == "cgroup2"), None)
        v1, v2 = {}, None
        for line in read("/proc/self/cgroup").splitlines():
            number, names, path = line.split(":", 2)
            if number == "0" and v2_mount:
                v2 = f"{v2_mount}{path}".rstrip("/")
            for name in filter(None, names.split(",")):
                if name in V1_CONTROLLERS:
                    v1[name] = f"{MOUNT}/{name}{path}".rstrip("/")
        return cls(v1, v2, _enable_all(v2) if v2 else frozenset())

    def describe(self) -> str:
        release = os.uname().release
        v2 = f"v2 at {self.v2} with {' '.join(sorted(self.v2_controllers)) or 'no controller'}" if self.v2 else "no v2"
        return f"Linux {release}, uid {os.getuid()}, {v2}, v1: {' '.join(sorted(self.v1)) or 'none'}"

    @contextlib.contextmanager
    def group(self, controller: str) -> Iterator[Group]:
        """A new group under ``controller`` (``any``: no controller needed), killed and removed at the end."""
        if controller in self.v1:
            group = Group(f"{self.v1[controller]}/check{os.getpid()}", 1)
        elif self.v2 and (controller == "any" or controller in self.v2_controllers):
            group = Group(f"{self.v2}/check{os.getpid()}", 2)
        else:
            raise Refused(f"controller {controller} is not here" if controller != "any" else "no v2 hierarchy")
        os.mkdir(group.path)
        try:
            yield group
        finally:
            group.remove()


@dataclass(frozen=True)
class Group:
    """One directory of a hierarchy of the given ``version``."""

    path: str
    version: int

    def file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def set(self, name: str, value: object) -> None:
        write(self.file(name), value)

    def has(self, name: str) -> bool:
        return os.path.exists(self.file(name))

    def pids(self) -> list[int]:
        return [int(word) for word in read(self.file("cgroup.procs")).split()]

    def kill(self) -> str:
        """SIGKILL all, and wait until none is left; says how: cgroup.kill (Linux 5.14, v2), or frozen so none escapes."""
        if self.has("cgroup.kill"):
            self.set("cgroup.kill", 1)
            self._wait_empty(lambda: None)
            return "cgroup.kill"
        freezer = next((known for known in _FREEZERS if self.has(known[0])), None)
        self._wait_empty(lambda: self._signal_all(freezer))
        return "freezer and SIGKILL" if freezer else "SIGKILL one by one"

    def remove(self) -> None:
        self.kill()
        for _ in range(500):
            if self._gone():
                return
            time.sleep(0.02)
        raise TimeoutError(f"{self.path} stays busy with {self.pids()}")

    def _gone(self) -> bool:
        """Try to remove; False while the dying are still accounted here."""
        try:
            os.rmdir(self.path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def _signal_all(self, freezer: tuple[str, str, str] | None) -> None:
        if freezer:
            self.set(freezer[0], freezer[1])
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if freezer:
            self.set(freezer[0], freezer[2])

    def _wait_empty(self, nudge: Callable[[], None]) -> None:
        deadline = time.monotonic() + 20
        while self.pids():
            nudge()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.path} still holds {self.pids()}")
            time.sleep(0.005)


def _enable_all(directory: str) -> frozenset[str]:
    """Make every controller at ``directory`` available to its children; returns those that are.

    v2 allows no process beside children with controllers, the root group excepted: we step aside into a leaf first.
    """
    available = frozenset(read(f"{directory}/cgroup.controllers").split())
    try:
        if os.path.exists(f"{directory}/cgroup.type"):  # the root group has none
            os.makedirs(f"{directory}/checker", exist_ok=True)
            for pid in read(f"{directory}/cgroup.procs").split():
                write(f"{directory}/checker/cgroup.procs", pid)
        for name in available:
            write(f"{directory}/cgroup.subtree_control", f"+{name}")
    except OSError:
        pass  # not ours to change: making a group will say so, check by check
    return frozenset(read(f"{directory}/cgroup.subtree_control").split()) or available
