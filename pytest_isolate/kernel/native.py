"""Starts children through libisolate.so: plan in, Child out, SetupError when a step failed.

Owns: the library handle (loaded at first use), the translation of a Plan into C structs, Child and Exited.
Refuses: to decide anything. A child is untrusted: nothing here waits for the end of a stream that a grandchild may hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Union

from pytest_isolate.errors import BackendUnavailable, CleanupError, SetupError
from pytest_isolate.kernel import abi, processes
from pytest_isolate.kernel.namespaces import CLONE_NEWNET
from pytest_isolate.outcome import ExitStatus, Leftover

if TYPE_CHECKING:
    import resource

    from pytest_isolate.kernel.plan import IdMap, MountOp, Plan

_DIRECTORY = Path(__file__).resolve().parent.parent / "_native"
_REMEDY = "build it with `make -C native`, or reinstall pytest-isolate-sandbox on a machine with a C compiler"
Arg = Union[bytes, str, "os.PathLike[str]"]

#: Python ignores these for itself; a program expects their defaults (as subprocess.Popen's restore_signals has it).
_DEFAULT_SIGNALS = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ))

#: What makes a known refusal go away, wherever we are: (step, errno) -> remedy. See _remedy for the others.
_REMEDIES: Mapping[tuple[str, int], str] = {
    ("clone", errno.EAGAIN): "raise the limit on processes (ulimit -u, pids.max)",
    ("maps", errno.EACCES): "the calling process is not dumpable: prctl(PR_SET_DUMPABLE, 1) after it changed its uid",
    ("maps", errno.EPERM): "map only your own uid and gid, or have CAP_SETUID and CAP_SETGID",
    ("proc", errno.ESRCH): "mount a /proc of this PID namespace, or give the sandbox a PID namespace",
    ("init", errno.EACCES): "isolate-init must be executable and not on a noexec mount",
}


# ---- the library ----


@dataclass(frozen=True, slots=True)
class _Library:
    """The C functions. ``fork`` keeps the GIL: the child must come out of it holding it."""

    spawn: Any
    fork: Any
    wait: Any
    await_: Any
    end_tree: Any
    step_name: Any
    hooks: abi.Hooks


def _find(name: str) -> Path:
    path = _DIRECTORY / name
    if not path.is_file():
        raise BackendUnavailable(f"native backend ({name})", f"{path} does not exist", _REMEDY)
    return path


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendUnavailable("native backend (libisolate.so)", str(error), _REMEDY) from error


def _hook(name: str) -> int:
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


def _prototype(function: Any, *arguments: Any) -> Any:
    function.argtypes, function.restype = arguments, ctypes.c_int
    return function


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded libisolate.so.

    Raises:
        BackendUnavailable: it is not there, not loadable, or of another version.
    """
    loaded = _load(_find("libisolate.so"))
    loaded.iso_abi_version.restype = ctypes.c_uint32
    found = loaded.iso_abi_version()
    if found != abi.VERSION:
        raise BackendUnavailable("native backend", f"libisolate.so has layout {found}, this is {abi.VERSION}", _REMEDY)
    return loaded


@functools.cache
def _functions() -> _Library:
    released = library()
    held = ctypes.PyDLL(None, handle=released._handle)
    plan, failure, child = (ctypes.POINTER(kind) for kind in (abi.Plan, abi.Failure, abi.Child))
    name = released.iso_step_name
    name.argtypes, name.restype = (ctypes.c_int32,), ctypes.c_char_p
    return _Library(
        spawn=_prototype(released.iso_spawn, plan, ctypes.POINTER(abi.Exec), child, failure),
        fork=_prototype(held.iso_fork, plan, ctypes.POINTER(abi.Hooks), child, failure),
        wait=_prototype(released.iso_wait, ctypes.c_int, ctypes.c_int, ctypes.POINTER(abi.Exit)),
        await_=_prototype(released.iso_await, child, ctypes.c_int, ctypes.POINTER(abi.Exit)),
        end_tree=_prototype(released.iso_end_tree, child),
        step_name=name,
        hooks=abi.Hooks(
            prepare=_hook("PyOS_BeforeFork"),
            parent=_hook("PyOS_AfterFork_Parent"),
            child=_hook("PyOS_AfterFork_Child"),
        ),
    )


