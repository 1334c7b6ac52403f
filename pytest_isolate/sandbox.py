"""Runs programs, and functions, in sandboxes: ``run`` to the end, ``spawn`` as a server, ``python`` for a call.

Owns: Sandbox (a policy, a backend, what is still running) and Running (one started program).
Refuses: to decide what a policy may hold (policy.py) or how it is enforced (backends/, kernel/).
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import re
import signal as signals
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from pytest_isolate import groups, networks, wire
from pytest_isolate.backend import Process
from pytest_isolate.errors import BackendUnavailable, IsolateError, PolicyError, SetupError
from pytest_isolate.kernel import processes
from pytest_isolate.kernel.native import Exited, Joined
from pytest_isolate.kernel.rlimits import compile_rlimits, number_of
from pytest_isolate.outcome import Cause, ExitStatus, FilesChanged, Leftover, Outcome, Traffic, Usage
from pytest_isolate.policy import UNLIMITED, Limits, Policy
from pytest_isolate.profile import STANDARD, vary
from pytest_isolate.registry import choose
from pytest_isolate.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from pytest_isolate.kernel.cgroups import Cgroup, CgroupUsage
    from pytest_isolate.networks import SandboxNetwork

#: More output than this per stream is cut when it is read; the program is not stopped.
MAX_OUTPUT_BYTES = 64 * 1024 * 1024
#: What is on its way out when the program ends is no leftover.
_GRACE_S = 0.25
_POLL_S = 0.005
_EXIT_FAILED_CALL = 71
#: The kernel checks RLIMIT_CPU by whole clock ticks, and reports exact time: killed at 1 s was 0.82 to 0.9 s, measured.
_TICKS_RUN_AHEAD = 0.75
#: Words that ``Running.update`` takes: those a cgroup holds. An rlimit belongs to each process that has inherited it.
LIVE_WORDS = ("memory", "memory_high", "swap", "pids", "cpu", "cpu_weight", "cpuset", "io")


class ProgramFailed(subprocess.CalledProcessError):
    """``check=True`` and the program did not exit with 0, or the sandbox had something to object. Holds ``outcome``."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.returncode, list(outcome.args), outcome.stdout, outcome.stderr)
        self.outcome = outcome

    def __str__(self) -> str:
        why = "; ".join(self.outcome.detail) or str(self.outcome.status)
        tail = str(self.outcome.stderr).strip().splitlines()[-5:]
        return "\n".join([f"{' '.join(self.outcome.args)}: {why}", *tail])


class CallFailed(IsolateError, RuntimeError):
    """The function of ``Sandbox.python`` raised, or its process ended before it returned; the text says which."""


