"""A Landlock policy for this kernel's version of the interface.

Owns: the rights by ABI, the ruleset of a policy, and what a kernel is too old for. Refuses: to open a path or enforce anything:
the child does, among its own mounts. Source: landlock(7), linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator

from pytest_isolate.hardening import USUALLY_WRITABLE, Landlock
from pytest_isolate.kernel.plan import LandlockRule, LandlockRuleset

_SYS_LANDLOCK_CREATE_RULESET = 444
_CREATE_RULESET_VERSION = 1

#: LANDLOCK_ACCESS_FS_*: how many of them an ABI knows. 14: REFER, 15: TRUNCATE, 16: IOCTL_DEV.
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1
_TRUNCATE_ABI, _TCP_ABI, _SCOPE_ABI = 3, 4, 6


@functools.cache
def abi() -> int:
    """The kernel's version of the interface; 0 where there is none (no Landlock, not in ``lsm=``)."""
    version: int = ctypes.CDLL(None).syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    return max(0, version)


def lacks(policy: Landlock, version: int | None = None) -> Iterator[str]:
    """What of ``policy`` a kernel of this ABI does not enforce, each with a remedy."""
    found = abi() if version is None else version
    if not found:
        yield "landlock: this kernel has none. It needs Linux 5.13, and landlock in lsm= of the kernel command line"
        return
    if found < _TRUNCATE_ABI and _governs_paths(policy):
        yield f"landlock: ABI {found} lets truncate(2) empty any file. It needs Linux 6.2"
    if found < _TCP_ABI and (policy.connect_tcp is not None or policy.bind_tcp is not None):
        yield f"landlock: ABI {found} knows no TCP ports. It needs Linux 6.7; or use a network policy (net_allow)"
    if found < _SCOPE_ABI and policy.scoped:
        yield f"landlock: ABI {found} knows no scopes. It needs Linux 6.12; or use the namespaces pid and net"


def compile_ruleset(policy: Landlock, version: int | None = None) -> LandlockRuleset:
    """The ruleset of ``policy`` at this ABI; what lacks() says is left out."""
    found = abi() if version is None else version
    everything = (1 << _FS_BITS.get(found, _FS_BITS[max(_FS_BITS)])) - 1 if _governs_paths(policy) else 0
    net = _BIND_TCP * (policy.bind_tcp is not None) | _CONNECT_TCP * (policy.connect_tcp is not None)
    return LandlockRuleset(
        fs=everything,
        net=net if found >= _TCP_ABI else 0,
        scoped=_SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if policy.scoped and found >= _SCOPE_ABI else 0,
        rules=(*_path_rules(policy, everything), *_port_rules(policy, found)),
    )


def _governs_paths(policy: Landlock) -> bool:
    """Not where all may be done beneath the root: a ruleset without paths also leaves mounts alone."""
    return "/" not in policy.write


def _path_rules(policy: Landlock, everything: int) -> Iterator[LandlockRule]:
    if not everything:
        return
    for path in policy.read:
        yield LandlockRule(rights=_EXECUTE | _READ_FILE | _READ_DIR, path=path)
    for path in policy.write:
        yield LandlockRule(rights=everything, path=path, optional=path in USUALLY_WRITABLE)


def _port_rules(policy: Landlock, found: int) -> Iterator[LandlockRule]:
    if found < _TCP_ABI:
        return
    for rights, ports in ((_CONNECT_TCP, policy.connect_tcp), (_BIND_TCP, policy.bind_tcp)):
        yield from (LandlockRule(rights=rights, port=port) for port in ports or ())
