"""Interfaces, addresses and namespaces for sandboxes, with pyroute2.

Owns: network namespaces held by a descriptor (no name in /run/netns, so nothing is left by kill -9), lo, veth pairs, and
the eBPF programs at a veth's host end (tcx, or clsact before 6.6).
Refuses: NAT and the host's own interfaces. A veth dies with the namespace of either end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import itertools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_isolate.errors import BackendUnavailable, SetupError
from pytest_isolate.kernel import netns_pool
from pytest_isolate.kernel.namespaces import CLONE_NEWNET, setns
from pytest_isolate.kernel.veth import add_pair

if TYPE_CHECKING:
    from typing_extensions import Self

    from pytest_isolate.kernel.bpf.dataplane import Dataplane

_T = TypeVar("_T")


def _in_thread(work: Callable[[], _T]) -> _T:
    """Run ``work`` in a thread of its own: what it does to its namespaces ends with it."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append((True, work()))
        except BaseException as error:
            box.append((False, error))

    thread = threading.Thread(target=run, name="pytest-isolate-netns")
    thread.start()
    thread.join()
    good, value = box[0]
    if not good:
        raise value
    return value  # type: ignore[no-any-return]


def _route() -> Any:
    """A netlink socket in this thread's namespace."""
    try:
        from pyroute2 import IPRoute
    except ImportError:
        raise BackendUnavailable(
            "network namespaces", "pyroute2 is not installed", "pip install pytest-isolate[net]"
        ) from None
    return IPRoute()


