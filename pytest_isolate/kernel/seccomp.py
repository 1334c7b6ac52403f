"""Seccomp profiles as classic BPF: a binary tree over the numbers of system calls, a leaf for each answer.

Owns: the profile `default`, and the translation of any profile for this machine. Refuses: to install one; the child does, in C.
A filter costs about a microsecond an instruction to install, so equal neighbours are one leaf, and a call is found in a
handful of comparisons. Before the numbers come the architecture (the same number is another call elsewhere: i386, aarch32) and
the x32 calls (numbers with bit 30). Source: seccomp(2), linux/filter.h, linux/seccomp.h.
"""

from __future__ import annotations

import errno
import functools
import platform
import struct
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.hardening import KILL, SeccompProfile
from pytest_isolate.kernel.syscalls import NAMES, numbers
from pytest_isolate.policy import unknown

_RET_ALLOW, _RET_ERRNO, _RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LD, _JA, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
#: Offsets in struct seccomp_data; of an argument the low half (both machines are little-endian).
_NR, _ARCH, _ARG0, _ARG1, _ARG2, _ARG3 = 0, 4, 16, 24, 32, 40
#: AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64. Source: linux/audit.h.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

#: Every CLONE_NEW* of clone(2), which is all but NEWTIME. Source: linux/sched.h.
_CLONE_NEW = 0x7E020000
_PTRACE_ATTACH, _PTRACE_SEIZE = 16, 0x4206
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_TYPE_MASK, _SOCK_STREAM, _SOCK_RAW, _SOCK_PACKET = 0xF, 1, 3, 10
_IPPROTO_TCP, _MSG_FASTOPEN = 6, 0x20000000


# ---- an assembler that works from the end ----


class _Program:
    """Instructions, last first: whatever jumps knows how far its targets are. An address counts from the end."""

    def __init__(self) -> None:
        self._backwards: list[bytes] = []
        self._returns: dict[int, int] = {}

    def emit(self, code: int, k: int, jt: int = 0, jf: int = 0) -> int:
        self._backwards.append(struct.pack("=HBBI", code, jt, jf, k))
        return len(self._backwards)

    def answer(self, value: int) -> int:
        """The address of an instruction that ends with ``value``."""
        if value not in self._returns:
            self._returns[value] = self.emit(_RET, value)
        return self._returns[value]

    def branch(self, code: int, k: int, yes: int, no: int) -> int:
        """A conditional jump; what is further than 255 instructions away is reached through another jump."""
        yes, no = self._near(yes), self._near(no)
        here = len(self._backwards)
        return self.emit(code, k, here - yes, here - no)

    def _near(self, target: int) -> int:
        distance = len(self._backwards) - target
        return target if distance < 254 else self.emit(_JA, distance)

    def bytes(self) -> bytes:
        return b"".join(reversed(self._backwards))


Leaf = Callable[[_Program], int]


@functools.cache
def _answers(value: int) -> Leaf:
    return lambda program: program.answer(value)


_ALLOW, _EPERM, _ENOSYS = (
    _answers(value) for value in (_RET_ALLOW, _RET_ERRNO | errno.EPERM, _RET_ERRNO | errno.ENOSYS)
)


def _refusal(name: str) -> Leaf:
    return _answers(_RET_KILL_PROCESS if name == KILL else _RET_ERRNO | int(getattr(errno, name)))


# ---- leaves that look at an argument ----


def _clone(program: _Program) -> int:
    """Threads and processes, yes; namespaces, no."""
    program.branch(_JSET, _CLONE_NEW, _EPERM(program), _ALLOW(program))
    return program.emit(_LD, _ARG0)


def _one_of(offset: int, refused: Sequence[int]) -> Leaf:
    def leaf(program: _Program) -> int:
        target = _ALLOW(program)
        for value in refused:
            target = program.branch(_JEQ, value, _EPERM(program), target)
        return program.emit(_LD, offset)

    return leaf