class Running:
    """A program that was started in a sandbox. A context manager: leaving it ends the program and all it started."""

    def __init__(
        self,
        args: Sequence[str],
        policy: Policy,
        process: Process,
        cgroup: Cgroup | None,
        files: _Files,
        meanwhile: Callable[[], None],
        network: SandboxNetwork | None = None,
    ) -> None:
        self.args = tuple(args)
        self.policy = policy
        self._process = process
        self._cgroup = cgroup
        self._network = network
        self._files = files
        self._meanwhile = meanwhile  # what can be done while the program runs: groups of earlier ones are removed
        self._began = time.monotonic()
        self._outcome: Outcome | None = None
        self._causes: list[tuple[Cause, str]] = []

    @property
    def pid(self) -> int:
        """The host's number of the program."""
        return self._process.pid

    @property
    def stdout(self) -> Any:
        """What it has written to standard output so far."""
        return self._outcome.stdout if self._outcome is not None else self._files.text(1)

    @property
    def stderr(self) -> Any:
        """What it has written to standard error so far."""
        return self._outcome.stderr if self._outcome is not None else self._files.text(2)

    def running(self) -> bool:
        """True until the program has ended."""
        return self._outcome is None and self._process.wait(0) is None

    def signal(self, signum: int) -> None:
        """Send a signal to the program."""
        self._process.signal(signum)

    @property
    def limits(self) -> LiveLimits:
        """The limits that hold now: read ``limits.memory_bytes``, change with ``limits.update(memory="128M")``."""
        return LiveLimits(self)

    def update(self, **words: Any) -> None:
        """Change group limits of the running program: ``update(memory="128M", pids=20)``.

        Raises:
            PolicyError: the program was started without a group limit, a word that cannot change while it runs, or a
                value without meaning. SetupError: the kernel refused (EBUSY: more is in use than the new limit).
        """
        cgroup = self._living_cgroup("limits")
        for word in words:
            if word not in LIVE_WORDS:
                raise PolicyError(
                    f"update({word}=...)", "it cannot change while the program runs", f"of use: {', '.join(LIVE_WORDS)}"
                )
        policy = vary(self.policy, **words)
        cgroup.update(policy.limits)
        self.policy = policy

    def freeze(self) -> None:
        """Stop every process of the program where it stands; its time-out goes on. ``thaw()`` lets them go on.

        Raises:
            PolicyError: the program was started without a group limit. BackendUnavailable: no freezer on this host.
        """
        if not self._living_cgroup("freeze").freeze():
            raise BackendUnavailable("freeze", "no cgroup hierarchy here has a freezer", "use signal(SIGSTOP)")

    def thaw(self) -> None:
        """Let frozen processes go on; fine when nothing is frozen."""
        self._living_cgroup("thaw").thaw()

    def _living_cgroup(self, what: str) -> Cgroup:
        if self._cgroup is None:
            raise PolicyError(what, "the program has no cgroup", "start it with a group limit such as memory=")
        if self._outcome is not None:
            raise PolicyError(what, "the program has ended", "do so while it runs")
        return self._cgroup

    def wait_for_line(self, pattern: str, *, timeout: float = 10.0) -> str:
        """Wait until a line of its output matches the regular expression; return the line.

        Raises:
            TimeoutError: no such line in time. ProgramFailed: the program ended first.
        """
        expression = re.compile(pattern)

        def look() -> str | None:
            text = os.fsdecode(self._files.raw(1) + b"\n" + self._files.raw(2))
            return next((line for line in text.splitlines() if expression.search(line)), None)

        return str(self._wait_until(look, timeout, f"a line that matches {pattern!r}"))

    def wait_for_port(self, port: int, host: str = "127.0.0.1", *, timeout: float = 10.0) -> None:
        """Wait until something accepts TCP connections on ``port`` of this process's network.

        Raises:
            TimeoutError: nothing did in time. ProgramFailed: the program ended first.
        """

        def look() -> bool | None:
            try:
                socket.create_connection((host, port), timeout=1).close()
            except OSError:
                return None
            return True

        self._wait_until(look, timeout, f"{host}:{port} to accept connections")

    def _wait_until(self, look: Callable[[], Any], timeout: float, what: str) -> Any:
        end = time.monotonic() + timeout
        while (found := look()) is None:
            if not self.running():
                if (found := look()) is not None:
                    return found
                raise ProgramFailed(self.wait())
            if time.monotonic() > end:
                output = os.fsdecode(self._files.raw(2) or self._files.raw(1))[-500:]
                raise TimeoutError(f"{self.args[0]}: waited {format_seconds(timeout)} for {what}; output: {output!r}")
            self._process.wait(_POLL_S)
        return found

    def wait(self) -> Outcome:
        """Wait for its end, at most the policy's time-out, and return the outcome."""
        if self._outcome is None:
            self._meanwhile()
            exited = self._process.wait(self._left_s())
            if exited is None:
                exited = self._time_out()
            self._conclude(exited)
        assert self._outcome is not None
        return self._outcome

    def _left_s(self) -> float | None:
        timeout_s = self.policy.timeout_s
        return None if timeout_s is None else max(0.0, self._began + timeout_s - time.monotonic())

    def _time_out(self) -> Exited | None:
        assert self.policy.timeout_s is not None
        text = f"TIMEOUT: still running after {format_seconds(self.policy.timeout_s)}"
        self._causes.append((Cause.TIMEOUT, text))
        return self._terminate(signals.SIGTERM)

    def _terminate(self, signum: int) -> Exited | None:
        """Ask, wait for the policy's grace, then kill the tree. What is frozen hears nothing: it is thawed first."""
        if self._cgroup is not None:
            self._cgroup.thaw()
        self._process.signal(signum)
        exited = self._process.wait(self.policy.grace_s)
        if exited is None:
            self._process.kill()
            exited = self._process.wait(10.0)
        return exited

    def terminate(self, signum: int = signals.SIGTERM) -> Outcome:
        """Ask it to end, kill it after the policy's grace, and return the outcome; no cause is noted for that."""
        if self._outcome is None:
            self._conclude(self._terminate(signum))
        assert self._outcome is not None
        return self._outcome

    def _conclude(self, exited: Exited | None) -> None:
        """Look at what is left, end it, count the cost, and give everything back."""
        leftovers = [] if exited is None else living(self._process, self._cgroup, exited.leftovers)
        self._process.kill()
        self._process.reap(block=True)
        traffic, refusals = self._traffic()
        usage, verdicts = self._cost(exited)
        causes = [*self._causes, *verdicts, *refusals]
        if leftovers:
            causes.append((Cause.LEAK, f"LEAK: {len(leftovers)} left running: {'; '.join(map(str, leftovers))}"))
        self._outcome = Outcome(
            args=self.args,
            status=exited.status if exited is not None else ExitStatus(signal=signals.SIGKILL),
            stdout=self._files.text(1),
            stderr=self._files.text(2),
            causes=tuple(cause for cause, _ in causes),
            detail=tuple(text for _, text in causes),
            usage=usage,
            leftovers=tuple(leftovers),
            files_changed=self._files_changed(),
            traffic=traffic,
        )
        self._process.close()
        self._files.close()

    @property
    def network(self) -> SandboxNetwork | None:
        """Its network, where rules, counts or wiring are in force: ``network.subnet``, ``network.traffic()``."""
        return self._network

    def _traffic(self) -> tuple[Traffic | None, list[tuple[Cause, str]]]:
        """All is dead by now: the last counts, and nothing more to police."""
        if self._network is None:
            return None, []
        if self._cgroup is not None:
            self._cgroup.kill()
        traffic = self._network.traffic()
        self._network.close()
        return traffic, [(Cause.NETDENIED, line) for line in (traffic.refused if traffic else ())]

    def _files_changed(self) -> FilesChanged:
        layers = getattr(self._process, "layers", None)
        return FilesChanged() if layers is None else layers.changed()

    def _cost(self, exited: Exited | None) -> tuple[Usage, list[tuple[Cause, str]]]:
        wall_s = time.monotonic() - self._began
        usage = usage_of(exited, wall_s)
        verdicts = status_verdicts(exited, self.policy.limits)
        if self._cgroup is None:
            return usage, verdicts
        cgroup = self._cgroup
        try:
            if not in_pid_namespace(self._process):  # else it was empty when the init was collected
                cgroup.kill()
            counted = cgroup.usage(current=False)
            found = [(cause, text) for cause, text in cgroup.verdicts(usage=counted)]
        finally:
            cgroup.close(later=True)
        return replace(usage, **group_usage(counted)), [*found, *verdicts]

    def __enter__(self) -> Running:  # noqa: PYI034 (typing.Self is newer than Python 3.10)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.terminate()


