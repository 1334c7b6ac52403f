"""The policy engine: one per run. Loads the data plane once, attaches a policy to each test's cgroup.

Owns: the data plane, the ring, the resident attachment, the numbers of attachments.
Refuses: to make or remove the tests' cgroups (the caller's), to wire interfaces (kernel/interfaces.py), pytest.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pytest_isolate.errors import BackendUnavailable, PolicyError
from pytest_isolate.kernel import forks
from pytest_isolate.kernel.bpf import Dataplane, Links, Ring, layout, load, objects
from pytest_isolate.kernel.bpf.layout import BUDGETS, RING_BYTES
from pytest_isolate.kernel.keeping import keep
from pytest_isolate.network.attached import AttachedPolicy
from pytest_isolate.network.places import (
    BINDS,
    CALLS,
    COUNTING,
    RESTORE,
    CgroupPlace,
    InterfacePlace,
    Place,
    WiredPlace,
    Wires,
)
from pytest_isolate.network.rules import COUNT_ONLY, NetworkPolicy
from pytest_isolate.network.rulesets import Rulesets

if TYPE_CHECKING:
    from typing_extensions import Self

#: Loads programs and answers a Dataplane: `kernel.bpf.load`, or `kernel.bcc.load`.
Loader = Callable[..., Dataplane]

_RESIDENT = "pytest-isolate-resident"
_engines = itertools.count(1)


class PolicyEngine:
    """Enter once per run; then ``attach`` per test. A forked child reads its counts, and changes nothing of it.

    Args:
        home: a directory of the cgroup2 hierarchy the engine may make one empty cgroup in. A program of each type
            stays attached there, because the first attachment in the system patches kernel text (41 us, then 5).
        loader: the front end, libbpf by default.
        flows: size of the flow table; 0 for none (a policy with ``flows=True`` is then an error).
    """

    def __init__(self, home: str | os.PathLike[str], *, loader: Loader = load, flows: int = 0) -> None:
        self._home = Path(home)
        self._loader = loader
        self._flows = flows
        self._interfaces: Dataplane | None = None
        self._stack = contextlib.ExitStack()
        self._lock = forks.own_lock(self, "_lock")
        self._owner: object = None
        self._attached: dict[int, AttachedPolicy] = {}
        self._ids = itertools.count(1)
        self._budgets = list(range(BUDGETS - 1, 0, -1))
        self.plane: Dataplane
        self.rulesets: Rulesets

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.plane = stack.enter_context(self._load())
            self._ring = Ring(self.plane.maps["np_events"].fd, RING_BYTES)
            stack.callback(self._ring.close)
            self.rulesets = Rulesets(self.plane)
            self._reside(stack)
            self._stack = stack.pop_all()
        self._owner = forks.here
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.ours:  # a child that was forked by others, and leaves as its parent does
            self.close_in_child()
            return
        for attached in tuple(self._attached.values()):
            attached.close()
        self._stack.close()

    def _load(self) -> Dataplane:
        specs = dict(objects.PROGRAMS)
        if self._flows:
            specs.update(objects.FLOW_PROGRAMS)
        return self._loader(specs, sizes={"np_flows4": self._flows or 1, "np_flows6": self._flows or 1})

    def _reside(self, stack: contextlib.ExitStack) -> None:
        """Calls on a stack and no generator: that would run to its end in every forked child which collects garbage."""
        path = self._home / f"{_RESIDENT}-{os.getpid()}-{next(_engines)}"
        path.mkdir()
        stack.callback(path.rmdir)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, fd)
        self._links = stack.enter_context(Links(self.plane, fd))
        self._links.attach(COUNTING + CALLS + BINDS + RESTORE)

    # -- for the runner --------------------------------------------------------------------------------------------

    @property
    def ours(self) -> bool:
        """False in a forked child, where everything is its parent's."""
        return self._owner is forks.here

    def check_ours(self) -> None:
        """Raises PolicyError in a forked child."""
        if not self.ours:
            raise PolicyError("network policy", "it belongs to the process this one was forked off", "change it there")

    @property
    def front_end(self) -> str:
        """``libbpf`` or ``bcc``: for the header line."""
        return self.plane.front_end

    def attach(
        self,
        cgroup_fd: int,
        policy: NetworkPolicy = COUNT_ONLY,
        *,
        netns_fd: int = -1,
        wires: Wires | None = None,
    ) -> AttachedPolicy:
        """Put ``policy`` on the cgroup2 directory ``cgroup_fd`` (borrowed until close).

        ``netns_fd``: the network namespace of the test, where a resolver for host names must listen (-1: ours).
        ``wires``: those of its network, where frames that no socket sent are refused.

        Raises:
            PolicyError: it does not fit the maps, or asks for flows this engine has no table for; or we are a forked child.
            OSError: the kernel refused the attachment.
        """
        place: Place = CgroupPlace(self.plane, cgroup_fd)
        if wires is not None:
            place = WiredPlace(place, wires)
        return self._attach(place, policy, netns_fd)

    def attach_interface(self, netns_fd: int, ifindex: int, policy: NetworkPolicy = COUNT_ONLY) -> AttachedPolicy:
        """Put ``policy`` on the host end of a veth (in namespace ``netns_fd``, -1: ours): for what packet sockets evade.

        Judged without state, so an answer passes where ``inbound`` allows; limits and flows are the cgroup's business.
        """
        return self._attach(self.far_end(netns_fd, ifindex), policy, -1)

    def wires(self, ends: Iterable[tuple[int, int]], left: Callable[[], object] = lambda: None) -> Wires:
        """The far ends of a network's wires, each (namespace or -1, index), for ``attach``. ``left``: see Wires."""
        return Wires((self.far_end(*end) for end in ends), left)

    @property
    def interfaces(self) -> Dataplane:
        """The programs for interfaces: loaded when first asked for, and sharing the maps of ``plane``."""
        if self._interfaces is None:
            self._interfaces = self._stack.enter_context(self._loader(objects.LINK_PROGRAMS, maps=self.plane.maps))
        return self._interfaces

    def far_end(self, netns_fd: int, ifindex: int) -> InterfacePlace:
        """One end of a wire, for ``Wires.add``."""
        return InterfacePlace(self.plane, self.interfaces, netns_fd, ifindex)

    def _attach(self, place: Place, policy: NetworkPolicy, netns_fd: int) -> AttachedPolicy:
        self.check_ours()
        if policy.flows and not self._flows:
            raise PolicyError(
                "flows", "this engine was made without a flow table", "make it with PolicyEngine(..., flows=4096)"
            )
        if policy.errno != 1 and not self.plane.can_set_errno:
            raise BackendUnavailable(
                "network policy errno", "this kernel can only answer EPERM", "leave errno at EPERM, or use Linux 5.18"
            )
        attached = AttachedPolicy(self, place, next(self._ids), netns_fd)
        self._attached[attached.id] = attached
        try:
            attached.start(policy)
        except BaseException:
            attached.close()
            raise
        return attached

    def fileno(self) -> int:
        """Readable when there are events: for the run's poll loop, which then calls ``drain``."""
        return self._ring.fd

    def drain(self) -> None:
        """Take what is in the ring to the attachments it belongs to. Cheap when there is nothing; nothing in a forked child."""
        with self._lock:
            for record in self._ring.drain():
                raw = layout.Event.from_buffer_copy(record)
                attached = self._attached.get(raw.id)
                if attached is not None:
                    attached.take(raw)

    def memory_bytes(self) -> int:
        """True memory of the maps (memlock)."""
        return self.plane.memory_bytes()

    def fds(self) -> list[int]:
        """Every descriptor of ours: a child that keeps one could change its own policy."""
        fds = self.plane.fds() + self._links.fds()
        if self._interfaces is not None:
            fds += self._interfaces.fds()
        for attached in self._attached.values():
            fds += attached.fds()
        return fds

    def close_in_child(self) -> None:
        """Call in a forked child before anything untrusted: gives up every descriptor without detaching anything."""
        for fd in self.fds():
            with contextlib.suppress(OSError):
                os.close(fd)
        keep(self)

    # -- for AttachedPolicy ----------------------------------------------------------------------------------------

    @property
    def lock(self) -> threading.RLock:
        """Held while numbers are given out and events taken in: resolvers, and whoever runs programs, have threads of their own."""
        return self._lock

    def take_budget(self) -> int:
        if not self._budgets:
            raise PolicyError(
                "network limits", f"more than {BUDGETS - 1} sandboxes with limits at once", "run fewer at once"
            )
        return self._budgets.pop()

    def forget(self, attached: AttachedPolicy, budget: int) -> None:
        """An attachment ended; its budget slot (0: none) is free."""
        self._attached.pop(attached.id, None)
        if budget:
            self._budgets.append(budget)