def _socket(program: _Program) -> int:
    """UNIX, netlink, and TCP and UDP; no raw packets, and no family whose code in the kernel few have read."""
    raw = program.branch(_JEQ, _SOCK_RAW, _EPERM(program), _ALLOW(program))
    raw = program.branch(_JEQ, _SOCK_PACKET, _EPERM(program), raw)
    program.emit(_AND, _SOCK_TYPE_MASK)
    internet = program.emit(_LD, _ARG1)
    target = _answers(_RET_ERRNO | errno.EAFNOSUPPORT)(program)
    for family in (_AF_INET, _AF_INET6):
        target = program.branch(_JEQ, family, internet, target)
    for family in (_AF_UNIX, _AF_NETLINK):
        target = program.branch(_JEQ, family, _ALLOW(program), target)
    return program.emit(_LD, _ARG0)


def _unix_socket(program: _Program) -> int:
    program.branch(_JEQ, _AF_UNIX, _ALLOW(program), _EPERM(program))
    return program.emit(_LD, _ARG0)


def _tcp_socket(program: _Program) -> int:
    """UNIX, netlink, and of the internet TCP by its own name: MPTCP (262) and SCTP are streams too."""
    named = program.branch(_JEQ, _IPPROTO_TCP, _ALLOW(program), _EPERM(program))
    program.branch(_JEQ, 0, _ALLOW(program), named)
    protocol = program.emit(_LD, _ARG2)
    program.branch(_JEQ, _SOCK_STREAM, protocol, _EPERM(program))
    program.emit(_AND, _SOCK_TYPE_MASK)
    target, internet = _EPERM(program), program.emit(_LD, _ARG1)
    for family, then in ((_AF_INET6, internet), (_AF_INET, internet), (_AF_NETLINK, None), (_AF_UNIX, None)):
        target = program.branch(_JEQ, family, _ALLOW(program) if then is None else then, target)
    return program.emit(_LD, _ARG0)


def _not_fast_open(offset: int) -> Leaf:
    """EOPNOTSUPP is what a kernel without it answers: clients then connect(2)."""

    def leaf(program: _Program) -> int:
        program.branch(_JSET, _MSG_FASTOPEN, _answers(_RET_ERRNO | errno.EOPNOTSUPP)(program), _ALLOW(program))
        return program.emit(_LD, offset)

    return leaf


# ---- the profile `default` ----

_REFUSED = (
    # mounts and roots
    "mount umount2 pivot_root open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr "
    # namespaces
    "setns unshare "
    # other processes: /proc/PID/mem is guarded by the same check as PTRACE_ATTACH, and by a PID namespace
    "process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise "
    # the kernel's own code and state
    "kexec_load kexec_file_load init_module finit_module delete_module create_module bpf perf_event_open userfaultfd "
    "reboot swapon swapoff acct settimeofday clock_settime quotactl quotactl_fd nfsservctl syslog iopl ioperm vhangup "
    # keyrings are not namespaced; a handle opens a file outside of the view (CVE-2014-9357's relative)
    "keyctl add_key request_key open_by_handle_at lookup_dcookie"
).split()

_IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")

#: System call -> what happens. clone3 passes its flags by pointer, which a filter cannot follow: glibc then uses clone.
#: io_uring does what is refused here without a system call of its own (IORING_OP_SOCKET).
_DEFAULT: Mapping[str, Leaf] = MappingProxyType(
    {
        **dict.fromkeys(_REFUSED, _EPERM),
        **dict.fromkeys(("clone3", *_IO_URING), _ENOSYS),
        "clone": _clone,
        "socket": _socket,
        "ptrace": _one_of(_ARG0, (_PTRACE_ATTACH, _PTRACE_SEIZE)),  # PTRACE_TRACEME: the child asked for it
        "ioctl": _one_of(_ARG1, (_TIOCSTI, _TIOCLINUX)),
    }
)
#: What `default` touches, for documents and tests.
DEFAULT_REFUSES = tuple(_DEFAULT)
_BASES: Mapping[str, Mapping[str, Leaf]] = MappingProxyType({"none": MappingProxyType({}), "default": _DEFAULT})
_SOCKETS: Mapping[str, Mapping[str, Leaf]] = MappingProxyType(
    {
        "any": MappingProxyType({}),
        "unix": MappingProxyType({"socket": _unix_socket, **dict.fromkeys(_IO_URING, _ENOSYS)}),
        "tcp": MappingProxyType(
            {
                "socket": _tcp_socket,
                "sendto": _not_fast_open(_ARG3),
                "sendmsg": _not_fast_open(_ARG2),
                "sendmmsg": _not_fast_open(_ARG3),
                **dict.fromkeys(_IO_URING, _ENOSYS),
            }
        ),
    }
)


