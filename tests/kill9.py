"""kill -9 of pytest at random moments: nothing of its run may live a second later.

A control group is a directory that nobody is left to remove then; it is empty, and the next run sweeps it away.
Owns: the run (200 isolated tests that start processes of every kind) and the count of what is left: processes,
mounts, cgroups, network namespaces. Usage: python tests/kill9.py [--times 200] [--seed N]; the exit status is 0 when
nothing was left. Refuses: to end anything but the pytest it started.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid

ROOT = pathlib.Path(__file__).parents[1]
SETTLE_S = 1.0
_SUITE = """
import os, subprocess, time, pytest

@pytest.fixture(scope="module")
def helper():
    process = subprocess.Popen(["sleep", "300"], pass_fds=())
    yield
    process.kill()
    process.wait()

@pytest.mark.parametrize("i", range(200))
def test_it(i, tmp_path):
    if i % 4 == 1:
        subprocess.Popen(["setsid", "sleep", "300"])
    if i % 4 == 2 and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(300)
        os._exit(0)
    if i % 4 == 3:
        subprocess.run(["sh", "-c", "sleep 0.01 & sleep 0.01"])
    if i % 50 == 49:
        os.abort()
    time.sleep(0.005)
"""
#: Every other run: groups of tests, networks of their own, limits that need a cgroup.
_VARIANTS = (
    (),
    ("--isolate-scope=module",),
    ("--isolate-net=loopback",),
    ("--isolate-timeout=20", "--isolate-leaks=fail"),
    ("--isolate-mem-limit=1G",),
)


def start(where: pathlib.Path, mark: str, args: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """pytest in a session of its own; every process of the run inherits ``mark`` in its environment."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_isolate.runner.plugin", "--isolate", *args]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TMPDIR": str(where.parent / "tmp"),  # where killed runs leave their directories
        "KILL9": mark,
    }
    for name in [name for name in env if name.startswith("PYTEST_") and name != "PYTEST_DISABLE_PLUGIN_AUTOLOAD"]:
        del env[name]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command, cwd=where, env=env, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )


def living(mark: str) -> list[str]:
    """Processes with ``mark`` in their environment, zombies left out: command lines."""
    found = []
    wanted = f"KILL9={mark}".encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if wanted in pathlib.Path(f"/proc/{name}/environ").read_bytes():
                command = pathlib.Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(f"{name} {command.strip()}")
        except OSError:
            continue
    return found


def sweep(where: pathlib.Path) -> None:
    """A run that ends by itself, with a limit that needs a cgroup: it takes away those of dead runs."""
    (where / "test_sweep.py").write_text("def test_it(): pass")
    start(where, "sweep", ("--isolate-mem-limit=1G", "test_sweep.py")).wait(60)


def traces(pids: set[int]) -> set[str]:
    """What else runs could leave: mounts and networks of this process's view, cgroups named after ``pids`` of pytest."""
    mounts = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    found = {f"mount {line.split(' ', 3)[3]}" for line in mounts}
    for place in ("/run/netns", "/sys/class/net"):
        if os.path.isdir(place):
            found |= {f"network {place}/{name}" for name in os.listdir(place)}
    for root in [line.split()[4] for line in mounts if " - cgroup" in line]:
        for path, names, _ in os.walk(root):
            found |= {f"cgroup {path}/{name}" for name in names if pids & numbers(name)}
    return {line for line in found if line.startswith("cgroup") or "pytest-isolate" in line or pids & numbers(line)}


def numbers(text: str) -> set[int]:
    """The numbers in a name of ours, one of which is a pid."""
    return {int(word) for word in re.findall(r"[0-9]+", text)} if "isolate" in text else set()


def once(chance: random.Random, where: pathlib.Path, args: tuple[str, ...]) -> tuple[int, int, list[str]]:
    """Start, wait, kill -9, wait a second: (pid of pytest, processes alive when killed, those alive after)."""
    mark = uuid.uuid4().hex
    process = start(where, mark, args)
    time.sleep(chance.uniform(0.2, 3.0))
    before = len(living(mark))
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(SETTLE_S)
    return process.pid, before, living(mark)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    chance = random.Random(seed)
    alive_before, survivors, pids = 0, [], set()
    with tempfile.TemporaryDirectory(prefix="kill9-") as name:
        where = pathlib.Path(name, "suite")
        for directory in (where, where.parent / "tmp"):
            directory.mkdir()
        (where / "test_it.py").write_text(_SUITE)
        for number in range(options.times):
            pid, before, after = once(chance, where, _VARIANTS[number % len(_VARIANTS)])
            pids.add(pid)
            alive_before += before
            survivors += after
            for line in after:
                print(f"run {number} {_VARIANTS[number % len(_VARIANTS)]}: left: {line}", flush=True)
        sweep(where)
        remains = traces(pids)
        for line in sorted(remains):
            print(f"left: {line}", flush=True)
    print(
        f"killed pytest {options.times} times (seed {seed}): {alive_before} processes were alive when it was killed, "
        f"{len(survivors)} one second later; {len(remains)} mounts, cgroups or networks left"
    )
    return 1 if survivors or remains or not alive_before else 0


if __name__ == "__main__":
    sys.exit(main())
