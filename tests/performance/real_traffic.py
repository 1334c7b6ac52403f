# ruff: noqa: PLW1509
"""ping and iperf3 in a cgroup under a policy, over a veth: the policy's counts against what the programs say they sent.
Then both again while perf-test watches the host's end of the veth: what it prints last against what they say.

Called by benchmark_test.sh. Exit status 0: all equal. Refuses: any address but those of its own two namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pytest_isolate.kernel.interfaces import Netns, loopback_up, private_network  # noqa: E402
from pytest_isolate.kernel.namespaces import CLONE_NEWNET, setns  # noqa: E402
from pytest_isolate.network import NetworkPolicy, PolicyEngine  # noqa: E402
from pytest_isolate.network.perf import _home  # noqa: E402


def run(argv: list[str], netns: Netns, cgroup: Path | None = None) -> str:
    """Output of a program in a namespace, and in a cgroup."""

    def enter() -> None:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text("0")
        setns(netns.fd, CLONE_NEWNET)

    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=enter)
    if done.returncode:
        print(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    seconds = sys.argv[1] if len(sys.argv) > 1 else "5"
    wrong = 0

    def compare(what: str, counted: int, said: int, fits: Callable[[int, int], bool] = int.__eq__) -> None:
        nonlocal wrong
        good = fits(counted, said)
        wrong += not good
        print(f"{'ok    ' if good else 'WRONG '} {what}: counted {counted}, said {said}")

    with contextlib.ExitStack() as stack:
        home = _home(stack)
        leaf = home / "leaf"
        leaf.mkdir()
        stack.callback(leaf.rmdir)
        engine = stack.enter_context(PolicyEngine(home))
        host, test = stack.enter_context(Netns()), stack.enter_context(Netns())
        loopback_up(host.fd)
        loopback_up(test.fd)
        subnet, _ = stack.enter_context(private_network(test.fd, host.fd))
        peer = subnet.host[0].partition("/")[0]
        fd = os.open(leaf, os.O_RDONLY)
        stack.callback(os.close, fd)
        if shutil.which("ping"):
            with engine.attach(fd, NetworkPolicy(raw=True).allow(peer, icmp=True, udp=[1025])) as net:
                # udp 1025: ping connects a datagram socket there, without sending, to learn its own address.
                text = run(["ping", "-c", "50", "-i", "0.01", "-s", "100", peer], test, leaf)
                said = re.search(r"(\d+) packets transmitted, (\d+) received", text)
                compare("ping requests", net.stats.packets_out, int(said[1]) if said else -1)
                compare("ping bytes", net.stats.l3_bytes_out, 128 * (int(said[1]) if said else -1))
        if shutil.which("iperf3"):
            server = subprocess.Popen(
                ["iperf3", "-s", "-B", peer], stdout=subprocess.DEVNULL, preexec_fn=lambda: setns(host.fd, CLONE_NEWNET)
            )
            try:
                with engine.attach(fd, NetworkPolicy().allow(peer, tcp=[5201], udp=[5201])) as net:
                    text = run(["iperf3", "-c", peer, "-u", "-b", "200M", "-t", seconds, "-J"], test, leaf)
                    udp = json.loads(text)["end"]["sum"]
                    # Its control connection and the datagrams that open and close the test are not in its own count.
                    compare(
                        "iperf3 UDP datagrams (and its control traffic)",
                        net.stats.packets_out,
                        udp["packets"],
                        lambda c, s: s <= c <= s + 60,
                    )
                with engine.attach(fd, NetworkPolicy().allow(peer, tcp=[5201])) as net:
                    text = run(["iperf3", "-c", peer, "-t", seconds, "-J"], test, leaf)
                    sent = json.loads(text)["end"]["sum_sent"]
                    print(
                        f"       iperf3 TCP {sent['bits_per_second'] / 1e9:.2f} Gbit/s, {net.stats.wire_packets_out} wire packets"
                    )
                    payload = net.stats.wire_l3_bytes_out - 52 * net.stats.wire_packets_out
                    # Between what the server got and what was written (some of it never left) plus what was sent again.
                    got = json.loads(text)["end"]["sum_received"]["bytes"]
                    again = 1448 * (sent.get("retransmits", 0) + 64) + 200_000
                    fits = lambda counted, got, most=sent["bytes"] + again: got <= counted <= most  # noqa: E731
                    compare("iperf3 TCP payload bytes (and its control traffic)", payload, got, fits)
            finally:
                server.terminate()
                server.wait()
        if shutil.which("ping") and shutil.which("iperf3"):
            total, said = under_perf_test(host, test, subnet.interface, peer, seconds)
            # Both ways: echo and answer, datagrams; beside them iperf3's control connection, and what neighbours ask of each other.
            compare("perf-test, while ping and iperf3 UDP run", total, said, lambda c, s: s <= c <= s + 300)
    return 1 if wrong else 0


def under_perf_test(host: Netns, test: Netns, interface: str, peer: str, seconds: str) -> tuple[int, int]:
    """(packets that the running perf-test counted, packets that ping and iperf3 say they sent and got)."""
    enter = lambda: setns(host.fd, CLONE_NEWNET)  # noqa: E731
    command = [sys.executable, "-m", "pytest_isolate.network.perf", "--interface", interface]
    command += ["--duration", "600", "--interval", "1"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=enter)
    assert watching.stdout is not None
    lines = [watching.stdout.readline(), watching.stdout.readline()]  # loaded; the first statistics: it is attached
    before = _total(lines[-1])
    server = subprocess.Popen(["iperf3", "-s", "-B", peer], stdout=subprocess.DEVNULL, preexec_fn=enter)
    try:
        pinged = re.search(
            r"(\d+) packets transmitted, (\d+) received", run(["ping", "-c", "50", "-i", "0.01", peer], test)
        )
        sent = json.loads(run(["iperf3", "-c", peer, "-u", "-b", "100M", "-t", seconds, "-J"], test))["end"]["sum"]
    finally:
        server.terminate()
        server.wait()
        watching.terminate()
        lines += watching.stdout.readlines()
        watching.wait()
    print("".join(f"       {line}" for line in lines[:1] + lines[-2:]), end="")
    return _total(lines[-1]) - before, int(pinged[1]) + int(pinged[2]) + sent["packets"] if pinged else -1


def _total(line: str) -> int:
    found = re.search(r"total (\d+)", line)
    return int(found[1]) if found else -1


if __name__ == "__main__":
    sys.exit(main())
