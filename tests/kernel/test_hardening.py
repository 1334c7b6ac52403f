"""Hardening as the kernel enforces it, for root and for a plain user: what works without it, and is refused with it."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.hardening import Landlock, SeccompProfile
from pytest_isolate.kernel import landlock, syscalls
from pytest_isolate.profile import STANDARD, vary
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require
from tests.kernel.throwaway import PYTHON, throwaway

everyone = pytest.mark.parametrize("who", ["root", "user"])


@pytest.fixture(autouse=True)
def _root() -> None:
    require("root", os.geteuid() == 0, "becomes a plain user by itself")


def said(source: str, who: str = "root", **words: Any) -> Any:
    """What a Python program prints under these words, evaluated; as ``who``."""

    def body() -> Any:
        with Sandbox(vary(STANDARD, **words), name="hardening") as sandbox:
            outcome = sandbox.run([PYTHON, "-I", "-c", source])
            assert outcome.status.code == 0, outcome.stderr
            return outcome.stdout

    return eval(throwaway(body, who=who))


def errno_of(call: str, *arguments: int) -> str:
    """A program that prints the errno of a raw system call, 0 for none."""
    number = syscalls.numbers()[call]
    words = "".join(f", ctypes.c_ulong({argument})" for argument in arguments)
    return (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
        f"print(ctypes.get_errno() if libc.syscall({number}{words}) == -1 else 0)"
    )


#: call, arguments, what the filter answers.
REFUSED = [
    ("mount", (0, 0, 0, 0, 0), errno.EPERM),
    ("umount2", (0, 0), errno.EPERM),
    ("open_tree", (2**64 - 1, 0, 0), errno.EPERM),
    ("setns", (2**64 - 1, 0), errno.EPERM),
    ("unshare", (0,), errno.EPERM),
    ("clone", (0x04010011, 0, 0, 0, 0), errno.EPERM),  # NEWUTS; CLONE_THREAD alone is EINVAL
    ("clone3", (0, 0), errno.ENOSYS),
    ("ptrace", (16, 2**31 - 1), errno.EPERM),
    ("process_vm_readv", (2**31 - 1, 0, 0, 0, 0, 0), errno.EPERM),
    ("keyctl", (10**6,), errno.EPERM),
    ("add_key", (0, 0, 0, 0, 0), errno.EPERM),
    ("io_uring_setup", (0, 0), errno.ENOSYS),
    ("socket", (2, 3, 1), errno.EPERM),
    ("socket", (17, 3, 0), errno.EAFNOSUPPORT),
    ("ioctl", (0, 0x5412, 0), errno.EPERM),
]
#: These take capabilities that no plain user has after an exec, so only root's control shows more than a plain EPERM.
REFUSED_TO_ROOT = [
    ("pivot_root", (0, 0), errno.EPERM),
    ("finit_module", (2**64 - 1, 0, 0), errno.EPERM),
    ("bpf", (10**6, 0, 0), errno.EPERM),
    ("kexec_load", (0, 0, 0, 2**64 - 1), errno.EPERM),
    ("open_by_handle_at", (2**64 - 1, 0, 0), errno.EPERM),
]


@everyone
@pytest.mark.parametrize(("call", "arguments", "answer"), [*REFUSED, *REFUSED_TO_ROOT])
def test_default_refuses_what_works_without_it(call: str, arguments: tuple[int, ...], answer: int, who: str) -> None:
    require("seccomp-numbers", platform.machine() in syscalls.TABLES, platform.machine())
    source = errno_of(call, *arguments)
    control = said(source, who)
    by_kernel = who == "user" and ((call, arguments, answer) in REFUSED_TO_ROOT or call == "socket")
    assert control != answer or by_kernel, "the control is refused, too"
    assert said(source, who, seccomp="default") == answer


@everyone
def test_default_lets_programs_work(who: str) -> None:
    source = (
        "import subprocess, threading, socket, multiprocessing.pool\n"
        "made = []\n"
        "thread = threading.Thread(target=made.append, args=(1,)); thread.start(); thread.join()\n"
        "made.append(subprocess.run(['true']).returncode)\n"
        "for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6): socket.socket(family).close()\n"
        "print(made)"
    )
    assert said(source, who, seccomp="default") == [1, 0]


@everyone
def test_a_profile_of_ones_own_is_in_force(who: str) -> None:
    source = errno_of("getppid")
    assert said(source, who) == 0
    own = SeccompProfile(name="own", refuse={"getppid": "EXDEV"})
    assert said(source, who, seccomp=own) == errno.EXDEV
    assert said(source, who, seccomp="default", seccomp_refuse="getppid=ENOTTY") == errno.ENOTTY


@everyone
def test_seccomp_and_landlock_imply_no_new_privileges(who: str) -> None:
    source = "print([line.split()[1] for line in open('/proc/self/status') if 'NoNewPrivs' in line][0])"
    assert said(source, who) == 0
    assert said(source, who, seccomp="default") == 1
    if landlock.abi():
        assert said(source, who, landlock=True) == 1


# ---- Landlock ----


def needs_landlock(abi: int) -> None:
    require("landlock", landlock.abi() >= abi, f"ABI {landlock.abi()}, of {abi}")


WRITE = "import os\ntry: os.close(os.open({path!r}, os.O_CREAT | os.O_WRONLY)); print(0)\nexcept OSError as e: print(e.errno)"


@everyone
def test_landlock_refuses_to_write_outside_of_the_writable_paths(who: str) -> None:
    needs_landlock(3)
    # Not tmp_path: any other run of pytest shuts its parents to other users.
    with tempfile.TemporaryDirectory(prefix="isolate-landlock-", dir="/tmp") as name:
        place = Path(name)
        for folder in (place, place / "open", place / "shut"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o777)
        _refuses_outside(place / "open", place / "shut", who)


def _refuses_outside(inside: Path, outside: Path, who: str) -> None:
    allowed, refused = WRITE.format(path=str(inside / "a")), WRITE.format(path=str(outside / "a"))
    assert (said(allowed, who), said(refused, who)) == (0, 0)
    locked = Landlock(write=(str(inside),))
    assert (said(allowed, who, landlock=locked), said(refused, who, landlock=locked)) == (0, errno.EACCES)


@everyone
def test_landlock_rules_hold_among_the_sandboxs_own_mounts(who: str) -> None:
    """A rule made outside would be for the host's /tmp, not for the one that is mounted inside."""
    needs_landlock(3)
    from pytest_isolate.policy import Filesystem, Tmpfs

    view = Filesystem(tmpfs=(Tmpfs(target="/tmp"),), proc=False)
    source = WRITE.format(path="/tmp/inside")
    assert said(source, who, fs=view, landlock=Landlock(write=("/tmp",))) == 0
    assert said(source, who, fs=view, landlock=Landlock(write=("/dev",))) == errno.EACCES


