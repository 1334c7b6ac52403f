"""Every limit, hit for real by a program under sandbox.run: the same program with room first, then without.

Owns: one test per group limit, a table with a row per rlimit, live changes, freezing. Refuses: what pytest shows of it
(tests/pytest/test_limits.py) and the cgroup layer alone (tests/kernel/cgroups/).
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_isolate import groups
from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel import processes
from pytest_isolate.outcome import Cause, Outcome
from pytest_isolate.policy import RLIMIT_UNITS, IoLimit
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require

MIB = 1024 * 1024
NOBODY = 65534


def controller(name: str) -> None:
    """Skip, naming the controller, where this host does not let us have it."""
    found = groups.of_this_process().manager().capabilities()[name]
    require(f"cgroup-{name}", found.available, found.reason)


def python(source: str) -> list[str]:
    return [sys.executable, "-I", "-c", source]


@pytest.fixture(scope="module", autouse=True)
def cgroups_of_this_process_closed() -> Iterator[None]:
    yield
    groups.of_this_process().close()


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(name="limits") as made:
        yield made


TOUCH = """
import mmap, os, sys
def touch(size, flags):
    memory = mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS)
    for offset in range(0, size, mmap.PAGESIZE):
        memory[offset] = 1
    return memory
"""
PRIVATE = TOUCH + "touch({mib} << 20, mmap.MAP_PRIVATE); print('touched')"
SHARED = TOUCH + "touch({mib} << 20, mmap.MAP_SHARED); print('touched')"
IN_A_GRANDCHILD = (
    TOUCH
    + """
if os.fork() == 0:
    if os.fork() == 0:
        touch({mib} << 20, mmap.MAP_PRIVATE)
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]) != 0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
)


@pytest.mark.parametrize(
    ("source", "limit", "fits", "grows"),
    [(PRIVATE, "64M", 32, 200), (SHARED, "300M", 100, 800), (IN_A_GRANDCHILD, "64M", 32, 200)],
    ids=["private", "shared-800-under-300", "grandchild"],
)
def test_memory_is_held_and_the_verdict_says_so(box: Sandbox, source: str, limit: str, fits: int, grows: int) -> None:
    controller("memory")
    assert box.run(python(source.format(mib=fits)), memory=limit).ok
    hit = box.run(python(source.format(mib=grows)), memory=limit)
    assert not hit.ok
    assert hit.causes == (Cause.OOM,)
    assert hit.detail[0].startswith(f"OOM-killed: peak {limit[:-1]} MiB of {limit[:-1]} MiB"), hit.detail
    assert hit.usage.cgroup_memory_peak_bytes == pytest.approx(int(limit[:-1]) * MIB, rel=0.02)


def test_swap_adds_to_memory_only_what_was_given(box: Sandbox) -> None:
    controller("memory")
    with open("/proc/meminfo") as file:
        total_kib = int(next(line.split()[1] for line in file if line.startswith("SwapTotal")))
    require("swap", total_kib >= 128 * 1024, "no swap space of 128 MiB is on")
    assert box.run(python(PRIVATE.format(mib=96)), memory="64M", swap="64M", timeout=100).ok
    assert box.run(python(PRIVATE.format(mib=96)), memory="64M", swap=0, timeout=100).causes == (Cause.OOM,)
    assert box.run(python(PRIVATE.format(mib=200)), memory="64M", swap="64M", timeout=100).causes == (Cause.OOM,)


BOMB = """
import os, sys, time
assert os.getppid() == 1 or os.getpid() == 1, "only in a PID namespace of its own"
refused = 0
for _ in range({forks}):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except BlockingIOError:
        refused += 1
print("refused", refused)
os.kill(-1, 9)
"""


def test_a_fork_bomb_is_held_by_pids(box: Sandbox) -> None:
    controller("pids")
    calm = box.run(python(BOMB.format(forks=5)), pids=16, namespaces="+pid")
    assert (calm.stdout, calm.causes) == ("refused 0\n", ()), calm
    bomb = box.run(python(BOMB.format(forks=100)), pids=16, namespaces="+pid")
    refused = int(bomb.stdout.split()[1])
    assert refused >= 84, "16 less the init and the program are left for children"
    assert bomb.causes == (Cause.PIDS,)
    assert bomb.detail == (f"{refused} forks refused: the limit of 16 processes and threads was reached",)
    assert bomb.usage.pids_peak in (None, 16)


