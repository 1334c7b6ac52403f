"""What is asked of a backend, one case for each capability: a policy, a program, and what shows that it was enforced.

Owns: CASES. Refuses: to run them (test_conformance.py). Every program prints what it finds, and is run
without a sandbox, too: what it prints there must not look enforced, or the case could not fail.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pytest_isolate.capability import Capability
from pytest_isolate.hardening import Landlock
from pytest_isolate.policy import Bind, Filesystem, Limits, Namespace, Network, Overlay, Policy, Tmpfs

#: A variable of the environment that is there for every test.
SECRET = "CONFORMANCE_TOKEN"
MINIMAL = Policy(filesystem=Filesystem(proc=False))
#: Stands for a directory of the host made for the test: ``other/content``, ``empty/``, ``masked/inside``.
HERE = "/@HERE@"
#: A file that is not to be on the host afterwards; some backends have a /dev/shm of their own, and let it be written.
IN_SHM = f"/dev/shm/pytest-isolate-conformance-{os.getpid()}"  # two runs at once are two


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``code`` is Python that prints; ``enforced`` judges what it printed under ``policy``, given what it prints outside.

    ``status``: how the program may end, where to enforce is to end it.
    """

    capability: Capability
    policy: Policy
    code: str
    enforced: Callable[[str, str], bool]
    status: tuple[int, ...] = (0,)


def _namespaces(*names: Namespace, **parts: Any) -> Policy:
    return replace(MINIMAL, namespaces=frozenset(names), **parts)


def _view(**parts: Any) -> Policy:
    return _namespaces(Namespace.MOUNT, filesystem=Filesystem(proc=False, **parts))


def _inode(name: str) -> str:
    """Of a kernel that has no such files: not ours."""
    return (
        f"import os\ntry: print(os.readlink('/proc/self/ns/{name}'))\n"
        "except OSError: print('of another kernel,', os.uname().release)"
    )


def _differs(inside: str, outside: str) -> bool:
    return bool(inside) and inside != outside


def _is(expected: str) -> Callable[[str, str], bool]:
    def judge(inside: str, outside: str) -> bool:
        return inside == expected and outside != expected

    return judge


def _none_and_none_to_gain(inside: str, outside: str) -> bool:
    """No capability is held; and none can be gained by execve(2): the bounding set is empty, or no_new_privs is set."""
    permitted, effective, bounding, no_new_privs = [int(word, 16) for word in inside.split()]
    return not (permitted or effective) and (not bounding or no_new_privs == 1)


_WRITE = """
def written(path):
    try:
        with open(path, "w") as file: file.write("x")
        return "written"
    except OSError as error: return error.strerror
"""
_LINKS = """
import socket, fcntl, struct
def up(name):
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return struct.unpack("16xH", fcntl.ioctl(probe, 0x8913, struct.pack("16sH14x", name.encode(), 0))[:18])[0] & 1
print(sorted(name for _, name in socket.if_nameindex() if up(name)))
"""
_CONNECT = """
import os, socket
print(os.strerror(socket.socket().connect_ex(("127.0.0.1", 9))))
"""
_NO_NEW_PRIVS = "import ctypes; print(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))"  # PR_GET_NO_NEW_PRIVS
_STATUS = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('{}')))"
_PROCESSES = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')) < 8)"
_PID = "import os; print(os.getpid() < 50)"
#: Not in a virtual environment: the interpreter is where its libraries are, whatever the view shows.
PYTHON = os.path.realpath(sys.executable)

