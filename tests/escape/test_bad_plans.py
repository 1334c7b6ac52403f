"""Requests without measure: refused with a clear error, contained, or working as documented; never half made."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import IsolateError, SetupError
from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import MountKind, MountOp
from pytest_isolate.policy import Bind, Filesystem, Tmpfs
from pytest_isolate.profile import STANDARD, vary
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require
from tests.kernel.launching import LIMIT_S, PRIVATE, plan, run
from tests.kernel.throwaway import throwaway

everyone = pytest.mark.parametrize("who", ["root", "user"])


def sandboxed(who: str, argv: list[str], **words: Any) -> tuple[int | None, str, str]:
    """(status, standard output, standard error) of a program."""

    def body() -> Any:
        with Sandbox(vary(STANDARD, **words), name="bad-plan") as sandbox:
            try:
                outcome = sandbox.run(argv)
            except IsolateError as error:
                return None, "", str(error)
            return outcome.status.code, outcome.stdout, outcome.stderr

    code, out, err = throwaway(body, who=who)
    return code, out, err


@everyone
def test_arguments_of_two_megabytes(who: str) -> None:
    """128 KiB an argument and a quarter of the stack in all. Source: execve(2)."""
    megabyte = ["x" * 100_000] * 10
    assert sandboxed(who, ["true", *megabyte])[0] == 0
    code, _, error = sandboxed(who, ["true", *megabyte * 21])
    assert code is None
    assert "sandbox setup failed at exec (true): E2BIG" in error


@everyone
def test_an_environment_of_two_megabytes(who: str) -> None:
    def body() -> str:
        with Sandbox(STANDARD, name="bad-plan") as sandbox:
            try:
                sandbox.run(["/bin/true"], env={f"N{number}": "x" * 100_000 for number in range(21)})
            except SetupError as error:
                return f"{error.step} {errno.errorcode[error.errno or 0]}"
        return "started"

    assert throwaway(body, who=who) == "exec E2BIG"


def test_a_hundred_thousand_descriptors_or_as_many_as_there_may_be() -> None:
    """None of them reaches the program, and closing them costs next to nothing (close_range(2))."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    wanted = min(100_000, before[1] - 200)
    held = [os.dup(1) for _ in range(wanted)]
    try:
        for fd in held[:10]:
            os.set_inheritable(fd, True)
        assert int(run(plan("pid", "mnt"), "sh", "-c", "ls /proc/self/fd | wc -l").text) > 10
        assert int(run(plan("pid", "mnt", close_fds=True), "sh", "-c", "ls /proc/self/fd | wc -l").text) <= 4
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_no_descriptor_left_is_a_step_with_its_errno() -> None:
    def body() -> str:
        native.spawn(plan("pid"), ["/bin/true"]).__exit__(None, None, None)  # the control, and the imports
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        free_fd = os.dup(1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free_fd + 1, before[1]))
        try:
            native.spawn(plan("pid"), ["/bin/true"])
        except SetupError as error:
            return f"{error.step} {errno.errorcode[error.errno or 0]}"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        return "started"

    assert throwaway(body) in ("init EMFILE", "prepare EMFILE")


def test_a_thousand_mounts(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "mounts without a user namespace")
    bind = MountOp(kind=MountKind.BIND, source="/usr", target=str(tmp_path), flags=4096)
    with native.spawn(plan("pid", "mnt", mounts=(PRIVATE, *[bind] * 1000)), ["/bin/true"]) as child:
        exited = child.wait(LIMIT_S)
    assert exited is not None
    assert exited.status.code == 0
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_the_last_of_a_thousand_mounts_is_named(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "mounts without a user namespace")
    bind = MountOp(kind=MountKind.BIND, source="/usr", target=str(tmp_path), flags=4096)
    missing = MountOp(kind=MountKind.BIND, source="/nowhere", target=str(tmp_path), flags=4096)
    with pytest.raises(SetupError, match=r"mounts\[1002\].*ENOENT"):
        native.spawn(plan("pid", "mnt", mounts=(*[bind] * 1000, missing)), ["/bin/true"])


@everyone
def test_a_missing_source_is_named_before_anything_starts(who: str) -> None:
    view = Filesystem(binds=(Bind(source="/no/such/source", target="/mnt"),), proc=False)
    code, _, error = sandboxed(who, ["true"], fs=view)
    assert code is None
    assert "/no/such/source" in error


@everyone
def test_no_space_on_a_private_tmpfs(who: str) -> None:
    view = Filesystem(tmpfs=(Tmpfs(target="/tmp", size_bytes=1 << 20),), proc=False)
    small = ["dd", "if=/dev/zero", "of=/tmp/x", "bs=64k", "count=8"]
    assert sandboxed(who, small, fs=view)[0] == 0
    code, _, error = sandboxed(who, [*small[:-1], "count=64"], fs=view)
    assert code == 1
    assert "No space left" in error


@everyone
def test_ten_sandboxes_in_each_other(who: str) -> None:
    assert throwaway(lambda: _nested(10), who=who) == "the end"


def _nested(depth: int) -> str:
    """A fork in a fork: what is at the bottom comes up through ``depth`` sandboxes."""
    if depth == 0:
        return "the end"
    with Sandbox(vary(STANDARD, namespaces="+pid"), name=f"nest{depth}") as sandbox:
        return str(sandbox.python(_nested, depth - 1))
