"""Out through standard input, where whoever makes the sandbox has none: once it was a directory of the host's, of the library's."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_isolate import groups
from pytest_isolate.profile import PROFILES, vary
from pytest_isolate.sandbox import Sandbox
from tests.kernel.throwaway import throwaway

LOOK = "readlink /proc/$$/fd/0; ls /proc/$$/fd/0/"


def looked_through(stdin: int, profile: str) -> Any:
    """What a program sees through its standard input; 0 is not open where the sandbox is made."""
    directory = os.open("/", os.O_RDONLY)
    os.close(0)
    with Sandbox(vary(PROFILES[profile], pids=20)) as sandbox:
        sandbox.run(["true"])
        found = sandbox.run(["sh", "-c", LOOK], stdin=directory if stdin < 0 else stdin)
    groups.of_this_process().close()
    return found.stdout.split()


@pytest.mark.parametrize("profile", ["minimal", "standard", "strict"])
def test_standard_input_that_is_closed_leads_nowhere(profile: str) -> None:
    assert "etc" in throwaway(lambda: looked_through(-1, profile))  # the control
    assert throwaway(lambda: looked_through(0, profile)) == [os.devnull]
