"""``--isolate-net``: policy, shared and private, and where their counts are told."""

from __future__ import annotations

import socket
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pytest.conftest import Run


def junit(path: Path) -> dict[str, str]:
    return {e.attrib["name"]: e.attrib["value"] for e in ET.parse(path).iter("property")}


def test_policy_for_all_tests_denies_but_for_what_the_ini_file_allows(
    isolated: Run, pytester: pytest.Pytester, tests: Callable[[str], None], port: int
) -> None:
    tests(
        """
        def test_allowed(): dial()
        def test_denied(): dial(9)
        """
    )
    pytester.makeini(f"[pytest]\nisolate_net_allow =\n    127.0.0.1:{port}/tcp\n")
    result = isolated("--isolate-net=policy")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["isolate: *network policy*eBPF by *", "NETDENIED 127.0.0.1:9/tcp by *"])


def test_shared_counts_and_refuses_nothing(
    isolated: Run, pytester: pytest.Pytester, tests: Callable[[str], None]
) -> None:
    tests("def test_it(): dial(); dial()")
    result = isolated("--isolate-net=shared", "--junitxml=found.xml")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r"isolate: profile .*, eBPF by (libbpf|bcc)$"])
    found = junit(pytester.path / "found.xml")
    assert found["isolate_net_connections_out"] == "2"
    assert int(found["isolate_net_l3_bytes_out"]) > 0
    assert found["isolate_net_denied"] == "0"


def test_private_reaches_the_host_s_end_and_nothing_else(isolated: Run, tests: Callable[[str], None]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        tests(
            f"""
            def gateway():
                text = subprocess.run(["ip", "route", "show", "default"], capture_output=True, text=True, check=True).stdout
                return text.split()[2]
            def test_control(): dial({server.getsockname()[1]}, gateway())
            def test_host_s_loopback(): dial()
            """
        )
        result = isolated("--isolate-net=private", "-rA")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines([r"private network: 100\.\d+\.\d+\.\d+/30, .*; host 100\..*"])


def test_junit_says_what_was_refused(
    plain: Run, pytester: pytest.Pytester, tests: Callable[[str], None], port: int
) -> None:
    tests("@pytest.mark.netpolicy()\ndef test_it(): dial()")
    plain("--junitxml=found.xml")
    found = junit(pytester.path / "found.xml")
    assert found["isolate_net_denied"] == "1"
    assert f"NETDENIED 127.0.0.1:{port}/tcp" in found["isolate_net_refused"]


def test_without_a_cgroup_v2_what_only_ebpf_holds_is_an_error_and_counts_are_not_zero(
    isolated: Run, tests: Callable[[str], None]
) -> None:
    tests("def test_it(): pass")
    result = isolated(
        "--isolate-cgroup=none", "--isolate-net=policy", "-rA"
    )  # nothing is allowed: seccomp can say that
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["counts: not available: *seccomp*"])
    result = isolated("--isolate-cgroup=none", "--isolate-net=policy", "-o", "isolate_net_allow=10.0.0.0/8:53/udp")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*network policy: *cgroup*"])
    result = isolated("--isolate-cgroup=none", "--isolate-net=private", "-rA")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["counts: not available: *cgroup*"])
