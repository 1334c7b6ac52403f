"""What a program is given: descriptors, standard streams, arguments, environment, signals."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_isolate.kernel import native
from tests.kernel.launching import (
    open_fds,
    pipe,
    plan,
    run,
    value,
)
from tests.kernel.refusals import places, refused, status_lines


def test_without_close_fds_a_program_gets_what_is_inheritable() -> None:
    with pipe() as ends:
        os.set_inheritable(ends[1], True)
        assert f" {ends[1]} " in run(plan("pid", "mnt"), "sh", "-c", "echo '' $(ls /proc/$$/fd) ''").text


@pytest.mark.parametrize("names", [(), ("pid", "mnt")], ids=["direct", "init"])
def test_with_close_fds_only_the_kept_ones_stay(names: tuple[str, ...]) -> None:
    with pipe() as ends, pipe() as kept:
        for fd in (*ends, kept[0]):
            os.set_inheritable(fd, True)
        closing = plan(*names, close_fds=True, keep_fds=(kept[1],))
        listed = run(closing, "sh", "-c", "ls /proc/$$/fd").text.split()
        assert set(map(int, listed)) - {10} == {0, 1, 2, kept[1]}  # dash keeps a copy of a script's fd at 10


@pytest.mark.parametrize("names", [(), ("pid", "mnt")], ids=["direct", "init"])
def test_a_forked_child_keeps_only_what_is_kept(names: tuple[str, ...]) -> None:
    with pipe() as ends, pipe() as kept:
        child = native.fork(plan(*names, close_fds=True, keep_fds=(kept[1],)))
        if child is None:
            here = open_fds()
            os.write(kept[1], repr(sorted(fd for fd in here if is_open(fd))).encode())
            os._exit(0)
        with child:
            assert child.wait(10) is not None
        assert eval(os.read(kept[0], 4096)) == [0, 1, 2, kept[1]]
        assert ends


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_kept_descriptor_that_is_not_open_is_named() -> None:
    assert places(refused(plan(close_fds=True, keep_fds=(5000,)))) == ("fds", errno.EBADF, 0)


def test_stdio_is_placed_even_when_it_is_swapped() -> None:
    with pipe() as out, pipe() as err:
        argv = ["sh", "-c", "echo to-out; echo to-err >&2; cat"]
        with open("/etc/hostname", "rb") as source:
            child = native.spawn(plan("pid", "mnt"), argv, stdin_fd=source.fileno(), stdout_fd=out[1], stderr_fd=err[1])
        with child:
            assert child.wait(10) is not None
        assert os.read(out[0], 4096) == b"to-out\n" + Path("/etc/hostname").read_bytes()
        assert os.read(err[0], 4096) == b"to-err\n"


def swap_stdio() -> str:
    """1 and 2 change places for the program."""
    with pipe() as out, pipe() as err:
        os.dup2(out[1], 1)
        os.dup2(err[1], 2)
        with native.spawn(plan(), ["sh", "-c", "echo a; echo b >&2"], stdout_fd=2, stderr_fd=1) as child:
            assert child.wait(10) is not None
        return (os.read(out[0], 99) + os.read(err[0], 99)).decode()


def test_stdout_and_stderr_can_be_exchanged() -> None:
    assert value(plan(), swap_stdio) == "b\na\n"


def test_a_program_can_be_given_as_a_descriptor() -> None:
    fd = os.open("/bin/sh", os.O_PATH | os.O_CLOEXEC)
    try:
        assert run(plan("pid"), "sh", "-c", "exit 3", executable_fd=fd).exited.status.code == 3
    finally:
        os.close(fd)


def test_environment_and_path_are_those_given(tmp_path: Path) -> None:
    tool = tmp_path / "mytool"
    tool.write_text("#!/bin/sh\necho tool $WORD\n")
    tool.chmod(0o755)
    assert run(plan(), "mytool", env={"PATH": f"/nonexistent:{tmp_path}", "WORD": "yes"}).text == "tool yes\n"


def test_two_megabytes_of_arguments_arrive_and_more_is_told() -> None:
    big = ["x" * 100_000] * 18
    assert run(plan("pid", "mnt"), "sh", "-c", 'echo "$*" | wc -c', "sh", *big).text.strip() == str(18 * 100_001)
    assert places(refused(plan("pid"), "true", *big, *big, start="spawn")) == ("exec", errno.E2BIG, -1)


def test_ignored_sigpipe_is_the_default_again_in_a_program_and_the_mask_is_ours() -> None:
    lines = run(plan("pid", "mnt"), "grep", "^Sig[BI]", "/proc/self/status").text
    fields = dict(line.split(":\t") for line in lines.splitlines())
    assert int(fields["SigIgn"], 16) & (1 << 12) == 0
    assert int(fields["SigBlk"], 16) == int(status_lines("SigBlk")["SigBlk"], 16)
