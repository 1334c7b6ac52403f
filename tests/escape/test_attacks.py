"""Every attack of tests/escape/attacks: its control succeeds, and in the sandbox it is stopped.

Those of tests/escape/machine_attacks too, in a virtual machine: `python -m tests.vm --run 'python -m pytest tests/escape' 6.1-v1`.
"""

from __future__ import annotations

import glob
import importlib
import os
import pkgutil
from types import ModuleType

import pytest

from pytest_isolate.kernel import landlock
from tests.conftest import require
from tests.escape import attacks, machine_attacks
from tests.escape.attack import DONE, Attack, boxed, free

Rows = list[tuple[str, str, str, str]]
by_everyone = pytest.mark.parametrize("who", ["root", "user"])


def names_in(package: ModuleType) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def attack_of(package: ModuleType, name: str) -> Attack:
    found: Attack = importlib.import_module(f"{package.__name__}.{name}").ATTACK
    return found


@by_everyone
@pytest.mark.parametrize("name", names_in(attacks))
def test_it_works_outside_and_not_inside(name: str, who: str, table: Rows) -> None:
    carry_out(attack_of(attacks, name), who, table)


@by_everyone
@pytest.mark.parametrize("name", names_in(machine_attacks))
def test_what_changes_the_machine_works_outside_and_not_inside(name: str, who: str, table: Rows) -> None:
    require("vm-guest", os.path.exists("/run/vm/parameters"), "changes the machine: only in a guest of tests/vm")
    carry_out(attack_of(machine_attacks, name), who, table)


def carry_out(attack: Attack, who: str, table: Rows) -> None:
    if attack.control_by_root:
        require("root", os.geteuid() == 0, "its control is root's")
    if attack.needs == "landlock_scoped":
        require("landlock", landlock.abi() >= 6, f"ABI {landlock.abi()}, of 6")
    if attack.needs == "cgroup v1":
        require("cgroup1", bool(glob.glob("/sys/fs/cgroup/*/release_agent")), "no hierarchy has a release_agent")
    control, end = free(attack, who), boxed(attack, who)
    table.append((attack.what, who, control + " (root)" * (attack.control_by_root and who != "root"), end))
    assert control == DONE
    assert end in attack.refused
