"""Runs programs, and functions, in sandboxes: ``run`` to the end, ``spawn`` as a server, ``python`` for a call.

Owns: Sandbox: a policy, a backend, what is still running. What one running program can do is in running.py.
Refuses: to decide what a policy may hold (policy.py) or how it is enforced (backends/, kernel/).
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pytest_isolate import groups, networks, wire
from pytest_isolate.backend import Backend, Kind, Launch
from pytest_isolate.calls import call_and_leave, result
from pytest_isolate.errors import PolicyError
from pytest_isolate.hooks import Hooks, Life, of_this_process
from pytest_isolate.kernel import standard
from pytest_isolate.kernel.netns_pool import POOL
from pytest_isolate.outcome import Outcome
from pytest_isolate.output import Files, Output, Pipes
from pytest_isolate.policy import Policy
from pytest_isolate.private import PrivateNetwork
from pytest_isolate.profile import STANDARD, vary
from pytest_isolate.registry import choose
from pytest_isolate.running import ProgramFailed, Running
from pytest_isolate.starting import joined, no_room_said, view_of

if TYPE_CHECKING:
    from pytest_isolate.kernel.filesystem import MountPlan, Resolution


class Sandbox:
    """Runs programs under a policy; one value may run many. A context manager: leaving it ends what still runs.

    Args:
        policy: what holds for every run; each call may vary it by keywords (see profile.WORDS).
        backends: names to choose from, first preferred; empty: the best that enforces the policy.
        cgroups: where group limits are held; None: those of this process, on whatever hierarchy has them.
        hooks: whose backends and hooks hold; None: those of the pytest run, else of the installed packages.
        item: the pytest.Item on whose behalf programs are run, for the hooks.
    """

    def __init__(
        self,
        policy: Policy = STANDARD,
        *,
        backends: Sequence[str] = (),
        name: str = "program",
        cgroups: groups.Groups | None = None,
        hooks: Hooks | None = None,
        item: Any = None,
    ) -> None:
        standard.hold()
        self.policy = policy
        self._hooks = hooks or of_this_process()
        self._item = item
        self._backends = tuple(backends)
        self._name = name
        self._given_groups = cgroups
        self._private: PrivateNetwork | None = None
        self._varied: dict[str, Policy] = {}
        self._chosen: dict[tuple[int, int], Backend] = {}
        self._running: list[Running] = []
        self._closings = 0
        self._let_go: Callable[[], None] | None = POOL.hold()

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
        time-out is an outcome with cause TIMEOUT, not an exception. Standard input is empty unless given. ``merge_stderr``
        puts both streams into stdout, in the order they were written (but for a backend that ``relays_output``).

        Raises:
            ProgramFailed: with ``check``, when the program did not exit with 0 or the outcome has a cause.
            PolicyError, BackendUnavailable, SetupError: the sandbox could not be made as asked; nothing was run.
        """
        kind = functools.partial(Pipes, text=text, merge=merge_stderr)
        running = self._start(argv, kind, _Input(input, stdin), env, cwd, words)
        try:
            outcome = running.wait()
        finally:
            self._end(running)
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

        Without ``capture`` it writes to this process's own standard output and error; else to memory files, which nobody has
        to read while it runs: they count as memory of its own, and opening /dev/stdout anew begins them anew.

        Raises:
            PolicyError, BackendUnavailable, SetupError: the sandbox could not be made as asked; nothing was run.
        """
        kind = functools.partial(Files if capture else Output, text=text, merge=merge_stderr)
        return self._start(argv, kind, _Input(input, stdin), env, cwd, words)

    def _start(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        kind: Callable[[], Output],
        given: _Input,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        words: Mapping[str, Any],
    ) -> Running:
        closings = self._closings
        with contextlib.ExitStack() as undo, given as stdin_fd:
            args = _arguments(argv)
            if cwd is not None and not os.fspath(cwd):
                raise PolicyError("cwd", "it is empty", "name a directory, or leave it out")
            policy = self._vary(words)
            backend = self._choose(policy)
            output = kind()
            undo.callback(output.close)
            cgroup = self._groups.enter(self._name, policy)
            if cgroup is not None:
                undo.callback(cgroup.close)
            network = self._networks.enter(policy, cgroup, self._private)
            if network is not None:
                undo.callback(network.close)
            life = self._begin("programs", tuple(args), policy, backend)
            if life is not None:
                undo.callback(life.close)
            with no_room_said(policy.limits):
                process = backend.spawn(
                    policy,
                    args,
                    env=env,
                    cwd=None if cwd is None else os.fspath(cwd),
                    joined=joined(cgroup, network),
                    stdin_fd=stdin_fd,
                    stdout_fd=output.out_fd,
                    stderr_fd=output.err_fd,
                )
            if cgroup is not None:
                cgroup.started()
            if life is not None:
                life.spawned(process)
            undo.pop_all()
        output.started()
        running = Running(args, policy, process, cgroup, output, self._meanwhile, network, life)
        self._keep(running, closings)
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
        closings = self._closings
        chosen = self._vary(dict(policy or {}))
        backend = choose(chosen, self._backends, kind="tests", hooks=self._hooks, item=self._item)
        name = getattr(function, "__qualname__", repr(function))
        read_fd, write_fd = os.pipe()
        files = Files(text=True, merge=False)

        def give_up() -> None:
            networks.leave_in_child()
            groups.leave_in_child()

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
                life = self._begin("tests", (name,), chosen, backend)
                if life is not None:
                    undo.callback(life.close)
                kept = (write_fd, files.out_fd, files.err_fd) if chosen.hardening.close_fds else ()
                with no_room_said(chosen.limits):
                    process = backend.fork(chosen, joined(cgroup, network, kept))
                if process is None:
                    call_and_leave(function, args, kwargs, write_fd, files, give_up)
                if cgroup is not None:
                    cgroup.started()
                if life is not None:
                    life.spawned(process)
            finally:
                os.close(write_fd)
            undo.pop_all()
        running = Running((name,), chosen, process, cgroup, files, self._meanwhile, network, life)
        self._keep(running, closings)
        try:
            with open(read_fd, "rb", buffering=0) as channel:
                return result(running, wire.Reader(channel.fileno()))
        finally:
            if self._end(running).returncode:
                self._groups.bereave()

    @property
    def _groups(self) -> groups.Groups:
        """Asked for each time: a wide sandbox is used in tests, each in a process of its own."""
        return self._given_groups or groups.of_this_process()

    @property
    def _networks(self) -> networks.Networks:
        return networks.of_this_process()

    @property
    def network(self) -> PrivateNetwork:
        """A private network for all further runs with ``net="private"``, until the sandbox is closed.

        ``client.network.join(server)`` connects two sandboxes.

        Raises:
            SetupError, BackendUnavailable: it cannot be made here.
        """
        if self._private is None:
            self._private = PrivateNetwork()
        return self._private

    def _meanwhile(self) -> None:
        """What can be done while a program runs: remove the groups of earlier ones, make group and network for the next."""
        self._groups.make_ready()
        self._groups.tidy()
        POOL.fill()

    def resolve(self, path: str | os.PathLike[str], **words: Any) -> Resolution:
        """Which mount answers for an absolute ``path`` inside, and whether it takes writes. Nothing is started.

        ``words`` vary the policy, as in run(). What a program does inside, it cannot know.

        Raises:
            PolicyError: the policy leaves the files as the host has them, or the backend does not tell; a relative path.
        """
        from pytest_isolate.kernel import filesystem

        return filesystem.resolve(os.fsdecode(path), self._view(words))

    def explain(self, error: int | OSError, path: str | os.PathLike[str], **words: Any) -> str:
        """Why a program inside got ``error`` (an errno, or the exception) for ``path``, and what would change that; a sentence.

        Raises:
            PolicyError: as resolve().
        """
        from pytest_isolate.kernel import filesystem

        number = (error.errno or 0) if isinstance(error, OSError) else error
        return filesystem.explain(number, os.fsdecode(path), self._view(words), self._vary(words).hardening)

    def _view(self, words: Mapping[str, Any]) -> MountPlan:
        policy = self._vary(words)
        backend = self._choose(policy)
        view = view_of(backend, policy)
        if view is None:
            why = f"by {backend.name}, its paths mean what they mean on the host, or it does not tell what they mean"
            raise PolicyError("the sandbox's view", why, 'ask for fs="readonly", say, and the backend native')
        return view

    def _choose(self, policy: Policy) -> Backend:
        """As registry.choose, asked once for a policy and a user, unless a plugin wants to be asked each time."""
        if self._hooks.selects:
            return choose(policy, self._backends, hooks=self._hooks, item=self._item)
        key = id(policy), os.geteuid()
        if key not in self._chosen:
            self._chosen[key] = choose(policy, self._backends, hooks=self._hooks, item=self._item)
        return self._chosen[key]

    def _begin(self, kind: Kind, args: tuple[str, ...], policy: Policy, backend: Backend) -> Life | None:
        if not self._hooks.takes_part:
            return None
        launch = Launch(name=self._name, kind=kind, args=args, policy=policy, backend=backend.name, item=self._item)
        return self._hooks.begin(launch)

    def _vary(self, words: Mapping[str, Any]) -> Policy:
        """The settled policy for a call; the same words give the same value, so that its plan is compiled once."""
        try:
            key = repr(sorted(words.items())) if words else ""
        except ValueError:  # an int of more digits than Python writes out: vary says to which word
            vary(self.policy, **words)
            raise
        if key not in self._varied:
            policy = self._groups.settle(vary(self.policy, **words))
            tier = self._networks.settle(policy, lambda other: choose(other, self._backends))
            self._varied[key] = policy if tier is None else tier.policy
        return self._varied[key]

    def _keep(self, running: Running, closings: int) -> None:
        """Until close() ends it, which another thread may have called while it was being started."""
        self._running.append(running)
        if self._closings != closings:
            running.terminate()

    def _end(self, running: Running) -> Outcome:
        """It has ended, or ends now, and is nobody's any more; close() in another thread may have been first."""
        with contextlib.suppress(ValueError):
            self._running.remove(running)
        return running.terminate()

    def close(self) -> None:
        """End what still runs, last started first, and what another thread is just starting.

        What one end raises is raised when all has ended. A process that was forked from this one closes what it started itself.
        """
        self._closings += 1
        with contextlib.ExitStack() as ends:
            ends.callback(self._groups.drop_ready)
            let_go, self._let_go = self._let_go, None
            if let_go is not None:
                ends.callback(let_go)
            if self._private is not None and self._private.is_ours:
                ends.callback(self._private.close)
                self._private = None
            for running in [running for running in self._running if running.is_ours]:
                with contextlib.suppress(ValueError):  # another thread has just taken it to end it
                    self._running.remove(running)
                    ends.callback(running.terminate)

    def __enter__(self) -> Sandbox:  # noqa: PYI034 (typing.Self is newer than Python 3.10)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _arguments(argv: Sequence[str | bytes | os.PathLike[str]]) -> list[str]:
    if isinstance(argv, str | bytes):
        raise PolicyError("argv", f"{argv!r} is one text", "write a list: program and arguments apart")
    if not argv:
        raise PolicyError("argv", "it is empty", "name a program")
    return [os.fsdecode(part) for part in argv]


