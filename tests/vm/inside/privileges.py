"""One check per means that is not a group limit: rlimits, user namespaces, Landlock, seccomp, eBPF on a group.

Owns: CHECKS, name -> function, each seeing the means act and not only answer.
Refuses: to trust version numbers and sysctls.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable

from . import victims
from .groups import Layout, read, write
from .telling import Refused

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38
SYS_SECCOMP, SYS_BPF = 317, 321
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_RESTRICT_SELF = 444, 446
LANDLOCK_ACCESS_FS_WRITE_FILE = 1 << 1
BPF_PROG_LOAD, BPF_PROG_ATTACH = 5, 8
BPF_PROG_TYPE_CGROUP_SOCK, BPF_CGROUP_INET_SOCK_CREATE = 9, 2

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def rlimits(layout: Layout) -> str:
    assert _ends(resource.RLIMIT_NOFILE, 64, _open_many) == errno.EMFILE
    assert _ends(resource.RLIMIT_FSIZE, 4096, _write_much) == -signal.SIGXFSZ
    assert _ends(resource.RLIMIT_CPU, 1, _spin_forever) == -signal.SIGXCPU
    assert _ends(resource.RLIMIT_AS, 256 << 20, lambda: mmap.mmap(-1, 512 << 20)) == errno.ENOMEM
    return "NOFILE EMFILE, FSIZE SIGXFSZ, CPU SIGXCPU, AS ENOMEM"


def userns(layout: Layout) -> str:
    uid = os.getuid()
    _call("unshare(CLONE_NEWUSER)", _libc.unshare(CLONE_NEWUSER))
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"0 {uid} 1")
    _call("unshare(CLONE_NEWNET)", _libc.unshare(CLONE_NEWNET))
    links = read("/proc/net/dev").count(":")
    return f"uid {uid} became root of its own, {links} network device in a namespace of its own"


def landlock(layout: Layout) -> str:
    """Source: landlock(7)."""
    abi = _libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, 0, 1)
    if abi < 0:
        raise Refused(f"landlock_create_ruleset: {errno.errorcode[ctypes.get_errno()]}")
    rights = struct.pack("Q", LANDLOCK_ACCESS_FS_WRITE_FILE)
    ruleset = _call("landlock_create_ruleset", _libc.syscall(SYS_LANDLOCK_CREATE_RULESET, rights, 8, 0))
    with open("/tmp/landlock-control", "w") as file:
        file.write("control")
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("landlock_restrict_self", _libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0))
    assert _errno_of(lambda: os.open("/tmp/landlock-control", os.O_WRONLY)) == errno.EACCES
    return f"ABI {abi}, write refused"


def seccomp(layout: Layout) -> str:
    """A filter that answers getppid (110) with an errno no one else uses. Source: seccomp(2)."""
    assert _libc.getppid() > 0, "control"
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, 110), (0x06, 0, 0, 0x00050000 | errno.EXFULL), (0x06, 0, 0, 0x7FFF0000)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters))
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("seccomp", _libc.syscall(SYS_SECCOMP, 1, 0, program))
    assert _libc.syscall(110) == -1
    assert ctypes.get_errno() == errno.EXFULL
    return "getppid refused by a filter"


def bpf(layout: Layout) -> str:
    """A program that refuses socket creation, on a group. Source: bpf(2), include/uapi/linux/bpf.h."""
    code = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # r0 = 0; exit
    instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    load = struct.pack("<IIQQ", BPF_PROG_TYPE_CGROUP_SOCK, 2, ctypes.addressof(instructions), ctypes.addressof(licence))
    load = load.ljust(72, b"\0")[:68] + struct.pack("<I", BPF_CGROUP_INET_SOCK_CREATE)
    program = _call("bpf(PROG_LOAD)", _libc.syscall(SYS_BPF, BPF_PROG_LOAD, load, len(load)))
    with layout.group("any") as group:
        directory = os.open(group.path, os.O_RDONLY)
        attach = struct.pack("<IIII", directory, program, BPF_CGROUP_INET_SOCK_CREATE, 0)
        _call("bpf(PROG_ATTACH)", _libc.syscall(SYS_BPF, BPF_PROG_ATTACH, attach, len(attach)))
        socket.socket().close()  # control: we are not in the group
        refused = victims.run(group, lambda: os._exit(_errno_of(socket.socket)))
    assert refused == errno.EPERM, f"socket() inside: errno {refused}"
    return "socket() refused inside the group only"


def _ends(which: int, soft: int, victim: Callable[[], object]) -> int:
    """Run ``victim`` in a child under one rlimit: the errno it met, 0 when it met none, or minus its signal."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(which, (soft, soft + 1))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
            status = _errno_of(victim)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _open_many() -> None:
    for _ in range(100):
        os.dup(1)


def _write_much() -> None:
    fd = os.open("/tmp", os.O_TMPFILE | os.O_WRONLY)
    for _ in range(10):
        os.write(fd, b"x" * 4096)


def _spin_forever() -> None:
    while True:
        pass


def _errno_of(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or 0
    return 0


CHECKS = {"rlimits": rlimits, "userns": userns, "landlock": landlock, "seccomp": seccomp, "bpf": bpf}
