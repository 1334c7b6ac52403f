"""close_fds, which `strict` has: for programs and fresh interpreters, and not for a test that is forked off pytest."""

from __future__ import annotations

import pytest

from tests.pytest.conftest import Run

SERVER = """
import os, socket, pytest

@pytest.fixture(scope="session")
def server():
    with socket.create_server(("127.0.0.1", 0)) as made:
        os.set_inheritable(made.fileno(), True)
        yield made

"""


@pytest.mark.parametrize("profile", ["strict", "closed"])
def test_a_forked_test_has_what_a_wide_fixture_opened(pytester: pytest.Pytester, isolated: Run, profile: str) -> None:
    pytester.makeini("[pytest]\nisolate_profiles = closed: standard, close_fds=yes")
    pytester.makepyfile(
        SERVER
        + """
def test_it(server):
    os.fstat(server.fileno())
    print("from inside")
    assert 0
"""
    )
    result = isolated(f"--isolate-profile={profile}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 0*", "from inside"])


def test_a_test_that_asks_for_what_it_cannot_have_is_refused(pytester: pytest.Pytester, isolated: Run) -> None:
    test = "import pytest\n@pytest.mark.isolate(close_fds=True{})\ndef test_it(): pass"
    pytester.makepyfile(test.format(""))
    result = isolated()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(['*marker isolate of *: close_fds: a test that is forked off pytest*mode="fresh"*'])
    pytester.makepyfile(test.format(", mode='fresh'"))
    isolated().assert_outcomes(passed=1)


def test_a_program_under_strict_inherits_none(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        SERVER
        + """
@pytest.mark.parametrize("profile", ["standard", "strict"])
def test_it(sandbox, server, profile):
    from pytest_isolate import PROFILES, Sandbox
    with Sandbox(PROFILES[profile]) as made:
        found = made.run(["test", "-e", f"/proc/self/fd/{server.fileno()}"], cwd="/")
    assert found.returncode == (profile == "strict")
"""
    )
    isolated().assert_outcomes(passed=2)
