"""Network policies as users meet them: fixture, marker, options, reports. Traffic on loopback and in own namespaces only.

Each denial has its positive control: the same code, allowed, reaches the same server.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_isolate.kernel.interfaces import SUBNETS
from tests.conftest import require_front_end, require_policy_engine
from tests.kernel.network.conftest import gone

from .conftest import Run

DIAL = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).close()"
HEAD = """
import socket, subprocess, sys, time
import pytest

PORT = {port}

def dial(port=PORT, host="127.0.0.1"):
    socket.create_connection((host, port), 5).close()
"""


@pytest.fixture(scope="session", autouse=True)
def _policies() -> None:
    """Everything here needs the policy engine."""
    require_policy_engine()


@pytest.fixture(params=["libbpf", "bcc"])
def plain(request: pytest.FixtureRequest, plain: Run) -> Run:
    """As everywhere, once with each front end."""
    front_end: str = request.param
    require_front_end(front_end)

    def run(*args: object, **words: float) -> pytest.RunResult:
        return plain(f"--isolate-bpf={front_end}", *args, **words)

    return run


@pytest.fixture
def port() -> Iterator[int]:
    """A server on this host's loopback that lets everybody connect."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        yield server.getsockname()[1]


@pytest.fixture
def tests(pytester: pytest.Pytester, port: int) -> Callable[[str], None]:
    """``tests(body)`` writes a module whose ``dial()`` reaches the server, where it is allowed."""

    def write(body: str) -> None:
        pytester.makepyfile(test_it=HEAD.format(port=port) + textwrap.dedent(body))

    return write


def groups_of(pid: int) -> list[str]:
    """Directories of that run in every cgroup hierarchy."""
    found = subprocess.run(
        ["find", "/sys/fs/cgroup", "-type", "d", "-name", f"pytest-isolate-*-{pid}-*"], capture_output=True, text=True
    )
    return found.stdout.split()


# -- the marker --------------------------------------------------------------------------------------------------------


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


# -- the fixture -------------------------------------------------------------------------------------------------------


def test_the_fixture_changes_the_running_test_s_policy_at_once(plain: Run, tests: Callable[[str], None]) -> None:
    tests(
        """
        def test_it(net_policy):
            with pytest.raises(PermissionError):
                dial()
            assert [e.port for e in net_policy.denied] == [PORT]
            assert net_policy.denied[0].comm
            net_policy.allow("127.0.0.1", tcp=[PORT])
            dial()
            assert net_policy.stats.connections_out == 1
            assert net_policy.stats.denied == 1
            open_one = socket.create_connection(("127.0.0.1", PORT))
            net_policy.deny("127.0.0.1", tcp=PORT)
            before = net_policy.stats
            open_one.send(b"x")  # TCP takes the byte, and its packet is dropped
            after = net_policy.stats
            assert after.packets_out == before.packets_out and after.denied > before.denied
            with pytest.raises(PermissionError):
                dial()
            net_policy.errno = "ECONNREFUSED"
            with pytest.raises(ConnectionRefusedError):
                dial()
            net_policy.reset()
            net_policy.default = "allow"
            dial()
            assert any(f.peer_port == PORT for f in net_policy.flows())
            with pytest.raises(ValueError, match="host bits"):
                net_policy.allow("10.0.0.1/8")
        """
    )
    plain().assert_outcomes(passed=1)


def test_redirect_log_limit_and_host_names(plain: Run, tests: Callable[[str], None]) -> None:
    tests(
        """
        def test_redirect(net_policy):
            net_policy.redirect("203.0.113.7:443", to=("127.0.0.1", PORT))
            with socket.create_connection(("203.0.113.7", 443), 5) as client:
                assert client.getpeername() == ("203.0.113.7", 443)
        def test_redirect_of_a_name(net_policy):
            net_policy.redirect("api.example.com:443", to=("127.0.0.1", PORT))
            dial(443, "api.example.com")
        def test_host(net_policy):
            net_policy.allow_host("localhost.", tcp=[PORT])
            dial(host="localhost")
            with pytest.raises(socket.gaierror):
                socket.getaddrinfo("other.test", 80)
            assert [e for e in net_policy.denied if e.port not in (PORT, 80)] == []
        def test_log(net_policy):
            net_policy.log("127.0.0.0/8")
            dial()
            [event] = net_policy.events()
            assert event.verdict.name == "LOG" and event.destination == f"127.0.0.1:{PORT}/tcp"
        def test_limit(net_policy):
            net_policy.allow("localhost")
            net_policy.limit(connections=2)
            dial(), dial()
            with pytest.raises(PermissionError):
                dial()
            assert "limit of connections" in net_policy.denied[0].rule
        """
    )
    result = plain()
    result.assert_outcomes(passed=5)