class Netns:
    """A network namespace of our own, alive while its descriptor is open. A context manager."""

    def __init__(self) -> None:
        self.fd = netns_pool.make(loopback=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let it go; interfaces in it go too. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def inside(netns_fd: int, work: Callable[[Any], _T]) -> _T:
    """``work(route)`` with a netlink socket of that namespace (-1: ours). Errors are SetupErrors of step ``interfaces``."""

    def run() -> _T:
        if netns_fd >= 0:
            setns(netns_fd, CLONE_NEWNET)
        with _route() as route:
            return work(route)

    try:
        return _in_thread(run)
    except Exception as error:
        code = getattr(error, "code", 0) or getattr(error, "errno", 0) or 0
        if isinstance(error, (SetupError, BackendUnavailable)) or not code:
            raise
        raise SetupError("interfaces", code, detail=str(error)) from error


def index_of(route: Any, name: str) -> int:
    """The index of an interface by name."""
    found = route.link_lookup(ifname=name)
    if not found:
        raise SetupError("interfaces", 19, detail=name)
    return int(found[0])


def loopback_up(netns_fd: int, addresses: tuple[str, ...] = ()) -> None:
    """Bring lo up there; ``addresses`` (``203.0.113.7/32``, ``2001:db8::1/128``) are added to it."""

    def work(route: Any) -> None:
        lo = index_of(route, "lo")
        route.link("set", index=lo, state="up")
        for text in addresses:
            _add_address(route, lo, text)

    inside(netns_fd, work)


def _add_address(route: Any, index: int, text: str) -> None:
    interface = ipaddress.ip_interface(text)
    extra = {"flags": 0x02} if interface.version == 6 else {}  # IFA_F_NODAD: usable at once
    route.addr("add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen, **extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a veth: which namespace (-1: ours), its name there, its addresses."""

    netns_fd: int
    name: str
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()


def veth(a: End, b: End, *, mtu: int = 1500) -> tuple[int, int]:
    """Make a pair with its ends in two namespaces, up and addressed; the two interface indices.

    The kernel creates it in one message, so a clash of names leaves nothing behind.
    """
    _add_pair(a, b, mtu, 0, 0)
    return _bring_up(a), _bring_up(b)


def _add_pair(a: End, b: End, mtu: int, index: int, peer_index: int) -> None:
    inside(
        a.netns_fd,
        lambda _route: add_pair(a.name, index, b.name, peer_index, peer_netns_fd=b.netns_fd, mtu=mtu),
    )


def _bring_up(end: End) -> int:
    def work(route: Any) -> int:
        index = index_of(route, end.name)
        if any(":" in address for address in end.addresses):
            with contextlib.suppress(OSError):
                _write(f"/proc/sys/net/ipv6/conf/{end.name}/accept_dad", "0")
        route.link("set", index=index, state="up")
        for address in end.addresses:
            _add_address(route, index, address)
        for gateway in end.gateways:
            route.route("add", dst="::/0" if ":" in gateway else "0.0.0.0/0", gateway=gateway, oif=index)
        return index

    return inside(end.netns_fd, work)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


# -- private networks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subnet:
    """A /30 (and a /126) nobody else of this run uses: by process id and a count, so workers never clash."""

    number: int

    @property
    def host(self) -> tuple[str, str]:
        """Addresses of the host's end. 100.64.0.0/10 is RFC 6598, fd49:736f::/32 is RFC 4193."""
        return self._address(1)

    @property
    def test(self) -> tuple[str, str]:
        """Addresses of the test's end."""
        return self._address(2)

    @property
    def interface(self) -> str:
        """Name of the host's end."""
        return f"iso{self.number:x}"

    @property
    def gateways(self) -> tuple[str, ...]:
        """Where the test sends what is not local: the host's end."""
        return tuple(address.partition("/")[0] for address in self.host)

    def _address(self, last: int) -> tuple[str, str]:
        v4 = ipaddress.IPv4Address("100.64.0.0") + (self.number * 4 + last)
        v6 = ipaddress.IPv6Address("fd49:736f::") + (self.number << 16) + last
        return f"{v4}/30", f"{v6}/126"


SUBNETS = 1 << 20
_FIRST_INDEX = 1 << 20  # of interfaces; the kernel's own count starts at 1
_FIRST_INDEX_OF_WIRES = _FIRST_INDEX + SUBNETS


def private_network(undo: contextlib.ExitStack, test_netns_fd: int, host_netns_fd: int = -1) -> tuple[Subnet, int]:
    """A veth between the host (or another namespace) and the test, on a subnet of its own: (subnet, host ifindex).

    No NAT and no forwarding: the test reaches the host's end and nothing beyond. ``undo`` takes it away. This is no context
    manager written as a generator: one that is kept in a stack is run to its end wherever a forked child drops its copy.

    Raises:
        SetupError: the kernel refused it, or every subnet is taken.
    """

    def ends(subnet: Subnet) -> _Ends:
        return (
            End(netns_fd=host_netns_fd, name=subnet.interface, addresses=subnet.host),
            End(netns_fd=test_netns_fd, name="eth0", addresses=subnet.test, gateways=subnet.gateways),
            (_FIRST_INDEX + subnet.number, 0),
        )

    subnet, (host, test, (index, _)) = _on_a_free_subnet(ends, _networks)
    with contextlib.ExitStack() as failed:
        failed.callback(_delete, host_netns_fd, index)  # gone already when the namespace went first
        _bring_up(host)
        _bring_up(test)
        undo.push(failed.pop_all())
    return subnet, index


def wire(a_netns_fd: int, b_netns_fd: int, made: Callable[[contextlib.ExitStack, int, int], None]) -> Subnet:
    """A veth between two namespaces, ``host`` addresses at ``a``, ``test`` addresses at ``b``; it dies with either.

    ``made`` is called with the indices of both ends before anything passes, and with a stack for what undoes it: where it
    raises, or anything fails after it, there is no wire. No other interface of this run has these indices. Numbers are counted
    from the other half of the range, so that they do not meet those of ``private_network``.
    """

    def ends(subnet: Subnet) -> _Ends:
        index = _FIRST_INDEX_OF_WIRES + 2 * subnet.number
        return (
            End(netns_fd=a_netns_fd, name=subnet.interface, addresses=subnet.host),
            End(netns_fd=b_netns_fd, name=subnet.interface, addresses=subnet.test),
            (index, index + 1),
        )

    subnet, (a, b, indices) = _on_a_free_subnet(ends, _wires)
    with contextlib.ExitStack() as undo:
        undo.callback(_delete, a_netns_fd, indices[0])
        made(undo, *indices)
        _bring_up(a)
        _bring_up(b)
        undo.pop_all()
    return subnet


#: Both ends of a veth, and their indices; 0: the kernel chooses one.
_Ends = tuple[End, End, tuple[int, int]]


def _on_a_free_subnet(ends: Callable[[Subnet], _Ends], numbers: Iterator[int]) -> tuple[Subnet, _Ends]:
    """The next subnet that nobody has, and the veth made on it, down: one whose interface name or index exists is passed over.

    Each is tried once: where a process counts on from, others are rarely; so the first try is mostly the last.
    """
    first = os.getpid() * 61
    for _ in range(SUBNETS):
        subnet = Subnet((first + next(numbers)) % SUBNETS)
        found = a, b, indices = ends(subnet)
        try:
            _add_pair(a, b, 1500, *indices)
        except SetupError as error:
            of_subnet = error.errno in (errno.EEXIST, errno.EBUSY)  # the name, or the index, is somebody else's
            if not of_subnet or (b.name != subnet.interface and _exists(b)):
                raise
        else:
            return subnet, found
    raise SetupError("interfaces", errno.EEXIST, detail=f"all {SUBNETS} subnets are taken", remedy="run fewer at once")


def _exists(end: End) -> bool:
    return bool(inside(end.netns_fd, lambda route: route.link_lookup(ifname=end.name)))


def _delete(netns_fd: int, index: int) -> None:
    with contextlib.suppress(SetupError):
        inside(netns_fd, lambda route: route.link("del", index=index))


_networks = itertools.count()
_wires = itertools.count(SUBNETS // 2)


# -- programs at an interface --------------------------------------------------------------------------------------


#: What comes in at an interface, and what goes out. Source: linux/pkt_sched.h, TC_H_CLSACT, TC_H_MIN_INGRESS and _EGRESS.
_CLSACT = (0xFFFFFFF2, 0xFFFFFFF3)


class InterfacePrograms:
    """np_link_out and np_link_in at the host end of a veth, by tcx links, or clsact filters before Linux 6.6.

    ``kind`` says which. Other programs may be there, as another process's on a shared wire: each passes on what it lets pass.
    tcx detaches when its descriptors close. Of clsact the queueing discipline stays until the interface goes: taken away, it
    would take with it a filter that another process adds in that moment.
    """

    def __init__(self, plane: Dataplane, netns_fd: int, ifindex: int) -> None:
        self._fds: list[int] = []
        self._netns_fd, self._ifindex = netns_fd, ifindex
        programs = [(plane.programs[n], int(plane.specs[n].attach)) for n in ("np_link_out", "np_link_in")]
        try:
            self._fds = _in_thread(lambda: self._tcx(programs))
            self.kind = "tcx"
        except OSError as error:
            if error.errno not in (22, 95):
                raise
            self._clsact(programs)
            self.kind = "clsact"

    def _tcx(self, programs: list[tuple[int, int]]) -> list[int]:
        if self._netns_fd >= 0:
            setns(self._netns_fd, CLONE_NEWNET)
        fds: list[int] = []
        try:
            for program, place in programs:
                fds.append(link_create_tcx(program, self._ifindex, place))
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def _clsact(self, programs: list[tuple[int, int]]) -> None:
        self._name = f"pytest-isolate-{os.urandom(8).hex()}"

        def work(route: Any) -> None:
            from pyroute2.netlink.exceptions import NetlinkError

            try:
                route.tc("add", "clsact", self._ifindex)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            for (program, _), parent in zip(programs, _CLSACT, strict=True):
                route.tc(
                    "add-filter", "bpf", self._ifindex, ":1", fd=program, name=self._name, parent=parent,
                    classid=1, direct_action=True,
                )  # fmt: skip

        inside(self._netns_fd, work)

    def _delete_filters(self, route: Any) -> None:
        for parent in _CLSACT:
            for found in route.get_filters(self._ifindex, parent=parent):
                options = found.get_attr("TCA_OPTIONS")
                if options is not None and options.get_attr("TCA_BPF_NAME") == self._name:
                    route.tc(
                        "del-filter", "bpf", self._ifindex, found["handle"], parent=parent, info=found["info"]
                    )  # fmt: skip

    def fds(self) -> list[int]:
        """Link descriptors: what a child must not keep."""
        return list(self._fds)

    def close(self) -> None:
        """Detach. Idempotent."""
        if self.kind == "clsact" and self._ifindex:
            with contextlib.suppress(SetupError):  # gone already when the interface went first
                inside(self._netns_fd, self._delete_filters)
        self._ifindex = 0
        while self._fds:
            os.close(self._fds.pop())


def link_create_tcx(program_fd: int, ifindex: int, place: int) -> int:
    """BPF_LINK_CREATE for tcx, by bpf(2): libbpf 1.1 does not know it. Source: linux/bpf.h, union bpf_attr.link_create."""
    libc = ctypes.CDLL(None, use_errno=True)
    attr = ctypes.create_string_buffer(struct.pack("=IIII", program_fd, ifindex, place, 0), 64)
    fd = libc.syscall(_NR_BPF, 28, attr, 64)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"tcx link: {os.strerror(code)}")
    return int(fd)


_NR_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}.get(os.uname().machine, 321)
__all__ = ["End", "InterfacePrograms", "Netns", "Subnet", "inside", "loopback_up", "private_network", "veth"]
