"""The parts of /proc, /sys and /dev that show or change the machine, and are of use to nobody in a sealed view.

Owns: which they are, for whom. Refuses: to mount over them (entries.py, view.py).

Source: the maskedPaths and readonlyPaths that the OCI runtimes' engines set by default (containerd pkg/oci/spec.go, Docker
oci/defaults.go); besides them the kernel's log, which root reads and writes through a read-only mount too, and the mounts of debugfs,
tracefs and securityfs, which containers do not have.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_isolate.kernel.filesystem.tree import Tree

#: What changes the machine when it is written: in /proc.
READONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "asound", "scsi")

_MASKED = ("/sys/firmware", "/sys/devices/virtual/powercap")
#: Of a fresh /proc only where the sandbox is root's: in a user namespace a /proc with mounts on it lets nobody inside mount another,
#: and a view inside a view is wanted (mount_too_revealing(), linux/fs/namespace.c). What is read-only lets nobody do so anyway.
_KEYS = "/proc/keys"
#: Modes keep all but the host's uid 0 out: who is that inside needs no capability for them.
_MASKED_FROM_ROOT = (
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/latency_stats",
)
_LOG = "/dev/kmsg"
#: Directories that are empty where nothing is mounted on them.
_MASKED_MOUNTS = ("/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security")


def masked(host: Tree, *, root_outside: bool, fresh_proc: bool, own_dev: bool) -> Iterator[str]:
    """The paths of this host to be masked; ``root_outside``: for who is its uid 0; ``fresh_proc``, ``own_dev``: its are not shown."""
    keys = (_KEYS,) if root_outside or not fresh_proc else ()
    log = () if own_dev else (_LOG,)
    for path in (*_MASKED, *keys, *((*_MASKED_FROM_ROOT, *log) if root_outside else ())):
        if not host.walk(path).error:
            yield path
    for path in _MASKED_MOUNTS:
        found = host.walk(path)
        if not found.error and found.place.path == found.place.mount.root:
            yield path