# ---- any profile ----


def _leaves(profile: SeccompProfile) -> dict[str, Leaf]:
    for name in (*profile.refuse, *(profile.only or ())):
        if name not in NAMES:
            raise unknown("system call", name, NAMES)
    leaves = dict(_BASES[profile.base])
    if profile.only is not None:
        leaves.update(dict.fromkeys(NAMES - profile.only, _refusal(profile.otherwise)))
    leaves.update({name: _refusal(answer) for name, answer in profile.refuse.items()})
    refused = profile.refuse if profile.only is None else {*profile.refuse, *(NAMES - profile.only)}
    leaves.update({name: leaf for name, leaf in _SOCKETS[profile.sockets].items() if name not in refused})
    return leaves


def _segments(table: Mapping[str, int], leaves: Mapping[str, Leaf], beyond: Leaf) -> list[tuple[int, Leaf]]:
    """(first number, leaf) for each run of numbers that are answered alike.

    A number without a name takes the left's answer where what is not named is allowed, for the sake of a small tree.
    """
    segments: list[tuple[int, Leaf]] = [(0, beyond)]
    following = 0
    for number, name in sorted((number, name) for name, number in table.items()):
        if number > following and beyond is not _ALLOW:
            segments.append((following, beyond))
        segments.append((number, leaves.get(name, _ALLOW)))
        following = number + 1
    segments.append((following, beyond))
    return [one for before, one in zip([(0, None), *segments], segments, strict=False) if one[1] is not before[1]]


def _tree(program: _Program, segments: Sequence[tuple[int, Leaf]], places: dict[Leaf, int]) -> int:
    """A leaf is emitted where it is first needed; others jump to it."""
    if len(segments) == 1:
        leaf = segments[0][1]
        if leaf not in places:
            places[leaf] = leaf(program)
        return places[leaf]
    middle = len(segments) // 2
    right = _tree(program, segments[middle:], places)
    left = _tree(program, segments[:middle], places)
    return program.branch(_JGE, segments[middle][0], right, left)


def _assemble(segments: Sequence[tuple[int, Leaf]], machine: str) -> bytes:
    program = _Program()
    tree = _tree(program, segments, {})
    if machine == "x86_64":
        program.branch(_JGE, _X32_BIT, _ENOSYS(program), tree)
    else:
        program.branch(_JGE, 0, tree, tree)  # the root of the tree need not be what was emitted last
    program.emit(_LD, _NR)
    program.emit(_RET, _RET_KILL_PROCESS)
    program.emit(_JEQ, _ARCHITECTURES[machine], 1, 0)
    program.emit(_LD, _ARCH)
    return program.bytes()


def compile_profile(profile: str | SeccompProfile, machine: str = "") -> bytes:
    """``struct sock_filter[]`` for this machine; empty for ``none``. Needs no_new_privs, or CAP_SYS_ADMIN.

    Raises:
        PolicyError: a profile or a system call that does not exist; the nearest one is suggested.
        BackendUnavailable: an architecture whose numbers are not known here.
    """
    if isinstance(profile, str):
        if profile not in _BASES:
            raise unknown("seccomp profile", profile, _BASES)
        return _named(profile, machine or platform.machine())
    return _compiled(profile, machine or platform.machine())


@functools.cache
def _named(name: str, machine: str) -> bytes:
    return _compiled(SeccompProfile(name=name, base=name), machine)  # type: ignore[arg-type]


def _compiled(profile: SeccompProfile, machine: str) -> bytes:
    leaves = _leaves(profile)
    if not leaves:
        return b""
    if machine not in _ARCHITECTURES:
        raise BackendUnavailable("seccomp", f"the system calls of {machine} are not known here", "leave it out")
    beyond = _ALLOW if profile.only is None else _refusal(profile.otherwise)
    return _assemble(_segments(numbers(machine), leaves, beyond), machine)


def refused(profile: str | SeccompProfile, error: int) -> tuple[str, ...]:
    """The system calls that ``profile`` answers ``error`` (an errno) to, whatever their arguments."""
    named = SeccompProfile(name=profile, base=profile) if isinstance(profile, str) else profile  # type: ignore[arg-type]
    return tuple(name for name, leaf in _leaves(named).items() if leaf is _answers(_RET_ERRNO | error))
