"""Where a policy can be put: a cgroup, or an interface. One interface for both.

Owns: which programs a policy needs at such a place, in which order they are attached, and where its maps' values lie.
Refuses: rules and their numbers.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from ctypes import sizeof
from typing import Protocol

from pytest_isolate.kernel import forks
from pytest_isolate.kernel.bpf import Dataplane, Links
from pytest_isolate.kernel.bpf.layout import Counters, Flag, Policy, unpack_counters
from pytest_isolate.kernel.bpf.libbpf import library
from pytest_isolate.kernel.interfaces import InterfacePrograms
from pytest_isolate.network.compile import Compiled

COUNTING = ("np_sockops", "np_egress", "np_ingress")
COUNTING_FLOWS = ("np_sockops", "np_flow_egress", "np_flow_ingress")
CALLS = ("np_connect4", "np_connect6", "np_sendmsg4", "np_sendmsg6", "np_sock_create")
BINDS = ("np_bind4", "np_bind6")
RESTORE = ("np_recvmsg4", "np_recvmsg6", "np_getpeername4", "np_getpeername6")

_FIRST = bytes(4)


class Place(Protocol):
    """Something a policy is in force on."""

    def start(self) -> None:
        """Make room for the policy and its counters; refuses nothing yet."""

    def store(self, policy: Policy) -> None:
        """Put the policy in force: one store."""

    def hook(self, compiled: Compiled, live: Flag) -> None:
        """Attach what this policy needs and is not attached."""

    def counters(self) -> dict[str, int]:
        """struct np_counters by name, summed over CPUs."""

    def fds(self) -> list[int]:
        """Descriptors a child must not keep."""

    def close(self) -> None:
        """Detach. Idempotent."""


class CgroupPlace:
    """A cgroup2 directory by its descriptor (borrowed): every process in it and below."""

    def __init__(self, plane: Dataplane, cgroup_fd: int) -> None:
        self._key = struct.pack(
            "=Q", os.fstat(cgroup_fd).st_ino
        )  # the cgroup's id. Source: bpf_get_current_cgroup_id, 4.18
        self._policies, self._counts, self._epoch = (plane.maps[n] for n in ("np_policies", "np_counts", "np_epoch"))
        self._links = Links(plane, cgroup_fd)

    def start(self) -> None:
        self._links.attach(("np_sockops",))

    def store(self, policy: Policy) -> None:
        self._policies.update(self._key, policy)
        raised = int.from_bytes(self._epoch.lookup(_FIRST) or b"", "little") + 1
        self._epoch.update(_FIRST, (raised & 0xFFFFFFFF or 1).to_bytes(4, "little"))

    def hook(self, compiled: Compiled, live: Flag) -> None:
        names: tuple[str, ...] = COUNTING_FLOWS if compiled.flags & Flag.FLOWS else COUNTING
        if not compiled.flags & Flag.COUNT_ONLY or live:
            names += CALLS + (BINDS if compiled.binds else ()) + (RESTORE if compiled.redirects else ())
        self._links.attach(names)

    def counters(self) -> dict[str, int]:
        return unpack_counters(self._counts.lookup_cpus(self._key, Counters))

    def fds(self) -> list[int]:
        return self._links.fds()

    def close(self) -> None:
        self._links.close()


class InterfacePlace:
    """The far end of a veth (the host's, mostly): every frame of the namespace at the other end, packet sockets and all."""

    def __init__(self, plane: Dataplane, programs: Dataplane, netns_fd: int, ifindex: int) -> None:
        self._plane, self._netns_fd, self.ifindex = programs, netns_fd, ifindex
        self._key = struct.pack("=I", ifindex)
        self._policies, self._counts = plane.maps["np_links"], plane.maps["np_link_counts"]
        self._programs: InterfacePrograms | None = None

    @property
    def kind(self) -> str:
        """``tcx`` or ``clsact``."""
        return self._programs.kind if self._programs else ""

    def start(self) -> None:
        self._counts.update(self._key, bytes(sizeof(Counters) * library().cpus))

    def store(self, policy: Policy) -> None:
        self._policies.update(self._key, policy)

    def hook(self, compiled: Compiled, live: Flag) -> None:
        self.attach()

    def attach(self) -> None:
        """Attach both programs, whatever the policy."""
        if self._programs is None:
            self._programs = InterfacePrograms(self._plane, self._netns_fd, self.ifindex)

    def counters(self) -> dict[str, int]:
        return unpack_counters(self._counts.lookup_cpus(self._key, Counters))

    def fds(self) -> list[int]:
        return self._programs.fds() if self._programs else []

    def close(self) -> None:
        if self._programs is not None:
            self._programs.close()
            self._programs = None
        self._policies.delete(self._key)
        self._counts.delete(self._key)


class Wires:
    """The far ends of all wires of one namespace, where its frames are judged: packet sockets evade its own ends.

    Programs that share the namespace share the wires, and nothing tells their frames apart: one policy is in force there, that
    of whoever came first, so whoever shares must bring an equal one. Refusals are counted for all of them. ``left`` is called
    after each has left.
    """

    def __init__(self, interfaces: Iterable[InterfacePlace], left: Callable[[], object]) -> None:
        self._interfaces = list(interfaces)
        self._left = left
        self._lock = forks.own_lock(self, "_lock")
        self._users: dict[int, Policy | None] = {}  # by id(), first comers first

    @property
    def used(self) -> bool:
        """True while a policy is in force."""
        return bool(self._users)

    def start(self, user: object) -> None:
        with self._lock:
            if not self._users:
                for interface in self._interfaces:
                    interface.start()
            self._users[id(user)] = None

    def store(self, user: object, policy: Policy) -> None:
        """Put it in force if ``user`` was first; else it waits for that one's end."""
        with self._lock:
            self._users[id(user)] = policy
            if next(iter(self._users)) == id(user):
                for interface in self._interfaces:
                    interface.store(policy)

    def hook(self, compiled: Compiled, live: Flag) -> None:
        with self._lock:
            for interface in self._interfaces:
                interface.hook(compiled, live)

    def add(self, interface: InterfacePlace) -> None:
        """One wire more, judged at once while a policy is in force."""
        with self._lock:
            policy = next((policy for policy in self._users.values() if policy is not None), None)
            if policy is not None:
                try:
                    interface.start()
                    interface.store(policy)
                    interface.attach()
                except BaseException:
                    interface.close()
                    raise
            self._interfaces.append(interface)

    def remove(self, ifindex: int) -> None:
        """That wire is no more."""
        with self._lock:
            for interface in [each for each in self._interfaces if each.ifindex == ifindex]:
                self._interfaces.remove(interface)
                interface.close()

    def counters(self) -> list[dict[str, int]]:
        with self._lock:
            return [interface.counters() for interface in self._interfaces] if self._users else []

    def fds(self) -> list[int]:
        return [fd for interface in self._interfaces for fd in interface.fds()]

    def close(self, user: object) -> None:
        """``user`` leaves: the next one's policy takes its place, after the last there is none. Idempotent."""
        with self._lock:
            if id(user) not in self._users:
                return
            first = next(iter(self._users)) == id(user)
            del self._users[id(user)]
            if not self._users:
                for interface in self._interfaces:
                    interface.close()
            elif first and (policy := next(iter(self._users.values()))) is not None:
                for interface in self._interfaces:
                    interface.store(policy)
        self._left()


class WiredPlace:
    """A cgroup, and the wires of its network: what leaves without a socket of the cgroup is judged there.

    Counts are the cgroup's; of the wires' only what was denied, which the cgroup never saw.
    """

    def __init__(self, cgroup: Place, wires: Wires) -> None:
        self._cgroup, self._wires = cgroup, wires

    def start(self) -> None:
        self._wires.start(self)
        self._cgroup.start()

    def store(self, policy: Policy) -> None:
        self._wires.store(self, policy)
        self._cgroup.store(policy)

    def hook(self, compiled: Compiled, live: Flag) -> None:
        self._wires.hook(compiled, live)
        self._cgroup.hook(compiled, live)

    def counters(self) -> dict[str, int]:
        found = self._cgroup.counters()
        for wire in self._wires.counters():
            for name in ("denied_out", "denied_in", "events_lost"):
                found[name] += wire[name]
        return found

    def fds(self) -> list[int]:
        return self._cgroup.fds() + self._wires.fds()

    def close(self) -> None:
        self._wires.close(self)
        self._cgroup.close()
