"""Start a command as Docker's defaults would: what a CI job in a container may do, made from a root shell.

`--in-place` before the command: on a machine that is not a guest of ours. No group is made, whatever cgroup hierarchies are
mounted are seen, read-only, and the network is the host's: there is nobody to wire a container's own.

Owns: the container: namespaces, a group of its own seen read-only, masked /proc, capabilities, the seccomp filter.
Refuses: to be a sandbox for anyone: it only takes rights away, so that tests can see what is left to work with.
Source: moby profiles/seccomp/default.json (clone3 ENOSYS, clone and unshare of namespaces EPERM, mount EPERM),
moby oci/caps/defaults.go, oci/defaults.go (masked and read-only paths).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
#: Every CLONE_NEW* flag clone(2) takes, user and time namespaces too.
CLONE_NEW_ANY = 0x7E020000
MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18
KEPT_FLAGS = {"nosuid": MS_NOSUID, "nodev": 4, "noexec": 8}
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, SYS_SECCOMP = 24, 38, 317

MASKED = ("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
          "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware")  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
#: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
#: AUDIT_WRITE, SETFCAP. Source: linux/capability.h.
KEPT_CAPABILITIES = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))

#: x86-64 numbers refused with EPERM: mount, umount2, pivot_root, swapon, swapoff, reboot, init_module, delete_module,
#: kexec_load, add_key, request_key, keyctl, unshare, perf_event_open, setns, finit_module, bpf, userfaultfd,
#: open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr.
REFUSED = (165, 166, 155, 167, 168, 169, 175, 176, 246, 248, 249, 250, 272, 298, 308, 313, 321, 323, 428, 429, 430, 431,
           432, 433, 442)  # fmt: skip
SYS_CLONE, SYS_CLONE3 = 56, 435
GROUP = "/sys/fs/cgroup/container"

_libc = ctypes.CDLL(None, use_errno=True)


def call(what: str, result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    words = [word.encode() if word else None for word in (source, target, kind)]
    call(f"mount {target}", _libc.mount(*words, ctypes.c_ulong(flags), None))


def enter_group() -> None:
    """A group of the container's own; seen from its namespace it is the whole tree."""
    os.makedirs(GROUP, exist_ok=True)
    with open(f"{GROUP}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))


def change_view(in_place: bool) -> None:
    """A fresh /proc with masks, /sys and the group tree read-only."""
    mount("", "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID)
    if in_place:
        seal_below("/sys")
    else:
        mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_RDONLY)
        mount("cgroup", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_RDONLY)
    for path in filter(os.path.exists, MASKED):
        if os.path.isdir(path):
            mount("tmpfs", path, "tmpfs", MS_RDONLY)
        else:
            mount("/dev/null", path, None, MS_BIND)
    for path in filter(os.path.exists, READ_ONLY):
        mount(path, path, None, MS_BIND)
        mount(None, path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)


def seal_below(top: str) -> None:
    """Every mount at or below ``top`` read-only, and the flags it has kept, some of which the kernel locks."""
    with open("/proc/self/mountinfo") as table:
        places = [line.split()[4:6] for line in table]
    for place, options in places:
        if place == top or place.startswith(f"{top}/"):
            kept = sum(flag for name, flag in KEPT_FLAGS.items() if name in options.split(","))
            mount(None, place, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def drop_capabilities() -> None:
    """From the bounding set; exec as uid 0 then gets what is left, as in a container."""
    for number in range(64):
        if number not in KEPT_CAPABILITIES and _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break  # past the last one this kernel knows


def filter_calls() -> None:
    """The filter; needs CAP_SYS_ADMIN or no_new_privs: Docker sets it while it still has the former."""
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    code = [(0x20, 0, 0, 0)]  # the number of the call
    code += [(0x15, 0, 1, SYS_CLONE3), (0x06, 0, 0, 0x00050000 | errno.ENOSYS)]
    code += [step for number in REFUSED for step in ((0x15, 0, 1, number), (0x06, 0, 0, refuse))]
    code += [(0x15, 0, 3, SYS_CLONE), (0x20, 0, 0, 16)]  # its flags, low half
    code += [(0x45, 0, 1, CLONE_NEW_ANY), (0x06, 0, 0, refuse), (0x06, 0, 0, allow)]
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(steps))
    call("seccomp", _libc.syscall(SYS_SECCOMP, 1, 0, program))


def main(argv: list[str]) -> int:
    in_place = argv[0] == "--in-place"
    own = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
    if in_place:
        argv = argv[1:]
    else:
        enter_group()
        own |= CLONE_NEWNET
    call("unshare", _libc.unshare(own))
    pid = os.fork()
    if pid == 0:
        change_view(in_place)
        filter_calls()
        drop_capabilities()
        os.execvp(argv[0], argv)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
