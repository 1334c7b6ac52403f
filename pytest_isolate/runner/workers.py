"""The processes that run tests: started, kept for a group or ahead of their turn, buried.

Owns: their file descriptors, cgroups and bodies. Refuses: to know what an item needs set up (protocol.py) and to
listen (conversation.py).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_isolate import groups, networks, registry, wire
from pytest_isolate.backend import Backend, Launch, Process
from pytest_isolate.endings import living, usage_of
from pytest_isolate.errors import IsolateError
from pytest_isolate.kernel import hugepages
from pytest_isolate.outcome import Cause, ExitStatus, Outcome
from pytest_isolate.policy import Namespace, Policy
from pytest_isolate.runner import compat, crash, fresh, garbage, reporter
from pytest_isolate.runner.child import told
from pytest_isolate.runner.host import Host, kind_of
from pytest_isolate.runner.orders import Orders
from pytest_isolate.runner.process import TestProcess, Verdict
from pytest_isolate.runner.settings import Settings
from pytest_isolate.starting import joined, no_room_said, view_of

if TYPE_CHECKING:
    from pytest_isolate.hooks import Life
    from pytest_isolate.kernel.cgroups import Cgroup
    from pytest_isolate.sandbox_network import SandboxNetwork

#: More bodies than this are not left lying: the next test waits for the oldest.
_MAX_BODIES = 4
#: What a child that has said its last word may take to end.
EXIT_S = 10.0
#: What a new child does, for ever.
Serve = Callable[[pytest.Item, "pytest.Item | None", reporter.Link], NoReturn]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How a child begins. ``gated``: it waits for its turn, and runs the whole protocol itself; ``tries``: how often its first
    item was run before, in processes that are gone; ``failure``: see Link."""

    gated: bool = False
    tries: int = 0
    failure: tuple[pytest.Item, BaseException] | None = None


class Reaper:
    """Processes that have said their last word: their ends are collected while the next test already runs.

    ``bereave``: said when one had to be killed.
    """

    def __init__(self, bereave: Callable[[], None]) -> None:
        self._bereave = bereave
        self._bodies: list[tuple[Process, Cgroup | None, SandboxNetwork | None]] = []
        self._of_parent: list[tuple[Process, Cgroup | None, SandboxNetwork | None]] = []

    def add(self, worker: TestProcess) -> None:
        self._bodies.append((worker.process, worker.cgroup, worker.network))
        self.collect(keep=_MAX_BODIES)

    def forget(self) -> None:
        """In a child: close the copies of the parent's descriptors. The rest is kept, so that nothing is finalized here."""
        for process, _, _ in self._bodies:
            process.close()
        self._of_parent, self._bodies = self._bodies, []

    def collect(self, keep: int) -> None:
        """Collect what has ended; wait for the oldest until at most ``keep`` are left."""
        self._bodies = [body for body in self._bodies if not _collected(*body)]
        while len(self._bodies) > keep:
            body = self._bodies.pop(0)
            self.end(body[0])
            _collected(*body)

    def end(self, process: Process) -> None:
        """Wait for its end, and that of what it has started since; it is untrusted, and has so long for it."""
        try:
            exited = process.wait(EXIT_S)
            lives = exited is None or exited.leftovers
        except IsolateError:  # of its backend's tool, which has failed when all was said
            lives = True
        if lives:
            process.kill()
            self._bereave()
        process.reap(block=True)


def _collected(process: Process, cgroup: Cgroup | None, network: SandboxNetwork | None) -> bool:
    done = process.reap(block=False)
    if done:
        process.close()
        if network is not None:
            network.close()
        if cgroup is not None:
            cgroup.close(later=True)
    return done


def _hides(backend: Backend, settings: Settings) -> bool:
    """Whether what a fresh interpreter leaves running can only be seen from inside: asked of backends by a tool."""
    ask = getattr(backend, "hides_processes", None)
    return ask is not None and bool(ask(settings.policy))


def _sees_us(policy: Policy) -> bool:
    """Whether pytest's own process is in the test's /proc."""
    return Namespace.PID not in policy.namespaces or not policy.filesystem.proc