BURN = """
import time
while time.process_time() < {seconds}: pass
"""
#: Besides what the interpreter has needed to start, which on a slow machine is most of a second.
BURN_ANEW = """
import time
end = time.process_time() + {seconds}
while time.process_time() < end: pass
"""


def test_a_cpu_quota_holds_and_the_lost_time_is_measured(box: Sandbox) -> None:
    """By its own CPU time, so that a busy machine changes nothing: it can only be slower."""
    controller("cpu")
    free = box.run(python(BURN.format(seconds=0.15)), cpu=len(os.sched_getaffinity(0)))
    held = box.run(python(BURN.format(seconds=0.15)), cpu=0.03)
    assert free.ok, free
    assert not free.usage.cgroup_throttled_usec
    assert held.usage.cgroup_cpu_usec is not None
    assert held.usage.cgroup_throttled_usec is not None
    assert held.usage.cgroup_cpu_usec / 1e6 < 0.08 * held.usage.wall_s, "0.03 cores, and what one period may overrun"
    assert held.usage.cgroup_throttled_usec > 0.2e6
    assert held.causes == (), "slowed down is what was asked for"


def test_a_cpuset_pins_every_process_of_the_tree(box: Sandbox) -> None:
    controller("cpuset")
    last = max(os.sched_getaffinity(0))
    inner = "import os; print(os.sched_getaffinity(0))"
    tell = f"import subprocess, sys; subprocess.run([sys.executable, '-Ic', {inner!r}], check=True)"
    assert box.run(python(tell), pids=50).stdout.strip() == str(os.sched_getaffinity(0))
    assert box.run(python(tell), cpuset=str(last)).stdout.strip() == str({last})
    with pytest.raises(OSError, match=r"cgroup cpuset\.cpus.*(ERANGE|EINVAL|ENOSPC|EACCES|Invalid)"):
        box.run(["/bin/true"], cpuset="9999")


WRITE = """
import mmap, os, sys
buffer = mmap.mmap(-1, 1 << 20)
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
for _ in range(4):
    os.writev(fd, [buffer])
"""


def test_writes_to_a_disk_are_held_to_their_rate(box: Sandbox, tmp_path: Path) -> None:
    controller("io")
    scratch = "/dev/vm/data"  # the disk of a test machine; else whatever holds the tests' directory
    place = scratch if os.path.exists(scratch) else str(tmp_path)
    argv = [*python(WRITE), scratch if place == scratch else str(tmp_path / "data")]
    try:
        free = box.run(argv, io=[IoLimit(path=place, write_bps=2**40)])
    except PolicyError as error:
        require("blockdevice", False, str(error))
    held = box.run(argv, io=[IoLimit(path=place, write_bps=2 * MIB)])
    assert free.ok, free
    assert held.ok, held
    assert held.usage.wall_s > 1.2, "4 MiB at 2 MiB a second"
    assert free.usage.wall_s < held.usage.wall_s / 2
    assert held.usage.io_write_bytes is not None
    assert held.usage.io_write_bytes >= 4 * MIB


def test_cpu_time_of_the_whole_tree_is_counted(box: Sandbox) -> None:
    controller("cpuacct")
    two = "import os\nos.fork()\n" + BURN.format(seconds=0.7) + "\ntry: os.wait()\nexcept ChildProcessError: pass"
    assert box.run(python(two), cpu_time=9, pids=50).ok
    hit = box.run(python(two), cpu_time=1, pids=50)
    assert Cause.CPU in hit.causes, hit
    assert any("of CPU time of 1 s allowed" in line for line in hit.detail), hit.detail


# Process limits


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
    page = (Path(__file__).parents[2] / "docs/how-to/limits.md").read_text()
    for name in RLIMIT_UNITS:
        assert f"| `{name}` |" in page, name


# Sizes without meaning, and limits that nothing fits into


