"""The floor: each test in a bare os.fork, its reports back over a pipe, waitpid. Nothing is isolated but memory.

Owns: a pytest plugin (-p bare_fork_plugin) that per_test.py measures everything against. It does what pytest-forked does and no
more: no capture of a crash, no time-out, no wide fixtures, no clean-up. Refuses: to be used for anything else.
"""

from __future__ import annotations

import json
import os

import pytest
from _pytest.runner import runtestprotocol


def run_in_child(item: pytest.Item, write_fd: int) -> None:
    to_plain = item.config.hook.pytest_report_to_serializable
    reports = [to_plain(config=item.config, report=report) for report in runtestprotocol(item, log=False)]
    data = json.dumps(reports).encode()
    while data:
        data = data[os.write(write_fd, data) :]


def read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 65536):
        chunks.append(chunk)
    return b"".join(chunks)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            run_in_child(item, write_fd)
        finally:
            os._exit(0)
    os.close(write_fd)
    data = read_all(read_fd)
    os.close(read_fd)
    os.waitpid(pid, 0)
    for plain in json.loads(data):
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=plain)
        item.ihook.pytest_runtest_logreport(report=report)
    item.session._setupstate.teardown_exact(nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