def test_not_to_be_scoped_asks_for_no_landlock_where_there_is_none() -> None:
    """A kernel without Landlock, or with an early one, enforces that policy as it does without the word."""
    assert vary(STANDARD, landlock_scoped=False) == STANDARD
    scoped = vary(STANDARD, landlock_scoped=True, landlock_write="/tmp")
    assert vary(scoped, landlock_scoped=False).hardening.landlock == Landlock(write=("/tmp",))


@everyone
def test_landlock_hides_what_may_not_be_read(who: str) -> None:
    needs_landlock(1)
    source = "try: open('/etc/passwd').close(); print(0)\nexcept OSError as e: print(e.errno)"
    # everything the interpreter needs: wherever it is installed
    first = sorted({f"/{Path(path).resolve().parts[1]}" for path in (sys.executable, sys.prefix, os.__file__)})
    kept = tuple(path for path in {*first, "/usr", "/lib", "/lib64", "/bin"} if os.path.exists(path))
    assert said(source, who) == 0
    assert said(source, who, landlock=Landlock(read=kept)) == errno.EACCES


CONNECT = """
import errno, socket
server = socket.socket(); server.bind(("127.0.0.1", 8081)); server.listen()
print(socket.socket().connect_ex(server.getsockname()))
"""
BIND = "import socket\ntry: socket.socket().bind(('127.0.0.1', 8080)); print(0)\nexcept OSError as e: print(e.errno)"


@everyone
def test_landlock_restricts_tcp_ports(who: str) -> None:
    needs_landlock(4)
    assert said(CONNECT, who, net="loopback", landlock_connect="8081") == 0
    assert said(CONNECT, who, net="loopback", landlock_connect="80") == errno.EACCES
    assert said(BIND, who, net="loopback", landlock_bind="8080") == 0
    assert said(BIND, who, net="loopback", landlock_bind="none") == errno.EACCES


def test_a_missing_path_names_the_step_and_the_path() -> None:
    needs_landlock(1)
    with (
        Sandbox(vary(STANDARD, landlock_write="/nowhere"), name="hardening") as sandbox,
        pytest.raises(BackendUnavailable, match=r"landlock\[1\] \(/nowhere\): ENOENT .* Name only paths that"),
    ):
        sandbox.run(["true"])


# ---- the rest ----


@everyone
def test_umask(who: str) -> None:
    source = "import os; print(os.umask(0))"
    assert said(source, who, umask="027") == 0o027
    assert said(source, who, umask="077") == 0o077


def test_securebits_give_user_0_nothing_back() -> None:
    source = (
        "import subprocess\n"
        "print(subprocess.run(['grep', 'CapEff', '/proc/self/status'], capture_output=True, text=True).stdout.split())"
    )
    assert said(source)[1] != "0" * 16
    assert said(source, securebits=True)[1] == "0" * 16


def test_securebits_without_the_privilege_name_the_step() -> None:
    def body() -> str:
        with Sandbox(vary(STANDARD, namespaces="none", fs="host", securebits=True), name="hardening") as sandbox:
            try:
                sandbox.run(["true"])
            except Exception as error:
                return str(error)
        return "started"

    assert "securebits: EPERM" in throwaway(body, who="user")


def test_a_scrubbed_environment_keeps_who_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    source = "import os; print([name in os.environ for name in ('SECRET_TOKEN', 'LC_ALL', 'PATH')])"
    assert said(source) == [True, True, True]
    assert said(source, environment="scrub") == [False, True, True]
    forked = "import os; print('SECRET_TOKEN' in os.environ)"
    assert said(forked, environment="scrub") is False


def test_a_process_that_gave_up_root_gets_the_plan_of_a_plain_user() -> None:
    def identity() -> str:
        with Sandbox(STANDARD, name="hardening") as sandbox:
            return str(sandbox.run(["readlink", "/proc/self/ns/user"]).stdout)

    outside = os.readlink("/proc/self/ns/user") + "\n"
    assert identity() == outside  # as root, and the plan is kept
    assert throwaway(identity, who="user") not in (outside, "")


def test_landlock_holds_where_descriptors_are_limited_to_fewer_than_are_open(tmp_path: Path) -> None:
    needs_landlock(3)
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]
    try:
        locked = vary(STANDARD, landlock=Landlock(write=()), rlimits={"NOFILE": 33})
        with Sandbox(locked, name="hardening") as sandbox:
            outcome = sandbox.run(["sh", "-c", f"ulimit -n; : > {tmp_path}/new"])
    finally:
        for fd in fds:
            os.close(fd)
    assert outcome.stdout == "33\n"
    assert "Permission denied" in outcome.stderr
