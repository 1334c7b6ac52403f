"""One row from its value to its cells: fetch what it boots, boot it, run the checks, judge the answers.

Owns: where things lie in the guest (/isolate/checkout, /isolate/site) and which Python is used there. Rows may be
filled by several threads at once; what they boot is fetched by one at a time.
Refuses: to raise for a row that cannot boot: that row's cells are untested, the others still run.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_isolate.errors import IsolateError

from . import debian, kernels
from .machine import EMULATION, Disk, Machine, MachineError, Result, Share
from .rows import OURS, SUITES
from .table import Tested, answers, besides, judge

if TYPE_CHECKING:
    from .rows import Row

CHECKOUT = Path(__file__).resolve().parents[2]
GUEST_CHECKOUT = "/isolate/checkout"
GUEST_SITE = "/isolate/site"
_GUEST_PYTHON = "/tmp/isolate-python"
_fetching = threading.Lock()
_DISKS = (Disk(name="data", size_bytes=64 << 20), Disk(name="swap", size_bytes=256 << 20))


def missing_builds() -> list[str]:
    """What a guest is shown of this checkout and cannot make, for it has no compiler."""
    wanted = ("pytest_isolate/_native/libisolate.so", "pytest_isolate/_bpf/netpolicy.bpf.o")
    return [name for name in wanted if not (CHECKOUT / name).exists()]


def machine(row: Row, *, accelerator: str = EMULATION, refresh: bool = False) -> Machine:
    """The machine of a row; fetches the kernel and makes the root where the cache lacks them."""
    site = Path(sysconfig.get_path("purelib"))
    return Machine(
        kernel=kernels.fetch(row.kernel_suite, refresh=refresh),
        root=debian.bootstrap(row.root_suite, row.packages) if row.root_suite else Path("/"),
        cgroup=row.cgroup,
        user=row.user,
        directory=GUEST_CHECKOUT,
        timeout_s=row.timeout_s,
        accelerator=accelerator,
        shares=(
            Share(source=CHECKOUT, target=GUEST_CHECKOUT, writable=True),
            Share(source=site, target=GUEST_SITE),
        ),
        disks=_DISKS,
        sysctls=row.sysctls,
        open_directories=() if row.root_suite else _parents(_host_python()),
    )


def command(row: Row, what: str, launch: str) -> str:
    """``what``, with ``python`` standing for the guest's Python, started by ``launch``.

    The host's Python gets an empty environment of its own around it: what the host has in its site-packages is not under
    test, and one ``.pth`` there that imports something costs seconds, emulated, at every start of an interpreter.
    """
    python, made = "/usr/bin/python3", ""
    if not row.root_suite:
        python = f"{_GUEST_PYTHON}/bin/python3"
        home = os.path.dirname(_host_python())
        made = f"mkdir -p {_GUEST_PYTHON}/bin; ln -sfn {_host_python()} {python}; "
        made += f"echo home = {home} >{_GUEST_PYTHON}/pyvenv.cfg; "
        made += f"echo include-system-site-packages = false >>{_GUEST_PYTHON}/pyvenv.cfg; "
    environment = f"PYTHONPATH={GUEST_CHECKOUT}:{GUEST_SITE} ISOLATE_REQUIRE={','.join(row.require)}"
    environment += "".join(f" {name}={value}" for name, value in row.environment.items())
    return f'{made}python() {{ {launch} env {environment} {python} "$@"; }}; {what}'


def fill(row: Row, *, accelerator: str = EMULATION, refresh: bool = False) -> Tested:
    """Boot the row and fill its cells."""
    try:
        with _fetching:
            made = machine(row, accelerator=accelerator, refresh=refresh)
        done = made.run(_everything(row))
    except MachineError as error:  # what it had answered before it ended, or was ended, still counts
        return Tested(row=row, cells=judge(row, answers(error.output)), error=str(error))
    except IsolateError as error:
        return Tested(row=row, cells=judge(row, {}), error=str(error))
    return _tested(row, done)


def _everything(row: Row) -> str:
    """The commands that fill every cell, one after another, whatever the one before did."""
    limits = " ".join(name for name in OURS if name not in SUITES)
    # In systemd mode the product makes its own delegated scope: it starts where a user's shell would be.
    shell = "" if row.mode == "systemd" else row.launch
    commands = (
        command(row, "python -m tests.vm.inside", row.launch),
        command(row, f"python -m tests.vm.ours {row.mode} {limits}", shell),
        command(row, f"python -m tests.vm.ours {row.mode} {' '.join((*SUITES, *row.tests))}", row.launch),
    )
    return "\n".join(commands)


def _tested(row: Row, done: Result) -> Tested:
    found = answers(done.output)
    cells = judge(row, found)
    missing = any(cell.state == "untested" for cell in cells)
    error = f"status {done.status}, and it said: {besides(done.output)}" if missing else ""
    words = found.get(("kernel", "machine"), {}).get("evidence", "")
    return Tested(row=row, cells=cells, machine=words, error=error, boot_s=done.boot_s, wall_s=done.wall_s)


def _host_python() -> str:
    """The interpreter behind a venv's symlinks: its prefix is where the standard library is."""
    return os.path.realpath(sys.executable)


def _parents(path: str) -> tuple[str, ...]:
    """The directories on the way to ``path``, which a plain user has to get through (/root, for one)."""
    return tuple(str(parent) for parent in Path(path).parents if parent != Path("/"))
