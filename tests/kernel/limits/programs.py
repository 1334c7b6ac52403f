"""What the tests of this directory run: programs as text, and the honest skip for a controller the host lacks."""

from __future__ import annotations

import sys

from pytest_isolate import groups
from tests.conftest import require

MIB = 1024 * 1024
NOBODY = 65534


def controller(name: str) -> None:
    """Skip, naming the controller, where this host does not let us have it."""
    found = groups.of_this_process().manager().capabilities()[name]
    require(f"cgroup-{name}", found.available, found.reason)


def python(source: str) -> list[str]:
    return [sys.executable, "-I", "-c", source]


TOUCH = """
import mmap, os, sys
def touch(size, flags):
    memory = mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS)
    for offset in range(0, size, mmap.PAGESIZE):
        memory[offset] = 1
    return memory
"""
PRIVATE = TOUCH + "touch({mib} << 20, mmap.MAP_PRIVATE); print('touched')"
SHARED = TOUCH + "touch({mib} << 20, mmap.MAP_SHARED); print('touched')"
IN_A_GRANDCHILD = (
    TOUCH
    + """
if os.fork() == 0:
    if os.fork() == 0:
        touch({mib} << 20, mmap.MAP_PRIVATE)
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]) != 0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
)

BURN = """
import time
while time.process_time() < {seconds}: pass
"""
#: Besides what the interpreter has needed to start, which on a slow machine is most of a second.
BURN_ANEW = """
import time
end = time.process_time() + {seconds}
while time.process_time() < end: pass
"""