CASES = (
    Case(capability=Capability.SESSION, policy=MINIMAL, code="import os; print(os.getsid(0))", enforced=_differs),
    Case(
        capability=Capability.NAMESPACE_PID,
        policy=_namespaces(Namespace.PID),
        code=_PID,
        enforced=_is("True"),
    ),
    Case(
        capability=Capability.NAMESPACE_USER,
        policy=_namespaces(Namespace.USER),
        code=_inode("user"),
        enforced=_differs,
    ),
    *(
        Case(
            capability=Capability(f"namespace_{name}"),
            policy=_namespaces(Namespace(name)),
            code=_inode(name),
            enforced=_differs,
        )
        for name in ("uts", "cgroup", "ipc", "mnt", "net", "time")
    ),
    Case(
        capability=Capability.HOSTNAME,
        policy=_namespaces(Namespace.UTS, hostname="conform"),
        code="import socket; print(socket.gethostname())",
        enforced=_is("conform"),
    ),
    Case(
        capability=Capability.ROOT_READONLY,
        policy=_view(root="readonly"),
        code=f"{_WRITE}\nwritten('{IN_SHM}'); print(written('{HERE}/new'))",
        enforced=_is("Read-only file system"),
    ),
    Case(
        capability=Capability.ROOT_MINIMAL,
        policy=_namespaces(
            Namespace.MOUNT,
            filesystem=Filesystem(
                root="minimal", binds=(Bind(source=sys.base_prefix, target=sys.base_prefix),), programs=(PYTHON,)
            ),
        ),
        code=f"import os; print(os.path.exists('{HERE}'), os.path.exists('/etc/passwd'))",
        enforced=_is("False False"),
    ),
    Case(
        capability=Capability.BINDS,
        policy=_view(binds=(Bind(source=f"{HERE}/other", target=f"{HERE}/empty"),)),
        code=f"{_WRITE}\nimport os; print(os.listdir('{HERE}/empty'), written('{HERE}/empty/new'))",
        enforced=_is("['content'] Read-only file system"),
    ),
    Case(
        capability=Capability.OVERLAYS,
        policy=_view(overlays=(Overlay(target=f"{HERE}/other"),)),
        code=f"{_WRITE}\nimport os; print(written('{HERE}/other/new'), sorted(os.listdir('{HERE}/other')), os.stat('{HERE}/other').st_dev != os.stat('{HERE}').st_dev)",
        enforced=_is("written ['content', 'new'] True"),
    ),
    Case(
        capability=Capability.TMPFS,
        policy=_view(tmpfs=(Tmpfs(target=f"{HERE}/other", size_bytes=65536),)),
        code=f"{_WRITE}\nimport os; print(os.listdir('{HERE}/other'), written('{HERE}/other/new'), os.statvfs('{HERE}/other').f_blocks * os.statvfs('{HERE}/other').f_frsize)",
        enforced=_is("[] written 65536"),
    ),
    Case(
        capability=Capability.MASKS,
        policy=_view(masks=(f"{HERE}/other/content", f"{HERE}/masked")),
        code=f"import os\ndef hidden(path):\n    try: return not (os.listdir(path) if os.path.isdir(path) else open(path).read())\n    except OSError: return True\nprint(hidden('{HERE}/other/content'), hidden('{HERE}/masked'))",
        enforced=_is("True True"),
    ),
    Case(
        capability=Capability.FRESH_PROC,
        policy=_namespaces(Namespace.PID, Namespace.MOUNT, filesystem=Filesystem(proc=True)),
        code=_PROCESSES,
        enforced=_is("True"),
    ),
    Case(
        capability=Capability.NETWORK_NONE,
        policy=_namespaces(Namespace.NET, network=Network(mode="none")),
        code=_LINKS,
        enforced=_is("[]"),
    ),
    Case(
        capability=Capability.NETWORK_LOOPBACK,
        policy=_namespaces(Namespace.NET, network=Network(mode="loopback")),
        code=_LINKS,
        enforced=_is("['lo']"),
    ),
    Case(
        capability=Capability.NETWORK_PRIVATE,
        policy=_namespaces(Namespace.NET, network=Network(mode="private")),
        code=f"{_LINKS}\n{_inode('net')}",
        enforced=lambda inside, outside: (
            inside.split()[-1] != outside.split()[-1] and inside.startswith("['eth0', 'lo']")
        ),
    ),
    Case(
        capability=Capability.NETWORK_RULES,
        policy=replace(MINIMAL, network=Network(mode="policy")),
        code=_CONNECT,
        enforced=lambda inside, outside: inside == "Operation not permitted" or "NETDENIED" in inside,
    ),
    Case(
        capability=Capability.RLIMITS,
        policy=replace(MINIMAL, limits=Limits(rlimits={"NOFILE": (33, 34)})),
        code="import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))",
        enforced=_is("(33, 34)"),
    ),
    Case(
        capability=Capability.GROUP_LIMITS,
        policy=replace(MINIMAL, limits=Limits(memory_bytes=96 * 1024 * 1024)),
        code="print(len(bytearray(256 * 1024 * 1024)))",
        enforced=lambda inside, outside: inside == "" or "OOM" in inside,
        status=(-9, 137, 1),
    ),
    Case(
        capability=Capability.CAPABILITIES,
        policy=replace(MINIMAL, hardening=replace(MINIMAL.hardening, capabilities=frozenset())),
        code="\n".join(map(_STATUS.format, ("CapPrm", "CapEff", "CapBnd"))) + f"\n{_NO_NEW_PRIVS}",
        enforced=_none_and_none_to_gain,
    ),
    Case(
        capability=Capability.NO_NEW_PRIVS,
        policy=replace(MINIMAL, hardening=replace(MINIMAL.hardening, no_new_privs=True)),
        code=_NO_NEW_PRIVS,
        enforced=_is("1"),
    ),
    Case(
        capability=Capability.SECCOMP,
        policy=replace(MINIMAL, hardening=replace(MINIMAL.hardening, seccomp="default")),
        code=_STATUS.format("Seccomp:"),
        enforced=_is("2"),
    ),
    Case(
        capability=Capability.LANDLOCK,
        policy=replace(MINIMAL, hardening=replace(MINIMAL.hardening, landlock=Landlock(write=()))),
        code=f"{_WRITE}\nprint(written('{HERE}/new'))",
        enforced=_is("Permission denied"),
    ),
    Case(
        capability=Capability.CLOSE_FDS,
        policy=replace(MINIMAL, hardening=replace(MINIMAL.hardening, close_fds=True)),
        code="import os; print(os.path.exists('/proc/self/fd/@FD@'))",
        enforced=_is("False"),
    ),
    Case(
        capability=Capability.SECUREBITS,
        policy=replace(MINIMAL, hardening=replace(MINIMAL.hardening, securebits=True)),
        code="import ctypes; print(ctypes.CDLL(None).prctl(27, 0, 0, 0, 0) & 5)",  # PR_GET_SECUREBITS: NOROOT, NO_SETUID_FIXUP
        enforced=_is("5"),
    ),
    Case(
        capability=Capability.UMASK,
        policy=replace(MINIMAL, hardening=replace(MINIMAL.hardening, umask=0o137)),
        code="import os; print(oct(os.umask(0)))",
        enforced=_is("0o137"),
    ),
    Case(
        capability=Capability.ENVIRONMENT,
        policy=replace(MINIMAL, hardening=replace(MINIMAL.hardening, environment="scrub")),
        code=f"import os; print(os.environ.get('{SECRET}'), 'PATH' in os.environ)",
        enforced=_is("None True"),
    ),
)
