"""The backend to start from works."""

from __future__ import annotations

import os

import pytest
import pytest_isolate_unshare

from pytest_isolate import MINIMAL, Sandbox, hooks


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_program_has_the_namespace_that_was_asked_for():
    manager = hooks.plugin_manager()
    manager.register(pytest_isolate_unshare)
    with Sandbox(MINIMAL, hooks=hooks.Hooks(manager), backends=["unshare"]) as sandbox:
        inside = sandbox.run(["readlink", "/proc/self/ns/uts"], namespaces="uts").stdout.strip()
    assert inside.startswith("uts:")
    assert inside != os.readlink("/proc/self/ns/uts")
