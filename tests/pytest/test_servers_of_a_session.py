"""A program that a wide fixture has started is the parent's: tests, each a fork, look at it, and how it ends is told once, there."""

from __future__ import annotations

import pytest

from .conftest import Run

_SERVER = """
    import pathlib
    import pytest
    from pytest_isolate.kernel import processes
    from pytest_isolate.running import ProgramFailed

    @pytest.fixture(scope="session")
    def server(sandbox_session):
        running = sandbox_session.spawn(["sh", "-c", {program!r}])
        if {ends}:
            assert processes.ended(running._process.pidfd, 20)
        yield running
        pathlib.Path("told").write_text(str(running.terminate().status))
"""


def test_each_test_hears_that_a_server_has_ended_and_the_parent_how(pytester: pytest.Pytester, isolated: Run) -> None:
    body = """
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_it(server, number):
        assert not server.running()
        with pytest.raises(ProgramFailed, match="how is told to the process that started it") as failed:
            server.wait_for_line("ready", timeout=5)
        assert failed.value.returncode is None
        assert "SIGKILL" not in str(failed.value)
    """
    pytester.makepyfile(_SERVER.format(program="echo hello; exit 3", ends=True) + body)
    isolated().assert_outcomes(passed=3)
    assert (pytester.path / "told").read_text() == "exited with status 3"


def test_a_test_that_closes_its_copy_of_the_sandbox_ends_no_server(pytester: pytest.Pytester, isolated: Run) -> None:
    body = """
    @pytest.mark.parametrize("number", [1, 2])
    def test_it(server, sandbox_session, number):
        assert server.wait_for_line("ready", timeout=5) == "ready"
        sandbox_session.close()
        with server:
            pass
        assert server.running()
    """
    pytester.makepyfile(_SERVER.format(program="echo ready; exec sleep 60", ends=False) + body)
    isolated().assert_outcomes(passed=2)
    assert (pytester.path / "told").read_text() == "killed by SIGTERM"
