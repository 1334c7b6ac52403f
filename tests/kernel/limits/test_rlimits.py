"""Every rlimit that can be hit, hit by a program that had room without; those that cannot have their reason.

Owns: one row per RLIMIT_*. Refuses: limits of a group (test_groups.py).
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_isolate.outcome import Cause, Outcome
from pytest_isolate.policy import RLIMIT_UNITS
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require
from tests.kernel.limits.programs import (
    BURN_ANEW,
    NOBODY,
    python,
)


class Row(NamedTuple):
    """A program that hits ``name`` at ``held`` and not at ``room``. ``told``: what it prints then, or its signal."""

    name: str
    held: Any
    room: Any
    source: str
    told: str | signal.Signals
    cause: Cause | None = None


_PLAIN = f"import os; os.setgid({NOBODY}); os.setuid({NOBODY})\n"
_LIBC = "import ctypes, errno, os, signal; libc = ctypes.CDLL(None, use_errno=True)\n"
_TELL = "\nprint('ok' if answer >= 0 else errno.errorcode[ctypes.get_errno()])"
_TRY = """
import errno, os, resource, sys
def tell(call):
    try:
        call()
        print("ok")
    except MemoryError:
        print("MemoryError")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
ROWS = (
    Row(
        "AS",
        "400M",
        "4G",
        _TRY + "import mmap\ntell(lambda: mmap.mmap(-1, 600 << 20, flags=mmap.MAP_PRIVATE))",
        "ENOMEM",
    ),
    Row("CORE", 0, "hard", "import os; print('ok', flush=True); os.abort()", signal.SIGABRT),
    Row(
        "CPU",
        1,
        60,
        "import time; print('ok', flush=True)\nwhile time.process_time() < 2: pass",
        signal.SIGXCPU,
        Cause.CPU,
    ),
    Row("DATA", "100M", "4G", _TRY + "tell(lambda: bytearray(300 << 20))", "MemoryError"),
    Row(
        "FSIZE",
        "1M",
        "1G",
        _TRY + "def grow():\n with open('grown', 'wb') as f: f.write(bytes(2 << 20))\ntell(grow)",
        "EFBIG",
    ),
    Row("FSIZE", "1M", "1G", "", signal.SIGXFSZ, Cause.FSIZE),
    Row(
        "MEMLOCK",
        "64K",
        "hard",
        _LIBC + _PLAIN + "page = ctypes.create_string_buffer(4 << 20)\nanswer = libc.mlock(page, 4 << 20)" + _TELL,
        "ENOMEM",
    ),
    Row(
        "MSGQUEUE",
        20_000,
        "hard",
        _LIBC
        + "attr = (ctypes.c_long * 8)(0, 10, 8192)\nanswer = libc.mq_open(b'/held', os.O_CREAT | os.O_RDWR, 0o600, attr)"
        + _TELL,
        "EMFILE",
    ),
    Row("NICE", 0, "root", _LIBC + "{user}answer = libc.setpriority(0, 0, -5)" + _TELL, "EACCES"),
    Row("NOFILE", 32, 256, _TRY + "tell(lambda: [os.open('/dev/null', 0) for _ in range(100)])", "EMFILE"),
    Row("NPROC", 1, "hard", _TRY + _PLAIN + "tell(lambda: os.fork() or os._exit(0))", "EAGAIN"),
    Row(
        "RTPRIO",
        0,
        "root",
        _TRY + "{user}tell(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))",
        "EPERM",
    ),
    Row(
        "RTTIME",
        200_000,
        "hard",
        "import os\nprint('ok', flush=True)\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\n"
        + BURN_ANEW.format(seconds=0.6),
        signal.SIGXCPU,
        Cause.CPU,
    ),
    Row(
        "SIGPENDING",
        4,
        "hard",
        _LIBC
        + _PLAIN
        + "signal.pthread_sigmask(signal.SIG_BLOCK, [40])\nanswer = min(libc.sigqueue(os.getpid(), 40, None) for _ in range(9))"
        + _TELL,
        "EAGAIN",
    ),
    Row(
        "STACK",
        "256K",
        "8M",
        _TRY
        + "many = {f'V{n}': 'v' * 900 for n in range(300)}\ntell(lambda: os.posix_spawn('/bin/true', ['true'], many))",
        "E2BIG",
    ),
    Row("STACK", "256K", "8M", "", signal.SIGSEGV),
)
#: What no program can hit on today's kernels, and where docs/how-to/limits.md says why.
NOT_HIT = ("LOCKS", "RSS")

