"""Every attack of tests/escape/attacks: its control succeeds, and in the sandbox it is stopped."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from pytest_isolate.kernel import landlock
from tests.conftest import require
from tests.escape import attacks
from tests.escape.attack import DONE, Attack, boxed, free

NAMES = sorted(module.name for module in pkgutil.iter_modules(attacks.__path__))


def attack_of(name: str) -> Attack:
    found: Attack = importlib.import_module(f"tests.escape.attacks.{name}").ATTACK
    return found


@pytest.mark.parametrize("who", ["root", "user"])
@pytest.mark.parametrize("name", NAMES)
def test_it_works_outside_and_not_inside(name: str, who: str, table: list[tuple[str, str, str, str]]) -> None:
    attack = attack_of(name)
    if attack.needs == "landlock_scoped":
        require("landlock", landlock.abi() >= 6, f"ABI {landlock.abi()}, of 6")
    control, end = free(attack, who), boxed(attack, who)
    table.append((attack.what, who, control + " (root)" * (attack.control_by_root and who != "root"), end))
    assert control == DONE
    assert end in attack.refused
