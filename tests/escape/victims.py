"""What attacks aim at: made for one attack, and gone after it. Each gives the words that tell the program where it is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path

from pytest_isolate.policy import Bind, Filesystem, Tmpfs

_IPC_CREAT, _IPC_RMID, _IPC_PRIVATE = 0o1000, 0, 0


def _interpreter_and_libraries() -> tuple[Bind, ...]:
    """What a Python program needs of the host, at its own paths."""
    import sys

    wanted = {os.path.realpath(sys.base_prefix), "/usr", "/lib", "/lib64", "/bin"}
    return tuple(Bind(source=path, target=path) for path in sorted(wanted) if os.path.exists(path))


#: A root with the interpreter in it, and nothing of the host's /etc, /dev or /home.
MINIMAL_ROOT = {"fs": Filesystem(root="minimal", binds=_interpreter_and_libraries(), tmpfs=(Tmpfs(target="/tmp"),))}
PRIVATE_TMP = Filesystem(tmpfs=(Tmpfs(target="/tmp"),), proc=False)


def terminal(stack: contextlib.ExitStack) -> list[str]:
    """The slave of a pseudo-terminal, inherited."""
    master_fd, slave_fd = os.openpty()
    for fd in (master_fd, slave_fd):
        stack.callback(os.close, fd)
    os.set_inheritable(slave_fd, True)
    return [str(slave_fd)]


def namespace(stack: contextlib.ExitStack) -> list[str]:
    """The UTS namespace outside, inherited."""
    fd = os.open("/proc/self/ns/uts", os.O_RDONLY)
    stack.callback(os.close, fd)
    os.set_inheritable(fd, True)
    return [str(fd)]


def _folder(stack: contextlib.ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isolate-escape-", dir="/var/tmp")))


def writable_file(stack: contextlib.ExitStack) -> list[str]:
    """A file of this user's, outside of /tmp."""
    path = _folder(stack) / "file"
    path.write_text("")
    return [str(path)]


def copied_program(stack: contextlib.ExitStack) -> list[str]:
    """A program of this user's that does not run."""
    path = _folder(stack) / "true"
    shutil.copy("/bin/true", path)
    return [str(path)]


def sysv_memory(stack: contextlib.ExitStack) -> list[str]:
    libc = ctypes.CDLL(None, use_errno=True)
    key = secrets.randbelow(2**30) + 1
    found = libc.shmget(key, 4096, _IPC_CREAT | 0o600)
    assert found >= 0, os.strerror(ctypes.get_errno())
    stack.callback(libc.shmctl, found, _IPC_RMID, None)
    return [str(key)]


def sysv_semaphore(stack: contextlib.ExitStack) -> list[str]:
    libc = ctypes.CDLL(None, use_errno=True)
    key = secrets.randbelow(2**30) + 1
    found = libc.semget(key, 1, _IPC_CREAT | 0o600)
    assert found >= 0, os.strerror(ctypes.get_errno())
    stack.callback(libc.semctl, found, 0, _IPC_RMID)
    return [str(key)]


def posix_queue(stack: contextlib.ExitStack) -> list[str]:
    libc = ctypes.CDLL(None, use_errno=True)
    name = f"/isolate-escape-{secrets.token_hex(4)}"
    found = libc.mq_open(name.encode(), os.O_RDWR | os.O_CREAT, 0o600, None)
    assert found >= 0, os.strerror(ctypes.get_errno())
    os.close(found)
    stack.callback(libc.mq_unlink, name.encode())
    return [name]


def supervisor(_stack: contextlib.ExitStack) -> list[str]:
    """The process that makes the sandbox: this one."""
    return [str(os.getpid())]


def posix_memory(stack: contextlib.ExitStack) -> list[str]:
    path = Path(f"/dev/shm/isolate-escape-{secrets.token_hex(4)}")
    path.write_text("")
    stack.callback(path.unlink)
    return [str(path)]


def abstract_socket(stack: contextlib.ExitStack) -> list[str]:
    name = f"isolate-escape-{secrets.token_hex(4)}"
    server = stack.enter_context(socket.socket(socket.AF_UNIX))
    server.bind("\0" + name)
    server.listen()
    return [name]
