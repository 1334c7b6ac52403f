"""The layout, from texts as hosts print them, and of this host."""

from __future__ import annotations

import os

import pytest

from pytest_isolate.kernel.cgroups import discover
from pytest_isolate.kernel.cgroups.layout import parse

CGROUPS = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nmemory\t0\t1\t0\nblkio\t7\t1\t1\n"
V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
V1_CPU = "33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "35 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V1_BLKIO = "36 31 0:32 / /mnt/odd\\040place rw - cgroup cgroup rw,blkio\n"
V1_SYSTEMD = "32 31 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
EMPTY_V2 = "37 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


def test_a_pure_v2_host():
    layout = parse(V2, "0::/user.slice/session-1.scope\n", CGROUPS)
    assert layout.kind == "v2"
    assert layout.v2.directory == "/sys/fs/cgroup/user.slice/session-1.scope"
    assert layout.v2.options == {"nsdelegate", "memory_recursiveprot"}
    assert layout.disabled == {"memory"}


def test_a_v1_host_with_two_controllers_in_one_hierarchy_and_a_mount_point_with_a_space():
    own = "5:cpu,cpuacct:/\n4:memory:/job/7\n3:blkio:/x\n1:name=systemd:/\n"
    layout = parse(V1_CPU + V1_MEMORY + V1_BLKIO + V1_SYSTEMD, own, CGROUPS)
    assert layout.kind == "v1"
    assert layout.where("cpu") is layout.where("cpuacct")
    assert layout.where("cpu").directory == "/sys/fs/cgroup/cpu,cpuacct"
    assert layout.where("memory").directory == "/sys/fs/cgroup/memory/job/7"
    assert layout.where("io").directory == "/mnt/odd place/x"
    assert layout.where("pids") is None
    assert len(layout.v1) == 3, "a named hierarchy has no controller and is not ours"


def test_a_hybrid_host_has_both():
    layout = parse(V1_MEMORY + EMPTY_V2, "4:memory:/\n0::/\n", CGROUPS)
    assert layout.kind == "hybrid"
    assert layout.where("memory").version == 1
    assert layout.v2.directory == "/sys/fs/cgroup/unified"


def test_a_container_without_a_cgroup_namespace_sees_its_own_cgroup_as_the_mounts_root():
    mount = "35 31 0:31 /docker/ab /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n"
    layout = parse(mount, "4:memory:/docker/ab/inner\n", CGROUPS)
    assert layout.where("memory").directory == "/sys/fs/cgroup/memory/inner"
    assert layout.where("memory").read_only


@pytest.mark.parametrize(
    ("root", "own", "directory"),
    [
        ("/", "/", "/sys/fs/cgroup"),
        ("/..", "/", None),
        ("/../..", "/../x", None),
        ("/..", "/../sister", "/sys/fs/cgroup/sister"),
        ("/job", "/other", None),
        ("/job", "/job2", None),
        ("/", "/..", None),
        ("/", "/gone (deleted)", "/sys/fs/cgroup/gone"),
    ],
)
def test_our_own_directory_is_known_only_when_the_mount_shows_it(root, own, directory):
    mount = f"29 23 0:26 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert parse(mount, f"0::{own}\n", "").v2.directory == directory


def test_a_mount_hidden_by_a_later_one_is_not_there():
    over = "50 31 0:50 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    assert parse(V2 + over, "0::/\n", "").kind == "none"
    assert parse(over + V2, "0::/\n", "").kind == "v2"
    beside = "50 31 0:50 / /sys/fs/cgroup2 rw - tmpfs tmpfs rw\n"
    assert parse(V2 + beside, "0::/\n", "").kind == "v2"


def test_of_two_mounts_of_one_hierarchy_the_writable_one_that_shows_most_is_taken():
    read_only = "60 23 0:26 / /other ro - cgroup2 cgroup2 rw\n"
    part = "61 23 0:26 /job /third rw - cgroup2 cgroup2 rw\n"
    for text in (read_only + part + V2, V2 + part + read_only):
        assert parse(text, "0::/job\n", "").v2.directory == "/sys/fs/cgroup/job"


@pytest.mark.parametrize("text", ["", "\n", "garbage", "1 2 3\n", "29 23 0:26 / /x rw - ext4 /dev/sda rw\n"])
def test_a_host_without_cgroups_or_with_an_unreadable_proc_has_none(text):
    assert parse(text, text, text).kind == "none"


def test_what_is_found_here_is_really_there():
    layout = discover()
    assert layout.kind != "none"
    for hierarchy in (*layout.v1, *([layout.v2] if layout.v2 else [])):
        with open(f"{hierarchy.directory}/cgroup.procs") as file:
            assert str(os.getpid()) in file.read().split()
