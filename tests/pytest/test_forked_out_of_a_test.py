"""A process that a test forks and that comes back out of the test's code ends there: the test's result is that of its own process."""

from __future__ import annotations

import pytest

from .conftest import Run

WAYS = {
    "comes to the end": ("pass", 0, ""),
    "sys.exit()": ("sys.exit()", 0, ""),
    "sys.exit(300)": ("sys.exit(300)", 300 & 0xFF, ""),
    "sys.exit of a text": ("sys.exit('good bye')", 1, "good bye"),
    "an exception": ("raise ValueError('of the copy')", 1, "ValueError: of the copy"),
    "an interrupt": ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
    "pytest.exit": ("pytest.exit('of the copy')", 1, "of the copy"),
    "pytest.skip": ("pytest.skip('of the copy')", 1, "of the copy"),
}

TEST = """
    import os, sys, warnings
    import pytest

    @pytest.fixture
    def left():
        yield
        with open("torn-down", "a") as file:
            file.write("x")

    def forked():
        if (pid := os.fork()) == 0:
            warnings.warn("of the copy")
            return 0
        return pid

    def test_forks(left):
        pid = forked()
        if pid == 0:
            {leave}
            return
        _, status = os.waitpid(pid, 0)
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) == {code}

    @pytest.fixture
    def forking():
        pid = forked()
        if pid == 0:
            {leave}
            return 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def test_its_fixture_does(forking):
        assert forking == {code}

    def test_next():
        pass
"""


@pytest.mark.parametrize("words", ["--isolate-scope=function", "--isolate-scope=module", "--isolate-mode=fresh"])
@pytest.mark.parametrize("way", WAYS)
def test_the_result_is_that_of_the_tests_own_process(
    pytester: pytest.Pytester, isolated: Run, way: str, words: str
) -> None:
    leave, code, text = WAYS[way]
    pytester.makepyfile(TEST.format(leave=leave, code=code, text=text))
    result = isolated(words, "-rP")
    result.assert_outcomes(passed=3)
    assert result.ret == 0
    if "fresh" not in words:  # there it is told with what the process wrote, where that is
        assert str(result.stdout).count(text) >= 2
    assert text not in str(result.stderr) or not text
    assert (pytester.path / "torn-down").read_text() == "x"
