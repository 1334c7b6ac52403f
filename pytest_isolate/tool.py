"""A backend that puts a tool before the program: bwrap, runc, runsc. What such a backend need not write itself.

Owns: ToolBackend: its answer to ``lacks``, the start of the tool, its end translated back into the program's.
Refuses: to know any tool; a subclass says how it is called. The tool is started by the C library, in the sandbox's cgroup
and network and under its rlimits, so that limits, counts and time-outs hold whatever the tool is.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_isolate.backend import Kind, Process
from pytest_isolate.capability import Capability, beyond
from pytest_isolate.errors import BackendUnavailable, IsolateError, PolicyError, SetupError
from pytest_isolate.hardening import scrubbed
from pytest_isolate.kernel import capabilities, devnull, filesystem, forks, native
from pytest_isolate.kernel.child import Child, Exited, Rusage
from pytest_isolate.kernel.compiled import Joined
from pytest_isolate.kernel.plan import CLONE_FLAGS, Plan
from pytest_isolate.kernel.rlimits import compile_rlimits
from pytest_isolate.kernel.scratch import Scratch
from pytest_isolate.outcome import ExitStatus, Leftover
from pytest_isolate.places import Place, context_of, directory, places
from pytest_isolate.policy import Filesystem, Namespace, Policy
from pytest_isolate.remembered import Remembered

__all__ = [
    "BY_OURSELVES",
    "Exited",
    "Place",
    "Run",
    "Rusage",
    "Scratch",
    "ToolBackend",
    "ToolProcess",
    "directory",
    "forks",
    "places",
    "program_below",
]

#: What holds for every tool, because it is started as any program is.
BY_OURSELVES = frozenset(
    {
        Capability.SESSION,
        Capability.RLIMITS,
        Capability.GROUP_LIMITS,
        Capability.NETWORK_RULES,
        Capability.CLOSE_FDS,
        Capability.UMASK,
        Capability.ENVIRONMENT,
        Capability.OVERLAYS,
    }
)
_TRIAL_S = 8.0
_SHELL_SIGNAL = 128  # a program ended by signal n is told as status 128 + n, as sh(1) does


@dataclass
class Run:
    """One start of the tool: what ``command`` may read, and where it leaves what has to be given back.

    ``cwd`` and ``env`` are those of the program, filled in. ``undo`` is unwound when the sandbox has ended.
    """

    env: Mapping[str, str]
    cwd: str
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    passed_fds: list[int] = field(default_factory=list)

    @functools.cached_property
    def directory(self) -> str:
        """A directory for this start alone, removed at its end."""
        return self.undo.enter_context(Scratch("tool")).path

    def pass_file(self, content: bytes = b"") -> int:
        """A memory file that the tool inherits under the number that is returned; read what it wrote with os.pread."""
        fd = os.memfd_create("pytest-isolate", 0)
        self.undo.callback(os.close, fd)
        os.pwrite(fd, content, 0)
        self.passed_fds.append(fd)
        return fd


class ToolBackend:
    """See the module. A subclass gives ``name``, ``tool``, ``enforces`` and ``command``; the rest is optional.

    Attributes:
        tool: the program, looked up on PATH. install: what to say where it is missing.
        enforces: what the tool does; BY_OURSELVES comes on top, but for what the tool ``undoes``.
        sets_rlimits: True when the tool sets them for the program, and is not to be under them itself.
        signals_as_status: True when the tool tells a signal as status 128 + number, as sh(1) does.
        relays_output: True when the tool copies the program's output through pipes of its own, each stream by itself.
        owns_stdio: True when the tool takes what it is given as standard input, output and error for its own, owner and all.
        opaque: True when the program's processes are none of the host's: what we see below the tool is the tool.
    """

    name = ""
    quality = 50
    runs: frozenset[Kind] = frozenset({"programs", "fresh"})
    tool = ""
    install = ""
    enforces: frozenset[Capability] = frozenset()
    undoes: frozenset[Capability] = frozenset()
    signals_as_status = True
    sets_rlimits = False
    relays_output = False
    owns_stdio = False
    opaque = False

    def command(self, policy: Policy, argv: Sequence[str], run: Run) -> list[str]:
        """The arguments after the tool's name that make it run ``argv`` under ``policy``."""
        raise NotImplementedError

    def environment(self, env: Mapping[str, str] | None) -> Mapping[str, str] | None:
        """The tool's own, made of the program's ``env`` (None: this process's); the program's comes with ``run``."""
        return env

    def fault(self, exited: Exited, run: Run) -> str:
        """Why the tool itself failed; empty when it was the program that ended so. Asked once, at the end."""
        return ""

    def receives_signals(self, pid: int) -> int:
        """Who is to get a signal for the program, ``pid`` being the tool: itself, if it passes signals on."""
        return pid

    def hides_processes(self, policy: Policy) -> bool:
        """True when what a program leaves running is ended with it and not seen from outside; who looks inside is alone there."""
        return self.opaque or Namespace.PID in policy.namespaces

    def lacks_more(self, policy: Policy) -> list[str]:
        """What ``enforces`` is too coarse to say, each as ``what: why. remedy``."""
        return []

    # -- what selection asks

    @functools.cached_property
    def path(self) -> str:
        """The tool's path; empty where it is not installed."""
        return shutil.which(self.tool) or ""

    def lacks(self, policy: Policy) -> list[str]:
        """By the table, then by the tool's presence, then by doing it once with a program that leaves at once.

        Raises:
            PolicyError: a view that has no meaning here, which is nobody's lack.
        """
        if lacking := beyond(policy, self.enforces | (BY_OURSELVES - self.undoes), self.name):
            return lacking
        if policy.filesystem.overlays and not capabilities.has("CAP_SYS_ADMIN"):
            return [f"overlays: {self.tool} makes none, and we need CAP_SYS_ADMIN to make them for it. Run as root"]
        if not self.path:
            return [f"{self.tool}: not found on PATH. {self.install}"]
        return self.lacks_more(policy) or self._tried(policy)

    def _tried(self, policy: Policy) -> list[str]:
        """Group limits and rules are left to those who enter them before the tool, and try them."""
        view = policy.filesystem
        if view.root == "minimal":
            policy = replace(policy, filesystem=replace(view, programs=(*view.programs, "true")))
        said_fd = os.memfd_create("said", os.MFD_CLOEXEC)
        try:
            process = self.spawn(policy, ["true"], cwd="/", stdout_fd=said_fd, stderr_fd=said_fd)
            try:
                exited = process.wait(_TRIAL_S)
            finally:
                process.kill()
                process.reap(block=True)
                process.close()
        except PolicyError:
            raise
        except IsolateError as error:
            return [str(error).rstrip(".")]
        finally:
            found = _last_line(said_fd)
            os.close(said_fd)
        if exited is None:
            return [f"{self.tool}: a program that leaves at once was not done after {_TRIAL_S:g} s"]
        return [] if exited.status.code == 0 else [" ".join([f"{self.tool}: true {exited.status}", *found])]

    # -- what a launch asks

    def fork(self, policy: Policy, joined: Joined | None = None) -> Process | None:
        raise BackendUnavailable(f"backend {self.name}", "it starts programs, not test functions", "use native")

    def spawn(
        self,
        policy: Policy,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        joined: Joined | None = None,
        stdin_fd: int = -1,
        stdout_fd: int = -1,
        stderr_fd: int = -1,
    ) -> Process:
        if not self.path:
            raise BackendUnavailable(f"backend {self.name}", f"{self.tool} is not on PATH", self.install)
        if env is None and policy.hardening.environment != "keep":
            env = scrubbed(os.environ)
        seen = os.environ if env is None else env
        cwd = directory(policy, cwd)
        _check_program(policy, argv[0], seen, cwd)
        run = Run(seen, cwd)
        with run.undo:
            words = self.command(policy, argv, run)
            plan, layers = self._plan(policy, run)
            if self.owns_stdio:
                stdin_fd, stdout_fd, stderr_fd = self._spared((stdin_fd, stdout_fd, stderr_fd), run)
            child = native.spawn(
                plan,
                [self.path, *words],
                self.environment(env),
                joined=joined,
                stdin_fd=stdin_fd,
                stdout_fd=stdout_fd,
                stderr_fd=stderr_fd,
            )
            if layers is not None:
                layers.receive()
            run.undo = run.undo.pop_all()
        is_file = stderr_fd >= 0 and stat.S_ISREG(os.fstat(stderr_fd).st_mode)
        return ToolProcess(self, child, run, stderr_fd if is_file else -1, layers)

    def _spared(self, fds: tuple[int, int, int], run: Run) -> tuple[int, ...]:
        """The machine's /dev/null replaced by one of the run's own, where that can be made. A negative one is inherited."""
        given = tuple(number if fd < 0 else fd for number, fd in enumerate(fds))
        if not any(map(devnull.is_null, given)) or not devnull.makes_devices():
            return fds
        own = devnull.private_null()
        run.undo.callback(os.close, own)
        return tuple(own if devnull.is_null(seen) else fd for seen, fd in zip(given, fds, strict=True))

    def _plan(self, policy: Policy, run: Run) -> tuple[Plan, filesystem.Layers | None]:
        """How the tool is started; the same value for a policy, which the C library then has compiled already.

        With overlays it starts in a mount namespace that has them, and shows them as it shows any directory.
        """
        plan = _compiled(policy, tuple(run.passed_fds) if policy.hardening.close_fds else (), self.sets_rlimits)
        overlays = policy.filesystem.overlays
        if not overlays:
            return plan, None
        table = filesystem.compile(Filesystem(proc=False, overlays=overlays), context=context_of(policy))
        layers = run.undo.enter_context(filesystem.Layers(table))
        return replace(plan, namespaces=CLONE_FLAGS[Namespace.MOUNT], mounts=layers.ops), layers


