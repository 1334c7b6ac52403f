"""What is gVisor's own: another kernel, the choice of the platform."""

from __future__ import annotations

import os
import stat
import sys

import pytest
import pytest_isolate_gvisor
from pytest_isolate_gvisor import Gvisor

from pytest_isolate import MINIMAL, STANDARD, Sandbox, hooks, vary
from pytest_isolate.testing import require


@pytest.fixture(scope="module")
def runsc():
    lacking = Gvisor().lacks(MINIMAL)
    require("gvisor", not lacking, "; ".join(lacking))


@pytest.mark.parametrize("policy", [MINIMAL, STANDARD], ids=["minimal", "standard"])
def test_a_program_meets_a_kernel_that_is_not_the_hosts(runsc, policy):
    manager = hooks.plugin_manager()
    manager.register(pytest_isolate_gvisor)
    with Sandbox(policy, hooks=hooks.Hooks(manager), backends=["gvisor"]) as sandbox:
        assert "Starting gVisor" in sandbox.run(["dmesg"]).stdout
        assert sandbox.run(["uname", "-r"]).stdout.strip() != os.uname().release


@pytest.mark.parametrize("words", [{"net": "none"}, {"net": "policy"}, {"namespaces": "+user"}])
def test_what_it_cannot_do_it_lacks(words):
    assert Gvisor().lacks(vary(STANDARD, **words))


SUITE = """
import ctypes, os, subprocess, pytest
def test_inside(): assert os.uname().release != HOST
def test_crash(): ctypes.string_at(0)
@pytest.mark.isolate(leaks="fail")
def test_leak(): subprocess.run("setsid sleep 6741 &", shell=True)
@pytest.mark.isolate(profile="strict")
def test_strict():
    with pytest.raises(OSError, match="Read-only"):
        open("/var/tmp/stray", "w")
    open("in_the_working_copy", "w").close()
def test_program(sandbox):
    assert os.uname().release == HOST
    assert "Starting gVisor" in sandbox.run(["dmesg"]).stdout
"""


def test_tests_run_on_its_kernel_and_what_they_do_is_caught(runsc, pytester):
    pytester.makepyfile(f"HOST = {os.uname().release!r}\n{SUITE}")
    words = ("-p", "pytest_isolate_gvisor", "-p", "no:cacheprovider", "--isolate-backend=gvisor")
    result = pytester.run(sys.executable, "-m", "pytest", *words, timeout=120)
    result.assert_outcomes(passed=4, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "isolate: profile standard *, backend gvisor, a new interpreter for each test",
            "*killed by SIGSEGV during call*",
        ]
    )
    result.stdout.fnmatch_lines(["LEAK: *", "pid * old): sleep 6741"])
    assert not (pytester.path / "in_the_working_copy").exists()


def test_where_no_platform_works_each_says_why(monkeypatch, tmp_path):
    require("root", os.geteuid() == 0, "runsc runs as root only")
    path = tmp_path / "runsc"
    path.write_text(
        '#!/bin/sh\nfor word; do case $word in --platform=*) echo "$word is not for you" >&2;; esac; done; exit 1\n'
    )
    path.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (lacking,) = Gvisor().lacks(MINIMAL)
    for platform in ("systrap", "kvm", "ptrace"):
        assert f"{platform}: --platform={platform} is not for you" in lacking


def test_a_temporary_directory_that_others_do_not_reach_is_none_of_its_business(runsc, monkeypatch, tmp_path):
    """As pam_tmpdir(8) makes them; runsc mounts its own root over $TMPDIR, and as nobody."""
    (tmp_path / "of_mine" / "tmp").mkdir(parents=True)
    (tmp_path / "of_mine").chmod(stat.S_IRWXU)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "of_mine" / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert Gvisor().lacks(MINIMAL) == []
    manager = hooks.plugin_manager()
    manager.register(pytest_isolate_gvisor)
    with Sandbox(MINIMAL, hooks=hooks.Hooks(manager), backends=["gvisor"]) as sandbox:
        outcome = sandbox.run(["sh", "-c", "echo $TMPDIR"])
    assert outcome.stdout == f"{tmp_path}/of_mine/tmp\n"


def test_the_machines_dev_null_stays_root_s(runsc):
    before = os.stat(os.devnull)
    manager = hooks.plugin_manager()
    manager.register(pytest_isolate_gvisor)
    with Sandbox(MINIMAL, hooks=hooks.Hooks(manager), backends=["gvisor"]) as sandbox:
        assert sandbox.run(["cat"]).stdout == ""  # its standard input is /dev/null
    after = os.stat(os.devnull)
    assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)