@pytest.mark.parametrize("size", ["0", 0, -1, "-64M", "lots", "64 M M", "1e9", "9E", 2**63, "9999999P", "", True, 1.5])
@pytest.mark.parametrize("word", ["memory", "swap"])
def test_a_size_without_meaning_is_refused_before_anything_starts(box: Sandbox, word: str, size: Any) -> None:
    if word == "swap" and size in ("0", 0):
        return  # no swap at all: that has a meaning
    with pytest.raises(PolicyError, match=rf"^{word}: .*(not a size|not positive|more than the kernel)"):
        box.run(["/bin/true"], **{word: size})


@pytest.mark.parametrize(
    ("written", "means"), [("64 MB", 64 * MIB), ("64MiB", 64 * MIB), ("0.5G", 512 * MIB), (2**26, 64 * MIB)]
)
def test_sizes_as_people_write_them(box: Sandbox, written: str | int, means: int) -> None:
    controller("memory")
    with box.spawn(["/bin/sleep", "60"], memory=written) as running:
        assert running.limits.memory_bytes == means
        assert running._cgroup is not None
        file = "memory.limit_in_bytes" if running._cgroup.counters._version("memory") == 1 else "memory.max"
        assert running._cgroup.counters.read("memory", file) == f"{means}\n"


def test_half_a_byte_is_no_byte(box: Sandbox) -> None:
    with pytest.raises(PolicyError, match=r"memory: '0\.5' is not positive"):
        box.run(["/bin/true"], memory="0.5")


@pytest.mark.parametrize("pids", [0, -3, "many", True, 2**63])
def test_a_number_of_processes_without_meaning_is_refused(box: Sandbox, pids: Any) -> None:
    with pytest.raises(PolicyError, match=r"^pids: "):
        box.run(["/bin/true"], pids=pids)


@pytest.mark.parametrize("cpu", [0, -1, "fast", 1e9, float("nan"), float("inf")])
def test_a_share_of_cores_without_meaning_is_refused(box: Sandbox, cpu: Any) -> None:
    with pytest.raises(PolicyError, match=r"^cpu: "):
        box.run(["/bin/true"], cpu=cpu)


def test_a_limit_below_what_the_sandbox_itself_needs_is_said_in_words(box: Sandbox) -> None:
    controller("memory")
    with pytest.raises(PolicyError, match=r"memory limit of 4 KiB: the sandbox itself does not fit into it .*ENOMEM"):
        box.run(["/bin/true"], memory="4K")
    small = box.run(python("print(1)"), memory="1M")
    assert small.causes == (Cause.OOM,)
    assert small.detail[0].startswith("OOM-killed: peak 1 MiB of 1 MiB")
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PolicyError, match=r"memory limit of 4 KiB: the sandbox itself does not fit into it"):
        box.python(print, policy={"memory": "4K"})
    assert len(os.listdir("/proc/self/fd")) == fds
    controller("pids")
    with pytest.raises(PolicyError, match=r"limit of 1 processes: the sandbox itself needs more"):
        box.run(["/bin/true"], pids=1)


# Live changes


def counting(path: Path) -> list[str]:
    return python(
        f"import time\nn = 0\nwhile True:\n n += 1\n open({str(path)!r}, 'w').write(str(n))\n time.sleep(0.01)"
    )


def moves(path: Path, within_s: float) -> bool:
    before, end = path.read_text(), time.monotonic() + within_s
    while time.monotonic() < end:
        if path.read_text() not in ("", before):
            return True
        time.sleep(0.01)
    return False


def test_a_frozen_program_stands_still_until_it_is_thawed_and_can_be_ended(box: Sandbox, tmp_path: Path) -> None:
    controller("pids")
    controller("freezer")
    path = tmp_path / "count"
    path.write_text("0")
    running = box.spawn(counting(path), pids=20)
    assert moves(path, 10)
    running.freeze()
    time.sleep(0.05)
    assert not moves(path, 0.3)
    running.thaw()
    assert moves(path, 10)
    running.freeze()
    began = time.monotonic()
    outcome = running.terminate()
    assert outcome.status.signal == signal.SIGTERM
    assert time.monotonic() - began < 5
    with pytest.raises(PolicyError, match=r"freeze: the program has ended"):
        running.freeze()


