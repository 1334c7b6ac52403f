"""What a run says of network policies beside their verdicts: what is wrong with one, and which front end is in use."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable

import pytest

from tests.conftest import require_front_end

from .conftest import Run


@pytest.fixture(autouse=True, scope="module")
def _policies() -> None:
    require_front_end("libbpf")


@pytest.fixture
def tests(pytester: pytest.Pytester) -> Callable[[str], None]:
    """``tests(body)`` writes a module of tests."""

    def write(body: str) -> None:
        pytester.makepyfile(test_it="import socket, pytest\n" + textwrap.dedent(body))

    return write


# -- which front end is in use -------------------------------------------------------------------------------------------

TESTS = {
    "marker": "@pytest.mark.netpolicy()\ndef test_it(): pass",
    "fixture": "def test_it(net_policy): pass",
    "none": "def test_it(): pass",
}
LINES = r"(?m)^isolate: .*eBPF by .*$"


@pytest.mark.parametrize(("front_end", "asked"), [("libbpf", "marker"), ("libbpf", "fixture"), ("bcc", "marker")])
def test_the_front_end_is_told_once_also_when_markers_and_fixtures_alone_ask_for_it(
    plain: Run, tests: Callable[[str], None], front_end: str, asked: str
) -> None:
    require_front_end(front_end)
    tests(TESTS[asked])
    result = plain(f"--isolate-bpf={front_end}")
    result.assert_outcomes(passed=1)
    assert re.findall(LINES, result.stdout.str()) == [f"isolate: network policies in eBPF by {front_end}"]


def test_with_isolate_it_is_told_once_too_and_not_at_all_when_quiet_or_when_nobody_needs_it(
    isolated: Run, tests: Callable[[str], None]
) -> None:
    tests(TESTS["marker"])
    assert re.findall(LINES, isolated().stdout.str()) == ["isolate: network policies in eBPF by libbpf"]
    assert not re.findall(LINES, isolated("-q").stdout.str())
    assert len(re.findall(LINES, isolated("--isolate-net=shared").stdout.str())) == 1
    tests(TESTS["none"])
    assert not re.findall(LINES, isolated().stdout.str())


def test_debug_output_is_compiled_in_by_a_variable_and_the_header_says_so(
    plain: Run, tests: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_front_end("bcc")
    tests(TESTS["marker"])
    monkeypatch.setenv("PYTEST_ISOLATE_BPF_DEBUG", "yes")
    result = plain()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["isolate: network policies in eBPF by bcc (PYTEST_ISOLATE_BPF_DEBUG)"])
    monkeypatch.setenv("PYTEST_ISOLATE_BPF_DEBUG", "perhaps")
    result = plain()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*PYTEST_ISOLATE_BPF_DEBUG: 'perhaps' is neither yes nor no*"])


# -- what is wrong with a policy -----------------------------------------------------------------------------------------


def test_what_the_fixture_refuses_is_one_line_that_says_what_of_it_is_wrong(
    plain: Run, tests: Callable[[str], None]
) -> None:
    tests(
        """
        from pytest_isolate.errors import PolicyError
        WRONG = [
            (lambda p: p.redirect("203.0.113.7:443", to=("127.0.0.1", "http")), "'http' is not a port"),
            (lambda p: p.redirect("203.0.113.7:443", to=("127.0.0.1", 70000)), "70000 is out of range"),
            (lambda p: p.redirect("203.0.113.7:443", to=None), "no pair of an address and a port"),
            (lambda p: p.redirect(None, to=("127.0.0.1", 80)), "None: it is no text"),
            (lambda p: p.allow("127.0.0.1", tcp=80.5), "tcp: 80.5 is not a port"),
            (lambda p: p.allow("127.0.0.1", tcp=b"80"), "tcp: b'80' is not a port"),
            (lambda p: p.allow("127.0.0.1", udp=object()), "udp: <object"),
            (lambda p: p.allow(["127.0.0.1"]), "it is no address and no text"),
            (lambda p: p.allow("[::1"), "network '[::1'"),
            (lambda p: p.limit(connections=2**32 + 1), "limit connections: 4294967297 is more than 4294967295"),
            (lambda p: p.limit(pps=True), "limit pps: True is not a number"),
            (lambda p: p.limit(bytes="64Q"), "limit bytes: '64Q' is not a size"),
        ]
        @pytest.mark.parametrize(("wrong", "why"), WRONG)
        def test_it(net_policy, wrong, why):
            with pytest.raises(PolicyError) as caught:
                wrong(net_policy)
            assert why in str(caught.value) and "\\n" not in str(caught.value)
        def test_fine(net_policy):
            net_policy.redirect("203.0.113.7:443", to=["127.0.0.1", 80])
            net_policy.limit(bytes="64K", connections=2**32 - 1)
            net_policy.allow("127.0.0.1", tcp=range(80, 83))
        """
    )
    plain().assert_outcomes(passed=13)


def test_a_misspelt_setting_is_refused_and_the_right_one_named(plain: Run, tests: Callable[[str], None]) -> None:
    tests(
        """
        def test_it(net_policy): net_policy.erno = "ECONNREFUSED"
        """
    )
    result = plain()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *net_policy setting 'erno': unknown. Did you mean 'errno'?"])


def test_a_name_of_other_letters_is_answered_under_the_name_that_programs_ask_for(
    plain: Run, tests: Callable[[str], None]
) -> None:
    tests(
        """
        def test_it(net_policy):
            with socket.create_server(("127.0.0.1", 0)) as server:
                net_policy.redirect("b\\u00fccher.test:80", to=server.getsockname()[:2])
                socket.create_connection(("b\\u00fccher.test", 80), 5).close()
                socket.create_connection(("xn--bcher-kva.test", 80), 5).close()
        """
    )
    plain().assert_outcomes(passed=1)


def test_more_rules_than_the_maps_hold_are_refused_with_the_test_s_name(
    plain: Run, tests: Callable[[str], None]
) -> None:
    tests(
        """
        TOO_MANY = [f"10.{i >> 8 & 255}.{i & 255}.0/24" for i in range(17_000)]
        def test_fine(): pass
        @pytest.mark.netpolicy(allow=TOO_MANY)
        def test_bad(): pass
        """
    )
    result = plain()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*pytest-isolate: markers of test_it.py::test_bad: network policy: 17000 prefixes are *"]
    )