def test_a_program_of_the_test_s_own_is_attached_and_its_maps_are_read_back(
    isolated: Run, tests: Callable[[str], None]
) -> None:
    require_front_end("bcc")  # which compiles it
    tests(
        """
        from pytest_isolate.errors import IsolateError, PolicyError
        TEXT = '''
        struct where { u32 address; u16 port; };
        BPF_HASH(calls, u32, u64);
        BPF_HASH(last, u32, struct where);
        BPF_ARRAY(closed, u32, 1);
        int count(struct bpf_sock_addr *ctx)
        {
            u32 port = ntohs(ctx->user_port), zero = 0, *shut = closed.lookup(&zero);
            struct where it = {.address = ctx->user_ip4, .port = port};
            calls.increment(port);
            last.update(&zero, &it);
            return !(shut && *shut);
        }
        '''
        @pytest.mark.isolate(scope="class")
        class TestPrograms:
            def test_it(self, net_policy):
                net_policy.allow("127.0.0.1", tcp=PORT)
                program = net_policy.attach_program(TEXT, hook="connect4")
                dial(); dial()
                with pytest.raises(PermissionError): dial(PORT - 1)  # allowed by the program, not by the policy
                assert dict(program["calls"].items())[PORT] == program["calls"][PORT] == 2
                assert program["last"][0]["address"] == 0x0100007F
                program["closed"][0] = 1
                with pytest.raises(PermissionError): dial()          # allowed by the policy, not by the program
                program["closed"][0] = 0
                dial()
                del program["calls"][PORT]
                assert program["calls"].get(PORT) is None
                with pytest.raises(KeyError): program["calls"][PORT]
                with pytest.raises(PolicyError, match="Did you mean 'calls'"): program["cals"]
            def test_next(self, net_policy):                          # in the same process: the program is gone
                net_policy.allow("127.0.0.1", tcp=PORT)
                dial()
            def test_wrong(self, net_policy):
                for text, hook, words in (
                    ("int f(struct bpf_sock_addr *c) { return x; }", "connect4", "undeclared"),
                    ("int f(struct bpf_sock_addr *c) { return *(int *)0; }", "connect4", "bpf-load"),
                    ("int f(struct bpf_sock_addr *c) { return 1; }", "conect4", "Did you mean 'connect4'"),
                ):
                    with pytest.raises(IsolateError, match=words):
                        net_policy.attach_program(text, hook=hook)
                dial_refused = pytest.raises(PermissionError)
                with dial_refused: dial()
        """
    )
    isolated("-rA").assert_outcomes(passed=3)


def test_what_a_test_changes_is_not_the_next_one_s(isolated: Run, tests: Callable[[str], None]) -> None:
    tests(
        """
        @pytest.mark.isolate(scope="module")
        class TestGroup:
            def test_one(self, net_policy):
                net_policy.allow("localhost")
                dial()
            def test_two(self, net_policy):
                assert net_policy.events() == [] and net_policy.stats.connections_out == 0
                with pytest.raises(PermissionError):
                    dial()
                assert len(net_policy.denied) == 1
        """
    )
    isolated().assert_outcomes(passed=2)


def test_without_isolation_the_fixture_is_an_error_and_not_a_promise(plain: Run, tests: Callable[[str], None]) -> None:
    tests("def test_it(net_policy): pass")
    result = plain("--no-isolate")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*net_policy: the test is not isolated*"])


def test_a_test_without_the_fixture_cannot_change_its_policy(plain: Run, tests: Callable[[str], None]) -> None:
    tests(
        """
        from pytest_isolate.runner import netpolicy
        @pytest.mark.netpolicy()
        def test_it(request):
            policy = netpolicy.of(request.config.pluginmanager.get_plugin("isolate-runner").reporter)
            with pytest.raises(RuntimeError, match="no network policy of the test's own"):
                policy.allow("localhost")
            with pytest.raises(PermissionError):
                dial()
        """
    )
    plain().assert_outcomes(passed=1)


def test_a_test_holds_no_descriptor_of_a_map_a_program_or_a_link(plain: Run, tests: Callable[[str], None]) -> None:
    tests(
        """
        import os
        def test_it(net_policy):
            net_policy.allow("localhost")
            fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            found = [os.readlink(fd) for fd in fds if os.path.lexists(fd)]
            assert found and not [name for name in found if "bpf" in name], found
        """
    )
    plain().assert_outcomes(passed=1)


