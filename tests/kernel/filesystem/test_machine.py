"""What of /proc, /sys and /dev shows or changes the machine, in every sealed view; by root and by a plain user. Nothing is written."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pytest_isolate.kernel.cgroups import kernel_log
from pytest_isolate.policy import Bind, Filesystem, Overlay
from pytest_isolate.profile import STRICT
from tests.conftest import require
from tests.kernel.filesystem.asking import attempt
from tests.kernel.throwaway import launch, throwaway

pytestmark = pytest.mark.usefixtures("drops_to_a_plain_user")

PROGRAMS = ("/bin/sh",)
SYS = (Bind(source="/sys", target="/sys"),)
VIEWS = {
    "strict": STRICT.filesystem,
    "readonly": Filesystem(root="readonly"),
    "readonly, no proc": Filesystem(root="readonly", proc=False),
    "minimal": Filesystem(root="minimal", programs=PROGRAMS),
    "minimal with sys": Filesystem(root="minimal", programs=PROGRAMS, binds=SYS),
    "the host bound": Filesystem(root="minimal", binds=(Bind(source="/", target="/"),)),
}
FILES = ("/proc/keys", "/proc/kmsg", "/proc/timer_list", "/proc/kcore", "/dev/kmsg")
DIRECTORIES = ("/sys/firmware", "/sys/devices/virtual/powercap", "/sys/kernel/debug", "/sys/kernel/tracing")
SETTINGS = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger")
#: What modes keep from a plain user on the host.
ROOTS = frozenset({*FILES, "/sys/kernel/debug", "/sys/kernel/tracing"} - {"/proc/keys"})
#: What a plain user's fresh /proc shows, lest no /proc can be mounted in a view inside the view: see test_roots.py.
FRESH = frozenset({"/proc/keys"})

both = pytest.mark.parametrize("pid_namespace", [True, False], ids=["fresh-proc", "host-proc"])


def shown() -> list[str]:
    """Of the files and directories those that are more than an empty one."""
    null = os.stat("/dev/null").st_rdev
    found = [path for path in FILES if os.path.exists(path) and os.stat(path).st_rdev != null]
    return found + [path for path in DIRECTORIES if listed(path)]


def listed(path: str) -> list[str]:
    """Nothing, too, where it may not be listed, or is not there."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def opened() -> dict[str, str]:
    return {path: attempt(lambda path=path: os.close(os.open(path, os.O_WRONLY))) for path in SETTINGS}


def attempted(view: Filesystem, *, pid_namespace: bool) -> tuple[list[str], dict[str, str]]:
    inside = launch(view, lambda: [shown(), opened()], cwd="/", pid_namespace=pid_namespace)
    return inside.result[0], inside.result[1]


@both
@pytest.mark.parametrize("name", VIEWS)
def test_a_sealed_view_shows_nothing_of_the_machine(name: str, pid_namespace: bool, who: str) -> None:
    def body() -> None:
        there = set(shown()) - (ROOTS if who == "user" else set())
        assert "/proc/keys" in there  # the control
        found, settings = attempted(VIEWS[name], pid_namespace=pid_namespace)
        fresh = pid_namespace and VIEWS[name].proc
        assert not there & set(found) - (FRESH if who == "user" and fresh else set())
        assert {"EROFS", "EACCES", "ENOENT"} >= set(settings.values())

    throwaway(body, who=who)


@both
@pytest.mark.parametrize("root", ["/", "//", "/.", "/usr/.."])
def test_an_overlay_of_the_whole_root_is_sealed_too(root: str, pid_namespace: bool) -> None:
    def body() -> None:
        assert attempted(Filesystem(proc=False), pid_namespace=pid_namespace)[1][SETTINGS[0]] == "ok"  # the control
        found, settings = attempted(Filesystem(overlays=(Overlay(target=root),)), pid_namespace=pid_namespace)
        assert found == []
        assert settings[SETTINGS[0]] == "EROFS"

    throwaway(body)


def test_who_asks_for_a_part_of_it_gets_it() -> None:
    require("sys-firmware", bool(os.listdir("/sys/firmware")), "the firmware told nothing to this kernel")
    part = f"/sys/firmware/{os.listdir('/sys/firmware')[0]}"

    def body() -> None:
        for target in ("/proc/keys", part):
            view = Filesystem(root="readonly", binds=(Bind(source=target, target=target),))
            found = launch(view, lambda: [shown(), os.listdir("/sys/firmware")], cwd="/").result
            assert found == ([["/proc/keys"], []] if target == "/proc/keys" else [["/sys/firmware"], [Path(part).name]])

    throwaway(body)


def test_the_masked_log_of_the_kernel_has_an_end() -> None:
    def victim() -> bool:
        signal.alarm(10)
        return kernel_log.victim("/isolate-nobody") is None

    assert throwaway(lambda: launch(Filesystem(root="readonly"), victim).result)


def test_the_hosts_own_view_is_left_as_it_is() -> None:
    def body() -> None:
        assert launch(Filesystem(proc=False), shown).result == shown()

    throwaway(body)
