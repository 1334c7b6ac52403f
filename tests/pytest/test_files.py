"""A path that fails a test because of the sandbox's view of the files: the report says so, and what would change it."""

from __future__ import annotations

import errno
import os

import pytest

from pytest_isolate.backends.native import NativeBackend
from pytest_isolate.errors import PolicyError
from pytest_isolate.policy import Bind, Filesystem
from pytest_isolate.profile import STANDARD, STRICT, vary
from pytest_isolate.runner.refusals import SECTION
from pytest_isolate.sandbox import Sandbox
from tests.conftest import require

from .conftest import Run

TITLE = f"*- {SECTION} -*"


READONLY = vary(STANDARD, fs="readonly")


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    lacking = NativeBackend().lacks(STRICT)
    require("namespaces", not lacking, "; ".join(lacking))


def test_a_write_that_the_view_refuses_is_explained(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        """
        import pathlib

        def test_direct():
            pathlib.Path("/var/tmp/isolate-never-made").write_text("")

        def test_from_another_exception():
            try:
                open("/var/tmp/isolate-never-made", "w")
            except OSError as error:
                raise RuntimeError("cannot save") from error
        """
    )
    result = isolated("--isolate-profile=strict")
    result.assert_outcomes(failed=2)
    said = (
        "/var/tmp/isolate-never-made: EROFS: / is the host's *, and read-only inside. To write there, put an overlay*"
    )
    result.stdout.fnmatch_lines(["*_ test_direct _*", TITLE, said, "*_ test_from_another_exception _*", TITLE, said])


def test_a_file_that_the_view_hides_is_told_from_one_that_nobody_has(
    pytester: pytest.Pytester, isolated: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hidden = f"/tmp/isolate-hidden-{os.getpid()}"
    pytester.makepyfile(
        f"""
        def test_hidden():
            open("{hidden}")

        def test_nowhere():
            open("{hidden}-not-there")

        def test_caught():
            try:
                open("{hidden}")
            except FileNotFoundError:
                pass
        """
    )
    with open(hidden, "w"):
        try:
            result = isolated("--isolate-profile=strict")
        finally:
            os.unlink(hidden)
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines([TITLE, f"{hidden}: ENOENT: the host has it, but inside /tmp is private tmpfs*"])
    assert result.stdout.str().count(SECTION) == 1


def test_where_the_files_are_the_hosts_nothing_is_explained(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile('def test_it(): open("/isolate-not-there")')
    result = isolated()
    result.assert_outcomes(failed=1)
    assert SECTION not in result.stdout.str()


@pytest.mark.parametrize(
    "lie", ["(30, '/x\\0y')", "('30', '/x')", "(30, 'x')", "(30, '/' + 'x' * 5000)", "17", "(30,)"]
)
def test_a_test_that_lies_about_its_path_is_told_of_as_any(pytester: pytest.Pytester, isolated: Run, lie: str) -> None:
    pytester.makeconftest(
        f"""
        import pytest

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_runtest_makereport():
            outcome = yield
            outcome.get_result().isolate_refused = {lie}
        """
    )
    pytester.makepyfile("def test_it(): assert False, 'its own reason'")
    result = isolated("--isolate-profile=strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*its own reason*"])
    assert SECTION not in result.stdout.str()


def test_a_sandbox_tells_what_a_path_means_inside_as_a_program_finds_it(pytester: pytest.Pytester) -> None:
    place = str(pytester.path)
    with Sandbox(READONLY) as sandbox:
        assert not sandbox.resolve(place).writable
        refused = sandbox.run(["touch", f"{place}/new"])
        assert refused.returncode == 1
        assert "Read-only file system" in refused.stderr
        assert "sealed for this sandbox" in sandbox.explain(errno.EROFS, f"{place}/new")
        assert sandbox.explain(OSError(errno.EROFS, "", ""), f"{place}/new") == sandbox.explain(30, f"{place}/new")

        view = Filesystem(root="readonly", binds=(Bind(source=place, target=place, writable=True),))
        assert sandbox.resolve(place, fs=view).mountpoint == place
        assert sandbox.resolve(place, fs=view).writable
        assert sandbox.run(["touch", f"{place}/new"], fs=view).returncode == 0
    assert (pytester.path / "new").exists()


def test_of_a_sandbox_with_the_hosts_files_there_is_nothing_to_tell() -> None:
    with Sandbox() as sandbox, pytest.raises(PolicyError, match="mean what they mean on the host"):
        sandbox.resolve("/etc")