_plans: Remembered[Plan] = Remembered()


def _compiled(policy: Policy, keep_fds: tuple[int, ...], sets_rlimits: bool) -> Plan:
    def make() -> Plan:
        return Plan(
            rlimits=() if sets_rlimits else compile_rlimits(policy.limits),
            new_session=policy.session,
            monitor=policy.session,
            close_fds=policy.hardening.close_fds,
            umask=-1 if policy.hardening.umask is None else policy.hardening.umask,
            keep_fds=keep_fds,
        )

    return _plans.of(policy, make, (keep_fds, sets_rlimits))


def _check_program(policy: Policy, program: str, env: Mapping[str, str], cwd: str) -> None:
    """Before the tool is started, where its view shows the host's programs: it would tell us in words of its own."""
    if policy.filesystem.root == "minimal":
        return
    path = os.path.join(cwd, program) if "/" in program else program
    if shutil.which(path, path=env.get("PATH", os.defpath)) is None:
        code = errno.EACCES if "/" in program and os.path.exists(path) else errno.ENOENT
        raise SetupError("exec", code, detail=f"({program})")


def _last_line(fd: int) -> list[str]:
    said = os.pread(fd, 4096, max(0, os.fstat(fd).st_size - 4096)).decode("utf-8", "replace").strip().splitlines()
    return [f"({said[-1].strip()})"] if said else []


