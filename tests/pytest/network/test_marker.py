"""The marker ``netpolicy``: each denial has its positive control, the same code, allowed, that reaches the same server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.pytest.conftest import Run

DIAL = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).close()"


def test_the_marker_denies_what_it_does_not_allow_and_the_failure_says_so(
    plain: Run, tests: Callable[[str], None]
) -> None:
    tests(
        """
        def test_control(): dial()
        @pytest.mark.netpolicy(allow=[f"127.0.0.1:{PORT}/tcp"])
        def test_allowed(): dial()
        @pytest.mark.netpolicy(allow=["203.0.113.0/24"])
        def test_denied(): dial()
        """
    )
    result = plain("-rA")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines([r"test_it.py \.\.D.*"])
    result.stdout.re_match_lines(
        [
            r".*PermissionError.*",
            r"-+ Network -+",
            r"out 0 packets.*1 refused",
            r"NETDENIED 127\.0\.0\.1:\d+/tcp by \S+ pid \d+ \(rule: default deny; allow with allow\(\"127.0.0.1\", tcp=\[\d+\]\)\)",
        ]
    )
    result.stdout.re_match_lines(
        [r"-+ Network -+", r"out \d+ packets, .*1 connections opened, 0 accepted; 0 refused", "contacted 127.*"]
    )
    result.stdout.fnmatch_lines(["NETDENIED test_it.py::test_denied*"])


def test_every_process_the_test_starts_obeys(plain: Run, tests: Callable[[str], None]) -> None:
    tests(
        f"""
        CODE = {DIAL!r}
        @pytest.mark.netpolicy(allow=["localhost"])
        def test_control(): subprocess.run([sys.executable, "-c", CODE, str(PORT)], check=True)
        @pytest.mark.netpolicy()
        def test_denied(): subprocess.run(["setsid", "sh", "-c", f'"{{sys.executable}}" -c "$0" {{PORT}}', CODE], check=True)
        """
    )
    result = plain()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines([r"NETDENIED 127\.0\.0\.1:\d+/tcp by python\S* pid \d+ .*"])


def test_a_denied_connection_is_answered_at_once_with_the_errno_asked_for(
    plain: Run, tests: Callable[[str], None]
) -> None:
    """No later than an allowed one: a refusal is told, and not waited for."""
    tests(
        """
        @pytest.mark.netpolicy(errno="ECONNREFUSED", allow=[f"127.0.0.1:{PORT}"])
        def test_it():
            allowed, denied = [], []
            for _ in range(50):
                began = time.perf_counter()
                dial()
                allowed.append(time.perf_counter() - began)
                with socket.socket() as client:
                    began = time.perf_counter()
                    with pytest.raises(ConnectionRefusedError):
                        client.connect(("203.0.113.7", 443))
                    denied.append(time.perf_counter() - began)
            assert min(denied) < 3 * min(allowed), (denied, allowed)
        """
    )
    plain().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("marker", "line"),
    [
        ("allow=['10.0.0.1/8']", "*10.0.0.1/8*host bits*10.0.0.0/8*"),
        ("allow=['127.0.0.1:http']", "*not a port*"),
        ("allow=['127.0.0.1:70000']", "*out of range*"),
        ("deny=['db.test']", "*host name can only be allowed*"),
        ("alow=['127.0.0.1']", "*alow*allow*"),
        ("errno='EWRONG'", "*EWRONG*unknown*"),
        ("default='perhaps'", "*perhaps*"),
        ("allow=[80]", "*not a list of texts*"),
    ],
)
def test_a_rule_without_meaning_is_found_before_the_first_test_runs(
    plain: Run, tests: Callable[[str], None], marker: str, line: str
) -> None:
    tests(f"@pytest.mark.netpolicy({marker})\ndef test_it(): pass")
    result = plain()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])


def test_a_policy_and_an_exemption_from_isolation_contradict_each_other(
    plain: Run, tests: Callable[[str], None]
) -> None:
    tests("@pytest.mark.isolate(False)\n@pytest.mark.netpolicy()\ndef test_it(): pass")
    result = plain()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*netpolicy*isolate(False)*"])
