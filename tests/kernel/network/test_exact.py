"""Two tests with opposite policies, a million packets each, on every CPU: no count is off by one."""

from __future__ import annotations

import os
import subprocess

import pytest

from pytest_isolate.kernel.bpf.dataplane import OBJECTS
from pytest_isolate.kernel.namespaces import CLONE_NEWNET, setns
from pytest_isolate.network import NetworkPolicy

EACH, SENDERS, SIZE = 500_000, 2, 100


@pytest.fixture(scope="module")
def traffic(require):
    program = OBJECTS / "net_traffic"
    require("bpf", program.is_file(), f"{program.name} is not in the package: make -C bpf")
    return str(program)


def _send(traffic, box, host, cpu, port):
    def enter():
        (box.cgroup / "cgroup.procs").write_text("0")
        setns(box.namespace.fd, CLONE_NEWNET)

    argv = [traffic, "udp", str(cpu), str(EACH), str(SIZE), host, str(port)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=enter)  # noqa: PLW1509


@pytest.mark.parametrize("flows", [False, True])
def test_a_million_packets_each_are_counted_to_the_last(box, other_box, traffic, flows):
    """Sent as sendmmsg(2) says; each box may only reach the other's forbidden address."""
    hosts = ("203.0.113.7", "203.0.113.8")
    nets = [
        b.attach(NetworkPolicy(flows=flows).allow(h).deny(o))
        for b, h, o in ((box, *hosts), (other_box, *reversed(hosts)))
    ]
    cpus = sorted(os.sched_getaffinity(0))
    jobs = [
        [_send(traffic, b, h, cpus[i % len(cpus)], 9000 + i) for i in range(SENDERS)]
        for b, h in zip((box, other_box), hosts, strict=True)
    ]
    sent = [sum(int(j.communicate()[0]) for j in row) for row in jobs]
    assert sent == [EACH * SENDERS] * 2
    for b, h in ((box, hosts[1]), (other_box, hosts[0])):
        job = _send(traffic, b, h, cpus[0], 9000)
        assert "Operation not permitted" in job.communicate()[1]
    for net, count in zip(nets, sent, strict=True):
        net.close()
        assert (net.stats.packets_out, net.stats.l3_bytes_out) == (count, count * (SIZE + 28))
        assert (net.stats.denied_out, len(net.denied)) == (1, 1)
        if flows:
            assert sum(f.packets_out for f in net.flows()) == count
