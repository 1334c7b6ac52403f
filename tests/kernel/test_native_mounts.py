"""The mount table as the C child interprets it, and the cgroup that a child starts in."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.kernel import native
from pytest_isolate.kernel.filesystem.context import has_mount_setattr
from pytest_isolate.kernel.plan import MountKind, MountOp, Plan
from tests.kernel.launching import (
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    PRIVATE,
    forked,
    plan,
    run,
    value,
)
from tests.kernel.refusals import places, refused


def building(root: Path, *ops: MountOp) -> Plan:
    """A new root on tmpfs with the host's /usr read-only in it; then ops; then the pivot."""
    target = str(root)
    table = [
        PRIVATE,
        MountOp(kind=MountKind.MOUNT, source="tmpfs", target=target, fstype="tmpfs", flags=MS_NOSUID, data="mode=755"),
        MountOp(kind=MountKind.MKDIR, target=f"{target}/usr"),
        MountOp(kind=MountKind.BIND, source="/usr", target=f"{target}/usr", flags=MS_BIND | MS_REC),
        MountOp(kind=MountKind.REMOUNT, target=f"{target}/usr", flags=MS_RDONLY),
        *(
            MountOp(kind=MountKind.SYMLINK, source=f"usr/{name}", target=f"{target}/{name}")
            for name in ("bin", "lib", "lib64")
        ),
        MountOp(kind=MountKind.MKDIR, target=f"{target}/proc"),
        MountOp(kind=MountKind.MOUNT, source="proc", target=f"{target}/proc", fstype="proc", flags=14),
        *ops,
        MountOp(kind=MountKind.PIVOT, target=target),
    ]
    return Plan(namespaces=0x20020000, mounts=tuple(table))


def test_a_new_root_is_built_and_the_old_one_is_gone(tmp_path: Path) -> None:
    deep = MountOp(kind=MountKind.MKDIR, target=f"{tmp_path}/a/b/c/", data="700")
    file = MountOp(kind=MountKind.MKFILE, target=f"{tmp_path}/etc/empty")
    script = "ls /; stat -c %a /a/b/c /etc/empty; touch /usr/x || echo read-only; cut -d' ' -f2 /proc/mounts | grep -v ^/usr/"
    listing = run(building(tmp_path, deep, file), "/bin/sh", "-c", script).text.split()
    assert listing[:7] == ["a", "bin", "etc", "lib", "lib64", "proc", "usr"]
    assert listing[7:10] == ["700", "644", "read-only"]
    assert listing[10:] == ["/", "/usr", "/proc"]  # besides what the host has mounted below /usr
    assert list(tmp_path.iterdir()) == []


def test_a_symlink_in_a_new_root_cannot_lead_a_mount_outside(tmp_path: Path) -> None:
    new_root, outside = tmp_path / "root", tmp_path / "outside"
    new_root.mkdir()
    outside.mkdir()
    trap = MountOp(kind=MountKind.SYMLINK, source=str(outside), target=f"{new_root}/trap")
    into = MountOp(kind=MountKind.MKFILE, target=f"{new_root}/trap/planted")
    absolute = refused(building(new_root, trap, into), "/bin/true")
    assert absolute[0].step == "mounts"
    dotted = MountOp(kind=MountKind.SYMLINK, source="../../outside", target=f"{new_root}/trap")
    refused(building(new_root, dotted, into), "/bin/true")
    assert list(outside.iterdir()) == []
    # The control: the same words reach a directory that is inside.
    inside = MountOp(kind=MountKind.MKDIR, target=f"{new_root}/{outside}")
    assert run(building(new_root, inside, trap, into), "/bin/sh", "-c", f"ls {outside}").text == "planted\n"


def test_binds_of_files_remounts_and_attributes(tmp_path: Path, require: Callable[[str, bool, str], None]) -> None:
    require("mount_setattr", has_mount_setattr(), "Linux 5.12 has mount_setattr(2)")
    (tmp_path / "file").write_text("old")
    (tmp_path / "source").write_text("new")
    (tmp_path / "dir").mkdir()
    table = (
        MountOp(kind=MountKind.BIND, source=f"{tmp_path}/source", target=f"{tmp_path}/file", flags=MS_BIND),
        MountOp(kind=MountKind.BIND, source=f"{tmp_path}", target=f"{tmp_path}/dir", flags=MS_BIND),
        MountOp(kind=MountKind.REMOUNT, target=f"{tmp_path}/dir", flags=MS_RDONLY | MS_NOSUID),
        MountOp(kind=MountKind.SETATTR, target=f"{tmp_path}/file", data="0x1"),
    )
    script = "cat $1/file; touch $1/dir/x || echo ro; echo y > $1/file || echo ro; touch $1/fine && echo rw"
    ran = run(plan("mnt", mounts=table), "sh", "-c", f"({script}) 2>/dev/null", "sh", str(tmp_path))
    assert ran.text == "newro\nro\nrw\n"
    assert (tmp_path / "file").read_text() == "old"


def test_a_device_is_made_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    tmpfs = MountOp(kind=MountKind.MOUNT, source="tmpfs", target=str(tmp_path), fstype="tmpfs")
    node = MountOp(kind=MountKind.MKNOD, target=f"{tmp_path}/dev/full", data="646:1:7")
    table = (tmpfs, node, MountOp(kind=MountKind.REMOUNT, target=str(tmp_path), flags=MS_RDONLY))
    script = "stat -c '%a %t:%T' $1/dev/full; echo x > $1/dev/full || echo full; chmod 600 $1/dev/full || echo ro"
    ran = run(plan("mnt", mounts=table, umask=0o77), "sh", "-c", f"({script}) 2>/dev/null", "sh", str(tmp_path))
    assert ran.text == "646 1:7\nfull\nro\n"
    for wrong in ("", "666", "666:1"):
        failed = refused(plan("mnt", mounts=(tmpfs, MountOp(kind=MountKind.MKNOD, target=f"{tmp_path}/x", data=wrong))))
        assert (failed[0].step, failed[0].errno, failed[0].index) == ("mounts", errno.EINVAL, 2)
    assert refused(plan("mnt", mounts=(tmpfs, node, node)))[0].errno == errno.EEXIST


