"""Views compiled on made-up hosts: nothing is mounted, no file of this host is asked for."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from pytest_isolate.errors import BackendUnavailable, PolicyError
from pytest_isolate.kernel import filesystem
from pytest_isolate.kernel.filesystem import mountinfo
from pytest_isolate.kernel.filesystem.tree import Node, Place, Tree
from pytest_isolate.kernel.plan import MountKind, MountOp
from pytest_isolate.policy import Bind, Filesystem, Overlay, Tmpfs
from pytest_isolate.profile import STRICT

MOUNTINFO = r"""
20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
21 20 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:2 - proc proc rw
22 20 0:21 / /dev rw,nosuid shared:3 - devtmpfs udev rw,mode=755
23 22 0:22 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw
24 20 8:2 /@home /home rw,nosuid,relatime shared:5 - btrfs /dev/sda2 rw,subvol=/@home
25 24 0:30 / /home/me/with\040space ro,relatime shared:6 - fuse.sshfs me@there:/ rw,user_id=0
26 20 8:3 / /media/disc ro,relatime - iso9660 /dev/sr0 ro
""".strip()

DIRECTORIES = """
/ /bin /dev /dev/shm /etc /home /home/me /home/me/with\\040space /home/me/work /home/me/work/sub /media /media/disc /mnt /proc
/proc/sys /srv /tmp /tmp/base /usr /usr/bin /var /var/tmp
""".split()
FILES = "/dev/null /etc/passwd /home/me/work/file /proc/kcore /proc/timer_list /tmp/base/report".split()
LINKS = {"/lib": "usr/lib", "/home/link": "/home/me", "/tmp/loop": "loop"}


def lookup(path: str) -> Node | None:
    if path in LINKS:
        return Node(kind="link", link=LINKS[path])
    if path in [name.replace("\\040", " ") for name in DIRECTORIES]:
        return Node(kind="directory", mode=0o1777 if path == "/tmp" else 0o755)
    return Node(kind="file") if path in FILES else None


HOST = filesystem.Context(mounts=mountinfo.parse(MOUNTINFO), lookup=lookup)
USER = replace(HOST, user_namespace=True, root_outside=False)


def compiled(context: filesystem.Context = HOST, **view: object) -> filesystem.MountPlan:
    return filesystem.compile(Filesystem(**view), context=context)  # type: ignore[arg-type]


def story(plan: filesystem.MountPlan) -> list[str]:
    return [
        f"{op.kind.name} {op.source}>{op.target}" if op.source else f"{op.kind.name} {op.target}" for op in plan.ops
    ]


# -- mountinfo


def test_mountinfo_is_parsed_with_its_octal_escapes_flags_and_subvolumes() -> None:
    mounts = {mount.mountpoint: mount for mount in mountinfo.parse(MOUNTINFO)}
    assert mounts["/home"].root == "/@home"
    assert mounts["/proc"].flags == mountinfo.MS_NOSUID | mountinfo.MS_NODEV | mountinfo.MS_NOEXEC
    assert mounts["/home/me/with space"].flags == mountinfo.MS_RDONLY
    assert not mounts["/home/me/with space"].readonly_fs
    assert mounts["/media/disc"].readonly_fs


# -- order


def test_the_default_view_is_private_propagation_and_a_fresh_proc() -> None:
    assert story(compiled()) == ["PROPAGATION /", "MOUNT proc>/proc"]
    assert story(compiled(replace(HOST, pid_namespace=False))) == ["PROPAGATION /"]


def test_strict_seals_first_and_then_puts_the_private_places_on_top() -> None:
    plan = filesystem.compile(STRICT.filesystem, context=HOST)
    lines = story(plan)
    assert lines[:3] == ["PROPAGATION /", "SETATTR /", "MOUNT tmpfs>/mnt"]
    own = lines.index("BIND /dev/null>/mnt/place0/null")  # put together apart: it is made of the host's
    assert (
        own < lines.index("MOUNT tmpfs>/tmp") < lines.index("MOUNT proc>/proc") < lines.index("MOUNT /mnt/place0>/dev")
    )
    assert "SETATTR /proc/sys" in lines
    assert "BIND /mnt/place0/null>/proc/kcore" in lines


def test_a_sealed_view_takes_devices_from_the_host_and_gives_them_back_to_its_own() -> None:
    ops = {op.target: op for op in compiled(root="readonly").ops if op.kind is MountKind.SETATTR}
    assert ops["/"].data == str(mountinfo.MS_RDONLY | mountinfo.MS_NODEV)
    assert ops["/mnt/place0/null"].data == f"0:{mountinfo.MS_NODEV}"


def test_a_plain_user_needs_no_protection_of_what_root_alone_can_write_in_proc() -> None:
    assert not [line for line in story(filesystem.compile(STRICT.filesystem, context=USER)) if ">/proc/" in line]


def test_who_may_make_devices_takes_none_of_the_hosts() -> None:
    plan = filesystem.compile(STRICT.filesystem, context=replace(HOST, makes_devices=True))
    assert [op.data for op in plan.ops if op.target == "/dev/null"] == ["666:1:3"]
    assert "BIND /dev/null>/proc/kcore" in story(plan)
    assert not [op for op in plan.ops if op.target.startswith("/mnt")]  # no stage


def test_without_mount_setattr_every_mount_is_sealed_with_the_flags_it_has() -> None:
    plan = filesystem.compile(Filesystem(root="readonly"), context=replace(HOST, mount_setattr=False))
    sealed = {op.target: op.flags for op in plan.ops if op.kind is MountKind.REMOUNT}
    base = mountinfo.MS_REMOUNT | mountinfo.MS_BIND | mountinfo.MS_RDONLY
    assert sealed["/home"] == base | mountinfo.MS_NOSUID | mountinfo.MS_NODEV
    assert sealed["/media/disc"] == base | mountinfo.MS_NODEV
    assert sealed["/mnt/place0/null"] == base | mountinfo.MS_NOSUID


def test_what_is_sealed_on_the_host_is_not_sealed_again() -> None:
    host = replace(HOST, mounts=mountinfo.parse(MOUNTINFO.replace(" ro,relatime -", " ro,nodev,relatime -")))
    plan = filesystem.compile(Filesystem(root="readonly"), context=replace(host, mount_setattr=False))
    assert "/media/disc" not in [op.target for op in plan.ops]


def test_parents_are_mounted_before_children_whatever_the_order_of_the_wish() -> None:
    plan = compiled(tmpfs=(Tmpfs(target="/home/me/work/sub"), Tmpfs(target="/home"), Tmpfs(target="/home/me")))
    targets = [op.target for op in plan.ops if op.fstype == "tmpfs"]
    assert targets == ["/home", "/home/me", "/home/me/work/sub"]


def test_what_a_private_tmp_would_hide_is_bound_before_the_tmp_is_in_place() -> None:
    view = filesystem.for_tests(STRICT.filesystem)
    plan = filesystem.compile(
        replace(view, binds=(Bind(source="/tmp/base", target="/tmp/base", writable=True),)), context=HOST
    )
    lines = story(plan)
    assert lines.index("BIND /tmp/base>/mnt/place1/base") < lines.index("MOUNT /mnt/place1>/tmp")
    assert lines[-1] == "UMOUNT /mnt"
    assert filesystem.resolve("/tmp/base/report", plan).writable


def test_the_stage_is_no_directory_that_the_view_uses() -> None:
    plan = compiled(root="minimal", binds=(Bind(source="/mnt", target="/a"), Bind(source="/media/disc", target="/b")))
    assert plan.ops[1].target == "/srv"


# -- refusals


@pytest.mark.parametrize(
    ("view", "words"),
    [
        ({"binds": (Bind(source="/absent", target="/mnt"),)}, "the host has no /absent"),
        ({"binds": (Bind(source="/etc", target="/mnt/absent"),)}, "creating it would change the host"),
        ({"binds": (Bind(source="/etc/passwd", target="/mnt"),)}, "a file is needed"),
        ({"binds": (Bind(source="/media/disc", target="/mnt", writable=True),)}, "read-only mount of the host"),
        (
            {"binds": (Bind(source="/etc", target="/tmp"),), "tmpfs": (Tmpfs(target="/tmp"),)},
            "asked to be bind and tmpfs",
        ),
        ({"overlays": (Overlay(target="/etc/passwd"),)}, "not a directory"),
        ({"overlays": (Overlay(target="/etc", keep="/etc/kept"),)}, "overlaps it"),
        ({"overlays": (Overlay(target="/etc", keep="/absent/kept"),)}, "Create the directory it is in"),
        ({"overlays": (Overlay(target="/etc", keep="/etc/passwd"),)}, "is a file"),
        ({"overlays": (Overlay(target="/etc", keep="/media/disc/kept"),)}, "read-only mount of the host"),
        (
            {"overlays": (Overlay(target="/etc", keep="/srv/k"), Overlay(target="/home", keep="/srv/k"))},
            "a directory for each",
        ),
        (
            {"overlays": (Overlay(target="/etc", keep="/tmp/base/k"), Overlay(target="/var", keep="/tmp/base"))},
            "a directory for each",
        ),
        ({"overlays": (Overlay(target="/usr/..", keep=True),)}, "nothing beside it"),
        ({"root": "readonly", "overlays": (Overlay(target="/"),)}, "asked to be 'readonly'"),
        ({"tmpfs": (Tmpfs(target="/tmp/loop"),)}, "symbolic links"),
    ],
)
def test_a_view_without_meaning_here_is_the_users_error(view: dict[str, object], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        compiled(**view)


def test_what_a_user_namespace_cannot_do_is_said_with_a_way_out() -> None:
    with pytest.raises(BackendUnavailable, match="or run as root"):
        compiled(USER, overlays=(Overlay(target="/home"),))
    with pytest.raises(BackendUnavailable, match=r"before Linux 5\.11"):
        compiled(replace(USER, userxattr=False), overlays=(Overlay(target="/home/me/work"),))
    with pytest.raises(BackendUnavailable, match="Make the bind recursive"):
        compiled(USER, tmpfs=(Tmpfs(target="/mnt"),), binds=(Bind(source="/home", target="/mnt/h", recursive=False),))


def test_the_same_wish_twice_is_one_mount() -> None:
    assert (
        len([line for line in story(compiled(tmpfs=(Tmpfs(target="/tmp"), Tmpfs(target="/tmp")))) if "/tmp" in line])
        == 1
    )


def test_overlays_within_one_another_on_one_file_system_are_one() -> None:
    plan = compiled(overlays=(Overlay(target="/home/me/work"), Overlay(target="/home/me/work/sub")))
    assert [layer.target for layer in plan.layers] == ["/home/me/work"]


def test_a_mount_below_an_overlay_that_is_no_store_of_files_is_bound_read_only() -> None:
    plan = compiled(overlays=(Overlay(target="/home/me"),))
    assert filesystem.resolve("/home/me/with space", plan).fstype == "fuse.sshfs"
    assert not filesystem.resolve("/home/me/with space", plan).writable
    assert filesystem.resolve("/home/me/work/file", plan).writable


# -- the model


def test_a_symlinked_target_is_mounted_where_it_leads() -> None:
    assert "MOUNT tmpfs>/home/me/work" in story(compiled(tmpfs=(Tmpfs(target="/home/link/work"),)))


def test_a_table_that_the_kernel_would_refuse_is_refused_by_the_model() -> None:
    tree = Tree(HOST.mounts, lookup)
    with pytest.raises(LookupError):
        tree.apply(MountOp(kind=MountKind.MOUNT, target="/absent", fstype="tmpfs"))
    with pytest.raises(LookupError):
        tree.apply(MountOp(kind=MountKind.UMOUNT, target="/etc"))


def test_a_root_below_a_chroot_is_stood_in_for() -> None:
    tree = Tree(mountinfo.parse("30 29 0:20 / /proc rw - proc proc rw"), lookup)
    assert tree.walk("/proc").place.mount.fs.fstype == "proc"
    assert tree.path_of(Place(tree.root, "/etc")) == "/etc"


@pytest.mark.parametrize(
    ("path", "mountpoint", "inner", "host"),
    [
        ("/home/me/work", "/home", "/@home/me/work", "/home/me/work"),
        ("/home/link/../me/./work/", "/home", "/@home/me/work", "/home/me/work"),
        ("/tmp", "/tmp", "/", ""),
        ("/tmp/../etc/passwd", "/", "/etc/passwd", "/etc/passwd"),
        ("/home/me/with space/..", "/home", "/@home/me", "/home/me"),
        ("/dev/shm/..", "/dev", "/", ""),
        ("/dev/null", "/dev/null", "/null", "/dev/null"),
    ],
)
def test_resolve_names_the_mount_and_the_path_on_it(path: str, mountpoint: str, inner: str, host: str) -> None:
    found = filesystem.resolve(path, filesystem.compile(STRICT.filesystem, context=HOST))
    assert (found.mountpoint, found.inner, found.host, found.error) == (mountpoint, inner, host, 0)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/absent/..", errno.ENOENT),
        ("/etc/passwd/x", errno.ENOTDIR),
        ("/tmp/loop", errno.ELOOP),
        ("/etc/passwd/", errno.ENOTDIR),
    ],
)
def test_resolve_fails_as_the_kernel_does(path: str, error: int) -> None:
    assert filesystem.resolve(path, compiled()).error == error


# -- words


@pytest.mark.parametrize(
    ("error", "path", "words"),
    [
        (errno.EROFS, "/etc/new", "put an overlay on /etc"),
        (errno.EROFS, "/media/disc/new", "read-only on the host already"),
        (errno.EROFS, "/tmp/new", "the sandboxed program has changed that"),
        (
            errno.ENOENT,
            "/tmp/base/report",
            "the host has it, but inside /tmp is private tmpfs, which hides it. Bind /tmp/base",
        ),
        (errno.ENOENT, "/nowhere", "there is no /nowhere"),
        (errno.ENOENT, "/etc/passwd", "moved or removed it"),
        (errno.EACCES, "/etc/passwd", "permissions are 0755"),
        (errno.EACCES, "/proc/timer_list", "masked"),
        (errno.ENOSPC, "/tmp/large", "Raise its size_bytes"),
        (errno.EBUSY, "/tmp", "mount point"),
        (errno.EXDEV, "/tmp/a", "Programs copy instead"),
        (errno.EIO, "/tmp/a", "nothing of the view explains it"),
    ],
)
def test_an_error_is_explained(error: int, path: str, words: str) -> None:
    said = filesystem.explain(error, path, filesystem.compile(STRICT.filesystem, context=HOST))
    assert words in said
    assert said.startswith(f"{path}: {errno.errorcode[error]}: ")
