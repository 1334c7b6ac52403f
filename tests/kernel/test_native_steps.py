"""Each step does what the plan says, and a step that cannot names itself, its index and the errno."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel import native
from pytest_isolate.kernel.plan import MountKind, MountOp, Plan
from tests.kernel.launching import (
    MS_BIND,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    PRIVATE,
    forked,
    open_fds,
    pipe,
    plan,
    run,
    value,
)

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


def fork_and_leave(a_plan: Plan) -> None:
    if native.fork(a_plan) is None:
        os._exit(0)


def refused(a_plan: Plan, *argv: str, start: str = "both") -> list[SetupError]:
    """The errors of a spawn and a fork under this plan; both must fail alike, leaving no fd behind."""
    before, errors = open_fds(), []
    with pytest.raises(SetupError) as spawned:
        native.spawn(a_plan, argv or ("/bin/true",))
    errors.append(spawned.value)
    if start == "both":
        with pytest.raises(SetupError) as forking:
            fork_and_leave(a_plan)
        errors.append(forking.value)
    assert open_fds() == before
    assert {(e.step, e.errno, e.index) for e in errors} == {(errors[0].step, errors[0].errno, errors[0].index)}
    return errors


BASES = [(), ("pid", "mnt"), ("user", "pid", "mnt")]
EVERYWHERE = pytest.mark.parametrize("names", BASES, ids=lambda names: "+".join(names) or "none")


def places(errors: list[SetupError]) -> tuple[str, int, int]:
    return errors[0].step, errors[0].errno, errors[0].index


@EVERYWHERE
def test_an_impossible_limit_names_its_index(names: tuple[str, ...]) -> None:
    limits = ((resource.RLIMIT_CORE, 0, 0), (99, 1, 1))
    errors = refused(plan(*names, rlimits=limits))
    assert places(errors) == ("rlimits", errno.EINVAL, 1)
    assert "rlimits[1]: EINVAL" in str(errors[0])


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


def status_lines(*names: str) -> dict[str, str]:
    with open("/proc/self/status") as status:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in status)
    return {name: fields[name] for name in names}


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


# ---- descriptors ----


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


# ---- mounts ----


def building(root: Path, *ops: MountOp) -> Plan:
    """A new root on tmpfs with the host's /usr read-only in it; then ops; then the pivot."""
    target = str(root)
    table = [
        PRIVATE,
        MountOp(kind=MountKind.MOUNT, source="tmpfs", target=target, fstype="tmpfs", flags=MS_NOSUID, data="mode=755"),
        MountOp(kind=MountKind.MKDIR, target=f"{target}/usr"),
        MountOp(kind=MountKind.BIND, source="/usr", target=f"{target}/usr", flags=MS_BIND | MS_REC | MS_RDONLY),
        *(
            MountOp(kind=MountKind.SYMLINK, source=f"usr/{name}", target=f"{target}/{name}")
            for name in ("bin", "lib", "lib64")
        ),
        MountOp(kind=MountKind.MKDIR, target=f"{target}/proc"),
        MountOp(kind=MountKind.MOUNT, source="proc", target=f"{target}/proc", fstype="proc", flags=14),
        *ops,
        MountOp(kind=MountKind.PIVOT, target=target),
    ]
    return Plan(namespaces=0x20020000, mounts=tuple(table))


def test_a_new_root_is_built_and_the_old_one_is_gone(tmp_path: Path) -> None:
    deep = MountOp(kind=MountKind.MKDIR, target=f"{tmp_path}/a/b/c/", data="700")
    file = MountOp(kind=MountKind.MKFILE, target=f"{tmp_path}/etc/empty")
    script = "ls /; stat -c %a /a/b/c /etc/empty; touch /usr/x || echo read-only; cat /proc/mounts | wc -l"
    listing = run(building(tmp_path, deep, file), "/bin/sh", "-c", script).text.split()
    assert listing[:7] == ["a", "bin", "etc", "lib", "lib64", "proc", "usr"]
    assert listing[7:10] == ["700", "644", "read-only"]
    assert int(listing[10]) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_symlink_in_a_new_root_cannot_lead_a_mount_outside(tmp_path: Path) -> None:
    new_root, outside = tmp_path / "root", tmp_path / "outside"
    new_root.mkdir()
    outside.mkdir()
    trap = MountOp(kind=MountKind.SYMLINK, source=str(outside), target=f"{new_root}/trap")
    into = MountOp(kind=MountKind.MKFILE, target=f"{new_root}/trap/planted")
    absolute = refused(building(new_root, trap, into), "/bin/true")
    assert absolute[0].step == "mounts"
    dotted = MountOp(kind=MountKind.SYMLINK, source="../../outside", target=f"{new_root}/trap")
    refused(building(new_root, dotted, into), "/bin/true")
    assert list(outside.iterdir()) == []
    # The control: the same words reach a directory that is inside.
    inside = MountOp(kind=MountKind.MKDIR, target=f"{new_root}/{outside}")
    assert run(building(new_root, inside, trap, into), "/bin/sh", "-c", f"ls {outside}").text == "planted\n"


