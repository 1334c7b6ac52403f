"""What a sandbox holds of memory while its program does nothing: user pages, page tables and kernel objects.

Owns: a cgroup in which so many are started and left waiting; what is charged to it more than before, by their number, is the
figure. Refuses: to estimate where no memory controller counts. The program is isolate-tiny, which has two pages of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_isolate import groups
from pytest_isolate.bench import forkexec
from pytest_isolate.bench.measure import Effort
from pytest_isolate.bench.table import Table
from pytest_isolate.errors import IsolateError
from pytest_isolate.kernel import native
from pytest_isolate.kernel.cgroups import Cgroup
from pytest_isolate.kernel.library import find
from pytest_isolate.sandbox import Sandbox

_ROWS = ("standard", "pid", "net", "all", "all+pivot")
_AT_ONCE = 50  # the kernel charges by batches of 64 pages a core: a few KiB each
_UP_S = 20.0

#: Starts one, which waits until it is killed.
Start = Callable[[], object]


def measure(effort: Effort) -> list[Table]:
    """One table, a row a competitor, KiB by what is isolated; without rows where nothing counts memory."""
    title = "memory of a start, KiB charged while its program waits"
    if why := _not_counted():
        return [Table(title=title, head=("who",), rows=(), notes=(f"Not measured: {why}",))]
    rows = [name for name in _ROWS if effort.wants(name)]
    with tempfile.TemporaryDirectory(prefix="isolate-bench-") as place, contextlib.closing(_groups()) as of:
        found = {name: dict(_row(name, Path(place), of)) for name in rows}
    whos = dict.fromkeys(who for row in found.values() for who in row)
    return [
        Table(
            title=title,
            head=("who", *rows),
            rows=tuple((who, *(found[name].get(who, "-") for name in rows)) for who in whos),
            notes=(f"{_AT_ONCE} at once, in one cgroup; all of its children included (an init, a peer that waits).",),
        )
    ]


def _groups() -> groups.Groups:
    return groups.Groups(run_id="bench")


def _row(name: str, place: Path, of: groups.Groups) -> Iterator[tuple[str, str]]:
    stage = place / "stage"
    stage.mkdir(exist_ok=True)
    for who, start in _competitors(name, place, stage):
        yield who, _charged(start, of)


def _competitors(name: str, place: Path, stage: Path) -> Iterator[tuple[str, Start]]:
    tiny = str(find("isolate-tiny"))
    plan = forkexec.plan(name, stage)
    program_fd = os.open(tiny, os.O_PATH | os.O_CLOEXEC)  # a name that the new root does not have
    try:
        yield "native.spawn", lambda: native.spawn(plan, ["tiny", "wait"], {}, executable_fd=program_fd)
    finally:
        os.close(program_fd)
    with Sandbox(forkexec.policy(name), name="bench") as sandbox:
        yield "Sandbox.spawn", lambda: sandbox.spawn([tiny, "wait"], env={})
    if name == "standard":
        yield "subprocess.Popen", lambda: subprocess.Popen([tiny, "wait"])
    for who, command in forkexec.peers(name, place).items():
        if who in ("unshare", "bwrap"):
            yield who, lambda command=command: subprocess.Popen([*command, "wait"])  # type: ignore[misc]


def _charged(start: Start, of: groups.Groups) -> str:
    """KiB for each of them, or "-": not all came up."""
    with of.manager().create("bench", accounting=frozenset({"memory"})) as cgroup:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _wait_in(cgroup, start, theirs)
        theirs.close()
        with ours:
            before = after = None
            if ours.recv(1) == b"x":  # else it failed, and said why
                before = cgroup.usage().memory_bytes
                ours.sendall(b"x")
                after = cgroup.usage().memory_bytes if _all_up(cgroup) else None
            cgroup.kill()
            os.waitpid(pid, 0)
    if before is None or after is None:
        return "-"
    return f"{(after - before) / _AT_ONCE / 1024:.0f}"


def _wait_in(cgroup: Cgroup, start: Start, parent: socket.socket) -> None:
    """In the child: in the cgroup, one start for what is made once; then, when told so, all of them."""
    try:
        _join(cgroup)
        held = [start()]
        parent.sendall(b"x")
        parent.recv(1)
        held += [start() for _ in range(_AT_ONCE)]
        parent.recv(1)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _join(cgroup: Cgroup) -> None:
    for fd in cgroup.procs_fds:
        os.write(fd, b"0")
    if cgroup.dir_fd >= 0:
        fd = os.open("cgroup.procs", os.O_WRONLY, dir_fd=cgroup.dir_fd)
        os.write(fd, b"0")
        os.close(fd)


def _all_up(cgroup: Cgroup) -> bool:
    """Wait until as many execute the program; the first is one more."""
    program, end = str(find("isolate-tiny").resolve()), time.monotonic() + _UP_S
    while sum(_executes(pid) == program for pid in cgroup.pids()) <= _AT_ONCE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _executes(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/exe")
    return ""


def _not_counted() -> str:
    """The empty string, or why nothing is measured."""
    try:
        with contextlib.closing(_groups()) as of, of.manager().create("probe", accounting=frozenset({"memory"})) as one:
            return "" if one.usage().memory_bytes is not None else "no memory controller counts here"
    except IsolateError as error:
        return str(error)