class LiveLimits:
    """The limits of a running program: attributes as those of Limits; ``update`` changes them."""

    __slots__ = ("_running",)

    def __init__(self, running: Running) -> None:
        self._running = running

    def __getattr__(self, name: str) -> Any:
        return getattr(self._running.policy.limits, name)

    def update(self, **words: Any) -> None:
        """As ``Running.update``."""
        self._running.update(**words)


class _Files:
    """Where a program's output goes: memory files of ours, so that no grandchild can hold a pipe open."""

    def __init__(self, *, text: bool, merge: bool) -> None:
        self._text = text
        self.out_fd = os.memfd_create("stdout", os.MFD_CLOEXEC)
        self.err_fd = self.out_fd if merge else os.memfd_create("stderr", os.MFD_CLOEXEC)

    def raw(self, stream: int) -> bytes:
        if self.out_fd < 0 or (stream == 2 and self.err_fd == self.out_fd):
            return b""
        fd = self.out_fd if stream == 1 else self.err_fd
        return os.pread(fd, min(os.fstat(fd).st_size, MAX_OUTPUT_BYTES), 0)

    def text(self, stream: int) -> Any:
        raw = self.raw(stream)
        return raw.decode("utf-8", "replace") if self._text else raw

    def close(self) -> None:
        for fd in {self.out_fd, self.err_fd} - {-1}:
            os.close(fd)
        self.out_fd = self.err_fd = -1