class ToolProcess:
    """The tool, the program in it, and the monitor that ends both: a Process."""

    def __init__(
        self, backend: ToolBackend, child: Child, run: Run, stderr_fd: int, layers: filesystem.Layers | None = None
    ) -> None:
        self._backend = backend
        self._child = child
        self._run = run
        self._stderr_fd = stderr_fd  # borrowed
        self._exited: Exited | None = None
        self._own = {child.pid}
        self._owner = forks.here
        self.pid = child.pid
        self.pidfd = child.pidfd
        self.init_pid = child.init_pid
        self.layers = layers  # closed with what ``run`` undoes

    def wait(self, timeout_s: float | None = None) -> Exited | None:
        """As the protocol says.

        Raises:
            SetupError: the tool ended without having run the program; once.
        """
        if self._exited is None:
            exited = self._child.wait(timeout_s)
            if exited is None:
                return None
            self._exited = replace(exited, status=self._program_status(exited.status))
            if why := self._backend.fault(exited, self._run):
                raise SetupError.of_tool(self._backend.tool, " ".join([why, *self._said()]))
        return self._exited

    def _said(self) -> list[str]:
        """The last line on standard error, where that is a file."""
        try:
            return _last_line(self._stderr_fd) if self._stderr_fd >= 0 else []
        except OSError:
            return []

    def _program_status(self, status: ExitStatus) -> ExitStatus:
        number = (status.code or 0) - _SHELL_SIGNAL
        if self._backend.signals_as_status and 0 < number < signal.NSIG:
            return ExitStatus(signal=number)
        return status

    def signal(self, signum: int) -> None:
        """Send it to the program, by way of the tool where that passes it on."""
        self._own.update(_chain(self.pid))  # which may end by this signal, and before the program does
        target = self._backend.receives_signals(self.pid)
        if target == self.pid:
            self._child.signal(signum)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, signum)

    def kill(self) -> None:
        self._child.kill()

    def leftovers(self) -> list[Leftover]:
        """Without the tool's own processes and the program: those are what is being ended, and not what it left."""
        if self._backend.opaque:
            return []
        self._own.update(_chain(self.pid))
        return [leftover for leftover in self._child.leftovers() if leftover.pid not in self._own]

    def reap(self, block: bool) -> bool:
        return self._child.reap(block)

    def close(self) -> None:
        self._child.close()
        if self._owner is forks.here:
            self._run.undo.close()


def program_below(tool_pid: int) -> int:
    """The first process below the tool that executes something else; the tool where there is none yet."""
    return next((pid for pid in _chain(tool_pid) if _executable(pid) != _executable(tool_pid)), tool_pid)


def _chain(tool_pid: int) -> Iterator[int]:
    """The processes below the tool, each the first child of the one before, down to the first that is not the tool."""
    pid, tool = tool_pid, _executable(tool_pid)
    while _executable(pid) == tool and (children := _children_of(pid)):
        pid = children[0]
        yield pid


def _executable(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _children_of(pid: int) -> list[int]:
    """Empty when it has ended."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except (OSError, ValueError):
        return []
