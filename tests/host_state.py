"""Is the host the same after as before? Observes what a sandbox could leave behind, and says what was left.

Owns: HostState, observe(), remains(). Refuses: to clean up; what remains is a bug to be seen.
Other programs may run on this host: only what can be told to be ours counts. Everything is read from /proc, /sys and /run.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import stat
import time
from dataclasses import dataclass

from pytest_isolate.kernel.interfaces import SUBNETS

#: Inherited by every program that a test starts, so that it is known for ours when its parents are gone.
#: The name is unique as well: a pytest run inside a test adds its own mark to that of the outer run.
MARK = (f"ISOLATE_TEST_RUN_{os.getpid()}", str(time.monotonic_ns()))
os.environ[MARK[0]] = MARK[1]

_OURS = re.compile(r"isolate", re.IGNORECASE)
#: The pid in the names that kernel/cgroups gives: pytest-isolate-<run>-<pid>-<start>-<pidns>, or ...-<pid>-<ns>.scope, and in
#: those that tests give to what they make themselves: pytest-isolate-network-<pid>, isolate-test-<pid>.
_OWNER = re.compile(r"-(\d+)-\d+(?:-\d+|\.scope)$|isolate-(?:test|network|machine)-(\d+)$")
_INTERFACE = re.compile(r"/iso([0-9a-f]{1,5})$")
#: Processes that are being killed need a moment; a leak is what is still there afterwards.
SETTLE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """Each field maps or lists what was seen, by a name that a reader can look up."""

    fds: dict[int, str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    networks: frozenset[str]
    pinned: frozenset[str]
    processes: dict[tuple[int, str], str]
    devices: dict[str, str]
    self_facts: dict[str, str]


def observe() -> HostState:
    """What the host and this process look like now."""
    return HostState(
        fds=_open_fds(),
        mounts=frozenset(_mounts()),
        cgroups=frozenset(_cgroups()),
        networks=frozenset(_listed("/run/netns", "/sys/class/net")),
        pinned=frozenset(_listed("/sys/fs/bpf")),
        processes=_our_processes(),
        devices={f"/dev/{name}": _owned(f"/dev/{name}") for name in ("null", "zero", "full", "tty", "urandom")},
        self_facts=_self_facts(),
    )


def remains(before: HostState, settle_s: float = SETTLE_S) -> list[str]:
    """One line per thing that is there and was not, or that has changed; empty when the host is the same."""
    deadline = time.monotonic() + settle_s
    while True:
        lines = _difference(before, observe())
        if not lines or time.monotonic() > deadline:
            return lines
        time.sleep(0.05)


def _difference(before: HostState, now: HostState) -> list[str]:
    lines = [f"open file {fd}: {what}" for fd, what in now.fds.items() if before.fds.get(fd) != what]
    lines += [f"lost file {fd}: {what}" for fd, what in before.fds.items() if fd not in now.fds]
    lines += [f"mount: {line}" for line in sorted(now.mounts - before.mounts)]
    lines += [f"cgroup: {path}" for path in sorted(now.cgroups - before.cgroups)]
    networks = [path for path in sorted(now.networks - before.networks) if _is_ours(path)]
    lines += [f"network: {path}" for path in networks if not _made_by_another_run(path)]
    lines += [f"pinned eBPF: {path}" for path in sorted(now.pinned - before.pinned) if _is_ours(path)]
    lines += [f"process {key[0]}: {line}" for key, line in now.processes.items() if key not in before.processes]
    for path, value in now.devices.items():
        if before.devices.get(path) != value:
            lines.append(f"{path}: was {before.devices.get(path)}, is {value}")
    for name, value in now.self_facts.items():
        if before.self_facts.get(name) != value:
            lines.append(f"{name} of the test process: was {before.self_facts.get(name)!r}, is {value!r}")
    return lines


def _owned(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "not there"
    return f"{stat.filemode(status.st_mode)} of {status.st_uid}:{status.st_gid}"


def _open_fds() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the directory's own descriptor is gone by now
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _mounts() -> list[str]:
    """Mounts without their ids, which say nothing: ``mount point, root, type, source``. Source: proc(5)."""
    found = []
    with open("/proc/self/mountinfo") as table:
        for line in table:
            left, _, right = line.partition(" - ")
            fields, (fstype, source) = left.split(), right.split()[:2]
            found.append(f"{fields[4]} (root {fields[3]}, {fstype}, {source})")
    # Two mounts on one place are two entries: the count belongs to the name.
    return [f"{line} x{found.count(line)}" for line in set(found)]


def _cgroups() -> list[str]:
    """cgroup directories that carry our name and belong to no other living run."""
    found = []
    for root in _cgroup_roots():
        for path, names, _ in os.walk(root):
            found += [os.path.join(path, name) for name in names if _OURS.search(name)]
    return [path for path in found if not _of_another_run(path)]


def _cgroup_roots() -> list[str]:
    with open("/proc/self/mountinfo") as table:
        return [line.split()[4] for line in table if line.partition(" - ")[2].startswith("cgroup")]


def _of_another_run(path: str) -> bool:
    """True when a name on the way holds the pid of a living process that is neither we nor below us.

    On the way, not only at its end: a run keeps cgroups of its own inside its directory, such as its network's resident.
    """
    named = [owner for name in path.split("/") if _OURS.search(name) and (owner := _OWNER.search(name))]
    owners = [int(owner[1] or owner[2]) for owner in named]
    return any(os.path.exists(f"/proc/{pid}") for pid in owners) and not set(owners) & set(_descendants())


def _made_by_another_run(path: str) -> bool:
    """True when an interface's number is one that a living process counts to that is neither we nor below us.

    A process counts from 61 times its pid (kernel/interfaces.py); 16 times 61 networks are more than one makes.
    """
    name = _INTERFACE.search(path)
    if name is None:
        return False
    number, ours = int(name[1], 16), set(_descendants())
    return any((number - 61 * pid) % SUBNETS < 16 * 61 for pid in _pids() if pid not in ours)


def _is_ours(path: str) -> bool:
    return bool(_OURS.search(path)) or os.path.basename(path).startswith("iso")


def _listed(*directories: str) -> list[str]:
    found = []
    for directory in directories:
        with contextlib.suppress(OSError):
            found += [os.path.join(directory, name) for name in os.listdir(directory)]
    return found


def _descendants() -> list[int]:
    """This process and everything below it, by parent pid."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(pid)[1]), []).append(pid)
    found, todo = [], [os.getpid()]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def _our_processes() -> dict[tuple[int, str], str]:
    """(pid, start time) -> command line, of processes below us, with our mark, or forked off us without an exec."""
    below = set(_descendants()) - {os.getpid()}
    mine = _image(os.getpid())
    marked = "=".join(MARK).encode()
    found = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            if pid != os.getpid() and (pid in below or marked in _read(pid, "environ") or _image(pid) == mine):
                state, _, start = _stat(pid)
                found[pid, start] = f"{_command(pid)} (state {state})"
    return found


def _image(pid: int) -> tuple[bytes, bytes]:
    return _read(pid, "cmdline"), _read(pid, "environ")


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> tuple[str, str, str]:
    """State, parent and start time. The name, in parentheses, may hold anything. Source: proc_pid_stat(5)."""
    fields = _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()
    return fields[0], fields[1], fields[19]


def _command(pid: int) -> str:
    words = _read(pid, "cmdline").replace(b"\0", b" ") or _read(pid, "comm")  # a zombie has only its name
    return words.decode(errors="replace").strip()[:200]


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


def _self_facts() -> dict[str, str]:
    facts = {f"namespace {name}": os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    facts["working directory"] = os.getcwd()
    facts["cgroup"] = _read(os.getpid(), "cgroup").decode()
    for name in ("CPU", "NOFILE", "NPROC", "AS", "DATA", "CORE", "FSIZE", "STACK"):
        facts[f"rlimit {name}"] = str(resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
    for line in _read(os.getpid(), "status").decode().splitlines():
        key, _, value = line.partition(":")
        if key in ("Umask", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Uid", "Gid"):
            facts[key] = value.strip()
    return facts