def _undo(worker: TestProcess) -> None:
    """Give back what was made for a start that failed."""
    for made in (worker.life, worker.network, worker.cgroup, worker):
        if made is not None:
            made.close()


def _finished(worker: TestProcess, life: Life, verdict: Verdict) -> IsolateError | None:
    """Tell the plugins that take part how it ended; what one objects."""
    exited = worker.process.wait(EXIT_S)
    causes = [] if verdict.cause is None else [(Cause(verdict.cause[0]), verdict.cause[1])]
    if worker.cgroup is not None:
        reached = worker.cgroup.verdicts(usage=verdict.counted, surely=True)
        causes += [found for found in reached if found[0] not in {cause for cause, _ in causes}]
    try:
        life.finished(
            Outcome(
                args=life.launch.args,
                status=ExitStatus(signal=signal.SIGKILL) if exited is None else exited.status,
                causes=tuple(cause for cause, _ in causes),
                detail=tuple(text for _, text in causes),
                usage=usage_of(exited, time.monotonic() - worker.began),
                leftovers=tuple(verdict.leftovers),
            )
        )
    except IsolateError as error:
        return error
    return None


class Workers:
    """All processes of the run. ``serve`` is what a new child does, for ever."""

    def __init__(self, host: Host, serve: Serve) -> None:
        self._host = host
        self._serve = serve
        self._reaper = Reaper(host.groups.bereave)
        self._live: list[TestProcess] = []
        self._heap = hugepages.Heap()
        self._has_forked = False

    def expect(self, forks: int) -> None:
        """Said before a start: so many will follow. What of the heap is not in huge pages may then be copied into them."""
        self._heap.expect(forks)

    def start(
        self,
        item: pytest.Item,
        following: pytest.Item | None,
        settings: Settings,
        entry: Entry,
        *,
        dump_stacks: bool,
        serial: bool,
    ) -> TestProcess:
        """Fork a child for ``item``. ``serial``: nobody is to be seen beside it, not even one who is ending.

        Raises:
            IsolateError: the sandbox could not be made; nothing is left.
        """
        self._reaper.collect(keep=0 if serial else _MAX_BODIES)
        if not self._has_forked:
            garbage.age()
            self._has_forked = True
        report_fd, channel_fd = os.pipe()
        command_fd, orders_fd = os.pipe()
        worker = TestProcess(report_fd, Orders(orders_fd), crash.Outputs.make(), wire.Reader(report_fd), item)
        worker.last = item
        link = reporter.Link(
            channel_fd=channel_fd,
            command_fd=command_fd,
            out_fd=worker.outputs.out_fd,
            err_fd=worker.outputs.err_fd,
            trace_fd=worker.outputs.trace_fd,
            gated=entry.gated,
            tries=entry.tries,
            dump_stacks=dump_stacks,
            in_pid_namespace=Namespace.PID in settings.policy.namespaces,
            limits=settings.policy.limits,
            runner_pid=os.getpid() if serial and _sees_us(settings.policy) else 0,
            failure=entry.failure,
        )
        worker.limits = settings.policy.limits
        try:
            worker.cgroup = self._host.groups.enter(item.name, settings.policy)
            worker.network = self._host.networks.enter(settings.policy, worker.cgroup)
            backend = self._host.backend(settings, item)
            worker.view = view_of(backend, settings.policy)
            worker.life = self._begin(item, settings, backend)
            with no_room_said(settings.policy.limits):
                process = backend.fork(settings.policy, joined(worker.cgroup, worker.network))
            if process is None:
                self._become(worker, item, following, link, settings)
            if worker.cgroup is not None:
                worker.cgroup.started()
            if worker.life is not None:
                worker.life.spawned(process)
        except BaseException:
            _undo(worker)
            raise
        finally:
            os.close(channel_fd)
            os.close(command_fd)
        worker.process = process
        self._live.append(worker)
        return worker

    def start_fresh(self, item: pytest.Item, settings: Settings, *, serial: bool) -> TestProcess:
        """Start a new interpreter for ``item`` alone. ``serial``: see start().

        Raises:
            IsolateError: the sandbox could not be made; nothing is left.
        """
        self._reaper.collect(keep=0 if serial else _MAX_BODIES)
        report_fd, channel_fd = os.pipe()
        null_fd = os.open(os.devnull, os.O_RDONLY)
        outputs = crash.Outputs.make(shared=True)
        worker = TestProcess(report_fd, Orders(-1), outputs, wire.Reader(report_fd), item)
        worker.last = item
        worker.limits = settings.policy.limits
        try:
            worker.cgroup = self._host.groups.enter(item.name, settings.policy)
            worker.network = self._host.networks.enter(settings.policy, worker.cgroup)
            backend = self._host.backend(settings, item)
            relayed = bool(getattr(backend, "relays_output", False))
            worker.view = view_of(backend, settings.policy)
            worker.life = self._begin(item, settings, backend)
            with no_room_said(settings.policy.limits):
                worker.process = backend.spawn(
                    settings.policy,
                    fresh.command(item, channel=1 if relayed else 0),
                    env=fresh.environment(hidden=_hides(backend, settings), timeout_s=settings.policy.timeout_s),
                    cwd=str(item.config.invocation_params.dir),
                    joined=joined(worker.cgroup, worker.network),
                    stdin_fd=null_fd if relayed else channel_fd,
                    stdout_fd=channel_fd if relayed else outputs.out_fd,
                    stderr_fd=outputs.err_fd,
                )
            if worker.cgroup is not None:
                worker.cgroup.started()
            if worker.life is not None:
                worker.life.spawned(worker.process)
        except BaseException:
            _undo(worker)
            raise
        finally:
            os.close(channel_fd)
            os.close(null_fd)
        self._live.append(worker)
        return worker

    def _begin(self, item: pytest.Item, settings: Settings, backend: Backend) -> Life | None:
        kind, policy = kind_of(settings), settings.policy
        return self._host.hooks.begin(
            Launch(name=item.name, kind=kind, args=(item.nodeid,), policy=policy, backend=backend.name, item=item)
        )

    def _become(
        self,
        own: TestProcess,
        item: pytest.Item,
        following: pytest.Item | None,
        link: reporter.Link,
        settings: Settings,
    ) -> NoReturn:
        """In the child, which must not go on as its parent whatever fails."""
        try:
            self._forget(own)
            registry.enter(settings.policy)
            self._serve(item, following, link)
        except BaseException as error:
            os.write(link.trace_fd, told(error))
        finally:
            os._exit(reporter.EXIT_OUR_FAULT)

    def _forget(self, own: TestProcess) -> None:
        """In the child: close what is the parent's side, its own and that of its siblings."""
        os.close(own.report_fd)
        own.orders.close()
        for sibling in self._live:
            sibling.process.close()
            sibling.close()
        networks.leave_in_child()
        groups.leave_in_child()
        self._reaper.forget()

    def bury(self, worker: TestProcess, verdict: Verdict) -> None:
        """It has said its last word: find what it leaves behind, unless it saw that it was alone."""
        self._live.remove(worker)
        if worker.outputs.shared and not verdict.died and compat.shows_prints(worker.item.config):
            worker.outputs.show()
        worker.close()
        process = worker.process
        if verdict.died or not verdict.evidence.get("alone"):
            self._host.groups.bereave()
        if verdict.died:
            worker.kill()
        elif not verdict.evidence.get("alone"):
            try:
                exited = process.wait(EXIT_S)
            except IsolateError as error:  # the test has said its last word; its backend's tool failed after it
                verdict.complaint, exited = error, process.wait(0)
            verdict.leftovers += living(process, worker.cgroup, exited is None or exited.leftovers)
            worker.kill()
        if verdict.died or verdict.leftovers or worker.life is not None:
            self._reaper.end(process)  # a port that a leaked server held is free before the next test asks for it
        if worker.cgroup is not None:
            verdict.counted = worker.cgroup.usage(current=False, pressure=worker.cgroup.accounts)
        if worker.life is not None:
            verdict.complaint = _finished(worker, worker.life, verdict) or verdict.complaint
        self._reaper.add(worker)

    def close(self) -> None:
        """End what still lives and collect every body."""
        for worker in list(self._live):
            self.bury(worker, Verdict(died=True))
        self._reaper.collect(keep=0)
