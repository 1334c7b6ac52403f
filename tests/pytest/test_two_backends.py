"""Two backends in one run: each test has the one it asked for, and a child forked for one leaves the other's tool its things."""

from __future__ import annotations

import pytest

from tests.pytest.conftest import Run

#: A backend whose tool needs the directory it was given until the program starts, and says by whom that was started.
CONFTEST = """
from pytest_isolate.tool import BY_OURSELVES, ToolBackend

class Marking(ToolBackend):
    name = "marking"
    tool = "sh"
    signals_as_status = False

    def command(self, policy, argv, run):
        script = 'sleep 0.3; test -d "$0" || exit 9; cd "$1"; shift; MARK=$0 exec "$@"'
        return ["-c", script, run.directory, run.cwd, *argv]

def pytest_isolate_backends():
    return [Marking()]
"""


@pytest.fixture(autouse=True)
def _backend(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_child_forked_meanwhile_leaves_the_tool_its_directory(
    plain: Run, pytester: pytest.Pytester, jobs: int
) -> None:
    pytester.makepyfile(
        """
        import os, time
        import pytest

        @pytest.mark.isolate(mode="fresh", backend="marking", profile="minimal")
        def test_by_a_tool():
            time.sleep(0.3)
            assert os.path.isdir(os.environ["MARK"])

        @pytest.mark.isolate(profile="minimal")
        def test_forked():
            pass

        @pytest.mark.isolate(mode="fresh", backend="marking", profile="minimal")
        def test_once_more():
            assert os.path.isdir(os.environ["MARK"])
        """
    )
    plain(f"--isolate-jobs={jobs}").assert_outcomes(passed=3)


@pytest.mark.parametrize("first", ["by_a_tool", "forked"])
def test_of_two_with_the_same_policy_each_has_the_backend_it_asked_for(
    plain: Run, pytester: pytest.Pytester, first: str
) -> None:
    tests = {
        "by_a_tool": '@pytest.mark.isolate(mode="fresh", backend="marking", profile="minimal")',
        "forked": '@pytest.mark.isolate(profile="minimal")',
    }
    text = [
        f"{mark}\ndef test_{name}():\n    assert ('MARK' in os.environ) == {name == 'by_a_tool'}"
        for name, mark in tests.items()
    ]
    pytester.makepyfile("\n\n".join(["import os, pytest", *(text if first == "by_a_tool" else text[::-1])]))
    plain().assert_outcomes(passed=2)
