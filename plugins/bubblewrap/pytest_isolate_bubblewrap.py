"""The backend `bubblewrap`: programs under bwrap(1), the sandbox of Flatpak.

Owns: the translation of a policy into the arguments of bwrap. Refuses: what bwrap cannot do is in no table of this file:
time namespaces, a network without even 127.0.0.1 (bwrap always brings it up).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence

import pluggy

from pytest_isolate.capability import CONTAINER, Capability
from pytest_isolate.policy import Namespace, Policy
from pytest_isolate.tool import Exited, Place, Run, ToolBackend, places, program_below

hookimpl = pluggy.HookimplMarker("pytest")

#: --size of a tmpfs, --perms, and --json-status-fd that tells whether the program was executed.
OLDEST = (0, 5)
_UNSHARE = {
    Namespace.PID: "--unshare-pid",
    Namespace.USER: "--unshare-user",
    Namespace.UTS: "--unshare-uts",
    Namespace.CGROUP: "--unshare-cgroup",
    Namespace.IPC: "--unshare-ipc",
    Namespace.NET: "--unshare-net",
}


@hookimpl
def pytest_isolate_backends() -> list[ToolBackend]:
    return [Bubblewrap()]


class Bubblewrap(ToolBackend):
    """See the module."""

    name = "bubblewrap"
    quality = 60
    tool = "bwrap"
    install = "Install it: apt-get install bubblewrap"
    enforces = CONTAINER | {Capability.NAMESPACE_USER, Capability.NETWORK_PRIVATE}

    def __init__(self) -> None:
        self._known: dict[int, tuple[Policy, list[str]]] = {}

    def lacks_more(self, policy: Policy) -> list[str]:
        lacking = []
        if (found := version(self.path)) < OLDEST:
            wanted, here = (".".join(map(str, numbers)) for numbers in (OLDEST, found))
            lacking.append(f"bwrap {wanted}: this is {here}. Install a newer one")
        if any(not bind.recursive for bind in policy.filesystem.binds):
            lacking.append("binds without the mounts below them: bwrap binds recursively. Leave out recursive=False")
        if policy.network.wired and (Namespace.USER in policy.namespaces or os.geteuid() != 0):
            lacking.append("a wired network: it cannot be joined from a user namespace. Run as root without user")
        return lacking

    def command(self, policy: Policy, argv: Sequence[str], run: Run) -> list[str]:
        if id(policy) not in self._known:
            self._known[id(policy)] = policy, list(options(policy))
        status_fd = run.pass_file()
        return [*self._known[id(policy)][1], "--json-status-fd", str(status_fd), "--chdir", run.cwd, "--", *argv]

    def fault(self, exited: Exited, run: Run) -> str:
        """bwrap writes ``exit-code`` only when the program was executed. Source: report_child_exit_status, bubblewrap.c."""
        if exited.status.signal is not None or b'"exit-code"' in os.pread(run.passed_fds[0], 65536, 0):
            return ""
        return f"{exited.status}, the program was not executed"

    def receives_signals(self, pid: int) -> int:
        """bwrap passes none on: it waits outside, and with a PID namespace as its init as well."""
        return program_below(pid)


def version(path: str) -> tuple[int, ...]:
    """``(0, 8, 0)``; empty when it does not say."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5).stdout
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else ()


def options(policy: Policy) -> Iterator[str]:
    """The options that make a sandbox, in the order in which bwrap mounts."""
    yield "--die-with-parent"
    joins = policy.network.wired
    for namespace in sorted(policy.namespaces):
        if namespace in _UNSHARE and not (joins and namespace is Namespace.NET):
            yield _UNSHARE[namespace]
    if policy.hostname:
        yield from ("--hostname", policy.hostname)
    if (kept := policy.hardening.capabilities) is not None:
        yield from ("--cap-drop", "ALL")
        for name in sorted(kept):
            yield from ("--cap-add", name)
    view = policy.filesystem
    yield from {"host": ("--dev-bind", "/", "/"), "readonly": ("--ro-bind", "/", "/"), "minimal": ()}[view.root]
    shown = places(policy)
    devices = [place for place in shown if place.is_device]
    own = any(place.kind == "devpts" for place in devices)  # then bwrap's own are the same
    for place in shown:
        if not own or place not in devices:
            yield from _mounted(place)
        elif place is devices[0]:
            yield from ("--dev", "/dev")
    if own and devices[0].target == "/dev":
        yield from ("--remount-ro", "/dev")


def _mounted(place: Place) -> Iterator[str]:
    match place.kind:
        case "bind" if place.source.startswith("/dev/"):
            yield from ("--dev-bind", place.source, place.target)
        case "bind":
            yield from ("--bind" if place.writable else "--ro-bind", place.source, place.target)
        case "tmpfs":
            yield from ("--perms", f"{place.mode:o}")
            yield from () if place.size_bytes is None else ("--size", str(place.size_bytes))
            yield from ("--tmpfs", place.target)
        case "mask" if place.directory:
            yield from ("--perms", "0", "--tmpfs", place.target, "--remount-ro", place.target)
        case "mask":
            yield from ("--ro-bind", "/dev/null", place.target)
        case "proc":
            yield from ("--proc", place.target)
        case "link":
            yield from ("--symlink", place.source, place.target)
