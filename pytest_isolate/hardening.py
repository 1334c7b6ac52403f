"""What a sandbox's processes give up for good, as values: a seccomp profile, Landlock rules, an environment.

Owns: SeccompProfile, Landlock, and which variables a scrubbed environment keeps. Refuses: numbers of system calls, ABI
versions and every other matter of one kernel (kernel/seccomp.py, kernel/landlock.py).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from pytest_isolate.errors import PolicyError

#: Beside the names of errno(3), what a refusal may be: the process ends with SIGSYS.
KILL = "KILL"


def _check_refusal(what: str, answer: str) -> None:
    if answer != KILL and not hasattr(errno, answer):
        raise PolicyError(f"seccomp {what}", f"{answer!r} is no errno", "write EPERM, ENOSYS, ... or KILL")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeccompProfile:
    """A filter for system calls of your own.

    Attributes:
        name: how the header and errors call it.
        base: ``default``: its refusals hold, too; ``none``: only those named here.
        refuse: system call -> what it answers: the name of an errno, or ``KILL``.
        only: when given, every call but these is refused as ``otherwise`` says.
        sockets: ``unix``: AF_UNIX and no other; ``tcp``: TCP and netlink besides, no data in a SYN (what connects
            without connect(2) is no Landlock rule's business); ``any``: as the rest says. With either, io_uring is off.
    """

    name: str
    base: Literal["none", "default"] = "none"
    refuse: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    only: frozenset[str] | None = None
    otherwise: str = "EPERM"
    sockets: Literal["any", "unix", "tcp"] = "any"

    def __post_init__(self) -> None:
        if self.sockets not in ("any", "unix", "tcp"):
            raise PolicyError(f"seccomp {self.name}", f"sockets {self.sockets!r}", "write any, unix or tcp")
        if self.base not in ("none", "default"):
            raise PolicyError(f"seccomp {self.name}", f"{self.base!r} is no base", "write none or default")
        for answer in (*self.refuse.values(), self.otherwise):
            _check_refusal(self.name, answer)
        object.__setattr__(self, "refuse", MappingProxyType(dict(self.refuse)))


#: Where programs expect to write; those of them that a view does not have are left out.
USUALLY_WRITABLE = ("/tmp", "/var/tmp", "/dev", "/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Landlock:
    """What may be opened beneath which paths, as the sandbox sees them; all else answers EACCES. Source: landlock(7).

    Modes, owners and times of files are not governed by any ABI so far.

    Attributes:
        read: what lies beneath may be read, listed and executed.
        write: everything may be done beneath. With ``/`` among them paths are not governed at all.
        connect_tcp, bind_tcp: the only ports; None: ports are not restricted. Needs Linux 6.7.
        scoped: no signal and no abstract socket reaches out of the sandbox. Needs Linux 6.12.
    """

    read: tuple[str, ...] = ("/",)
    write: tuple[str, ...] = USUALLY_WRITABLE
    connect_tcp: tuple[int, ...] | None = None
    bind_tcp: tuple[int, ...] | None = None
    scoped: bool = False

    def __post_init__(self) -> None:
        for path in (*self.read, *self.write):
            if not path.startswith("/"):
                raise PolicyError("landlock", f"{path!r} is relative", "write an absolute path")
        for port in (*(self.connect_tcp or ()), *(self.bind_tcp or ())):
            if not 0 <= port <= 65535:
                raise PolicyError("landlock", f"{port} is no port", "write 0 to 65535")


_KEPT = frozenset("HOME LANG LANGUAGE LOGNAME PATH SHELL TERM TMPDIR TZ USER".split())


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that say who and where one is, and no other: tokens, proxies and search paths are gone."""
    return {name: value for name, value in environment.items() if name in _KEPT or name.startswith(("LC_", "PYTEST_"))}