# ---- a plan in C ----


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A plan as C reads it; ``alive`` owns the memory that its addresses point to."""

    plan: abi.Plan
    alive: tuple[Any, ...]


class _Memory:
    """Collects what the addresses in a struct point to."""

    def __init__(self) -> None:
        self.alive: list[Any] = []

    def text(self, value: Arg) -> int:
        """The address of a NUL-ended copy; 0 for the empty text."""
        raw = os.fsencode(value)
        return self.array(ctypes.create_string_buffer(raw)) if raw else 0

    def array(self, value: Any) -> int:
        self.alive.append(value)
        return ctypes.addressof(value)

    def structs(self, kind: Any, rows: Sequence[tuple[Any, ...]]) -> int:
        return self.array((kind * len(rows))(*rows)) if rows else 0

    def texts(self, values: Sequence[Arg]) -> int:
        """The address of a NULL-ended array of strings, as argv."""
        return self.array((ctypes.c_char_p * (len(values) + 1))(*map(os.fsencode, values), None))


def _id_rows(lines: Sequence[IdMap]) -> list[tuple[int, ...]]:
    return [(line.inside, line.outside, line.count, 0) for line in lines]


def _mount_row(memory: _Memory, op: MountOp) -> tuple[int, ...]:
    text = memory.text
    return (op.kind, 0, op.flags, text(op.source), text(op.target), text(op.fstype), text(op.data))


def _flags(plan: Plan) -> int:
    chosen = {
        abi.Flag.NEW_SESSION: plan.new_session,
        abi.Flag.LOOPBACK_UP: plan.loopback_up,
        abi.Flag.NO_NEW_PRIVS: plan.no_new_privs,
        abi.Flag.CLOSE_FDS: plan.close_fds,
        abi.Flag.SET_UMASK: plan.umask >= 0,
        abi.Flag.SET_CAPABILITIES: plan.capabilities is not None,
        abi.Flag.MONITOR: plan.monitor,
    }
    return sum(flag for flag, wanted in chosen.items() if wanted)


_ALL_ONES = 2**64 - 1  # RLIM_INFINITY


def _compile(plan: Plan) -> _Compiled:
    if len(plan.seccomp) % 8:
        raise ValueError(f"plan.seccomp has {len(plan.seccomp)} bytes: a struct sock_filter has 8")
    memory = _Memory()
    keep = sorted({fd for fd in plan.keep_fds if fd > 2})
    limits = [(resource, 0, soft & _ALL_ONES, hard & _ALL_ONES) for resource, soft, hard in plan.rlimits]
    compiled = abi.Plan(
        size=ctypes.sizeof(abi.Plan),
        version=abi.VERSION,
        namespaces=plan.namespaces,
        flags=_flags(plan),
        init=memory.text(_find("isolate-init")),
        hostname=memory.text(plan.hostname),
        cwd=memory.text(plan.cwd),
        uid_map=memory.structs(abi.IdMap, _id_rows(plan.uid_map)),
        gid_map=memory.structs(abi.IdMap, _id_rows(plan.gid_map)),
        mounts=memory.structs(abi.Mount, [_mount_row(memory, op) for op in plan.mounts]),
        rlimits=memory.structs(abi.Rlimit, limits),
        joins=memory.structs(abi.Join, plan.join_fds),
        cgroup_procs_fds=memory.array((ctypes.c_int32 * len(plan.cgroup_procs_fds))(*plan.cgroup_procs_fds)),
        keep_fds=memory.array((ctypes.c_int32 * len(keep))(*keep)),
        seccomp=memory.array(ctypes.create_string_buffer(plan.seccomp, max(1, len(plan.seccomp)))),
        uid_map_count=len(plan.uid_map),
        gid_map_count=len(plan.gid_map),
        mounts_count=len(plan.mounts),
        rlimits_count=len(plan.rlimits),
        joins_count=len(plan.join_fds),
        cgroup_procs_fds_count=len(plan.cgroup_procs_fds),
        keep_fds_count=len(keep),
        seccomp_count=len(plan.seccomp) // 8,
        capabilities=plan.capabilities or 0,
        cgroup_fd_plus1=plan.cgroup_fd + 1,
        landlock_fd_plus1=plan.landlock_fd + 1,
        pdeathsig=plan.pdeathsig,
        umask=max(plan.umask, 0),
    )
    return _Compiled(compiled, tuple(memory.alive))


@dataclass(frozen=True, slots=True)
class Joined:
    """A cgroup to start in, a network to join: what differs from launch to launch. Descriptors, borrowed.

    Attributes:
        dir_fd: v2 directory for CLONE_INTO_CGROUP, or -1.
        procs_fds: v1 files the child writes itself into.
        netns_fd: network namespace to enter, or -1. The plan then makes none, and joins nothing else.
    """

    dir_fd: int = -1
    procs_fds: tuple[int, ...] = ()
    netns_fd: int = -1

    def applied(self, ready: abi.Plan) -> tuple[abi.Plan, Any]:
        """A copy of ``ready`` that joins, and the memory it points to."""
        plan = abi.Plan.from_buffer_copy(ready)
        fds = (ctypes.c_int32 * len(self.procs_fds))(*self.procs_fds)
        plan.cgroup_fd_plus1 = self.dir_fd + 1
        plan.cgroup_procs_fds = ctypes.addressof(fds)
        plan.cgroup_procs_fds_count = len(self.procs_fds)
        if self.netns_fd < 0:
            return plan, fds
        joins = (abi.Join * 1)(abi.Join(self.netns_fd, CLONE_NEWNET))
        plan.joins, plan.joins_count = ctypes.addressof(joins), 1
        return plan, (fds, joins)


_compiled: dict[int, tuple[Plan, _Compiled]] = {}


def _ready(plan: Plan) -> abi.Plan:
    """The plan in C, compiled once for each Plan object. Compared by identity: a hash would touch all of its pages,
    each of which is copied again after every fork."""
    known = _compiled.get(id(plan))
    if known is None:
        if len(_compiled) >= 256:
            _compiled.clear()
        known = _compiled[id(plan)] = (plan, _compile(plan))
    return known[1].plan


def _launch(plan: Plan, joined: Joined | None) -> tuple[abi.Plan, Any]:
    """The plan in C for one launch; keep the second value while C reads the first."""
    return (_ready(plan), None) if joined is None else joined.applied(_ready(plan))


def _setup_error(plan: Plan, failure: abi.Failure, argv: Sequence[Arg] = ()) -> SetupError:
    step = _functions().step_name(failure.step).decode()
    detail = ""
    if step == "mounts" and 0 <= failure.index < len(plan.mounts):
        op = plan.mounts[failure.index]
        detail = f"({op.kind.name} {op.target})"
    elif step == "exec" and argv:
        detail = f"({os.fsdecode(argv[0])})"
    return SetupError(step, failure.err, failure.index, detail, _remedy(step, failure.err))


def _remedy(step: str, number: int) -> str:
    """Why namespaces are refused depends on the place: a uid 0 in a container is told of its capability, not of root."""
    if step not in ("clone", "unshare") or number not in (errno.EPERM, errno.ENOSPC):
        return _REMEDIES.get((step, number), "")
    from pytest_isolate.kernel import remedies, surroundings

    return remedies.remedy(remedies.Case(feature="", step=step, errno=number, place=surroundings.observe()))


# ---- children ----


@dataclass(frozen=True, slots=True)
class Rusage:
    """getrusage(2) of the main process and the descendants it waited for, in bytes and seconds."""

    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0
    minor_faults: int = 0
    major_faults: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    blocks_in: int = 0
    blocks_out: int = 0

    @classmethod
    def of(cls, usage: resource.struct_rusage) -> Rusage:
        """From what os.wait4() gives; its maxrss is in KiB."""
        return cls(
            user_s=usage.ru_utime,
            system_s=usage.ru_stime,
            max_rss_bytes=usage.ru_maxrss * 1024,
            minor_faults=usage.ru_minflt,
            major_faults=usage.ru_majflt,
            voluntary_switches=usage.ru_nvcsw,
            involuntary_switches=usage.ru_nivcsw,
            blocks_in=usage.ru_inblock,
            blocks_out=usage.ru_oublock,
        )


@dataclass(frozen=True, slots=True)
class Exited:
    """How the main process ended. ``leftovers``: others remain in its PID namespace or its monitor's tree, else in its group.

    SIGKILL is also what is told when the init or the monitor was killed before it could say: the main process dies with it.
    """

    status: ExitStatus
    rusage: Rusage
    leftovers: bool


def _exit_status(status: int) -> ExitStatus:
    if os.WIFSIGNALED(status):
        return ExitStatus(signal=os.WTERMSIG(status), core_dumped=os.WCOREDUMP(status))
    return ExitStatus(code=os.WEXITSTATUS(status))


def _exited(record: abi.Exit) -> Exited:
    rusage = Rusage(
        user_s=record.user_usec / 1e6,
        system_s=record.system_usec / 1e6,
        max_rss_bytes=record.max_rss_bytes,
        minor_faults=record.minor_faults,
        major_faults=record.major_faults,
        voluntary_switches=record.voluntary_switches,
        involuntary_switches=record.involuntary_switches,
        blocks_in=record.blocks_in,
        blocks_out=record.blocks_out,
    )
    return Exited(_exit_status(record.status), rusage, bool(record.leftovers))


#: The init was killed before it could say anything: so was everything in its namespace. With a monitor: so was the main
#: process, by its PDEATHSIG, or by us where it gave that up by changing its user.
_KILLED = Exited(ExitStatus(signal=signal.SIGKILL), Rusage(), leftovers=False)


def _milliseconds(deadline: float | None) -> int:
    """For poll(2): what is left, rounded up; -1 for ever. At most a day: the caller asks again."""
    if deadline is None:
        return -1
    return min(math.ceil(max(0.0, deadline - time.monotonic()) * 1000), 86_400_000)


_MONITOR_S = 0.2  # a monitor ends a tree in milliseconds; then we look whether someone holds it
_KILL_S = 10.0


@dataclass(slots=True)
class Child:
    """A started child: the owner of its fds. A context manager; leaving it kills and collects what is left.

    Attributes:
        pid: host pid of the main process (the test or the program).
        pidfd: pidfd of it; readable when it has ended.
        init_pid, init_pidfd: the init of its PID namespace, or its monitor; 0 and -1 without either.
        status_fd: the one record of init or monitor arrives here; -1 without either.
    """

    pid: int
    pidfd: int
    init_pid: int
    init_pidfd: int
    status_fd: int
    own_session: bool
    monitored: bool  # the init is a monitor: the tree lives in our PID namespace
    _raw: abi.Child
    _exited: Exited | None = None
    _collected: bool = False
    _killed: bool = False
    layers: Any = None  # kernel.filesystem.Layers of this launch, when its view has overlays; closed with it

    def __enter__(self) -> Child:  # noqa: PYI034 (typing.Self is newer than Python 3.10)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self.pidfd >= 0:
            try:
                self.kill()
                self.reap(block=True)
            finally:
                self.close()
        self.close()

    def poll(self) -> Exited | None:
        """How it ended, or None while it runs. Never blocks."""
        return self.wait(0)

    def wait(self, timeout_s: float | None = None) -> Exited | None:
        """Wait until the main process has ended; None when it still runs after ``timeout_s``."""
        if self._exited is not None:
            return self._exited
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        record = abi.Exit()
        while (answer := _functions().await_(self._raw, _milliseconds(deadline), record)) in (0, -errno.EINTR):
            if deadline is not None and time.monotonic() >= deadline:
                return None
        self._exited = self._ended(answer, record)
        return self._exited

    def _ended(self, answer: int, record: abi.Exit) -> Exited:
        if answer == -errno.EPIPE:
            if self.monitored:
                self._end_orphans()
            return _KILLED
        if self.init_pidfd < 0:
            self._collected = True
        if answer == -errno.ECHILD:  # someone's waitpid(-1) was faster: the status is gone
            raise ChildProcessError(errno.ECHILD, f"pid {self.pid} was collected by someone else's wait()")
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        exited = _exited(record)
        return replace(exited, leftovers=True) if self._group_lives() else exited

    def _group_lives(self) -> bool:
        """Without a PID namespace: True when its process group has members yet. Its number is theirs until they end."""
        if self.init_pidfd >= 0 or not self.own_session:
            return False
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return bool(leftovers(self))  # a zombie counts for killpg, and holds nothing

    def signal(self, signum: int) -> None:
        """Send a signal to the main process only; nothing happens when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signum)

    def leftovers(self) -> list[Leftover]:
        """What else of its tree still lives: see leftovers()."""
        return leftovers(self)

    def kill(self) -> None:
        """End the whole tree: the PID namespace with its init, what the monitor finds, else group and main process.

        A monitor works on by itself; reap(block=True) waits until it has done.
        """
        self._killed = True
        if self.monitored:
            if not self._collected and _functions().end_tree(self._raw) < 0 and self._monitor_left_some():
                self._end_orphans()
            return
        if self.init_pidfd < 0:
            self._kill_group()
            self.signal(signal.SIGKILL)
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init_pidfd, signal.SIGKILL)
        self.signal(signal.SIGKILL)  # in a joined PID namespace the init is only a monitor

    def _kill_group(self) -> None:
        if not self.own_session or (self._collected and not (self._exited and self._exited.leftovers)):
            return  # a collected pid is someone else's by now, unless its group went on
        if not self._collected:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        for leftover in leftovers(self):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(leftover.pid, signal.SIGKILL)

    def reap(self, block: bool) -> bool:
        """Collect what ended. True when there is nothing left to collect; with ``block``, wait for that."""
        if self._collected:
            return True
        if self.init_pidfd < 0:
            self.wait(None if block else 0)
            return self._collected
        if block and self._killed and self.monitored:
            self._await_monitor()
        if block and self._exited is None:
            self.wait(None)
        answer = _functions().wait(self.init_pidfd, int(block), abi.Exit())
        while block and answer == -errno.EINTR:
            answer = _functions().wait(self.init_pidfd, 1, abi.Exit())
        self._collected = answer in (1, -errno.ECHILD)
        return self._collected

    def _await_monitor(self) -> None:
        """The monitor leaves when its tree is gone. One that is held (stopped again, traced) is done without.

        Raises:
            CleanupError: processes that not even SIGKILL ends.
        """
        end = time.monotonic() + _KILL_S
        while not processes.ended(self.init_pidfd, _MONITOR_S):
            if processes.is_held(self.init_pid) or time.monotonic() >= end:
                self._end_without_monitor()

    def _end_without_monitor(self) -> None:
        """It stays the parent of all orphans until it is killed, so it is killed last."""
        if left := processes.kill_all(lambda: processes.descendants(self.init_pid), _KILL_S):
            remedy = "see /proc/PID/stack for what they wait for"
            raise CleanupError(f"the processes of sandbox {self.pid}", f"{left} do not end", remedy)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init_pidfd, signal.SIGKILL)

    def _monitor_left_some(self) -> bool:
        """A monitor leaves when all have ended; one that was killed may have said before that others remain."""
        exited = self.poll()
        return exited is not None and exited.leftovers

    def _end_orphans(self) -> None:
        """The monitor is gone. What is left of its tree is the main process, until it dies too, and its session.

        A daemon with a session of its own has become a stranger to us: only a cgroup or a PID namespace still holds it.
        """
        self.signal(signal.SIGKILL)
        if self.own_session and processes.ended(self.pidfd, _KILL_S):
            processes.kill_all(lambda: processes.orphans_of_session(self.pid, self.pidfd), _KILL_S)

    def close(self) -> None:
        """Give the fds back. The child is not touched."""
        layers, self.layers = self.layers, None
        if layers is not None:
            layers.close()
        for name in ("pidfd", "init_pidfd", "status_fd"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


def _child(plan: Plan, raw: abi.Child) -> Child:
    return Child(
        raw.main_pid,
        raw.main_pidfd,
        raw.init_pid,
        raw.init_pidfd,
        raw.status_fd,
        plan.new_session,
        bool(raw.monitor),
        raw,
    )


# ---- starting ----


def _candidates(program: str, env: Mapping[Any, Any] | None) -> list[str]:
    """The paths to try, as execvp(3): PATH of the environment the program gets."""
    if "/" in program:
        return [program]
    return [os.path.join(directory, program) for directory in os.get_exec_path(env)]


def _environment(env: Mapping[Any, Any]) -> list[bytes]:
    return [os.fsencode(key) + b"=" + os.fsencode(value) for key, value in env.items()]


def spawn(
    plan: Plan,
    argv: Sequence[Arg],
    env: Mapping[Any, Any] | None = None,
    *,
    stdin_fd: int = -1,
    stdout_fd: int = -1,
    stderr_fd: int = -1,
    executable_fd: int = -1,
    joined: Joined | None = None,
) -> Child:
    """Start a program under ``plan`` and return once it executes.

    ``env`` None: this process's environment. Absent stdio fds (-1) are inherited; all fds stay the caller's.

    Raises:
        SetupError: a step failed; nothing of the child remains. ``exec`` with ENOENT: no such program.
        BackendUnavailable: the native library is not there.
    """
    if not argv:
        raise ValueError("argv is empty: name a program")
    memory = _Memory()
    env = os.environ if env is None else env
    request = abi.Exec(
        size=ctypes.sizeof(abi.Exec),
        executable_fd_plus1=executable_fd + 1,
        paths=memory.texts(_candidates(os.fsdecode(argv[0]), env)),
        argv=memory.texts(argv),
        envp=memory.texts(_environment(env)),
        default_signals=_DEFAULT_SIGNALS,
        stdin_fd_plus1=stdin_fd + 1,
        stdout_fd_plus1=stdout_fd + 1,
        stderr_fd_plus1=stderr_fd + 1,
    )
    child, failure = abi.Child(), abi.Failure()
    functions = _functions()
    ready, _alive = _launch(plan, joined)
    if functions.spawn(ready, request, child, failure) < 0:
        raise _setup_error(plan, failure, argv)
    return _child(plan, child)


def fork(plan: Plan, joined: Joined | None = None) -> Child | None:
    """Fork this process into a sandbox: None in the child, the Child in the parent, once every step succeeded.

    Python's own fork hooks (os.register_at_fork, threading, random) run as for os.fork().

    Raises:
        SetupError: in the parent; a step failed and nothing of the child remains.
        BackendUnavailable: the native library is not there.
    """
    child, failure = abi.Child(), abi.Failure()
    functions = _functions()
    sys.audit("os.fork")
    ready, _alive = _launch(plan, joined)
    answer = functions.fork(ready, functions.hooks, child, failure)
    if answer < 0:
        raise _setup_error(plan, failure)
    return _child(plan, child) if answer else None


# ---- leftovers ----


def leftovers(child: Child) -> list[Leftover]:
    """Processes still in the child's PID namespace or its monitor's tree, nested ones too; without either, those of its session.

    Init or monitor and main process are not counted, zombies neither. To be asked while the init lives, before kill().
    """
    if child.init_pid <= 0:
        return processes.leftovers_of_session(child.pid) if child.own_session else []
    found = []
    for pid in sorted(processes.descendants(child.init_pid) - {child.pid}):
        with contextlib.suppress(OSError):  # it ended while we looked
            if (leftover := processes.describe(pid)) is not None:
                found.append(leftover)
    return found
