"""Private networks: a namespace with a wire to the host, one that outlives a run, and wires between two of them.

Owns: PrivateNetwork, and which ends of its wires a policy must be put on. Refuses: policies themselves (network/), pyroute2 (kernel/).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel import forks, netns_pool
from pytest_isolate.kernel.agreement import Agreement

if TYPE_CHECKING:
    from pytest_isolate.kernel.interfaces import Subnet
    from pytest_isolate.network import NetworkPolicy, PolicyEngine
    from pytest_isolate.network.places import Wires


class PrivateNetwork:
    """A private network that outlives one run: all of a Sandbox's runs with ``net="private"`` are in it together.

    ``subnet.host`` is where they reach this process, ``subnet.test`` where this process reaches them.
    """

    def __init__(self) -> None:
        self._maker = forks.here
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            self.netns_fd, self.subnet, self._ifindex = wired(undo)
            self._agreement = Agreement()
            undo.callback(self._agreement.close)
            self._undo = undo.pop_all()
        self._joined: list[tuple[PrivateNetwork, int]] = []  # whom we reach by a wire, and the index of its end
        self._begin()

    def _begin(self) -> None:
        """Nobody is under rules here yet, of those that this process starts."""
        self._owner = forks.here
        self._lock = threading.RLock()
        self._judged: tuple[PolicyEngine, NetworkPolicy, Wires] | None = None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._owner is not forks.here:  # forked: the engine is the parent's, and its thread may have held the lock
            self._begin()
        with self._lock:
            yield

    def join(self, other: Sandboxed) -> tuple[str, str]:
        """Put a wire between this network and another sandbox's: (our address, theirs), IPv4, on a subnet of its own.

        Frames are judged at the other's end by the rules of whoever sent them, as they are at the host's end.

        Raises:
            SetupError: the kernel refused it.
        """
        from pytest_isolate.kernel.interfaces import wire

        peer = other.network

        def judge_both(undo: contextlib.ExitStack, ours: int, theirs: int) -> None:
            self._reach(undo, peer, theirs)
            peer._reach(undo, self, ours)

        subnet = wire(self.netns_fd, peer.netns_fd, judge_both)
        ours, theirs = (ends[0].partition("/")[0] for ends in (subnet.host, subnet.test))
        return ours, theirs

    def _reach(self, undo: contextlib.ExitStack, peer: PrivateNetwork, ifindex: int) -> None:
        """A wire more leads out of here; who is under rules now is judged there from now on."""
        with self._locked():
            if self._judged is not None and self._judged[2].used:
                engine, _, wires = self._judged
                wires.add(engine.far_end(peer.netns_fd, ifindex))
            self._joined.append((peer, ifindex))
        undo.callback(self._lose, peer, ifindex)

    def _lose(self, peer: PrivateNetwork, ifindex: int) -> None:
        """There is no such wire."""
        with self._locked():
            self._joined.remove((peer, ifindex))
            if self._judged is not None:
                self._judged[2].remove(ifindex)

    @contextlib.contextmanager
    def judged(self, engine: PolicyEngine, policy: NetworkPolicy) -> Iterator[Wires]:
        """The wires for a program that is about to start under ``policy``; nobody else starts meanwhile.

        Raises:
            PolicyError: a program with other rules is on this network: of a frame nothing says whose it is.
        """
        with self._locked(), contextlib.ExitStack() as end:
            end.callback(self._left)
            if self._judged is None or not self._judged[2].used:
                if not self._agreement.enter(hash(policy), alone=bool(policy.hosts)):
                    raise _unlike("other rules hold, or host names are allowed,")
                ends = [(peer.netns_fd, ifindex) for peer, ifindex in self._joined if peer.netns_fd >= 0]
                self._judged = (engine, policy, engine.wires([(-1, self._ifindex), *ends], left=self._left))
            elif self._judged[1] != policy or policy.hosts:
                raise _unlike("host names are allowed" if self._judged[1] == policy else "other rules hold")
            yield self._judged[2]

    def _left(self) -> None:
        """Somebody may be under rules here no more; after the last of this process, other processes may have rules of theirs."""
        with self._locked():
            if self._judged is None or not self._judged[2].used:
                self._agreement.leave()

    @property
    def is_ours(self) -> bool:
        """False in a process that was forked from the one that made it."""
        return self._maker is forks.here

    def close(self) -> None:
        """Let it go; wires go with it. Idempotent. A forked child's copy stays: the network is its parent's."""
        if not self.is_ours:
            return
        self.netns_fd = -1
        self._joined.clear()
        self._undo.close()


def _unlike(what: str) -> PolicyError:
    why = f"{what} for a program that runs on this private network, and nothing tells their frames apart"
    return PolicyError("network policy", why, "run one after the other, or give each a Sandbox of its own")


class Sandboxed(Protocol):
    """What can be joined: a Sandbox."""

    @property
    def network(self) -> PrivateNetwork: ...


def namespace(undo: contextlib.ExitStack) -> int:
    """A network namespace that is ready, or a new one; ``lo`` is up."""
    netns_fd = netns_pool.POOL.take(loopback=True)
    if netns_fd < 0:
        netns_fd = netns_pool.make(loopback=True)
    undo.callback(os.close, netns_fd)
    return netns_fd


def wired(undo: contextlib.ExitStack) -> tuple[int, Subnet, int]:
    """A namespace with a wire to the host: (namespace, addresses, index of the host's end)."""
    from pytest_isolate.kernel.interfaces import private_network

    netns_fd = namespace(undo)
    subnet, index = private_network(undo, netns_fd)
    return netns_fd, subnet, index
