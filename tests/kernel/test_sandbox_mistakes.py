"""Sandbox with words that have no meaning, in several threads at once, and interrupted: refused in a line, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from pytest_isolate import CallFailed, PolicyError, ProgramFailed, Sandbox
from pytest_isolate.kernel import probe
from pytest_isolate.policy import Filesystem, Overlay, Policy, Tmpfs
from tests.conftest import require


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["cat", "/etc/hostname\0.public"], {}),
        (["true"], {"env": {"A": "b\0c"}}),
        (["true"], {"cwd": "/usr\0x"}),
        (["true"], {"stdin": subprocess.PIPE}),
        (["true"], {"pids": 1.5}),
        (["true"], {"timeout": 10**400}),
        (["true"], {"memory": "1" * 5000}),
        (["true"], {"pids": 10**5000}),
        (["true"], {"fs": "minimal", "namespaces": "nothing"}),
    ],
    ids=[
        "NUL in argv",
        "NUL in env",
        "NUL in cwd",
        "PIPE",
        "half a process",
        "for ever",
        "too large",
        "too many",
        "namespaces",
    ],
)
def test_what_has_no_meaning_is_refused(sandbox: Sandbox, argv: list[str], words: dict[str, Any]) -> None:
    sandbox.run(["true"])
    before = descriptors()
    with pytest.raises(PolicyError):
        sandbox.run(argv, **words)
    assert descriptors() == before


def test_a_relative_mask_would_hide_nothing() -> None:
    with pytest.raises(PolicyError, match="relative"):
        Filesystem(masks=("secret",))


def test_input_that_is_no_text_leaves_no_descriptor(sandbox: Sandbox) -> None:
    sandbox.run(["true"])
    before = descriptors()
    for wrong, error in (("\udcff", UnicodeEncodeError), (5, TypeError)):
        with pytest.raises(error):
            sandbox.run(["cat"], input=wrong)  # type: ignore[arg-type]
    assert descriptors() == before


def test_arguments_may_be_bytes(sandbox: Sandbox) -> None:
    assert sandbox.run([b"echo", b"hi"]).stdout == "hi\n"
    with pytest.raises(ProgramFailed, match="false: exited with status 1"):
        sandbox.run([b"false"], check=True)


def test_a_view_without_meaning_is_nobodys_lack(sandbox: Sandbox) -> None:
    """No other backend is asked: it might make what is missing, on the host."""
    with pytest.raises(PolicyError, match="does not exist, and creating it would change the host"):
        sandbox.run(["true"], fs=Filesystem(proc=False, tmpfs=(Tmpfs(target="/no such directory"),)))


@pytest.mark.parametrize("size_bytes", [0, -1, "1M", 1.5])
def test_a_size_that_is_none_is_refused_before_it_means_no_limit(size_bytes: Any) -> None:
    for kind in (Tmpfs, Overlay):
        assert kind(target="/tmp", size_bytes=4096).size_bytes == 4096
        with pytest.raises(PolicyError, match=r"/tmp: size_bytes .* is no size\. Write a number above 0"):
            kind(target="/tmp", size_bytes=size_bytes)


@pytest.mark.parametrize("mode", ["1777", -1, 0o10000, None])
def test_a_mode_that_is_none_is_refused(mode: Any) -> None:
    with pytest.raises(PolicyError, match=r"tmpfs /tmp: mode .* is no mode\. Write a number, such as 0o1777"):
        Tmpfs(target="/tmp", mode=mode)


class Interrupted(Exception):
    pass


def test_a_call_that_is_interrupted_leaves_nothing(sandbox: Sandbox) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    assert sandbox.python(os.getpid) != os.getpid()
    before = descriptors()
    was = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Interrupted):
            sandbox.python(time.sleep, 6179)
    finally:
        signal.signal(signal.SIGALRM, was)
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_call_may_have_more_time_than_poll_can_count(sandbox: Sandbox) -> None:
    assert sandbox.python(int, "7", policy={"timeout": 3e6}) == 7
    with pytest.raises(CallFailed, match="TIMEOUT"):
        sandbox.python(time.sleep, 60, policy={"timeout": 0.2, "grace": 0.1})


def _speaks(found: list[int]) -> list[int]:
    print("out")
    print("err", file=sys.stderr, flush=True)
    return [fd for fd in found if os.path.exists(f"/proc/self/fd/{fd}")]


@pytest.mark.parametrize("words", [{}, {"memory": "200M"}, {"net": "none"}], ids=["alone", "group", "network"])
def test_a_call_that_closes_what_it_inherits_answers_and_is_heard(
    sandbox: Sandbox, words: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    if "memory" in words:
        feature = probe.feature("cgroup_memory")
        require("cgroup-memory", feature.available, feature.reason)
    sandbox.run(["true"], **words)  # what is made ready for a next one is open now, and closed inside
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    try:
        assert sandbox.python(_speaks, fds, policy=words) == fds
        assert sandbox.python(_speaks, fds, policy={"close_fds": True, **words}) == []
        with pytest.raises(CallFailed, match="invalid literal"):
            sandbox.python(int, "seven", policy={"close_fds": True, **words})
        with pytest.raises(CallFailed, match=r"exited with status 3 said before"):
            sandbox.python(_leaves, policy={"close_fds": True, **words})
    finally:
        for fd in fds:
            os.close(fd)
    assert capfd.readouterr().err == "err\n", (
        "of the first alone, whose streams were pytest's; nothing of what was closed"
    )


def _leaves() -> None:
    os.write(2, b"said before")
    os._exit(3)


def test_all_who_wait_are_given_the_one_outcome(sandbox: Sandbox) -> None:
    running = sandbox.spawn(["sh", "-c", "sleep 0.3; echo done"])
    found = []
    threads = [threading.Thread(target=lambda: found.append(running.wait())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {id(outcome) for outcome in found} == {id(running.wait())}
    assert running.stdout == "done\n"


def test_a_sandbox_that_another_thread_closes_ends_what_runs(sandbox: Sandbox) -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(sandbox.run(["sleep", "60"]).status.signal))
    thread.start()
    time.sleep(0.3)
    sandbox.close()
    thread.join(20)
    assert found == [signal.SIGTERM]


@pytest.mark.parametrize("call", ["run", "python"])
def test_a_sandbox_that_another_thread_closes_ends_what_is_being_started(call: str) -> None:
    starting, closed = threading.Event(), threading.Event()

    class Halting(Sandbox):
        def _vary(self, words: Mapping[str, Any]) -> Policy:
            starting.set()
            assert closed.wait(20)
            return super()._vary(words)

    def work() -> None:
        if call == "run":
            ended.append(sandbox.run(["sleep", "60"]).status.signal)
        else:
            with pytest.raises(CallFailed):
                sandbox.python(time.sleep, 60)
            ended.append(signal.SIGTERM)

    ended: list[int | None] = []
    with Halting() as sandbox:
        thread = threading.Thread(target=work)
        thread.start()
        assert starting.wait(20)
        sandbox.close()
        closed.set()
        thread.join(20)
        assert ended == [signal.SIGTERM]


def test_many_policies_are_not_all_kept(sandbox: Sandbox) -> None:
    from pytest_isolate.registry import backends

    (native,) = backends(["native"])
    for number in range(300):
        assert sandbox.run(["true"], timeout=100 + number).ok
    assert len(native._compiled) <= 64  # type: ignore[attr-defined]
