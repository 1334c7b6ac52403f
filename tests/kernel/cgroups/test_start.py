"""Starts that do not fit into their memory limit: the caller, whose memory a starting child shares, outlives them all.

Owns: the sweep over limits around what a start takes, in an interpreter of its own, which an OOM kill may end.
Refuses: to say at which limit a start fails; it must only fail by an error, or by the child's own end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_isolate.kernel.cgroups import CgroupManager
from pytest_isolate.testing import require

_ROOT = Path(__file__).resolve().parents[3]

#: A heap of 240 MB, whose page tables every fork has to copy; limits below, at and above what that takes.
_CALLER = """
import collections, json, os, sys
from pytest_isolate.errors import SetupError
from pytest_isolate.kernel import native
from pytest_isolate.kernel.cgroups import open_manager
from pytest_isolate.kernel.plan import IdMap
from pytest_isolate.policy import Limits
from tests.kernel.launching import plan

HEAP = [bytearray(4096) for _ in range(60_000)]
how, mode, kind = sys.argv[1:]
every = (IdMap(inside=0, outside=0, count=2**32 - 1),)
plans = {
    "monitor": lambda: plan(monitor=True, new_session=True),
    "pid": lambda: plan("pid"),
    "pid+user": lambda: plan("pid", "user", uid_map=every, gid_map=every),
    "user": lambda: plan("user", uid_map=every, gid_map=every),
}
chosen = plans[kind]()
ends = collections.Counter()
with open_manager("start", mode=mode) as manager:
    for kib in (*range(256, 2048, 256), 16384):
        with manager.create("start", Limits(memory_bytes=kib << 10)) as cgroup:
            joined = native.Joined(cgroup.dir_fd, cgroup.procs_fds)
            try:
                if how == "fork":
                    child = native.fork(chosen, joined)
                else:
                    child = native.spawn(chosen, ["/bin/true"], {}, joined=joined)
            except SetupError:
                ends["refused"] += 1
                continue
            if child is None:
                bytearray(1 << 20)  # at once: the start's last steps are done beside it
                os._exit(0)
            cgroup.started()
            with child:
                exited = child.wait(20)
                child.kill()
                child.reap(block=True)
            ends["killed" if exited is None or exited.status.signal else "lived"] += 1
            cgroup.kill()
print(json.dumps(ends))
"""


@pytest.mark.parametrize("kind", ["monitor", "pid", "pid+user", "user"])
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_start_that_finds_no_room_never_ends_its_caller(
    manager: CgroupManager, version: int, need: Callable[..., None], how: str, kind: str
) -> None:
    need("memory")
    maps = kind == "monitor" or os.geteuid() == 0
    require("root", maps, "namespaces without a user namespace, and maps of every id, take it")
    argv = [sys.executable, "-c", _CALLER, how, f"v{version}", kind]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path])}
    done = subprocess.run(argv, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"the caller ended with {done.returncode}: {done.stderr[-800:]}"
    ends = json.loads(done.stdout)
    assert ends["lived"] > 0, ends  # with room it starts
    if how == "fork" and kind != "user":
        assert len(ends) > 1, f"no limit was small enough to be hit: {ends}"