def test_binds_of_files_remounts_and_attributes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "source").write_text("new")
    (tmp_path / "dir").mkdir()
    table = (
        MountOp(kind=MountKind.BIND, source=f"{tmp_path}/source", target=f"{tmp_path}/file", flags=MS_BIND),
        MountOp(kind=MountKind.BIND, source=f"{tmp_path}", target=f"{tmp_path}/dir", flags=MS_BIND),
        MountOp(kind=MountKind.REMOUNT, target=f"{tmp_path}/dir", flags=MS_RDONLY | MS_NOSUID),
        MountOp(kind=MountKind.SETATTR, target=f"{tmp_path}/file", data="0x1"),
    )
    script = "cat $1/file; touch $1/dir/x || echo ro; echo y > $1/file || echo ro; touch $1/fine && echo rw"
    ran = run(plan("mnt", mounts=table), "sh", "-c", f"({script}) 2>/dev/null", "sh", str(tmp_path))
    assert ran.text == "newro\nro\nrw\n"
    assert (tmp_path / "file").read_text() == "old"


def test_a_thousand_mounts(tmp_path: Path) -> None:
    ops = [MountOp(kind=MountKind.MOUNT, source="tmpfs", target=str(tmp_path), fstype="tmpfs")]
    for number in range(1000):
        target = f"{tmp_path}/{number}"
        ops += [
            MountOp(kind=MountKind.MKDIR, target=target),
            MountOp(kind=MountKind.BIND, source="/usr", target=target),
        ]
    assert run(plan("mnt", mounts=tuple(ops)), "sh", "-c", f"ls {tmp_path} | wc -l").text == "1000\n"
    assert forked(plan("mnt", mounts=tuple(ops)), os.getpid).exited.status.code == 0


# ---- cgroups ----


@pytest.fixture
def group(require: Any) -> Iterator[Path]:
    """A cgroup of our own in the version 2 hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2" and os.access(fields[1], os.W_OK)]
    require("cgroup2", bool(roots), "no writable cgroup2 mount")
    path = roots[0] / f"isolate-test-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def own_group() -> str:
    (line,) = (line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return line[3:]


@pytest.mark.parametrize("names", [(), ("pid", "mnt"), ("pid", "mnt", "cgroup")], ids="+".join)
@pytest.mark.parametrize("by", ["directory", "procs"])
def test_the_child_is_placed_into_its_cgroup(group: Path, names: tuple[str, ...], by: str) -> None:
    if by == "directory":
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        placed = plan(*names, cgroup_fd=fd)
    else:
        fd = os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        placed = plan(*names, cgroup_procs_fds=(fd,))
    outside = own_group()
    inside = "/" if "cgroup" in names else "/" + group.name
    try:
        assert value(placed, own_group) == inside
        assert run(placed, "sed", "-n", "s/^0:://p", "/proc/self/cgroup").text.strip() == inside
        with native.spawn(placed, ["sleep", "30"]) as child:
            members = (group / "cgroup.procs").read_text().split()
            assert set(members) == {str(pid) for pid in (child.pid, child.init_pid) if pid}
    finally:
        os.close(fd)
    assert own_group() == outside
    deadline = time.monotonic() + 5
    while "populated 1" in (group / "cgroup.events").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_cgroup_that_refuses_is_named_by_its_index() -> None:
    fd = os.open("/proc/self/status", os.O_RDONLY)
    try:
        assert places(refused(plan("pid", cgroup_procs_fds=(fd,)))) == ("cgroup", errno.EBADF, 0)
    finally:
        os.close(fd)