def test_a_frozen_program_still_has_its_time_out(box: Sandbox) -> None:
    controller("pids")
    controller("freezer")
    running = box.spawn(["/bin/sleep", "60"], pids=20, timeout=0.5)
    running.freeze()
    assert running.wait().causes == (Cause.TIMEOUT,)


WAIT_THEN_TOUCH = TOUCH + "input(); touch(150 << 20, mmap.MAP_PRIVATE); print('touched')"


@pytest.mark.parametrize(("changed", "survives"), [("256M", True), ("64M", False)])
def test_a_memory_limit_changed_while_it_runs_is_the_one_that_holds(box: Sandbox, changed: str, survives: bool) -> None:
    controller("memory")
    read_fd, write_fd = os.pipe()
    try:
        running = box.spawn(python(WAIT_THEN_TOUCH), memory="128M", stdin=read_fd, timeout=30)
        running.limits.update(memory=changed)
        assert running.limits.memory_bytes == int(changed[:-1]) * MIB
        os.write(write_fd, b"go\n")
        outcome = running.wait()
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert (outcome.causes == ()) is survives, outcome
    if not survives:
        assert outcome.detail[0].startswith("OOM-killed: peak 64 MiB of 64 MiB")


def test_what_cannot_change_while_it_runs_is_refused_and_changes_nothing(box: Sandbox) -> None:
    controller("memory")
    with box.spawn(["/bin/sleep", "60"], memory="64M") as running:
        with pytest.raises(PolicyError, match=r"update\(rlimits=\.\.\.\): it cannot change while the program runs"):
            running.update(rlimits={"NOFILE": 5})
        with pytest.raises(PolicyError, match=r"memory: 'lots' is not a size"):
            running.limits.update(memory="lots")
        assert running.limits.memory_bytes == 64 * MIB
    with box.spawn(["/bin/sleep", "60"]) as running, pytest.raises(PolicyError, match=r"the program has no cgroup"):
        running.update(memory="64M")


# Leaks


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "{seconds}"])
    os._exit(0)
os.wait()
"""


def test_a_daemon_that_left_the_session_is_found_in_the_cgroup_where_there_is_no_pid_namespace(box: Sandbox) -> None:
    controller("pids")
    tidy = box.run(python("print(1)"), namespaces="-pid", pids=20)
    assert (tidy.causes, tidy.leftovers) == ((), ())
    left = box.run(python(DAEMON.format(seconds=7811)), namespaces="-pid", pids=20)
    assert left.causes == (Cause.LEAK,)
    assert [leftover.command for leftover in left.leftovers] == ["sleep 7811"]
    assert processes.described([left.leftovers[0].pid]) == []


KILLS_ITS_MONITOR = DAEMON + "os.kill(os.getppid(), 9)\ntime.sleep(30)"


def test_a_daemon_of_a_program_that_killed_its_monitor_is_found_and_ended_by_the_cgroup(box: Sandbox) -> None:
    controller("pids")
    left = box.run(python(KILLS_ITS_MONITOR.format(seconds=7812)), namespaces="-pid", pids=20, timeout=20)
    assert left.status.signal == signal.SIGKILL
    assert left.causes == (Cause.LEAK,)
    assert [leftover.command for leftover in left.leftovers] == ["sleep 7812"]
    assert processes.described([left.leftovers[0].pid]) == []


RUNS_AWAY = """
for line in open("/proc/self/mountinfo"):
    fields, kind = line.split(), line.partition(" - ")[2]
    if kind.startswith("cgroup"):
        open(fields[4] + "/cgroup.procs", "w").write("0")
"""


def test_a_program_that_leaves_its_cgroup_is_told_by_the_cpu_time_its_cgroup_did_not_see(box: Sandbox) -> None:
    controller("pids")
    require("root", os.geteuid() == 0, "only root may write to the cgroups above")
    stays = box.run(python(BURN_ANEW.format(seconds=1.5)), pids=20)
    assert stays.causes == ()
    leaves = box.run(python(RUNS_AWAY + BURN_ANEW.format(seconds=1.5)), pids=20)
    assert leaves.causes == (Cause.SETUP,), leaves
    assert leaves.detail[0].startswith("the limits did not hold: the program left its cgroup: of ")
