"""Where a policy can be put: a cgroup, or an interface. One interface for both.

Owns: which programs a policy needs at such a place, in which order they are attached, and where its maps' values lie.
Refuses: rules and their numbers.
"""

from __future__ import annotations

import os
import struct
from ctypes import sizeof
from typing import Protocol

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
    """The host end of a veth: every frame of the namespace at the other end, packet sockets and all."""

    def __init__(self, plane: Dataplane, programs: Dataplane, netns_fd: int, ifindex: int) -> None:
        self._plane, self._netns_fd, self._ifindex = programs, netns_fd, ifindex
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
        if self._programs is None:
            self._programs = InterfacePrograms(self._plane, self._netns_fd, self._ifindex)

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


class WiredPlace:
    """A cgroup, and the host's end of its only wire: what leaves without a socket of the cgroup is judged there.

    Counts are the cgroup's; of the wire's only what was denied, which the cgroup never saw.
    """

    def __init__(self, cgroup: Place, interface: InterfacePlace) -> None:
        self._cgroup, self._interface = cgroup, interface

    def start(self) -> None:
        self._interface.start()
        self._cgroup.start()

    def store(self, policy: Policy) -> None:
        self._interface.store(policy)
        self._cgroup.store(policy)

    def hook(self, compiled: Compiled, live: Flag) -> None:
        self._interface.hook(compiled, live)
        self._cgroup.hook(compiled, live)

    def counters(self) -> dict[str, int]:
        found, wire = self._cgroup.counters(), self._interface.counters()
        for name in ("denied_out", "denied_in", "events_lost"):
            found[name] += wire[name]
        return found

    def fds(self) -> list[int]:
        return self._cgroup.fds() + self._interface.fds()

    def close(self) -> None:
        self._interface.close()
        self._cgroup.close()
