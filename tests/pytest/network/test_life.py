"""Policies of runs at once, of a run that was killed, and the descriptors of their engines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from pytest_isolate.kernel.interfaces import SUBNETS
from tests.kernel.network.conftest import gone
from tests.pytest.conftest import Run


def groups_of(pid: int) -> list[str]:
    """Directories of that run in every cgroup hierarchy."""
    found = subprocess.run(
        ["find", "/sys/fs/cgroup", "-type", "d", "-name", f"pytest-isolate-*-{pid}-*"], capture_output=True, text=True
    )
    return found.stdout.split()


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


def test_a_child_that_collects_garbage_takes_nothing_of_the_runs_away(plain: Run, tests: Callable[[str], None]) -> None:
    """It drops its copy of what holds policies and networks in force: that must not undo them."""
    tests(
        """
        import gc, os

        @pytest.mark.netpolicy()
        def test_one(net_policy): net_policy.allow("localhost"); dial()

        @pytest.mark.parametrize("turn", range(3))
        def test_collects(turn): gc.unfreeze(); gc.collect()

        @pytest.mark.netpolicy()
        def test_last():
            with pytest.raises(PermissionError): dial()
        """
    )
    result = plain("--isolate")
    result.assert_outcomes(passed=5)
    assert result.ret == 0
    result.stderr.no_fnmatch_line("*Traceback*")


def test_a_test_that_starts_beside_another_leaves_it_its_private_network(
    plain: Run, tests: Callable[[str], None]
) -> None:
    tests(
        """
        import pathlib
        begun = pathlib.Path("begun").absolute()

        @pytest.mark.isolate(net="private")
        def test_one():
            while not begun.exists(): time.sleep(0.01)
            assert "eth0" in dict(socket.if_nameindex()).values()

        def test_two():
            begun.touch()
        """
    )
    plain("--isolate", "--isolate-jobs=2").assert_outcomes(passed=2)
