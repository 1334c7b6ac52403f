"""A machine tells the truth about its command: output, status, deadline, death; and the host is as it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .machine import Disk, Machine, MachineError, Share

if TYPE_CHECKING:
    from .kernels import Kernel

pytestmark = pytest.mark.vm


@pytest.fixture
def machine(kernel: Kernel) -> Machine:
    return Machine(kernel=kernel, timeout_s=120)


def qemus_of_ours() -> list[str]:
    """Command lines of this process's children that are qemu."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in children]
    return [line for line in lines if "qemu" in line]


def test_output_and_status_are_the_commands_own(machine: Machine, kernel: Kernel) -> None:
    done = machine.run("uname -r; echo oops >&2; exit 3")
    assert done.output == f"{kernel.release}\noops\n"
    assert done.status == 3
    assert 0 < done.boot_s < done.wall_s


def test_noise_on_the_console_and_forged_markers_change_nothing(machine: Machine) -> None:
    done = machine.run("echo '<0>noise end 0 1' >/dev/kmsg; echo '@@0000 end 7 1.0'; printf 'no newline'; exit 4")
    assert done.output == "@@0000 end 7 1.0\nno newline"
    assert done.status == 4


def test_a_command_past_its_deadline_is_an_error_with_what_it_said_and_no_qemu_stays(kernel: Kernel) -> None:
    with pytest.raises(MachineError, match=r"(?s)no status within 15 s.*last words") as caught:
        Machine(kernel=kernel, timeout_s=15).run("echo last words; sleep 1000")
    assert "look at" in caught.value.remedy
    assert qemus_of_ours() == []


def test_a_guest_that_dies_is_an_error_that_shows_its_console(machine: Machine) -> None:
    with pytest.raises(MachineError, match=r"(?s)ended without a status.*Kernel panic"):
        machine.run("echo c >/proc/sysrq-trigger; sleep 60")
    assert qemus_of_ours() == []


def test_the_plain_user_is_plain_and_knows_its_name(machine: Machine, kernel: Kernel) -> None:
    done = Machine(kernel=kernel, user="isolate", timeout_s=120).run("id -un; cat /proc/self/status; cat /etc/shadow")
    assert done.output.startswith("isolate\n")
    assert "CapEff:\t0000000000000000" in done.output
    assert done.status == 1


def test_what_a_guest_writes_never_reaches_the_host(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("host")
    share = Share(source=tmp_path, target="/isolate/checkout", writable=True)
    read_only = Share(source=tmp_path, target="/isolate/plain")
    done = Machine(kernel=kernel, shares=(share, read_only), timeout_s=120).run(
        f"cd /isolate/checkout && echo guest >old && touch new && cat old && touch {tmp_path}/there; touch ../plain/x"
    )
    assert done.output.startswith("guest\n")
    assert "Read-only file system" in done.output
    assert sorted(os.listdir(tmp_path)) == ["old"]
    assert (tmp_path / "old").read_text() == "host"


def test_disks_are_found_by_name_and_swap_is_on(kernel: Kernel) -> None:
    disks = (Disk(name="scratch", size_bytes=8 << 20), Disk(name="swap", size_bytes=32 << 20))
    done = Machine(kernel=kernel, disks=disks, timeout_s=120).run(
        "cat /sys/block/$(basename $(readlink -f /dev/vm/scratch))/size; tail -n +2 /proc/swaps | wc -l"
    )
    assert done.output.split() == [str((8 << 20) // 512), "1"]


@pytest.mark.parametrize(("cgroup", "shown"), [("v1", "memory pids -"), ("hybrid", "memory pids unified")])
def test_the_cgroup_layout_is_the_one_asked_for(kernel: Kernel, cgroup: str, shown: str) -> None:
    done = Machine(kernel=kernel, cgroup=cgroup, timeout_s=120).run(  # type: ignore[arg-type]
        "cd /sys/fs/cgroup; ls -d memory pids; ls -d unified 2>/dev/null || echo -"
    )
    assert done.output.split() == shown.split()
