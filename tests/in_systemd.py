"""Run a command on a machine whose PID 1 is systemd, made of namespaces: `python tests/in_systemd.py COMMAND...`

Owns: the machine: PID, mount, UTS, IPC, network and cgroup namespaces, a cgroup of its own, the host's file systems below an
overlay that is thrown away, systemd with D-Bus and no other unit. Refuses: to touch the host's: what is written to the host's root
lands in the overlay; its other disks are seen read-only, but for /tmp, which is new. Needs root, systemd, dbus and cgroup v2.
The exit status is the command's; 125 where the machine did not come up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
SYSTEMD = "/lib/systemd/systemd"
BUS = "/run/dbus/system_bus_socket"
NO_MACHINE = 125
START_S = 60.0
TARGET = """\
[Unit]
Requires=dbus.socket dbus.service
After=dbus.service
DefaultDependencies=no
"""
#: Not the host's: of the machine itself, or of the kernel's.
OWN = ("/proc", "/sys", "/dev", "/run", "/tmp")
_libc = ctypes.CDLL(None, use_errno=True)


def call(what: str, result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str = "") -> None:
    os.makedirs(target, exist_ok=True)
    words = (source.encode(), target.encode(), kind.encode() if kind else None)
    call(f"mount {target}", _libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None))


def cgroup2() -> str:
    """Where the v2 hierarchy is mounted; empty where it is not."""
    with open("/proc/self/mountinfo") as table:
        lines = [line.split() for line in table]
    return next((line[4] for line in lines if line[line.index("-") + 1] == "cgroup2"), "")


def why_not() -> str:
    """What keeps the machine from being made here; empty when nothing does."""
    if os.geteuid() != 0:
        return "it needs root"
    missing = [path for path in (SYSTEMD, "/usr/bin/dbus-daemon") if not os.path.exists(path)]
    return f"there is no {missing[0]}" if missing else "" if cgroup2() else "cgroup v2 is not mounted"


def disks() -> Iterator[str]:
    """The mount points of the host's other file systems, those above others first."""
    with open("/proc/self/mountinfo") as table:
        points = {line.split()[4] for line in table}
    for point in sorted(points - {"/"}):
        if not any(point == own or point.startswith(f"{own}/") for own in OWN):
            yield point


