"""A forked child is a healthy interpreter and a healthy libc: threads, locks, signals, hooks, multiprocessing.

The child is forked by a helper task that shares the caller's memory, so what the kernel and libc keep per thread is
looked at too: thread id, robust lists, restartable sequences, the alternate signal stack.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pytest_isolate.kernel import native
from tests.kernel.launching import LIMIT_S, forked, plan, value
from tests.kernel.throwaway import ROOT

KINDS = {"direct": plan(), "init": plan("pid", "mnt"), "user": plan("user", "pid", "mnt", "time")}
EACH = pytest.mark.parametrize("a_plan", list(KINDS.values()), ids=list(KINDS))
libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def busy_threads(count: int = 4) -> Iterator[None]:
    """Other threads that fight for the GIL, malloc, a lock and stdio while we fork."""
    stop, lock = threading.Event(), threading.Lock()

    def work() -> None:
        while not stop.is_set():
            with lock:
                b"x" * random.randrange(1, 300_000)
            libc.snprintf(ctypes.create_string_buffer(64), 64, b"%d", 7)
            time.sleep(0)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def use_everything() -> list[Any]:
    """Malloc from several threads, locks, a new thread's result, the thread count."""
    answers: queue.Queue[int] = queue.Queue()
    threads = [threading.Thread(target=lambda n=n: answers.put(len(bytes(n * 100_000)))) for n in range(3)]
    before = threading.active_count()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [before, sorted(answers.get() for _ in threads), threading.current_thread() is threading.main_thread()]


@EACH
def test_200_forks_among_busy_threads_do_not_deadlock(a_plan: Any) -> None:
    with busy_threads():
        for _ in range(200):
            assert value(a_plan, use_everything) == [1, [0, 100_000, 200_000], True]


def test_a_fork_from_another_thread_than_the_main_one_works() -> None:
    seen: list[Any] = []
    with busy_threads(2):
        thread = threading.Thread(target=lambda: seen.append(value(KINDS["init"], use_everything)))
        thread.start()
        thread.join()
    assert seen == [[1, [0, 100_000, 200_000], True]]


def thread_ids() -> list[int]:
    """The kernel's id of this thread, and what libc caches of it: the owner of an error-checking mutex."""
    attributes, mutex = ctypes.create_string_buffer(16), (ctypes.c_int * 16)()
    libc.pthread_mutexattr_init(attributes)
    libc.pthread_mutexattr_settype(attributes, 2)
    libc.pthread_mutex_init(mutex, attributes)
    libc.pthread_mutex_lock(mutex)
    return [threading.get_native_id(), mutex[2], os.getpid()]


@EACH
def test_libc_knows_its_new_thread_id(a_plan: Any) -> None:
    kernel, cached, pid = value(a_plan, thread_ids)
    assert kernel == cached == pid


def on_each_cpu() -> list[list[int]]:
    seen = []
    for cpu in sorted(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, {cpu})
        seen.append([cpu, libc.sched_getcpu()])
    return seen


@EACH
def test_restartable_sequences_are_registered_anew(a_plan: Any) -> None:
    seen = value(a_plan, on_each_cpu)
    assert len(seen) >= 2, "one CPU shows nothing"
    assert all(wanted == told for wanted, told in seen), seen


def signals_to_self() -> list[int]:
    got: list[int] = []
    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(signum, lambda number, _: got.append(number))
    signal.raise_signal(signal.SIGUSR1)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(0.2)
    return got


@EACH
def test_raise_pthread_kill_and_alarms_arrive(a_plan: Any) -> None:
    assert value(a_plan, signals_to_self) == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM]


@EACH
def test_handlers_and_mask_are_the_callers(a_plan: Any) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        look = lambda: [  # noqa: E731
            signal.getsignal(signal.SIGUSR1) is not before,
            sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        ]
        here = look()
        assert value(a_plan, look) == here
        assert int(signal.SIGUSR2) in here[1]
        assert look() == here
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGUSR1, before)


class StackT(ctypes.Structure):
    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def alternate_stack() -> list[int]:
    stack = StackT()
    libc.sigaltstack(None, ctypes.byref(stack))
    return [stack.sp or 0, stack.flags, stack.size]


def test_the_alternate_signal_stack_of_faulthandler_is_kept() -> None:
    from pytest_isolate.kernel.plan import IdMap

    every = (IdMap(inside=0, outside=0, count=2**32 - 1),)
    was_enabled = faulthandler.is_enabled()
    if not was_enabled:
        faulthandler.enable(sys.__stderr__)
    try:
        here = alternate_stack()
        assert here[0]
        for a_plan in (*KINDS.values(), plan("user", "pid", "mnt", uid_map=every, gid_map=every)):
            assert value(a_plan, alternate_stack) == here
    finally:
        if not was_enabled:
            faulthandler.disable()