class Sandbox:
    """Runs programs under a policy; one value may run many. A context manager: leaving it ends what still runs.

    Args:
        policy: what holds for every run; each call may vary it by keywords (see profile.WORDS).
        backends: names to choose from, first preferred; empty: the best that enforces the policy.
        cgroups: where group limits are held; None: those of this process, on whatever hierarchy has them.
    """

    def __init__(
        self,
        policy: Policy = STANDARD,
        *,
        backends: Sequence[str] = (),
        name: str = "program",
        cgroups: groups.Groups | None = None,
    ) -> None:
        self.policy = policy
        self._backends = tuple(backends)
        self._name = name
        self._groups = cgroups or groups.of_this_process()
        self._networks = networks.of_this_process()
        self._private: networks.PrivateNetwork | None = None
        self._varied: dict[str, Policy] = {}
        self._running: list[Running] = []

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        input: str | bytes | None = None,  # noqa: A002 - as subprocess.run has it
        stdin: int | IO[Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        text: bool = True,
        merge_stderr: bool = False,
        check: bool = False,
        **words: Any,
    ) -> Outcome:
        """Run a program to its end and return the outcome.

        ``words`` vary the policy: ``memory="64M"``, ``timeout=5``, ``net="none"``, ``namespaces="+net"``, ... A
        time-out is an outcome with cause TIMEOUT, not an exception. Standard input is empty unless given.

        Raises:
            ProgramFailed: with ``check``, when the program did not exit with 0 or the outcome has a cause.
            PolicyError, BackendUnavailable, SetupError: the sandbox could not be made as asked; nothing was run.
        """
        running = self.spawn(
            argv, input=input, stdin=stdin, env=env, cwd=cwd, text=text, merge_stderr=merge_stderr, **words
        )
        try:
            outcome = running.wait()
        finally:
            running.terminate()
            self._running.remove(running)
        if check and not outcome.ok:
            raise ProgramFailed(outcome)
        return outcome

    def spawn(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        input: str | bytes | None = None,  # noqa: A002 - as subprocess.run has it
        stdin: int | IO[Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        text: bool = True,
        merge_stderr: bool = False,
        capture: bool = True,
        **words: Any,
    ) -> Running:
        """Start a program and return while it runs; it is ended when the sandbox is closed, at the latest.

        Without ``capture`` it writes to this process's own standard output and error.

        Raises:
            PolicyError, BackendUnavailable, SetupError: the sandbox could not be made as asked; nothing was run.
        """
        args = _arguments(argv)
        policy = self._vary(words)
        backend = choose(policy, self._backends)
        with contextlib.ExitStack() as undo, _input(input, stdin) as stdin_fd:
            files = _Files(text=text, merge=merge_stderr)
            undo.callback(files.close)
            cgroup = self._groups.enter(self._name, policy)
            if cgroup is not None:
                undo.callback(cgroup.close)
            out_fd, err_fd = (files.out_fd, files.err_fd) if capture else (-1, -1)
            network = self._networks.enter(policy, cgroup, self._private)
            if network is not None:
                undo.callback(network.close)
            with no_room_said(policy.limits):
                process = backend.spawn(
                    policy,
                    args,
                    env=env,
                    cwd=None if cwd is None else os.fspath(cwd),
                    joined=joined(cgroup, network),
                    stdin_fd=stdin_fd,
                    stdout_fd=out_fd,
                    stderr_fd=err_fd,
                )
            undo.pop_all()
        running = Running(args, policy, process, cgroup, files, self._groups.tidy, network)
        self._running.append(running)
        return running

    def python(
        self, function: Callable[..., Any], /, *args: Any, policy: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """Call a function in a fork of this process, in a fresh sandbox, and return what it returns.

        The result comes back as data: numbers, text, bytes, None and lists, tuples, sets and dicts of these; another
        object comes back as its repr. What the function changes in memory stays in the sandbox.

        Raises:
            CallFailed: the function raised (the text is its traceback), or its process crashed or timed out.
        """
        chosen = self._vary(dict(policy or {}))
        backend = choose(chosen, self._backends)
        read_fd, write_fd = os.pipe()
        files = _Files(text=True, merge=False)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, read_fd)
            undo.callback(files.close)
            try:
                cgroup = self._groups.enter(self._name, chosen)
                if cgroup is not None:
                    undo.callback(cgroup.close)
                network = self._networks.enter(chosen, cgroup, self._private)
                if network is not None:
                    undo.callback(network.close)
                with no_room_said(chosen.limits):
                    process = backend.fork(chosen, joined(cgroup, network))
                if process is None:
                    self._networks.leave_in_child()
                    _call_and_leave(function, args, kwargs, write_fd, files)
            finally:
                os.close(write_fd)
            undo.pop_all()
        name = getattr(function, "__qualname__", repr(function))
        running = Running((name,), chosen, process, cgroup, files, self._groups.tidy, network)
        with open(read_fd, "rb", buffering=0) as channel:
            return _result(running, wire.Reader(channel.fileno()))

    @property
    def network(self) -> networks.PrivateNetwork:
        """A private network for all further runs with ``net="private"``, until the sandbox is closed.

        ``client.network.join(server)`` connects two sandboxes.

        Raises:
            SetupError, BackendUnavailable: it cannot be made here.
        """
        if self._private is None:
            self._private = networks.PrivateNetwork()
        return self._private

    def _vary(self, words: Mapping[str, Any]) -> Policy:
        """The settled policy for a call; the same words give the same value, so that its plan is compiled once."""
        key = repr(sorted(words.items()))
        if key not in self._varied:
            policy = self._groups.settle(vary(self.policy, **words))
            self._networks.settle(policy)
            self._varied[key] = policy
        return self._varied[key]

    def close(self) -> None:
        """End what still runs, last started first."""
        while self._running:
            self._running.pop().terminate()
        private, self._private = self._private, None
        if private is not None:
            private.close()

    def __enter__(self) -> Sandbox:  # noqa: PYI034 (typing.Self is newer than Python 3.10)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@contextlib.contextmanager
def no_room_said(limits: Limits) -> Iterator[None]:
    """A start that ran out of memory, or of processes, under a limit of the user's is the user's to change.

    Raises:
        PolicyError: instead of a SetupError with ENOMEM or EAGAIN, when such a limit is set.
    """
    try:
        yield
    except SetupError as error:
        if error.errno == errno.ENOMEM and limits.memory_bytes:
            asked = f"memory limit of {format_bytes(limits.memory_bytes)}"
            raise PolicyError(asked, f"the sandbox itself does not fit into it ({error})", "raise it") from error
        if error.errno == errno.EAGAIN and limits.pids:
            asked = f"limit of {limits.pids} processes"
            raise PolicyError(asked, f"the sandbox itself needs more ({error})", "raise it") from error
        raise


def joined(cgroup: Cgroup | None, network: SandboxNetwork | None = None) -> Joined | None:
    """The descriptors through which a child starts in the group and in its network."""
    netns_fd = -1 if network is None else network.netns_fd
    if cgroup is None:
        return None if netns_fd < 0 else Joined(netns_fd=netns_fd)
    return Joined(cgroup.dir_fd, cgroup.procs_fds, netns_fd)


def living(process: Process, cgroup: Cgroup | None, others: bool) -> list[Leftover]:
    """What still lives of a program that has ended, after a short grace for what is on its way out.

    ``others``: what waiting for it said, of its PID namespace or session. Its cgroup knows also those that left its
    session, where there is no PID namespace to hold them.
    """

    def look() -> list[Leftover]:
        found = process.leftovers() if others else []
        return found + of_group(cgroup, process, found)

    end = time.monotonic() + _GRACE_S
    while (found := look()) and time.monotonic() < end:
        time.sleep(_POLL_S)
    return found


def in_pid_namespace(process: Process) -> bool:
    """True when a PID namespace of its own holds all it starts: its end is theirs, and it knows who is left."""
    return getattr(process, "init_pid", 0) > 0


def of_group(cgroup: Cgroup | None, process: Process, known: Sequence[Leftover] = ()) -> list[Leftover]:
    """The living processes of a cgroup but for the program's own, its init, and those that are ``known``."""
    if cgroup is None or in_pid_namespace(process):
        return []
    ours = {0, process.pid, getattr(process, "init_pid", 0), *(leftover.pid for leftover in known)}
    return processes.described(pid for pid in cgroup.pids() if pid not in ours)


def usage_of(exited: Exited | None, wall_s: float) -> Usage:
    """The process level of usage: rusage of the program and what it waited for."""
    if exited is None:
        return Usage(wall_s=wall_s)
    spent = exited.rusage
    return Usage(
        wall_s=wall_s,
        user_s=spent.user_s,
        system_s=spent.system_s,
        max_rss_bytes=spent.max_rss_bytes,
        minor_faults=spent.minor_faults,
        major_faults=spent.major_faults,
        voluntary_switches=spent.voluntary_switches,
        involuntary_switches=spent.involuntary_switches,
    )


def group_usage(counted: CgroupUsage) -> dict[str, Any]:
    """The cgroup level of usage, by the names of Usage."""
    return {
        "cgroup_cpu_usec": counted.cpu_usec,
        "cgroup_user_usec": counted.cpu_user_usec,
        "cgroup_system_usec": counted.cpu_system_usec,
        "cgroup_throttled_usec": counted.events.throttled_usec,
        "cgroup_memory_peak_bytes": counted.memory_peak_bytes,
        "cgroup_swap_peak_bytes": counted.swap_peak_bytes,
        "pids_peak": counted.pids_peak,
        "io_read_bytes": counted.io_read_bytes,
        "io_write_bytes": counted.io_write_bytes,
        "io_read_ops": counted.io_read_ops,
        "io_write_ops": counted.io_write_ops,
    }


def status_verdicts(exited: Exited | None, limits: Limits) -> list[tuple[Cause, str]]:
    """Causes that the signal itself tells: SIGXCPU and SIGXFSZ come from rlimits alone. Source: setrlimit(2).

    SIGXCPU has two senders, RLIMIT_CPU and RLIMIT_RTTIME; which one shows in the CPU time spent.
    """
    if exited is None:
        return []
    number = exited.status.signal
    used_s = exited.rusage.user_s + exited.rusage.system_s
    if number == signals.SIGXCPU:
        return [(Cause.CPU, cpu_text(used_s, limits))]
    if number == signals.SIGKILL and (text := hard_cpu_text(used_s, limits)):
        return [(Cause.CPU, text)]
    if number == signals.SIGXFSZ:
        return [(Cause.FSIZE, "FSIZE: a file grew over the limit on file size (SIGXFSZ)")]
    return []


def hard_cpu_text(used_s: float, limits: Limits) -> str:
    """What a SIGKILL after ``used_s`` of CPU time means; empty when no hard limit on it was near."""
    hard = next((hard for number, _, hard in compile_rlimits(limits) if number == number_of("CPU")), UNLIMITED)
    if hard == UNLIMITED or used_s < hard * _TICKS_RUN_AHEAD:
        return ""
    return f"CPU: killed after {format_seconds(used_s)} of CPU time at the hard limit RLIMIT_CPU = {hard} s (SIGKILL)"


def cpu_text(used_s: float, limits: Limits) -> str:
    """What SIGXCPU means for a process that has used ``used_s`` of CPU time."""
    soft = next((soft for number, soft, _ in compile_rlimits(limits) if number == number_of("CPU")), UNLIMITED)
    soft_rt, _ = limits.rlimits.get("RTTIME", (UNLIMITED, UNLIMITED))
    if soft_rt != UNLIMITED and (soft == UNLIMITED or used_s < soft):
        return f"CPU: the limit RLIMIT_RTTIME = {soft_rt} us without a pause was reached (SIGXCPU)"
    which = "" if soft == UNLIMITED else f" RLIMIT_CPU = {soft} s"
    return f"CPU: the limit{which} on CPU seconds was reached (SIGXCPU)"


def _arguments(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    if isinstance(argv, str | bytes):
        raise PolicyError("argv", f"{argv!r} is one text", "write a list: program and arguments apart")
    if not argv:
        raise PolicyError("argv", "it is empty", "name a program")
    return [os.fspath(part) for part in argv]


@contextlib.contextmanager
def _input(content: str | bytes | None, stdin: int | IO[Any] | None) -> Iterator[int]:
    """A descriptor to read from: a memory file with ``content``, the caller's ``stdin``, else /dev/null."""
    if content is not None and stdin is not None:
        raise PolicyError("stdin", "both input= and stdin= are given", "leave one out")
    if isinstance(stdin, int) and stdin >= 0:
        yield stdin
    elif stdin is not None and not isinstance(stdin, int):
        yield stdin.fileno()
    else:
        fd = os.memfd_create("stdin", os.MFD_CLOEXEC) if content else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if content:
                os.pwrite(fd, content.encode() if isinstance(content, str) else content, 0)
            yield fd
        finally:
            os.close(fd)


def _call_and_leave(function: Callable[..., Any], args: Any, kwargs: Any, write_fd: int, files: _Files) -> NoReturn:
    """In the child: call, send the result, leave without running anything of the parent's."""
    code = _EXIT_FAILED_CALL
    try:
        os.dup2(files.out_fd, 1)
        os.dup2(files.err_fd, 2)
        if faulthandler.is_enabled():
            faulthandler.enable(files.err_fd)
        try:
            frame = wire.pack("value", function(*args, **kwargs))
        except BaseException:
            frame = wire.pack("raised", traceback.format_exc())
        view = memoryview(frame)
        while view:
            view = view[os.write(write_fd, view) :]
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        code = 0
    finally:
        os._exit(code)


def _result(running: Running, reader: wire.Reader) -> Any:
    """Read until the value, the exception or the end; whoever holds the pipe open does not delay us."""
    import select

    poller = select.poll()
    poller.register(reader._fd, select.POLLIN)
    poller.register(running._process.pidfd, select.POLLIN)
    found: tuple[str, Any] | None = None
    while found is None and not reader.eof:
        left = running._left_s()
        ready = dict(poller.poll(None if left is None else left * 1000 + 1))
        if reader._fd in ready:
            found = next(iter(reader.frames()), None)
        elif not ready or running._process.pidfd in ready:
            break
    outcome = running.wait()
    if found is not None and found[0] == "value" and not outcome.causes:
        return found[1]
    if found is not None and found[0] == "raised":
        raise CallFailed(f"{running.args[0]} in a sandbox", f"it raised\n{found[1]}")
    why = "; ".join(outcome.detail) or str(outcome.status)
    raise CallFailed(f"{running.args[0]} in a sandbox", f"{why} {outcome.stderr}".strip())