class _Input:
    """A descriptor to read from: a memory file with ``content``, the caller's ``stdin``, else /dev/null."""

    __slots__ = ("_content", "_own_fd", "_stdin")

    def __init__(self, content: str | bytes | None, stdin: int | IO[Any] | None) -> None:
        if content is not None and stdin is not None:
            raise PolicyError("stdin", "both input= and stdin= are given", "leave one out")
        self._content, self._stdin, self._own_fd = content, stdin, -1

    def __enter__(self) -> int:
        if isinstance(self._stdin, int) and self._stdin >= 0:
            if not standard.is_open(self._stdin):
                raise PolicyError("stdin", f"descriptor {self._stdin} is not open", "give an open one, or leave it out")
            return self._stdin
        if self._stdin == subprocess.PIPE:
            raise PolicyError("stdin", "there is nobody to write into a pipe", "use input=, or an open file")
        if self._stdin is not None and not isinstance(self._stdin, int):
            return self._stdin.fileno()
        if not self._content:
            self._own_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            return self._own_fd
        content = self._content.encode() if isinstance(self._content, str) else memoryview(self._content)
        self._own_fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
        os.pwrite(self._own_fd, content, 0)
        return self._own_fd

    def __exit__(self, *_: object) -> None:
        if self._own_fd >= 0:
            os.close(self._own_fd)