def run_children() -> list[Any]:
    """A subprocess, an os.fork, and their statuses."""
    out = subprocess.run(["sh", "-c", "echo hi; exit 3"], stdout=subprocess.PIPE)
    pid = os.fork()
    if pid == 0:
        os._exit(4)
    return [out.stdout.decode(), out.returncode, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


@EACH
def test_children_of_the_child_work(a_plan: Any) -> None:
    assert value(a_plan, run_children) == ["hi\n", 3, 4]


def square(number: int) -> int:
    return number * number


def pool() -> list[int]:
    with multiprocessing.get_context("fork").Pool(2) as workers:
        return workers.map(square, range(5))


@EACH
def test_multiprocessing_works(a_plan: Any) -> None:
    assert value(a_plan, pool) == [0, 1, 4, 9, 16]


def test_pythons_fork_hooks_run_in_their_order() -> None:
    script = """
import os, sys
from tests.kernel.launching import plan, value
calls = []
os.register_at_fork(before=lambda: calls.append("before"), after_in_child=lambda: calls.append("child"),
                    after_in_parent=lambda: calls.append("parent"))
for names in ((), ("pid", "mnt")):
    calls.clear()
    assert value(plan(*names), lambda: calls) == ["before", "child"], names
    assert calls == ["before", "parent"], calls
print("ok")
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("ok\n", "")


def test_hooks_run_in_the_parent_after_a_failure_too() -> None:
    script = """
import os
from pytest_isolate.errors import SetupError
from pytest_isolate.kernel import native
from tests.kernel.launching import plan
calls = []
os.register_at_fork(before=lambda: calls.append("before"), after_in_parent=lambda: calls.append("parent"))
for names in ((), ("pid", "mnt")):
    try:
        native.fork(plan(*names, cwd="/nonexistent"))
    except SetupError:
        pass
print(calls)
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("['before', 'parent', 'before', 'parent']\n", "")


def test_libcs_fork_handlers_run_once_in_each_process() -> None:
    script = """
import ctypes
from tests.kernel.launching import plan, value
kind, counts = ctypes.CFUNCTYPE(None), {"prepare": 0, "parent": 0, "child": 0}
def handler(name):
    def count(): counts[name] += 1
    return kind(count)
kept = [handler(name) for name in counts]
# pthread_atfork is in libc_nonshared.a; this is what it calls
ctypes.CDLL(None).__register_atfork(*kept, None)
for names in ((), ("pid", "mnt")):
    for name in counts: counts[name] = 0
    assert value(plan(*names), lambda: counts) == {"prepare": 1, "parent": 0, "child": 1}, names
    assert counts == {"prepare": 1, "parent": 1, "child": 0}, counts
print("ok")
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("ok\n", "")


def test_a_deep_python_stack_goes_on_where_it_was() -> None:
    def descend(depth: int) -> int:
        if depth:
            return descend(depth - 1) + 1
        child = native.fork(KINDS["init"])
        if child is None:
            return 0
        with child:
            exited = child.wait(LIMIT_S)
            assert exited is not None
            return int(exited.status.code or 0)

    pid = os.getpid()
    result = descend(200)
    if os.getpid() != pid or pid == 2:
        os._exit(result)
    assert result == 400


def fork_again() -> int:
    return int(value(KINDS["init"], os.getpid))


@EACH
def test_a_child_can_fork_sandboxes_of_its_own(a_plan: Any) -> None:
    assert value(a_plan, fork_again) == 2


@EACH
def test_time_goes_on_in_the_child(a_plan: Any) -> None:
    before = time.monotonic()
    assert before <= value(a_plan, time.monotonic) <= time.monotonic()


NO_CLONE3 = """
import ctypes, os, struct
from tests.kernel.launching import NAMESPACES, plan, run, value, open_fds
number = 435
program = struct.pack("=HBBIHBBIHBBIHBBI", 0x20,0,0,0, 0x15,0,1,number, 0x06,0,0,0x00050000|38, 0x06,0,0,0x7fff0000)
class Prog(ctypes.Structure): _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(Prog(4, program)), 0, 0) == 0
assert libc.syscall(number, None, 0) == -1 and ctypes.get_errno() == 38, "the filter is not in force"
names = ["pid", "user", "uts", "cgroup", "ipc", "mnt", "net"]
links = lambda: [os.readlink("/proc/self/ns/" + name) for name in names]
before = open_fds()
for chosen in ([], ["pid", "mnt"], ["uts"], names):
    inside = value(plan(*chosen), links)
    assert {n for n, a, b in zip(names, inside, links()) if a != b} == set(chosen), chosen
    ran = run(plan(*chosen), "sh", "-c", "for n in %s; do readlink /proc/self/ns/$n; done; exit 6" % " ".join(names))
    assert {n for n, a, b in zip(names, ran.text.split(), links()) if a != b} == set(chosen), chosen
    assert ran.exited.status.code == 6
assert open_fds() == before
print("ok")
"""


def test_where_clone3_answers_enosys_clone_does_the_same() -> None:
    ran = subprocess.run([sys.executable, "-c", NO_CLONE3], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("ok\n", "")


def test_an_exception_in_the_child_stays_there() -> None:
    assert forked(KINDS["init"], lambda: 1 / 0).exited.status.code == 99
