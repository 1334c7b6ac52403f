"""A virtual machine as a value: a kernel, a root, a cgroup layout, a user; run(command) boots it, once per command.

Owns: qemu's command line, its life (killed by its own pid at the deadline, dead with its runner), and the protocol on
the result port: begin marker, the command's output, status marker, each carrying a number drawn for this run.
Refuses: to write to the host (every share is read-only, the guest writes to layers of its own), and to call a run that
gave no status anything but an error.
"""

from __future__ import annotations

import os
import re
import secrets
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Literal

from pytest_isolate.errors import IsolateError

from . import initramfs
from .debian import program

if TYPE_CHECKING:
    from .kernels import Kernel

#: One thread for all emulated CPUs: before QEMU 8.1, several of them race with a kernel that patches its own code
#: ("Oops: int3" in the guest, now and then). Source: qemu commits deba78709a and ad17868eb1.
EMULATION = "tcg,thread=single"
#: More output than this is a guest gone wild, not a result.
MAX_OUTPUT_BYTES = 64 << 20
_CONSOLE_TAIL_LINES = 60  # a panic with its trace
_COMMAND_LINE = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off audit=0 random.trust_cpu=1"


class MachineError(IsolateError, RuntimeError):
    """A machine that ended, or was ended, without giving a status; its text has the end of its console and output.

    ``output``: all it wrote to the result port, markers included.
    """

    output: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A directory of the host at ``target`` in the guest; ``writable`` gives it a layer that is thrown away."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A scratch disk that the guest sees as /dev/vm/NAME; the name ``swap`` is taken into use as swap."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command did: its stdout and stderr as one text, its status, and what it took."""

    output: str
    status: int
    boot_s: float
    command_s: float
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What to boot. ``cgroup="systemd"``: systemd is init and lays out cgroups; otherwise a small init of ours."""

    kernel: Kernel
    root: Path = Path("/")
    cgroup: Literal["v2", "v1", "hybrid", "systemd"] = "v2"
    user: Literal["root", "isolate"] = "root"
    directory: str = "/"
    memory_bytes: int = 2 << 30
    cpus: int = 2
    timeout_s: float = 300.0
    accelerator: str = EMULATION
    append: str = ""
    shares: tuple[Share, ...] = ()
    disks: tuple[Disk, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    open_directories: tuple[str, ...] = ()

    def run(self, command: str) -> Result:
        """Boot, run ``command`` with /bin/sh, power off.

        Raises:
            MachineError: no status within ``timeout_s``, or the guest ended without one.
        """
        nonce = secrets.token_hex(8)
        with tempfile.TemporaryDirectory(prefix="isolate-vm.") as work:
            place = Path(work)
            (place / "initrd").write_bytes(initramfs.build(self.kernel, command, self._parameters(nonce)))
            for disk in self.disks:
                with (place / disk.name).open("wb") as image:
                    image.truncate(disk.size_bytes)
            started = time.monotonic()
            output, late = _run_until(self._argv(place), started + self.timeout_s)
            wall_s = time.monotonic() - started
            console = (place / "console").read_text(errors="replace") if (place / "console").exists() else ""
        if late:
            raise _lost(f"no status within {self.timeout_s:g} s", output, console)
        return _parse(output, nonce, wall_s, console)

    def _all_shares(self) -> tuple[Share, ...]:
        modules = Share(source=self.kernel.modules, target=f"/lib/modules/{self.kernel.release}")
        return (modules, *self.shares)

    def _parameters(self, nonce: str) -> dict[str, str]:
        shares = [f"share{n}:{s.target}:{'overlay' if s.writable else 'ro'}" for n, s in enumerate(self._all_shares())]
        return {
            "NONCE": nonce,
            "CGROUP": self.cgroup,
            "USER_NAME": self.user,
            "DIRECTORY": self.directory,
            "SHARES": " ".join(shares),
            "SYSCTLS": " ".join(f"{name}={value}" for name, value in self.sysctls.items()),
            "OPEN_DIRECTORIES": " ".join(self.open_directories),
        }

    def _argv(self, place: Path) -> list[str]:
        argv = [program("setpriv"), "--pdeathsig", "KILL", program("qemu-system-x86_64")]
        argv += ["-M", "q35", "-accel", self.accelerator, "-cpu", "max", "-smp", str(self.cpus)]
        argv += ["-m", f"{self.memory_bytes >> 20}M", "-nodefaults", "-display", "none", "-no-reboot", "-net", "none"]
        argv += ["-kernel", str(self.kernel.vmlinux), "-initrd", str(place / "initrd")]
        argv += ["-append", f"{_COMMAND_LINE} {self.append}".strip(), "-serial", f"file:{place / 'console'}"]
        argv += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        argv += ["-chardev", "file,id=result,path=/dev/stdout", "-device", "virtserialport,chardev=result,name=result"]
        argv += _share_arguments("root", self.root)
        for number, share in enumerate(self._all_shares()):
            argv += _share_arguments(f"share{number}", share.source)
        for disk in self.disks:
            argv += ["-drive", f"file={place / disk.name},if=none,format=raw,cache=unsafe,id={disk.name}"]
            argv += ["-device", f"virtio-blk-pci,drive={disk.name},serial={disk.name}"]
        return argv


def _share_arguments(tag: str, source: Path) -> list[str]:
    path = str(source.resolve()).replace(",", ",,")  # qemu's own quoting
    local = f"local,id={tag},path={path},security_model=none,readonly=on,multidevs=remap"
    return ["-fsdev", local, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def _run_until(argv: list[str], deadline: float) -> tuple[bytes, bool]:
    """Run qemu to its end or to ``deadline``; return what came out of the result port, and whether it was late."""
    pipe = subprocess.PIPE
    # A session of its own: on a busy machine the kernel divides the CPUs by sessions first (sched(7), autogroup).
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True) as qemu:
        try:
            assert qemu.stdout is not None
            assert qemu.stderr is not None
            output, late = _read_until(qemu.stdout, deadline)
            if not late:
                try:
                    qemu.wait(max(1.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    late = True
        finally:
            qemu.kill()  # Popen owns this pid: it cannot have been reused before wait
        complaint = qemu.stderr.read()
    if qemu.returncode not in (0, -9):
        output += b"\nqemu: " + complaint[-2000:]
    return output, late


def _read_until(stream: IO[bytes], deadline: float) -> tuple[bytes, bool]:
    """Everything ``stream`` gives before it ends (False) or before ``deadline`` or MAX_OUTPUT_BYTES (True)."""
    chunks: list[bytes] = []
    size = 0
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (left_s := deadline - time.monotonic()) > 0 and size < MAX_OUTPUT_BYTES:
            if not selector.select(left_s):
                continue
            chunk = os.read(stream.fileno(), 65536)
            if not chunk:
                return b"".join(chunks), False
            chunks.append(chunk)
            size += len(chunk)
    return b"".join(chunks), True


def _parse(output: bytes, nonce: str, wall_s: float, console: str) -> Result:
    """Cut the command's own output out from between the markers."""
    text = output.decode(errors="replace")
    begin = re.search(rf"@@{nonce} begin (\S+)\n", text)
    end = re.search(rf"\n@@{nonce} end (\d+) (\S+)\n", text)
    if begin is None or end is None:
        raise _lost("the guest ended without a status", output, console)
    boot_s, end_s = float(begin[1]), float(end[2])
    inside = text[begin.end() : end.start()] if end.start() > begin.end() else ""
    return Result(output=inside, status=int(end[1]), boot_s=boot_s, command_s=end_s - boot_s, wall_s=wall_s)


def _lost(why: str, output: bytes, console: str) -> MachineError:
    tail = "\n".join(console.strip().splitlines()[-_CONSOLE_TAIL_LINES:])
    said = output.decode(errors="replace")
    error = MachineError("vm", why, f"look at what it said last\n--- output\n{said[-2000:]}\n--- console\n{tail}\n---")
    error.output = said
    return error
