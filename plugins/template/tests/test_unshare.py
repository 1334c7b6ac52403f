"""The backend to start from works."""

from __future__ import annotations

import os

import pytest_isolate_unshare
from pytest_isolate_unshare import Unshare

from pytest_isolate import MINIMAL, Sandbox, hooks, vary
from pytest_isolate.testing import require


def test_a_program_has_the_namespace_that_was_asked_for():
    lacking = Unshare().lacks(vary(MINIMAL, namespaces="uts"))
    require("unshare", not lacking, "; ".join(lacking))
    manager = hooks.plugin_manager()
    manager.register(pytest_isolate_unshare)
    with Sandbox(MINIMAL, hooks=hooks.Hooks(manager), backends=["unshare"]) as sandbox:
        inside = sandbox.run(["readlink", "/proc/self/ns/uts"], namespaces="uts").stdout.strip()
    assert inside.startswith("uts:")
    assert inside != os.readlink("/proc/self/ns/uts")
