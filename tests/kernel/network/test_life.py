"""Whatever happens to the run, nothing of ours stays in the kernel; and each missing thing names its remedy."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_isolate.errors import BackendUnavailable, PolicyError, SetupError
from pytest_isolate.kernel import bcc
from pytest_isolate.kernel.bpf import dataplane, load, objects
from pytest_isolate.kernel.bpf.libbpf import library
from pytest_isolate.network import NetworkPolicy, PolicyEngine
from tests.conftest import require_front_end
from tests.kernel.launching import become
from tests.kernel.network.conftest import Box, attempt, tcp
from tests.kernel.throwaway import mount, throwaway

ROOT = Path(__file__).resolve().parents[3]


def _loaded() -> set[int]:
    """Identities of every program in the kernel."""
    lib, found, number = library(), set(), ctypes.c_uint32(0)
    while lib.bpf_prog_get_next_id(number.value, ctypes.byref(number)) == 0:
        found.add(number.value)
    return found


def _maps() -> set[int]:
    lib, found, number = library(), set(), ctypes.c_uint32(0)
    while lib.bpf_map_get_next_id(number.value, ctypes.byref(number)) == 0:
        found.add(number.value)
    return found


def _settled(before, after, seconds=5.0):
    """True when everything that is new is gone: the kernel frees programs and maps a little after their last user."""
    end = time.monotonic() + seconds
    while after() - before and time.monotonic() < end:
        time.sleep(0.05)
    return not after() - before


RUN = """
import os, sys
sys.path.insert(0, {root!r})
from pytest_isolate.network import NetworkPolicy, PolicyEngine
leaf = os.open({leaf!r}, os.O_RDONLY)
engine = PolicyEngine({home!r}, flows=100).__enter__()
net = engine.attach(leaf, NetworkPolicy().allow_host("db.test", tcp=[80]))
engine.interfaces
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_no_program_no_map_and_no_policy(hive, listen, netns, how):
    home = hive / "isolate-killed"
    leaf = home / "leaf"
    home.mkdir()
    leaf.mkdir()
    programs, maps = _loaded(), _maps()
    with subprocess.Popen(
        [sys.executable, "-c", RUN.format(root=str(ROOT), leaf=str(leaf), home=str(home))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        assert _loaded() - programs
        run.send_signal(how)
        run.wait()
    assert _settled(programs, _loaded)
    assert _settled(maps, _maps)
    for path in (*(x for x in home.iterdir() if x.is_dir()), home):
        path.rmdir()


def test_two_runs_at_once_do_not_meet(hive, box, other_box, listen, loader):
    address = listen().getsockname()
    with PolicyEngine(box.cgroup, loader=loader) as second, box.attach(NetworkPolicy().allow("203.0.113.7")) as ours:
        theirs = second.attach(other_box.fd, NetworkPolicy())
        assert box.run(lambda: attempt(lambda: tcp(address))[0]) == "ok"
        assert other_box.run(lambda: attempt(lambda: tcp(address))[0]) == "EPERM"
        assert ([e.port for e in theirs.denied], ours.denied) == ([address[1]], [])


def test_a_nested_policy_can_only_take_away(box, listen, hive, netns, engine):
    """A pytest run inside a sandbox: both policies have to agree."""
    one, two = listen().getsockname(), listen().getsockname()
    below = box.cgroup / "isolate-inner"
    below.mkdir()
    inner = Box(below, netns, engine)
    with (
        box.attach(NetworkPolicy().allow("203.0.113.7", tcp=[one[1]])),
        inner.attach(NetworkPolicy().allow("203.0.113.7")),
    ):
        assert inner.run(lambda: [attempt(lambda a=a: tcp(a))[0] for a in (one, two)]) == ["ok", "EPERM"]
    inner.close()
    below.rmdir()


def test_the_child_keeps_no_descriptor_of_ours(box, engine):
    def held():
        """This engine's descriptors that are open here, and how often this process maps memory of eBPF's."""
        links = {
            fd: os.readlink(f"/proc/self/fd/{fd}") for fd in engine.fds() if os.path.lexists(f"/proc/self/fd/{fd}")
        }
        maps = Path("/proc/self/maps").read_text()
        return [sorted(fd for fd, link in links.items() if "bpf" in link), maps.count("anon_inode:bpf")]

    ours = engine.fds()
    with box.attach(NetworkPolicy()):
        here = held()
        inside = box.run(lambda: [[fd for fd in ours if _is_bpf(fd)], held()[1]])
        assert here[0] != []
        assert inside[0] == []
        assert inside[1] < here[1]


def _is_bpf(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}") and "bpf" in os.readlink(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("how", ["drops it", "leaves it"])
def test_what_a_child_does_with_its_copy_is_nothing_to_the_parent(how, hive, netns, listen, loader):
    """It collects it as garbage, or leaves it as its parent will: the policy and the directory stay."""
    address = listen().getsockname()
    home, leaf = hive / "isolate-home", hive / "isolate-leaf"
    home.mkdir()
    leaf.mkdir()
    here = {"engine": PolicyEngine(home, loader=loader).__enter__()}  # by one name only, for the child to forget
    here["box"] = Box(leaf, netns, here["engine"])
    here["net"] = here["box"].attach(NetworkPolicy())
    if (pid := os.fork()) == 0:
        try:
            if how == "leaves it":
                here["engine"].__exit__(None, None, None)
            else:
                here["engine"].close_in_child()
                here.clear()
                gc.collect()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    residents = list(home.glob("*-resident-*"))
    answer = here["box"].run(lambda: attempt(lambda: tcp(address))[0])
    refused = here["net"].stats.denied_out
    here["box"].close()
    here["engine"].__exit__(None, None, None)
    home.rmdir()  # nothing is left in it
    leaf.rmdir()
    assert (status, len(residents), answer, refused) == (0, 1, "EPERM", 1)


def test_without_privilege_the_remedy_is_named(loader):
    def without():
        become(65534)
        try:
            loader(objects.PROGRAMS)
        except BackendUnavailable as error:
            return str(error)
        return "loaded"

    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, without().encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    answer = os.read(reading, 65536).decode()
    os.close(reading)
    assert "CAP_BPF" in answer


def test_bpffs_is_not_needed(loader):
    """Nothing is pinned: neither front end looks at /sys/fs/bpf."""

    def hidden():
        mount("tmpfs", "/sys/fs/bpf", "tmpfs", 0, "mode=000")

    def loads():
        with loader(objects.PROGRAMS) as plane:
            return sorted(plane.programs)

    assert throwaway(loads, prepare=hidden) == sorted(objects.PROGRAMS)


def test_a_missing_object_names_how_to_build_it(tmp_path, monkeypatch):
    monkeypatch.setattr(dataplane, "OBJECTS", tmp_path)
    with pytest.raises(BackendUnavailable, match="make -C bpf"):
        load(objects.PROGRAMS)


def test_an_object_that_is_none_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "netpolicy.bpf.o").write_bytes(b"\x7fELF" + b"\0" * 100)
    monkeypatch.setattr(dataplane, "OBJECTS", tmp_path)
    with pytest.raises(SetupError, match="bpf-open"):
        load(objects.PROGRAMS)


@pytest.fixture
def _bcc():
    require_front_end("bcc")


@pytest.mark.usefixtures("_bcc")
def test_what_the_verifier_refuses_is_said_in_its_words():
    text = "#include <uapi/linux/bpf.h>\nint bad(struct __sk_buff *skb) { return *(int *)(long)skb->data; }"
    code = bcc.compile_text(text, ["bad"], {})
    with pytest.raises(SetupError, match="invalid access to packet") as caught:
        bcc.load_program("bad", code["bad"], objects.PROGRAMS["np_egress"])
    assert len(str(caught.value).splitlines()) < 20


@pytest.mark.usefixtures("_bcc")
def test_what_does_not_compile_is_said_in_clangs_words():
    with pytest.raises(PolicyError, match="use of undeclared identifier"):
        bcc.compile_text("int f(void *ctx) { return nothing; }", ["f"], {})


@pytest.mark.usefixtures("_bcc")
@pytest.mark.parametrize(
    ("source", "words"), [("raise ImportError('no module')", "python3-bpfcc"), ("x = 1", "unrelated")]
)
def test_a_missing_or_unrelated_bcc_names_the_right_package(tmp_path, monkeypatch, source, words):
    """An interpreter whose bcc is not bcc: the package of that name on the index."""
    (tmp_path / "bcc.py").write_text(source)
    fake = tmp_path / "python"
    run = f'import sys, runpy; sys.path.insert(0, "{tmp_path}"); runpy.run_path(sys.argv[1], run_name="__main__")'
    fake.write_text(f"#!/bin/sh\nshift\nexec {sys.executable} -c '{run}' \"$@\"\n")
    fake.chmod(0o755)
    monkeypatch.setattr(bcc, "interpreter", lambda: str(fake))
    with pytest.raises(BackendUnavailable, match=words):
        bcc.compile_text("int f(void *ctx) { return 0; }", ["f"], {})
