"""The fixture ``net_policy``: what it changes is at once the running test's, and no other's."""

from __future__ import annotations

from collections.abc import Callable

from tests.conftest import require_front_end
from tests.pytest.conftest import Run


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
