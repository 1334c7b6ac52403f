"""What the user asks for: immutable values that check themselves.

Owns: Policy and its parts (Limits, Filesystem, Network, Hardening). Named policies are in profile.py.
Refuses: I/O, ctypes, pytest. Whether this host can enforce a policy is a backend's question.
"""

from __future__ import annotations

import difflib
import enum
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from pytest_isolate import ranges
from pytest_isolate.errors import PolicyError
from pytest_isolate.hardening import Landlock, SeccompProfile
from pytest_isolate.units import shown


class Namespace(str, enum.Enum):
    """A kind of Linux namespace; the value is the name under ``/proc/self/ns``. Source: namespaces(7)."""

    PID = "pid"
    USER = "user"
    UTS = "uts"
    CGROUP = "cgroup"
    IPC = "ipc"
    MOUNT = "mnt"
    NET = "net"
    TIME = "time"


#: Every resource of getrlimit(2), without the RLIMIT_ prefix, with the unit of its value.
RLIMIT_UNITS: Mapping[str, str] = MappingProxyType(
    {
        "AS": "bytes",
        "CORE": "bytes",
        "CPU": "seconds",
        "DATA": "bytes",
        "FSIZE": "bytes",
        "LOCKS": "count",
        "MEMLOCK": "bytes",
        "MSGQUEUE": "bytes",
        "NICE": "20 - nice",
        "NOFILE": "count",
        "NPROC": "count",
        "RSS": "bytes",
        "RTPRIO": "priority",
        "RTTIME": "microseconds",
        "SIGPENDING": "count",
        "STACK": "bytes",
    }
)
UNLIMITED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class IoLimit:
    """Bounds on one block device, ``path`` being the device or any file on it. None: no bound.

    Bytes and operations a second, whole numbers: see ranges.IO.

    Raises:
        PolicyError: a number outside of its range, or a path that is none.
    """

    path: str
    read_bps: int | None = None
    write_bps: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None

    def __post_init__(self) -> None:
        _check_path(self.path)
        _check(self, ranges.IO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Process limits (``rlimits``, inherited by each process) and group limits (one cgroup for the whole tree).

    ``rlimits`` maps a name of RLIMIT_UNITS to ``(soft, hard)``, UNLIMITED (-1) meaning no limit. ``cpuset`` is a list of CPUs
    (``0-3,8``), ``hugetlb_bytes`` by size (``2MB``). The numbers that each takes are in ranges.py.
    ``memory_fallback="rlimit"`` allows RLIMIT_DATA where there is no memory cgroup; it cannot see MAP_SHARED.

    Raises:
        PolicyError: a value outside of its range or of another type. It names the limit by its word (profile.WORDS).
    """

    memory_bytes: int | None = None
    memory_high_bytes: int | None = None
    swap_bytes: int | None = None
    pids: int | None = None
    cpu_cores: float | None = None
    cpu_weight: int | None = None
    cpuset: str | None = None
    io: tuple[IoLimit, ...] = ()
    hugetlb_bytes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    cpu_time_s: float | None = None
    rlimits: Mapping[str, tuple[int, int]] = field(default_factory=lambda: MappingProxyType({}))
    memory_fallback: Literal["none", "rlimit"] = "none"

    def __post_init__(self) -> None:
        _check(self, ranges.LIMITS)
        _check_cpus(self.cpuset)
        object.__setattr__(self, "io", _io_limits(self.io))
        for size, most in self.hugetlb_bytes.items():
            ranges.of_huge_pages(size).check(most)
        _choice("memory_fallback", self.memory_fallback, ("none", "rlimit"))
        for name, pair in self.rlimits.items():
            _check_rlimit(name, pair)
        object.__setattr__(self, "rlimits", MappingProxyType(dict(self.rlimits)))
        object.__setattr__(self, "hugetlb_bytes", MappingProxyType(dict(self.hugetlb_bytes)))

    @property
    def needs_cgroup(self) -> bool:
        """True when some limit holds for the tree as a whole, which only a cgroup can enforce."""
        return bool(
            self.memory_bytes
            or self.memory_high_bytes
            or self.swap_bytes is not None
            or self.pids
            or self.cpu_cores
            or self.cpu_weight
            or self.cpuset
            or self.io
            or self.hugetlb_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """``source`` of the host shown at ``target`` inside; ``recursive`` takes the mounts below it along.

    ``owned``: what belongs to the owner of ``source`` belongs, inside, to whoever starts the sandbox, and what that one makes
    there belongs to the owner: root leaves no files of root's in a working copy. What is a third one's is nobody's. An idmapped
    mount: Linux 5.12, root, a file system that allows it, and not ``recursive``.
    """

    source: str
    target: str
    writable: bool = False
    recursive: bool = True
    owned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tmpfs:
    """An empty private directory in memory, at most ``size_bytes`` large (None: the kernel's half of RAM)."""

    target: str
    size_bytes: int | None = None
    mode: int = 0o1777

    def __post_init__(self) -> None:
        _size(f"tmpfs {self.target}", self.size_bytes)
        _mode(f"tmpfs {self.target}", self.mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """``target`` of the host, writable inside; changes go to a private layer and are thrown away or kept.

    ``keep`` names the directory to keep them in, which is made if need be; True is ``TARGET.changes``, beside the target,
    symlinks followed.
    Afterwards ``KEEP/upper`` holds them as an upper layer has them (Source: Documentation/filesystems/overlayfs.rst): what is new or
    changed, whole; what was deleted as a character device 0:0. A further run goes on from there; one at a time.
    A file system mounted at ``TARGET/a/b`` has its layer in ``KEEP/%2Fa%2Fb/upper``.
    ``size_bytes`` bounds the changes that are thrown away (None: the kernel's half of RAM); kept ones are on a disk.
    """

    target: str
    keep: bool | str = False
    size_bytes: int | None = None

    def __post_init__(self) -> None:
        _size(f"overlay {self.target}", self.size_bytes)
        if self.keep == "" or not isinstance(self.keep, bool | str):
            raise PolicyError(
                f"overlay {self.target}: keep", f"{self.keep!r} is no directory", "name one, or write True"
            )
        if isinstance(self.keep, str) and not self.keep.startswith("/"):
            raise PolicyError(f"overlay {self.target}: keep", f"{self.keep!r} is relative", "write an absolute path")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """The view of the file system: a root and what is mounted over it, in order.

    ``root``: ``host`` (as it is), ``readonly`` (the host's, read-only), ``minimal`` (built from ``binds`` only). The last two
    have a /dev of their own (null, zero, full, random, urandom, tty, terminals, a private /dev/shm), and no device nodes elsewhere.
    ``proc``: mount a fresh /proc, which belongs to a PID namespace; without one a minimal root has the host's, read-only.
    ``programs``: with a minimal root, programs to be shown with the interpreter and libraries they need, read-only.
    """

    root: Literal["host", "readonly", "minimal"] = "host"
    proc: bool = True
    binds: tuple[Bind, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    masks: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _choice("filesystem root", self.root, ("host", "readonly", "minimal"))
        mounts: tuple[Bind | Overlay | Tmpfs, ...] = (*self.binds, *self.overlays, *self.tmpfs)
        for place in (*(mount.target for mount in mounts), *self.masks):
            if not place.startswith("/"):
                raise PolicyError("filesystem", f"{place!r} is relative", "write an absolute path")

    @property
    def needs_mounts(self) -> bool:
        """True when anything but a fresh /proc has to be mounted."""
        return self.root != "host" or bool(self.binds or self.overlays or self.tmpfs or self.masks)


#: ``host`` and ``shared`` keep the host's network; ``policy`` too, with an eBPF policy; the others have their own.
NETWORK_MODES = ("host", "none", "loopback", "private", "shared", "policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Which network the sandbox sees: one of NETWORK_MODES; and what it may do there.

    Rules are texts, ``WHERE[:PORT[-PORT]][/PROTOCOL]``: an address, a CIDR, ``localhost``, ``*`` or a host name, then
    ports, then ``tcp``, ``udp`` or ``icmp``. ``default`` (``deny``, ``allow``) is for what no rule speaks of.
    ``adjustable``: the test itself may change the rules while it runs (the fixture ``net_policy``).
    ``tier``: by what, instead of eBPF, other parts of the policy hold the rules that are no longer here; in words.
    """

    mode: str = "host"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    default: str = ""
    errno: int | str | None = None
    adjustable: bool = False
    tier: str = ""

    def __post_init__(self) -> None:
        _choice("network", self.mode, NETWORK_MODES)
        if self.default:
            _choice("network default", self.default, ("deny", "allow"))

    @property
    def ruled(self) -> bool:
        """True when an eBPF policy decides; without rules it denies everything."""
        given = self.allow or self.deny or self.log or self.default or self.errno is not None or self.adjustable
        return self.mode == "policy" or bool(given)

    @property
    def counted(self) -> bool:
        """True when traffic is counted, which takes a cgroup and eBPF; ``private`` does without where it must."""
        return self.ruled or (self.mode in ("shared", "private") and not self.tier)

    @property
    def wired(self) -> bool:
        """True when the network namespace is made, and prepared, before the child that joins it."""
        return self.mode == "private" or (self.mode == "loopback" and self.ruled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardening:
    """What the processes inside may not do, beyond what they cannot see.

    Attributes:
        capabilities: None keeps them; a frozenset of names (``CAP_CHOWN``) is all that remains in every set.
        securebits: user 0 gets no capability back by execve or setuid, for good. Takes CAP_SETPCAP.
        no_new_privs: setuid programs give nothing. seccomp and landlock imply it.
        seccomp: a profile: ``none``, ``default`` or a SeccompProfile of your own.
        landlock: paths and ports that may be opened, whatever the view shows.
        close_fds: inherited descriptors above 2 are closed in programs and calls; a test that is forked off pytest keeps what
            pytest and its wide fixtures have open, which is its own (a fresh interpreter does not: mode ``fresh``).
        umask: of the processes inside; None keeps it.
        environment: ``scrub`` leaves a handful of variables of what is inherited (hardening.scrubbed).
    """

    capabilities: frozenset[str] | None = None
    securebits: bool = False
    no_new_privs: bool = False
    seccomp: str | SeccompProfile = "none"
    landlock: Landlock | None = None
    close_fds: bool = False
    umask: int | None = None
    environment: Literal["keep", "scrub"] = "keep"

    def __post_init__(self) -> None:
        if isinstance(self.seccomp, str):
            _choice("seccomp", self.seccomp, ("none", "default"))
        _choice("environment", self.environment, ("keep", "scrub"))
        if self.umask is not None and not 0 <= self.umask <= 0o777:
            raise PolicyError("umask", f"{self.umask:o} is out of range", "write 0 to 777, in octal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything one sandbox is asked to enforce. A value: use dataclasses.replace to vary it.

    ``timeout_s`` counts from the start; then SIGTERM, ``grace_s`` later SIGKILL of the whole tree.
    ``session``: a session (and process group) of its own, off the terminal.
    """

    namespaces: frozenset[Namespace] = frozenset()
    limits: Limits = field(default_factory=Limits)
    filesystem: Filesystem = field(default_factory=Filesystem)
    network: Network = field(default_factory=Network)
    hardening: Hardening = field(default_factory=Hardening)
    session: bool = True
    hostname: str | None = None
    timeout_s: float | None = None
    grace_s: float = 1.0

    def __post_init__(self) -> None:
        if self.timeout_s is not None:
            ranges.TIMEOUT.check(self.timeout_s)
        ranges.GRACE.check(self.grace_s)
        if self.hostname is not None:
            if Namespace.UTS not in self.namespaces:
                raise PolicyError("hostname", "it would rename the host", "add the uts namespace")
            if not 0 < len(os.fsencode(self.hostname)) <= 64:
                raise PolicyError("hostname", f"{shown(self.hostname)} is not 1 to 64 bytes", "shorten it")
        if self.filesystem.needs_mounts and Namespace.MOUNT not in self.namespaces:
            raise PolicyError("filesystem", "mounts would be made on the host", "add the mnt namespace")


ALL_NAMESPACES = frozenset(Namespace)


def parse_namespaces(names: str | Iterable[str]) -> frozenset[Namespace]:
    """``"pid,uts"``, ``"all"``, ``"none"`` or an iterable of names; ``mount``, ``network`` are accepted too.

    Raises:
        PolicyError: a name that is no namespace, with the nearest one that is.
    """
    words = names.replace(",", " ").split() if isinstance(names, str) else [str(getattr(n, "value", n)) for n in names]
    found: set[Namespace] = set()
    for word in words:
        match word.lower():
            case "all":
                found |= ALL_NAMESPACES - {Namespace.TIME}
            case "none":
                pass
            case "mount":
                found.add(Namespace.MOUNT)
            case "network":
                found.add(Namespace.NET)
            case name:
                try:
                    found.add(Namespace(name))
                except ValueError:
                    raise unknown("namespace", word, [n.value for n in Namespace]) from None
    return frozenset(found)


_MANY = 60


def unknown(kind: str, word: str, known: Iterable[str]) -> PolicyError:
    """The error for a name that is not among ``known``: suggests the nearest, else lists them, unless they are many."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    others = f"use one of the {len(names)} that are known" if len(names) > _MANY else "use " + ", ".join(names)
    return PolicyError(f"{kind} {word!r}", "unknown", f"did you mean {near[0]!r}?" if near else others)


#: The kernel's list format: numbers, ranges, and of a range ``used/group``. Source: bitmap_parselist, cpuset(7).
_CPU = r"\s*[0-9]+(-[0-9]+(:[0-9]+/[0-9]+)?)?\s*"
_CPUS = re.compile(f"{_CPU}(,{_CPU})*")


def _check(value: Any, fields: Mapping[str, ranges.Range]) -> None:
    for name, admissible in fields.items():
        if (number := getattr(value, name)) is not None:
            admissible.check(number)


def _check_rlimit(name: str, pair: Any) -> None:
    if name not in RLIMIT_UNITS:
        raise unknown("rlimit", name, RLIMIT_UNITS)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise PolicyError(f"rlimit {name}", f"{shown(pair)} is not (soft, hard)", "write two numbers")
    for number in pair:
        if type(number) is not int or number != UNLIMITED:
            ranges.of_rlimit(name, RLIMIT_UNITS[name]).check(number)
    soft, hard = pair
    if hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
        raise PolicyError(f"rlimit {name}", f"soft {soft} is above hard {hard}", "raise the hard limit")


def _check_path(path: Any) -> None:
    if not path or not isinstance(path, str | os.PathLike):
        raise PolicyError("io path", f"{shown(path)} is no path", "name a block device or a file on it")


def _check_cpus(cpuset: Any) -> None:
    if cpuset is not None and not (isinstance(cpuset, str) and _CPUS.fullmatch(cpuset)):
        raise PolicyError("cpuset", f"{shown(cpuset)} is not a list of CPUs", "write their numbers, such as 0-3,8")


def _io_limits(value: Any) -> tuple[IoLimit, ...]:
    found = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if all(isinstance(limit, IoLimit) for limit in found):
        return found
    raise PolicyError("io", f"{shown(value)} is no list of IoLimit", 'write [IoLimit(path="/", read_bps=1_000_000)]')


def _size(what: str, size_bytes: object) -> None:
    """The kernel takes 0 for no limit at all."""
    if size_bytes is not None and (not isinstance(size_bytes, int) or size_bytes <= 0):
        raise PolicyError(
            what, f"size_bytes {size_bytes!r} is no size", "write a number above 0, or None for the kernel's own"
        )


def _mode(what: str, mode: object) -> None:
    if not isinstance(mode, int) or not 0 <= mode <= 0o7777:
        raise PolicyError(what, f"mode {mode!r} is no mode", "write a number, such as 0o1777")


_C = TypeVar("_C", bound=str)


def _choice(what: str, value: _C, known: Iterable[str]) -> None:
    if value not in known:
        raise unknown(what, value, known)


#: One value for all who limit nothing.
NO_LIMITS = Limits()