#: Programs that are not Python: it ignores SIGXFSZ, and its own recursion is not the C stack's.
SHELL = {
    "FSIZE": "echo ok; exec dd if=/dev/zero of=grown bs=1M count=2 status=none",
    "STACK": 'echo ok; f() { if [ "$1" -gt 0 ]; then f $(($1 - 1)); fi; }; f 900',
}


def argv_of(row: Row, *, plain: bool) -> list[str]:
    if not row.source:
        return ["/bin/sh", "-c", SHELL[row.name]]
    return python(row.source.replace("{user}", _PLAIN if plain else ""))


def told(outcome: Outcome) -> str | signal.Signals:
    if outcome.status.signal is not None:
        return signal.Signals(outcome.status.signal)
    return str(outcome.stdout).strip()


def roomy(row: Row) -> dict[str, Any]:
    """No limit of ours, or one with room; ``hard``: what this process itself has, which is the most we may give."""
    match row.room:
        case "root":
            return {}
        case "hard":
            return {row.name: resource.getrlimit(getattr(resource, f"RLIMIT_{row.name}", 10))[1]}
    return {row.name: row.room}


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.name}-{getattr(row.told, 'name', row.told)}" for row in ROWS])
def test_an_rlimit_is_hit_by_a_program_that_had_room_without(box: Sandbox, row: Row, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    require("root", os.geteuid() == 0 or _PLAIN not in row.source, "the program changes its user")
    free = box.run(argv_of(row, plain=False), rlimits=roomy(row), cwd=tmp_path, timeout=30)
    held = box.run(argv_of(row, plain=True), rlimits={row.name: row.held}, cwd=tmp_path, timeout=30)
    if row.name == "CORE":
        assert (free.status.core_dumped, held.status.core_dumped) == (True, False)
        free = Outcome(stdout=free.stdout)
    assert (free.status.code, free.stdout, free.causes) == (0, "ok\n", ()), free
    assert told(held) == row.told, held
    assert held.causes == (() if row.cause is None else (row.cause,)), held.detail
    if row.name in ("CPU", "RTTIME"):
        assert f"RLIMIT_{row.name} = {row.held} " in held.detail[0]


def test_a_sigkill_at_the_hard_cpu_limit_is_told_and_another_is_not(box: Sandbox) -> None:
    spin = python("while True: pass")
    told = box.run(spin, rlimits={"CPU": (1, 1)}, timeout=60)
    assert (told.status.signal, told.causes) == (signal.SIGKILL, (Cause.CPU,))
    assert "at the hard limit RLIMIT_CPU = 1 s (SIGKILL)" in told.detail[0]
    # An interpreter may need most of a second to start: a kill near the limit could be the limit's.
    other = box.run(python("import os; os.kill(os.getpid(), 9)"), rlimits={"CPU": (30, 30)})
    assert (other.status.signal, other.causes) == (signal.SIGKILL, ())


def test_every_rlimit_has_its_row_or_its_reason() -> None:
    assert {row.name for row in ROWS} | set(NOT_HIT) == set(RLIMIT_UNITS)
    page = (Path(__file__).parents[3] / "docs/how-to/limits.md").read_text()
    for name in RLIMIT_UNITS:
        assert f"| `{name}` |" in page, name
