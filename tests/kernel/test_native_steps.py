"""Each step does what the plan says, and a step that cannot names itself, its index and the errno."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import MountKind, MountOp, Plan
from tests.kernel.launching import (
    MS_BIND,
    open_fds,
    plan,
    run,
    value,
)
from tests.kernel.refusals import BASES, EVERYWHERE, places, refused, status_lines

LIMITS = {
    "AS": 8 << 30, "CORE": 0, "CPU": 900, "DATA": 6 << 30, "FSIZE": 1 << 30, "MEMLOCK": 4096, "MSGQUEUE": 4096, "NICE": 0,
    "NOFILE": 200, "NPROC": 500, "RSS": 1 << 30, "RTPRIO": 0, "SIGPENDING": 100, "STACK": 1 << 20,
}  # fmt: skip


def read_limit(number: int) -> list[int]:
    return list(resource.getrlimit(number))


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_a_limit_is_set_in_the_child_and_only_there(name: str) -> None:
    number, wanted = getattr(resource, f"RLIMIT_{name}"), LIMITS[name]
    before = resource.getrlimit(number)
    for names in ((), ("pid", "mnt")):
        assert value(plan(*names, rlimits=((number, wanted, wanted),)), read_limit, number) == [wanted, wanted]
    assert resource.getrlimit(number) == before


def test_no_limit_is_written_as_minus_one() -> None:
    unlimited = ((resource.RLIMIT_CORE, 0, -1),)
    assert value(plan(rlimits=unlimited), read_limit, resource.RLIMIT_CORE) == [0, -1]


@EVERYWHERE
def test_an_impossible_limit_names_its_index(names: tuple[str, ...]) -> None:
    limits = ((resource.RLIMIT_CORE, 0, 0), (99, 1, 1))
    errors = refused(plan(*names, rlimits=limits))
    assert places(errors) == ("rlimits", errno.EINVAL, 1)
    assert "rlimits[1] (99, hard limit 1): EINVAL" in str(errors[0])


@EVERYWHERE
def test_a_missing_directory_names_the_step(names: tuple[str, ...]) -> None:
    assert places(refused(plan(*names, cwd="/nonexistent"))) == ("cwd", errno.ENOENT, -1)


def test_a_failed_mount_names_its_index_and_its_target() -> None:
    bad = MountOp(kind=MountKind.BIND, source="/nonexistent", target="/mnt", flags=MS_BIND)
    errors = refused(plan("pid", "mnt", mounts=(bad,)))
    assert places(errors) == ("mounts", errno.ENOENT, 2)
    assert "mounts[2] (BIND /mnt): ENOENT" in str(errors[0])


def test_an_unknown_mount_option_is_the_kernels_einval() -> None:
    bad = MountOp(kind=MountKind.MOUNT, source="tmpfs", target="/mnt", fstype="tmpfs", data="nonsense=1")
    assert places(refused(plan("mnt", mounts=(bad,)))) == ("mounts", errno.EINVAL, 1)


@EVERYWHERE
def test_a_program_that_is_not_there(names: tuple[str, ...]) -> None:
    assert places(refused(plan(*names), "/nonexistent", start="spawn")) == ("exec", errno.ENOENT, -1)
    assert places(refused(plan(*names), "no-such-program", start="spawn")) == ("exec", errno.ENOENT, -1)


@EVERYWHERE
def test_a_program_that_may_not_be_executed(names: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("#!/bin/sh\n")
    assert places(refused(plan(*names), str(path), start="spawn")) == ("exec", errno.EACCES, -1)


def test_namespaces_the_kernel_does_not_know_are_refused_before_anything_starts() -> None:
    assert places(refused(Plan(namespaces=0x200))) == ("plan", errno.EINVAL, -1)


def test_maps_without_a_user_namespace_are_refused() -> None:
    settings = {"uid_map": plan("user").uid_map}
    assert places(refused(Plan(**settings))) == ("plan", errno.EINVAL, -1)


def test_a_join_of_something_else_names_its_index() -> None:
    with open("/dev/null") as null:
        assert places(refused(Plan(join_fds=((null.fileno(), 0x40000000),)))) == ("join", errno.EINVAL, 0)


def test_200_failed_starts_leave_no_descriptor_and_no_process() -> None:
    before = open_fds()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    bad = [plan(*names, cwd="/nonexistent") for names in BASES] + [plan("pid", "mnt", rlimits=((99, 1, 1),))]
    for number in range(200):
        with pytest.raises(SetupError):
            native.spawn(bad[number % len(bad)], ["true"])
    assert open_fds() == before
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == children


# ---- what the steps do ----


def test_session_umask_and_directory_are_as_planned(tmp_path: Path) -> None:
    def look() -> list[Any]:
        mask = os.umask(0)
        return [os.getsid(0) == os.getpid(), mask, os.getcwd()]

    for names in ((), ("pid", "mnt")):
        assert value(plan(*names, umask=0o27, cwd=str(tmp_path)), look) == [True, 0o27, str(tmp_path)]
        kept = os.umask(0o22)
        os.umask(kept)
        assert value(plan(*names, new_session=False), look) == [False, kept, os.getcwd()]


SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@EVERYWHERE
def test_capabilities_are_dropped_from_every_set(names: tuple[str, ...]) -> None:
    allowed = (1 << 1) | (1 << 10)  # CAP_DAC_OVERRIDE, CAP_NET_BIND_SERVICE
    held = value(plan(*names, capabilities=allowed), status_lines, *SETS)
    assert {name: int(bits, 16) & ~allowed for name, bits in held.items()} == dict.fromkeys(SETS, 0)
    assert int(held["CapEff"], 16) == allowed
    assert set(value(plan(*names, capabilities=0), status_lines, *SETS).values()) == {"0" * 16}
    program = run(plan(*names, capabilities=0), "grep", "Cap", "/proc/self/status").text
    assert {line.split("\t")[1] for line in program.splitlines()} == {"0" * 16}


def test_half_a_seccomp_instruction_is_refused_not_cut() -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        native.fork(plan(seccomp=b"\0" * 12))


def test_without_no_new_privs_the_flag_is_clear_and_with_it_set() -> None:
    assert value(plan("pid", "mnt"), status_lines, "NoNewPrivs") == {"NoNewPrivs": "0"}
    assert value(plan("pid", "mnt", no_new_privs=True), status_lines, "NoNewPrivs") == {"NoNewPrivs": "1"}


GETPPID = 110 if os.uname().machine == "x86_64" else 173
#: load the number; getppid -> EPERM, all else allowed. Source: seccomp(2).
DENY_GETPPID = struct.pack(
    "=HBBIHBBIHBBIHBBI",
    0x20,
    0,
    0,
    0,
    0x15,
    0,
    1,
    GETPPID,
    0x06,
    0,
    0,
    0x00050000 | errno.EPERM,
    0x06,
    0,
    0,
    0x7FFF0000,
)


def raw_getppid() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(ctypes.get_errno()) if libc.syscall(GETPPID) < 0 else 0


@EVERYWHERE
def test_a_seccomp_program_is_in_force(names: tuple[str, ...]) -> None:
    assert value(plan(*names, no_new_privs=True), raw_getppid) == 0
    assert value(plan(*names, no_new_privs=True, seccomp=DENY_GETPPID), raw_getppid) == errno.EPERM


def test_a_broken_seccomp_program_names_the_step() -> None:
    assert places(refused(plan(seccomp=b"\xff" * 8, no_new_privs=True))) == ("seccomp", errno.EINVAL, -1)


def landlock_without_writing() -> int:
    """A ruleset that handles creating files and allows it nowhere; -1 where the kernel has no Landlock."""
    handled = struct.pack("=Q", 1 << 8)  # LANDLOCK_ACCESS_FS_MAKE_REG
    return int(ctypes.CDLL(None).syscall(444, handled, len(handled), 0))


def create(path: str) -> int:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    except OSError as error:
        return error.errno
    return 0


def test_a_landlock_ruleset_is_enforced(tmp_path: Path, require: Any) -> None:
    ruleset = landlock_without_writing()
    require("landlock", ruleset >= 0, "landlock_create_ruleset fails")
    try:
        assert value(plan("pid", "mnt"), create, str(tmp_path / "a")) == 0
        limited = plan("pid", "mnt", no_new_privs=True, landlock_fd=ruleset)
        assert value(limited, create, str(tmp_path / "b")) == errno.EACCES
    finally:
        os.close(ruleset)