# -- options -----------------------------------------------------------------------------------------------------------


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


def junit(path: Path) -> dict[str, str]:
    return {e.attrib["name"]: e.attrib["value"] for e in ET.parse(path).iter("property")}


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


# -- at once, and after a kill -----------------------------------------------------------------------------------------


def test_two_workers_with_opposite_policies_count_a_million_packets_each_to_the_last(
    plain: Run, tests: Callable[[str], None], need: Callable[[str, str], None]
) -> None:
    """Each may reach what the other may not, and sends a million datagrams to both: no count is off by one."""
    need("xdist", "xdist")
    tests(
        """
        PACKETS, SIZE = 1_000_000, 100
        ONE, TWO = "127.0.0.1", "127.0.0.2"

        def flood(host):
            '''How many of a million calls were refused.'''
            refused, payload = 0, b"x" * SIZE
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                receiver.bind((host, 0))
                where, send = receiver.getsockname(), sender.sendto
                for _ in range(PACKETS):
                    try:
                        send(payload, where)
                    except PermissionError:
                        refused += 1
            return refused

        def check(net_policy, mine, other):
            net_policy.allow(mine)
            assert (flood(mine), flood(other)) == (0, PACKETS)
            stats = net_policy.stats
            assert (stats.packets_out, stats.l3_bytes_out) == (PACKETS, PACKETS * (SIZE + 28))
            assert (stats.packets_in, stats.l3_bytes_in) == (PACKETS, PACKETS * (SIZE + 28))
            assert (stats.denied_out, stats.denied_in, len(net_policy.denied)) == (PACKETS, 0, 1)

        @pytest.mark.xdist_group("one")
        def test_one(net_policy): check(net_policy, ONE, TWO)
        @pytest.mark.xdist_group("two")
        def test_two(net_policy): check(net_policy, TWO, ONE)
        """
    )
    plain("-p", "xdist", "-n", "2", "--dist", "loadgroup").assert_outcomes(passed=2)


def test_kill_9_leaves_no_program_interface_or_group_at_the_next_start(
    pytester: pytest.Pytester, plain: Run, tests: Callable[[str], None]
) -> None:
    tests(
        """
        import os, pathlib, signal
        @pytest.mark.isolate(net="private")
        @pytest.mark.netpolicy()
        def test_killed():
            if not pathlib.Path("killed").exists():
                pathlib.Path("killed").touch()
                os.kill(int(os.environ["OUTER"]), signal.SIGKILL)
                time.sleep(60)
        def test_next(net_policy): net_policy.allow("localhost"); dial()
        """
    )
    code = "import os, sys, pytest; os.environ['OUTER'] = str(os.getpid()); sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-p", "pytest_isolate.runner.plugin", "--isolate-profile=minimal"]
    with subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE) as killed:
        output, _ = killed.communicate(timeout=60)
    assert killed.returncode == -9, output.decode()
    assert groups_of(killed.pid), "it was killed before it had made anything"
    plain(timeout=120).assert_outcomes(passed=2)
    assert groups_of(killed.pid) == []
    assert gone(f"iso{(killed.pid * 61 + n) % SUBNETS:x}" for n in range(64))


def test_a_forked_test_has_no_descriptor_of_an_engine(plain: Run, pytester: pytest.Pytester) -> None:
    """Neither of the run's own, nor of that of wide sandboxes: they write policies."""
    pytester.makepyfile(
        """
        import os
        import pytest

        def held():
            names = []
            for fd in os.listdir("/proc/self/fd"):
                try:
                    names.append(os.readlink(f"/proc/self/fd/{fd}"))
                except FileNotFoundError:
                    pass
            return [name for name in names if "bpf" in name]

        @pytest.fixture(scope="session")
        def running(sandbox_session):
            assert sandbox_session.network.subnet is not None
            words = {"net": "private", "net_allow": ["192.0.2.1"]}
            spawned = sandbox_session.spawn(["sleep", "60"], **words)
            assert held()
            yield words

        @pytest.mark.netpolicy()
        def test_one(running, sandbox_session):
            assert held() == []
            assert sandbox_session.run(["true"], **running).ok

        def test_two(running, sandbox_session):
            assert sandbox_session.python(held, policy={"net": "policy"}) == []
            assert held()
        """
    )
    plain("--isolate", "--isolate-net=policy").assert_outcomes(passed=2)
