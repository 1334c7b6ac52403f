"""What is the OCI backend's own: config.json, the choice of the runtime, its faults."""

from __future__ import annotations

import json
import os
import re
import stat

import pytest
import pytest_isolate_oci
from pytest_isolate_oci import Oci

from pytest_isolate import MINIMAL, STRICT, Sandbox, hooks, oci, tool, vary
from pytest_isolate.testing import require


@pytest.fixture
def runtime():
    lacking = Oci().lacks(MINIMAL)
    require("oci", not lacking, "; ".join(lacking))


def config(policy):
    run = tool.Run({"PATH": "/bin"}, "/usr")
    with run.undo, open(os.path.join(oci.bundle(policy, ["true", "-x"], run), "config.json")) as file:
        return json.load(file)


def test_a_policy_is_written_whole():
    found = config(vary(STRICT, rlimits={"NOFILE": (10, 20)}, hostname="boxed"))
    assert found["process"]["args"] == ["true", "-x"]
    assert (found["process"]["cwd"], found["process"]["env"]) == ("/usr", ["PATH=/bin"])
    assert found["process"]["noNewPrivileges"]
    assert not any(found["process"]["capabilities"].values())
    assert found["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]
    assert {space["type"] for space in found["linux"]["namespaces"]} == {"pid", "uts", "ipc", "mount", "network"}
    assert found["hostname"] == "boxed"
    shown = {mount["destination"]: mount for mount in found["mounts"]}
    assert shown["/usr"]["options"] == ["rbind", "rro"]
    assert shown["/tmp"]["type"] == "tmpfs" or found["mounts"][-1]["type"] == "tmpfs"


def test_nothing_remains_of_a_bundle():
    run = tool.Run({}, "/")
    directory = oci.bundle(MINIMAL, ["true"], run)
    run.undo.close()
    assert not os.path.exists(directory)


def fake(directory, name, script):
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(stat.S_IRWXU)


def test_the_first_runtime_that_works_is_taken(runtime, monkeypatch, tmp_path):
    found = Oci()
    assert found.lacks(MINIMAL) == []
    good = found.path
    fake(tmp_path, "crun", "echo no cgroups of mine >&2; exit 1")
    fake(tmp_path, "runc", f'exec {good} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    backend = Oci()
    assert backend.lacks(MINIMAL) == []
    assert backend.path == str(tmp_path / "runc")


def test_where_none_works_each_says_why(monkeypatch, tmp_path):
    require("root", os.geteuid() == 0, "containers of a plain user are not made")
    fake(tmp_path, "crun", "echo no cgroups of mine >&2; exit 1")
    fake(tmp_path, "runc", "echo none of mine either >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    lacking = " ".join(Oci().lacks(MINIMAL))
    assert "no cgroups of mine" in lacking
    assert "none of mine either" in lacking


def test_a_container_that_is_killed_leaves_no_cgroup(runtime):
    manager = hooks.plugin_manager()
    manager.register(pytest_isolate_oci)
    before = groups()
    with Sandbox(MINIMAL, hooks=hooks.Hooks(manager), backends=["oci"]) as sandbox:
        running = sandbox.spawn(["sh", "-c", "echo up; sleep 60"], grace=0.1)
        running.wait_for_line("up")
        seen = groups() - before
    assert seen, "the runtime made none: this test shows nothing"
    assert not groups() & seen


def groups():
    """Of containers: called as their bundle's directory is."""
    paths = [path for path, _, _ in os.walk("/sys/fs/cgroup")]
    return {path for path in paths if re.fullmatch(r"pytest-isolate-scratch-tool-\w{8}", os.path.basename(path))}