def test_a_remount_takes_off_the_flags_that_it_names_and_no_other(tmp_path: Path) -> None:
    def flags(data: str) -> str:
        target = str(tmp_path)
        nodev = MountOp(kind=MountKind.MOUNT, source="tmpfs", target=target, fstype="tmpfs", flags=MS_NODEV | MS_NOSUID)
        again = MountOp(kind=MountKind.REMOUNT, target=target, flags=MS_RDONLY, data=data)
        script = f"grep {target} /proc/self/mounts | cut -d' ' -f4"
        return run(plan("mnt", mounts=(nodev, again)), "sh", "-c", script).text.partition(",relatime")[0].strip()

    assert (flags(""), flags("4")) == ("ro,nosuid,nodev", "ro,nosuid")
    wrong = MountOp(kind=MountKind.REMOUNT, target="/", data="nodev")
    assert refused(plan("mnt", mounts=(wrong,)))[0].errno == errno.EINVAL


@pytest.mark.parametrize("pivot", [False, True])
def test_what_is_made_after_a_mount_is_made_on_it(tmp_path: Path, pivot: bool) -> None:
    """The directory of the last entry is kept open for the next, until something is mounted."""
    root = str(tmp_path)

    def made(name: str) -> MountOp:
        return MountOp(kind=MountKind.MKFILE, target=f"{root}/dir/{name}")

    table = [
        MountOp(kind=MountKind.MOUNT, source="tmpfs", target=root, fstype="tmpfs"),
        MountOp(kind=MountKind.MKDIR, target=f"{root}/dir", data="2751"),
        made("below"),
        MountOp(kind=MountKind.MKDIR, target=f"{root}/other/deep"),
        made("below too"),
        MountOp(kind=MountKind.MOUNT, source="tmpfs", target=f"{root}/dir", fstype="tmpfs"),
        made("on it"),
        MountOp(kind=MountKind.SYMLINK, source="on it", target=f"{root}/dir/link"),
    ]
    look = f"cd {root}; ls dir other; umount dir; stat -c %a dir; ls dir"
    if pivot:
        for name in ("usr", "lib", "lib64", "bin", "proc"):
            table += [
                MountOp(kind=MountKind.MKDIR, target=f"{root}/{name}"),
                MountOp(kind=MountKind.BIND, source=f"/{name}", target=f"{root}/{name}"),
            ]
        table.append(MountOp(kind=MountKind.PIVOT, target=root))
        look = look.replace(f"cd {root}", "cd /")
    ran = run(plan("mnt", mounts=tuple(table), umask=0o77), "sh", "-c", look)
    assert ran.text == "dir:\nlink\non it\n\nother:\ndeep\n2751\nbelow\nbelow too\n"


def test_a_thousand_mounts(tmp_path: Path) -> None:
    ops = [MountOp(kind=MountKind.MOUNT, source="tmpfs", target=str(tmp_path), fstype="tmpfs")]
    for number in range(1000):
        target = f"{tmp_path}/{number}"
        ops += [
            MountOp(kind=MountKind.MKDIR, target=target),
            MountOp(kind=MountKind.BIND, source="/usr", target=target),
        ]
    assert run(plan("mnt", mounts=tuple(ops)), "sh", "-c", f"ls {tmp_path} | wc -l").text == "1000\n"
    assert forked(plan("mnt", mounts=tuple(ops)), os.getpid).exited.status.code == 0


# ---- cgroups ----


@pytest.fixture
def group(require: Any) -> Iterator[Path]:
    """A cgroup of our own in the version 2 hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2" and os.access(fields[1], os.W_OK)]
    require("cgroup2", bool(roots), "no writable cgroup2 mount")
    path = roots[0] / f"isolate-test-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def own_group() -> str:
    (line,) = (line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return line[3:]


@pytest.mark.parametrize("names", [(), ("pid", "mnt"), ("pid", "mnt", "cgroup")], ids="+".join)
@pytest.mark.parametrize("by", ["directory", "procs"])
def test_the_child_is_placed_into_its_cgroup(group: Path, names: tuple[str, ...], by: str) -> None:
    if by == "directory":
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        placed = plan(*names, cgroup_fd=fd)
    else:
        fd = os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        placed = plan(*names, cgroup_procs_fds=(fd,))
    outside = own_group()
    inside = "/" if "cgroup" in names else "/" + group.name
    try:
        assert value(placed, own_group) == inside
        assert run(placed, "sed", "-n", "s/^0:://p", "/proc/self/cgroup").text.strip() == inside
        with native.spawn(placed, ["sleep", "30"]) as child:
            members = (group / "cgroup.procs").read_text().split()
            assert set(members) == {str(pid) for pid in (child.pid, child.init_pid) if pid}
    finally:
        os.close(fd)
    assert own_group() == outside
    deadline = time.monotonic() + 5
    while "populated 1" in (group / "cgroup.events").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_cgroup_that_refuses_is_named_by_its_index() -> None:
    fd = os.open("/proc/self/status", os.O_RDONLY)
    try:
        assert places(refused(plan("pid", cgroup_procs_fds=(fd,)))) == ("cgroup", errno.EBADF, 0)
    finally:
        os.close(fd)
