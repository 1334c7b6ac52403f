"""What is systemd's own: units, their properties and ends. What it enforces is held by pytest_isolate.testing."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid

import pytest
import pytest_isolate_systemd
from pytest_isolate_systemd import Systemd
from pytest_isolate_systemd.manager import Manager
from pytest_isolate_systemd.properties import of_policy, of_program
from pytest_isolate_systemd.service import Service

from pytest_isolate import MINIMAL, STANDARD, STRICT, Sandbox, SetupError, hooks, vary
from pytest_isolate.testing import require


@pytest.fixture
def sandbox():
    lacking = Systemd().lacks(MINIMAL)
    require("systemd", not lacking, "; ".join(lacking))
    manager = hooks.plugin_manager()
    manager.register(pytest_isolate_systemd)
    with Sandbox(MINIMAL, hooks=hooks.Hooks(manager), backends=["systemd"]) as made:
        yield made


def units():
    with contextlib.closing(Manager()) as manager:
        (found,) = manager.call("ListUnitsByPatterns", "asas", [], ["pytest-isolate-*.service"])
    return [unit[0] for unit in found]


def test_a_policy_is_translated():
    words = {
        "net": "loopback",
        "capabilities": "net_raw",
        "no_new_privs": True,
        "umask": "077",
        "rlimits": {"NOFILE": 64},
    }
    found = dict(of_policy(vary(STANDARD, **words)))
    assert found["PrivateNetwork"] == found["PrivateIPC"] == found["ProtectHostname"] == ("b", True)
    assert found["CapabilityBoundingSet"] == ("t", 1 << 13)
    assert (found["UMask"], found["LimitNOFILE"], found["LimitNOFILESoft"]) == (("u", 0o77), ("t", 64), ("t", 64))
    assert "ReadOnlyPaths" not in found


def test_a_program_that_is_not_there_is_known_before_systemd_is_asked():
    with pytest.raises(SetupError, match="ENOENT"):
        list(of_program(["no-such-program"], {"PATH": "/usr/bin"}, "/", (0, 1, 2)))


def test_names_that_systemd_does_not_take_are_left_out_of_the_environment():
    found = dict(of_program(["true"], {"PATH": "/usr/bin:/bin", "BASH_FUNC_x%%": "()", "A": "1\n2"}, "/", (0, 1, 2)))
    assert found["Environment"] == ("as", ["PATH=/usr/bin:/bin", "A=1\n2"])


def test_what_it_cannot_do_it_lacks():
    (lacking,) = Systemd().lacks(STRICT)
    assert lacking == "namespace_pid, fresh_proc: systemd does not enforce them"


def test_where_no_manager_answers_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    (lacking,) = Systemd().lacks(MINIMAL)
    assert lacking.startswith(f"systemd: no answer at unix:path={tmp_path}/none")
    assert "It needs systemd as PID 1, and D-Bus" in lacking


def test_arguments_and_variables_are_not_expanded(sandbox):
    arguments = ["$HOME", "${PATH}", "$$", "%n", "%%", "a b"]
    code = "import os, sys; print(sys.argv[1:], os.environ['PRICE'])"
    outcome = sandbox.run([sys.executable, "-c", code, *arguments], env={**os.environ, "PRICE": "5 $ and 3 %n"})
    assert outcome.stdout == f"{arguments!r} 5 $ and 3 %n\n"


def test_it_runs_as_a_service_and_leaves_no_unit(sandbox):
    assert ".service" in sandbox.run(["cat", "/proc/self/cgroup"]).stdout
    assert sandbox.run(["sh", "-c", "exit 3"]).status.code == 3
    assert sandbox.run(["sleep", "60"], timeout=0.3, grace=0.1).causes[0].value == "TIMEOUT"
    assert units() == []


def test_what_a_program_leaves_running_is_named_and_ended(sandbox):
    outcome = sandbox.run(["sh", "-c", "setsid sleep 6751 & sleep 0.3"])
    assert [left.command for left in outcome.leftovers] == ["sleep 6751"]
    assert not any("6751" in line for line in running())


def running():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as line:
            yield line.read()


def test_a_signal_reaches_the_program(sandbox):
    running = sandbox.spawn(
        ["sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"], grace=10
    )
    running.wait_for_line("ready")
    outcome = running.terminate()
    assert (outcome.status.code, outcome.stdout) == (3, "ready\nbye\n")


def test_a_forked_copy_ends_no_unit_and_leaves_its_parent_the_bus(sandbox):
    running = sandbox.spawn(["sleep", "60"])
    before = units()
    pid = os.fork()
    if pid == 0:
        try:
            running._process.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(before) == 1
    assert units() == before
    assert running.running()
    assert str(running.terminate().status) == "killed by SIGTERM"
    assert units() == []


def test_a_sandbox_that_systemd_cannot_make_is_no_failure_of_the_program(sandbox):
    broken = [
        *of_program(["true"], dict(os.environ), "/", (0, 1, 2)),
        ("BindPaths", ("a(ssbt)", [("/none", "/mnt", False, 0)])),
    ]
    with pytest.raises(SetupError, match="status 226"):
        Service(Manager(), f"pytest-isolate-{uuid.uuid4().hex}.service", broken)
    assert units() == []


def test_tests_run_in_it_in_new_interpreters(sandbox, pytester):
    pytester.makepyfile(
        """
        import os
        def test_inside(): assert ".service" in open("/proc/self/cgroup").read()
        def test_crash(): os.abort()
        """
    )
    words = ("-p", "pytest_isolate_systemd", "-p", "no:cacheprovider", "--isolate-backend=systemd")
    result = pytester.run(sys.executable, "-m", "pytest", *words, timeout=120)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["isolate: profile standard *, backend systemd, a new interpreter*", "*SIGABRT*"])
