"""`python -m tests.soak --count 100000`: starts that many sandboxes and prints what the machine holds before and after.

Owns: the count of descriptors, mounts, namespaces, cgroups, processes and memory, and the exit status: 0 when nothing has grown.
A quarter as many are started before the first look: they fill our caches (64 answers each) and the allocators' pages.
Refuses: to be part of a test run: it takes minutes. Half of the sandboxes are made by one policy, half by others in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

from pytest_isolate import groups
from pytest_isolate.policy import Filesystem, Overlay, Tmpfs
from pytest_isolate.profile import MINIMAL, STANDARD, STRICT, vary
from pytest_isolate.sandbox import Sandbox

#: What a count may differ by: memory, in KiB, which the allocators of kernel and Python keep in pages of their own.
SLACK_KIB = {"own_rss_kib": 512, "kernel_slab_kib": 65536}


@dataclass(frozen=True)
class Held:
    """What is in use on this machine, and by this process."""

    descriptors: int
    mounts: int
    namespaces: int
    cgroups: int
    children: int
    own_rss_kib: int
    kernel_slab_kib: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        return cls(
            descriptors=len(os.listdir("/proc/self/fd")),
            mounts=len(Path("/proc/self/mountinfo").read_text().splitlines()),
            namespaces=len(_namespaces()),
            cgroups=_directories("/sys/fs/cgroup"),
            children=len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
            own_rss_kib=_kib("/proc/self/status", "VmRSS"),
            kernel_slab_kib=_kib("/proc/meminfo", "SUnreclaim"),
        )


def _namespaces() -> set[str]:
    """Those of this process and of all that it started: others' come and go."""
    found = set()
    for pid in ("self", *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
        for link in Path(f"/proc/{pid}/ns").iterdir():
            found.add(str(link.readlink()))
    return found


def _directories(root: str) -> int:
    """Cgroups of ours: their names begin with the package's."""
    return sum("isolate" in name for _, names, _ in os.walk(root) for name in names)


def _kib(path: str, field: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


def run(count: int, *, cgroups: bool) -> int:
    """Run ``count`` programs, each in a sandbox; how many did not end with 0."""
    limited = {"pids": 50, "memory": "64M"} if cgroups else {}
    overlay = Filesystem(overlays=(Overlay(target="/usr/local"),), tmpfs=(Tmpfs(target="/tmp"),), proc=False)
    policies = [
        MINIMAL,
        STANDARD,
        STRICT,
        vary(STANDARD, namespaces="+pid", seccomp="default"),
        vary(STANDARD, fs=overlay),
        vary(STANDARD, **limited),
    ]
    failed, began = 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        sandboxes = [stack.enter_context(Sandbox(policy, name="soak")) for policy in policies]
        for number in range(count):
            outcome = sandboxes[number // 2 % len(policies) if number % 2 else 1].run(["/bin/true"])
            failed += outcome.status.code != 0
            if number and number % 5000 == 0:
                rss_kib = _kib("/proc/self/status", "VmRSS")
                print(f"{number} in {time.monotonic() - began:.0f} s, {failed} failed, {rss_kib} KiB", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--no-cgroups", action="store_true", help="no group limits among the policies")
    arguments = parser.parse_args()
    run(max(200, arguments.count // 4), cgroups=not arguments.no_cgroups)
    groups.of_this_process().close()
    before = Held.now()
    began = time.monotonic()
    failed = run(arguments.count, cgroups=not arguments.no_cgroups)
    took_s = time.monotonic() - began
    groups.of_this_process().close()
    after = Held.now()
    print(f"{arguments.count} sandboxes in {took_s:.0f} s ({arguments.count / took_s:.0f} a second), {failed} failed")
    grown = []
    for field in fields(Held):
        was, is_now = getattr(before, field.name), getattr(after, field.name)
        if is_now > was + SLACK_KIB.get(field.name, 0):
            grown.append(field.name)
        print(f"{field.name:<18} before {was:>9}  after {is_now:>9}{'  GROWN' if field.name in grown else ''}")
    return 1 if grown or failed else 0


if __name__ == "__main__":
    sys.exit(main())
