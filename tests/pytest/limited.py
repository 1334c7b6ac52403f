"""What the tests of limits share: tests' bodies as text, and the honest skip for a controller the host lacks."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_isolate import groups
from tests.conftest import require

HELD = """
    import ctypes, mmap, os, subprocess, sys, threading, time, pytest

    def touch(mib, flags=mmap.MAP_PRIVATE):
        memory = mmap.mmap(-1, mib << 20, flags=flags | mmap.MAP_ANONYMOUS)
        for offset in range(0, mib << 20, mmap.PAGESIZE):
            memory[offset] = 1

    def in_a_grandchild(work):
        pid = os.fork()
        if pid == 0:
            inner = os.fork()
            if inner == 0:
                work()
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) != 0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def bomb(forks):
        assert os.getpid() < 10, "only in a PID namespace of its own"
        for _ in range(forks):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        os.kill(-1, 9)

    def threads(number):
        gate = threading.Event()
        for _ in range(number):
            threading.Thread(target=gate.wait, daemon=True).start()
        gate.set()

    def burn(seconds):
        while time.process_time() < seconds:
            pass

    def as_nobody():
        os.setgid(65534)
        os.setuid(65534)

    def fork_as_nobody():
        as_nobody()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def write(mib, path):
        with open(path, "wb") as file:
            file.write(bytes(mib << 20))
"""


@pytest.fixture(scope="module")
def cgroups_of_this_process_closed() -> Any:
    """For ``usefixtures``: no cgroup of a module is left behind."""
    yield
    groups.of_this_process().close()


def controller(name: str) -> None:
    found = groups.of_this_process().manager().capabilities()[name]
    require(f"cgroup-{name}", found.available, found.reason)
