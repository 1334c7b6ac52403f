"""The hooks of pytest-isolate."""

from __future__ import annotations

from typing import Any

import pytest


def test_a_conftest_reopens_in_the_child_what_a_fork_must_not_share(pytester: pytest.Pytester, isolated: Any) -> None:
    pytester.makeconftest(
        """
        import os
        opened_by = []
        def pytest_isolate_child(item): opened_by.append((os.getpid(), item.name))
        """
    )
    pytester.makepyfile(
        test_it="""
        import os
        from conftest import opened_by
        def test_one(): assert opened_by == [(os.getpid(), "test_one")]
        def test_two(): assert opened_by == [(os.getpid(), "test_two")]
        """
    )
    isolated("-p", "no:cacheprovider", "--import-mode=prepend").assert_outcomes(passed=2)


def test_a_child_hook_that_raises_is_a_setup_error_of_the_item(pytester: pytest.Pytester, isolated: Any) -> None:
    pytester.makeconftest("def pytest_isolate_child(item): raise RuntimeError('the database is gone')")
    pytester.makepyfile(test_it="def test_one(): pass")
    result = isolated()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ERROR at setup of test_one*", "*conftest.py:1: RuntimeError*"])


def test_a_misspelt_hook_is_refused(pytester: pytest.Pytester, isolated: Any) -> None:
    pytester.makeconftest("def pytest_isolate_chidl(item): pass")
    pytester.makepyfile(test_it="def test_one(): pass")
    result = isolated()
    assert result.ret != 0
    assert "pytest_isolate_chidl" in str(result.stderr) + str(result.stdout)


def test_a_report_with_a_cause_can_be_added_to(pytester: pytest.Pytester, isolated: Any) -> None:
    pytester.makeconftest(
        """
        def pytest_isolate_report(item, report, cause):
            report.sections.append(("Who to ask", f"{cause} of {item.name}: the database team"))
        """
    )
    pytester.makepyfile(test_it="import time\ndef test_hangs(): time.sleep(60)\ndef test_fails(): assert 0")
    result = isolated("--isolate-timeout=0.5")
    result.assert_outcomes(failed=2)
    assert str(result.stdout).count("the database team") == 1
    result.stdout.fnmatch_lines(["TIMEOUT of test_hangs: the database team"])
