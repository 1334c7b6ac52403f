"""Capabilities by name and number. Source: capability.h of Linux 6.x, capabilities(7).

Owns: the table, and what the calling process has. Refuses: to change any; the child does, in C.
"""

from __future__ import annotations

from collections.abc import Iterable

from pytest_isolate.policy import unknown

_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
#: ``CAP_CHOWN`` -> 0 and so on.
NUMBERS = {f"CAP_{name}": number for number, name in enumerate(_NAMES)}


#: NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, KEEP_CAPS off, and the lock of each. Source: linux/securebits.h.
LOCKED_SECUREBITS = 0b1110_1111


def mask(names: Iterable[str]) -> int:
    """Bit n set for capability n.

    Raises:
        PolicyError: a name that is no capability; the nearest one is suggested.
    """
    bits = 0
    for name in names:
        if name not in NUMBERS:
            raise unknown("capability", name, NUMBERS)
        bits |= 1 << NUMBERS[name]
    return bits


def effective() -> int:
    """The effective set of this process, from /proc/self/status."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def has(name: str) -> bool:
    """True when this process has the capability in effect."""
    return bool(effective() >> NUMBERS[name] & 1)
