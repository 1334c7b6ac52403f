"""Runs a command as an ordinary container runs it: no capability, and a seccomp filter that refuses namespaces.

Owns: the filters: what Docker's default profile answers to clone, clone3 and unshare; with --no-mounts what AppArmor answers
on Ubuntu 24.04: namespaces may be made, and every mount in them is EACCES. Refuses: to pretend; the kernel itself says so.
Usage: python restricted.py [--read-only-cgroups] [--no-mounts] COMMAND...
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

# (clone, clone3, unshare, AUDIT_ARCH). Source: asm/unistd.h, linux/audit.h.
_NUMBERS = {"x86_64": (56, 435, 272, 0xC000003E), "aarch64": (220, 435, 97, 0xC00000B7)}
_NEW = 0x7E020080  # every CLONE_NEW* flag that clone(2) takes, linux/sched.h
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 24, 38, 22
_CAP_SETFCAP = 1 << 31
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _EACCES, _ENOSYS = 1, 13, 38
_CLONE_NEWNS, _MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20000, 1, 32, 4096, 16384, 1 << 18
_LOAD, _EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x45, 0x06


def program() -> bytes:
    """The filter: offsets are those of struct seccomp_data (nr 0, arch 4, args[0] 16). Source: seccomp(2)."""
    clone, clone3, unshare, _ = _NUMBERS[platform.machine()]
    lines = [
        (_LOAD, 0, 0, 0),
        (_EQUAL, 5, 0, unshare),
        (_EQUAL, 5, 0, clone3),
        (_EQUAL, 0, 2, clone),
        (_LOAD, 0, 0, 16),
        (_BITS, 1, 0, _NEW),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
    ]
    return b"".join(struct.pack("HBBI", code, yes, no, value) for code, yes, no, value in lines)


def without_mounts() -> bytes:
    """EACCES to mount, umount2, pivot_root, open_tree, move_mount and mount_setattr, the newer ones alike everywhere."""
    older = {"x86_64": (165, 166, 155), "aarch64": (40, 39, 41)}[platform.machine()]
    numbers = (*older, 428, 429, 442)
    lines = [(_LOAD, 0, 0, 0)]
    lines += [(_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | _EACCES)]
    return b"".join(struct.pack("HBBI", code, yes, no, value) for code, yes, no, value in lines)


def restrict(filter_program: bytes, kept: int = 0) -> None:
    """Give everything up but the capabilities of the mask ``kept``, for this process and all it starts."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(*args: object) -> None:
        if libc.prctl(*args) != 0:
            raise OSError(ctypes.get_errno(), f"prctl{args[:2]}")

    for capability in range(64):
        if not kept >> capability & 1:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header, data = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", low, low, 0, high, high, 0)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    code = ctypes.create_string_buffer(filter_program, len(filter_program))
    fprog = struct.pack("HxxxxxxP", len(code.raw) // 8, ctypes.addressof(code))
    prctl(_PR_SET_SECCOMP, 2, fprog, 0, 0)


def seal_cgroups() -> None:
    """Every cgroup file system read-only, as containers have them; in a mount namespace of our own. Needs root."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), what)

    call("unshare", libc.unshare(_CLONE_NEWNS))
    call("private", libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    with open("/proc/self/mountinfo") as table:
        places = [line.split()[4] for line in table if line.partition(" - ")[2].startswith("cgroup")]
    for place in places:
        flags = ctypes.c_ulong(_MS_REMOUNT | _MS_BIND | _MS_RDONLY)
        call(place, libc.mount(None, place.encode(), None, flags, None))


if __name__ == "__main__":
    command = sys.argv[1:]
    if command[0] == "--read-only-cgroups":
        seal_cgroups()
        del command[0]
    if command[0] == "--no-mounts":
        del command[0]
        restrict(
            without_mounts(), kept=_CAP_SETFCAP
        )  # without it uid 0 cannot map itself (Linux 5.12): a plain user can
    else:
        restrict(program())
    os.execvp(command[0], command)
