"""What is gVisor's own: another kernel, the choice of the platform."""

from __future__ import annotations

import os
import shutil
import stat

import pytest
import pytest_isolate_gvisor
from pytest_isolate_gvisor import Gvisor

from pytest_isolate import MINIMAL, STANDARD, Sandbox, hooks, vary

needs_runsc = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runsc") is None, reason="needs root and runsc")


@needs_runsc
@pytest.mark.parametrize("policy", [MINIMAL, STANDARD], ids=["minimal", "standard"])
def test_a_program_meets_a_kernel_that_is_not_the_hosts(policy):
    manager = hooks.plugin_manager()
    manager.register(pytest_isolate_gvisor)
    with Sandbox(policy, hooks=hooks.Hooks(manager), backends=["gvisor"]) as sandbox:
        assert "Starting gVisor" in sandbox.run(["dmesg"]).stdout
        assert sandbox.run(["uname", "-r"]).stdout.strip() != os.uname().release


@pytest.mark.parametrize("words", [{"net": "none"}, {"net": "policy"}, {"namespaces": "+user"}])
def test_what_it_cannot_do_it_lacks(words):
    assert Gvisor().lacks(vary(STANDARD, **words))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_where_no_platform_works_each_says_why(monkeypatch, tmp_path):
    path = tmp_path / "runsc"
    path.write_text('#!/bin/sh\necho "$1 is not for you" >&2; exit 1\n')
    path.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (lacking,) = Gvisor().lacks(MINIMAL)
    for platform in ("systrap", "kvm", "ptrace"):
        assert f"{platform}: --platform={platform} is not for you" in lacking