def furnish(place: str) -> str:
    """The machine's root, below a tmpfs at ``place``."""
    call("private", _libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
    mount("machine", place, "tmpfs")
    root, upper, work = (f"{place}/{name}" for name in ("root", "upper", "work"))
    os.mkdir(upper)
    os.mkdir(work)
    mount("machine", root, "overlay", data=f"lowerdir=/,upperdir={upper},workdir={work}")
    for point in disks():
        if os.path.isdir(point):
            mount(point, root + point, flags=MS_BIND)
            call(
                point,
                _libc.mount(
                    None, (root + point).encode(), None, ctypes.c_ulong(MS_REMOUNT | MS_BIND | MS_RDONLY), None
                ),
            )
    mount("proc", f"{root}/proc", "proc")
    mount("sysfs", f"{root}/sys", "sysfs")
    mount("cgroup2", f"{root}/sys/fs/cgroup", "cgroup2")
    for name in ("run", "tmp"):
        mount("tmpfs", f"{root}/{name}", "tmpfs", data="mode=1777" if name == "tmp" else "mode=755")
    show(place, root)
    devices(f"{root}/dev")
    with open(f"{root}/run/machine-id", "w") as file:
        file.write(os.urandom(16).hex() + "\n")
    os.makedirs(f"{root}/run/systemd/system", exist_ok=True)
    with open(f"{root}/run/systemd/system/machine.target", "w") as file:
        file.write(TARGET)
    return root


def show(place: str, root: str) -> None:
    """The checkout and the interpreter, where the machine's own /tmp hides them; what is written there stays inside."""
    places = sorted({os.path.realpath(path) for path in (os.getcwd(), sys.prefix)})
    for number, path in enumerate(places):
        if os.path.exists(root + path):
            continue
        upper, work = (f"{place}/{name}-{number}" for name in ("upper", "work"))
        os.mkdir(upper)
        os.mkdir(work)
        os.makedirs(root + path)
        mount("checkout", root + path, "overlay", data=f"lowerdir={path},upperdir={upper},workdir={work}")


def devices(place: str) -> None:
    mount("tmpfs", place, "tmpfs", data="mode=755")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        with open(f"{place}/{name}", "w"):
            pass
        call(
            name, _libc.mount(f"/dev/{name}".encode(), f"{place}/{name}".encode(), None, ctypes.c_ulong(MS_BIND), None)
        )
    mount("tmpfs", f"{place}/shm", "tmpfs", data="mode=1777")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{place}/{name}")


def be_machine(place: str, ready_fd: int) -> None:
    """As PID 1 of its namespaces: become systemd."""
    root = furnish(place)
    for words in ("set lo up", "add machine0 type veth peer name machine1", "set machine0 up", "set machine1 up"):
        subprocess.run(["ip", "link", *words.split()], check=True)  # more than 127.0.0.1, as any machine has
    os.chroot(root)
    os.chdir("/")
    os.close(ready_fd)
    words = [SYSTEMD, "--system", "--unit=machine.target", "--log-target=null", "--show-status=no"]
    os.execve(SYSTEMD, words, {"container": "pytest-isolate", "PATH": os.environ["PATH"]})


def boot(place: str, group: str) -> int:
    """Start the machine in ``group``; its PID 1, as we see it. Its namespaces are made by a process between."""
    read_fd, write_fd = os.pipe()
    between = os.fork()
    if between == 0:
        with open(f"{group}/cgroup.procs", "w") as procs:
            procs.write("0")
        own = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
        call("unshare", _libc.unshare(own))
        first = os.fork()
        if first == 0:
            be_machine(place, write_fd)
        os.write(write_fd, f"{first}\n".encode())
        os._exit(0)
    os.close(write_fd)
    with open(read_fd) as told:
        text = told.read()  # until PID 1 has a root, or is gone
    os.waitpid(between, 0)
    return int(text)


def enter(pid: int, cwd: str) -> None:
    """All of the machine's namespaces, and its root."""
    pidfd = os.pidfd_open(pid)
    root_fd = os.open(f"/proc/{pid}/root", os.O_RDONLY)
    own = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    call("setns", _libc.setns(pidfd, own))
    os.fchdir(root_fd)
    os.chroot(".")
    os.chdir(cwd)


def run(pid: int, command: list[str]) -> int:
    """The command, in the machine, once the bus answers; its exit status."""
    cwd = os.getcwd()
    between = os.fork()
    if between == 0:
        enter(pid, cwd)
        end = time.monotonic() + START_S
        while subprocess.run(["busctl", "status"], capture_output=True).returncode != 0:
            if time.monotonic() > end:
                print("error: systemd did not bring up its bus", file=sys.stderr)
                os._exit(NO_MACHINE)
            time.sleep(0.1)
        os._exit(subprocess.run(command).returncode & 0xFF)
    return os.waitstatus_to_exitcode(os.waitpid(between, 0)[1])


def end(pid: int, group: str) -> None:
    """PID 1's end is everybody's. Its cgroups are removed, the innermost first."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10.0
    while os.path.exists(group) and time.monotonic() < deadline:
        for path, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        time.sleep(0.02)


def main(command: list[str]) -> int:
    if reason := why_not():
        print(f"error: no machine with systemd can be made here: {reason}", file=sys.stderr)
        return NO_MACHINE
    group = f"{cgroup2()}/pytest-isolate-machine-{os.getpid()}"
    place = f"/tmp/pytest-isolate-machine-{os.getpid()}"
    os.mkdir(group)
    os.mkdir(place)
    pid = 0
    try:
        pid = boot(place, group)
        return run(pid, command)
    finally:
        if pid:
            end(pid, group)
        os.rmdir(place)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
