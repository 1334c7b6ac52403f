"""A caller whose 0, 1 or 2 is not open, as a daemon's: no descriptor of the library takes the number and reaches a sandbox."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from pytest_isolate import groups
from pytest_isolate.errors import PolicyError, SetupError
from pytest_isolate.kernel import native, standard
from pytest_isolate.kernel.plan import Plan
from pytest_isolate.profile import STANDARD
from pytest_isolate.sandbox import Sandbox
from tests.kernel.launching import plan
from tests.kernel.throwaway import PYTHON, throwaway

#: A program that writes what its 0, 1 and 2 are into the descriptor it is given.
TELL = """
import os, sys
paths = [f"/proc/self/fd/{n}" for n in range(3)]
os.write(int(sys.argv[1]), " ".join(os.readlink(p) if os.path.lexists(p) else "closed" for p in paths).encode())
"""
both = pytest.mark.parametrize("names", [(), ("pid", "mnt")], ids=["direct", "init"])


def with_closed(*numbers: int, body: Callable[[], Any]) -> Any:
    """What ``body`` says in a process that has not ``numbers`` open."""

    def closed() -> Any:
        for number in numbers:
            os.close(number)
        return body()

    return throwaway(closed)


def above(fd: int) -> int:
    """The descriptor under a number that is nobody's standard input."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 30)
    os.close(fd)
    return moved


def told_by(plan: Plan, **stdio: int) -> list[str]:
    """What each of 0, 1 and 2 is for a program."""
    answer = above(os.memfd_create("answer"))
    os.set_inheritable(answer, True)
    with native.spawn(plan, [PYTHON, "-ISc", TELL, str(answer)], **stdio) as child:
        assert child.wait(10) is not None
    return os.pread(answer, 4096, 0).decode().split()


@both
def test_what_the_caller_has_not_open_a_program_has_not(names: tuple[str, ...]) -> None:
    assert with_closed(0, body=lambda: told_by(plan(*names))[0]) == "closed"
    assert with_closed(0, 1, 2, body=lambda: told_by(plan(*names))) == ["closed"] * 3


def refusal(**stdio: int) -> tuple[str, int, int]:
    try:
        with native.spawn(plan("pid", "mnt", monitor=True), ["true"], **stdio) as child:
            child.wait(10)
    except SetupError as error:
        return error.step, error.errno, error.index
    return "started", 0, 0


def test_a_descriptor_that_is_not_open_is_refused() -> None:
    assert with_closed(0, body=lambda: refusal(stdin_fd=0)) == ["stdio", errno.EBADF, 0]
    assert with_closed(2, body=lambda: refusal(stdout_fd=1, stderr_fd=2)) == ["stdio", errno.EBADF, 2]
    free = os.dup(0)
    os.close(free)  # the number that the next descriptor gets
    assert refusal(stdin_fd=free) == ("stdio", errno.EBADF, 0)


@both
def test_stdio_is_placed_where_all_three_are_closed(names: tuple[str, ...]) -> None:
    """None of the launch's own descriptors is one of the numbers that are overwritten then."""

    def places() -> Any:
        high = above(os.open(os.devnull, os.O_RDWR))
        return told_by(plan(*names), stdin_fd=high, stdout_fd=high, stderr_fd=high)

    assert with_closed(0, 1, 2, body=places) == [os.devnull] * 3


@both
def test_a_forked_child_has_open_what_its_parent_had(names: tuple[str, ...]) -> None:
    def fork() -> Any:
        answer = above(os.memfd_create("answer"))
        child = native.fork(plan(*names))
        if child is None:
            os.write(answer, repr([fd for fd in range(3) if standard.is_open(fd)]).encode())
            os._exit(0)
        with child:
            assert child.wait(10) is not None
            assert child.pidfd > 2
        return os.pread(answer, 99, 0).decode()

    assert with_closed(0, 1, 2, body=fork) == "[]"


def run_in_a_daemon() -> list[str]:
    """A sandbox with a cgroup: the manager of cgroups has the first descriptors of this process."""
    argv = ["sh", "-c", "readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2"]
    with Sandbox(STANDARD) as sandbox:
        sandbox.run(["true"], pids=20)
        first = [sandbox.run(argv, stdin=0, **words).stdout.split()[0] for words in ({}, {"pids": 20})]
        uncaptured = sandbox.spawn(["sh", "-c", "readlink /proc/$$/fd/0 /proc/$$/fd/1 >&2"], capture=False)
        assert uncaptured.wait().status.code == 0
    groups.of_this_process().close()
    return [*first, *(os.readlink(f"/proc/self/fd/{n}") for n in range(3))]


def test_for_a_daemon_that_makes_sandboxes_and_its_programs_they_are_dev_null() -> None:
    assert with_closed(0, 1, 2, body=run_in_a_daemon) == [os.devnull] * 5


def test_a_number_that_a_descriptor_of_ours_would_get_is_no_input() -> None:
    free = os.dup(0)
    os.close(free)
    with Sandbox(STANDARD) as sandbox, pytest.raises(PolicyError, match=f"descriptor {free} is not open"):
        sandbox.run(["cat"], stdin=free)
    with Sandbox(STANDARD) as sandbox:
        assert sandbox.run(["cat"], stdin=subprocess.DEVNULL).stdout == ""
