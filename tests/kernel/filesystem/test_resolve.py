"""The model of the mounts against the kernel: the same table, the same answer for every path. As root and as a plain user."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel import filesystem
from pytest_isolate.kernel.filesystem import mountinfo
from pytest_isolate.kernel.filesystem.context import has_mount_setattr, kernel_release
from pytest_isolate.kernel.filesystem.tree import Place
from pytest_isolate.policy import Bind, Filesystem, Overlay, Tmpfs
from pytest_isolate.profile import STRICT
from tests.kernel.throwaway import NOBODY, Inside, context, launch, mount, throwaway

pytestmark = pytest.mark.usefixtures("drops_to_a_plain_user")

SYS_OPENAT2, SYS_STATX, SYS_STATMOUNT = 437, 332, 457
STATX_MNT_ID_UNIQUE, STATMOUNT_MNT_ROOT, STATMOUNT_MNT_POINT, STATMOUNT_FS_TYPE = 0x4000, 0x8, 0x10, 0x20
AT_EMPTY_PATH = 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


NAMES = ["host", "readonly", "strict", "strict for tests", "overlay", "mounts over mounts", "minimal"]


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(who: str) -> Iterator[Path]:
    """A tree with symlinks of every kind, in the directory that views like to cover."""
    path = Path(tempfile.mkdtemp(prefix="isolate-fs-", dir="/tmp"))
    (path / "a" / "b" / "c").mkdir(parents=True)
    (path / "a" / "file").write_text("file")
    (path / "data" / "c").mkdir(parents=True)
    (path / "data" / "leaf").write_text("leaf")
    for name, target in {
        "up": "..",
        "absolute": f"{path}/a/b",
        "relative": "a/b",
        "chain": "relative/../../data",
        "loop": "loop",
        "dangling": "nowhere/at/all",
        "root": "/",
        "to-tmp": "/tmp",
        "to-shm": "/dev/shm",
        "to-file": "a/file",
    }.items():
        os.symlink(target, path / name)
    os.symlink("../../data", path / "a" / "b" / "out")
    if who == "user":
        for each in [path, *path.rglob("*")]:
            os.chown(each, NOBODY, NOBODY, follow_symlinks=False)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=[True, False], ids=["mount_setattr", "remount"])
def mount_setattr(request: pytest.FixtureRequest, require: Any) -> bool:
    if request.param:
        require("mount_setattr", has_mount_setattr(), "Linux 5.12 has mount_setattr(2)")
    return bool(request.param)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, who: str, require: Any) -> str:
    layered = request.param in ("strict for tests", "overlay", "minimal")
    available = who == "root" or not layered or kernel_release() >= (5, 11)
    require("overlay", available, "Linux 5.11 has overlays in a user namespace")
    return str(request.param)


def views(place: Path) -> dict[str, Filesystem]:
    here = str(place)
    return {
        "host": Filesystem(),
        "readonly": Filesystem(root="readonly"),
        "strict": STRICT.filesystem,
        "strict for tests": filesystem.for_tests(
            STRICT.filesystem, home=here, working_copy=f"{here}/a", writable=[f"{here}/data"]
        ),
        "overlay": Filesystem(overlays=(Overlay(target=here), Overlay(target=f"{here}/a/b"))),
        "mounts over mounts": Filesystem(
            root="readonly",
            tmpfs=(Tmpfs(target="/tmp"), Tmpfs(target=f"{here}/a/b/c")),
            binds=(
                Bind(source=f"{here}/a", target=f"{here}/a", writable=True),
                Bind(source=f"{here}/data", target=f"{here}/a/b"),
                Bind(source=f"{here}/a/file", target=f"{here}/new/file"),
                Bind(source="/usr", target="/tmp/usr"),
            ),
            masks=(f"{here}/a/b/leaf", "/etc/passwd", "/srv"),
        ),
        "minimal": Filesystem(
            root="minimal",
            programs=("/bin/sh",),
            binds=(
                Bind(source="/tmp", target="/tmp"),
                Bind(source=here, target="/work/copy"),
                Bind(source="/", target="/host"),
            ),
            overlays=(Overlay(target=f"{here}/a"),),
            tmpfs=(Tmpfs(target="/work/copy/data"),),
        ),
    }


def test_the_model_has_the_mounts_that_the_kernel_has(who: str, place: Path, name: str, mount_setattr: bool) -> None:
    def body() -> None:
        view = views(place)[name]
        inside = launch(view, kernel_table, mount_setattr=mount_setattr)
        assert "\n".join(map(str, model_table(inside.plan))) == "\n".join(map(str, map(tuple, inside.result)))

    throwaway(body, who=who)


def kernel_table() -> list[tuple[str, str, str, bool]]:
    return sorted((m.mountpoint, m.root, m.fstype, bool(m.flags & 1) or m.readonly_fs) for m in mountinfo.read())


def model_table(plan: filesystem.MountPlan) -> list[tuple[str, str, str, bool]]:
    tree = plan.tree
    return sorted((tree.path_of(Place(m, m.root)), m.root, m.fs.fstype, m.readonly) for m in tree.root.subtree())


def questions(place: Path, names: list[str]) -> list[str]:
    """Paths worth asking: every mount point with what is around it, and seeded random walks through the tree's names."""
    around = [
        "",
        "/",
        "/.",
        "/..",
        "/../..",
        "/../tmp",
        "/absent",
        "/absent/..",
        "/absent/deeper",
        "/" + "n" * 255,
        "/" + "n" * 256,
        "/" + "ü" * 128 + "/deeper",
        "/absent/" + "n" * 256,
        "/." * 2047,
        "/../../../../../etc/passwd",
    ]
    fixed = [name + end for name in names for end in around]
    links = ["up", "absolute", "relative", "chain", "loop", "dangling", "root", "to-tmp", "to-shm", "to-file"]
    ends = ["", "/.", "/..", "/leaf", "/c", f"{place}/data/leaf", "/../a/b/out/leaf"]
    fixed += [f"{place}/{link}{end}" for link in links for end in ends]
    fixed += [
        "/bin",
        "/bin/sh",
        "/lib64/../usr/lib",
        "/dev/fd",
        "/dev/null",
        "/etc/mtab",
        "/var/run",
        "/proc/sys/kernel",
        "/proc",
        "/sys",
    ]
    dice = random.Random(20)
    words = [*links, "a", "b", "c", "data", "leaf", "file", "out", "..", "..", ".", "deep", "tmp", "usr"]
    return fixed + ["/".join([str(place), *dice.choices(words, k=dice.randint(1, 7))]) for _ in range(400)]


def test_resolve_agrees_with_openat2(who: str, place: Path, name: str) -> None:
    def body() -> int:
        view = views(place)[name]
        points = sorted(
            {m.mountpoint for m in mountinfo.read()} | {"/", "/tmp", "/dev/shm", "/host", "/work/copy", str(place)}
        )
        asked = questions(place, points)
        inside = launch(view, lambda: [ask_openat2(path) for path in asked])
        return compare(inside, asked)

    assert throwaway(body, who=who) > 50  # paths that were found, not only refused alike


def compare(inside: Inside, asked: list[str]) -> int:
    found, differ = 0, []
    for path, answer in zip(asked, inside.result, strict=True):
        model = filesystem.resolve(path, inside.plan)
        if "the kernel decides" in model.why or answer["error"] == errno.EACCES:
            continue
        ours = {"error": model.error}
        if not model.error:
            found += 1
            ours.update(
                real=model.real,
                mountpoint=model.mountpoint,
                root=model.mount_root,
                fstype=model.fstype,
                writable=model.writable,
            )
        if ours != answer:
            differ.append((path, ours, answer))
    assert not differ, "\n".join(f"{path}\n   model  {ours}\n   kernel {answer}" for path, ours, answer in differ[:10])
    return found


def ask_openat2(path: str) -> dict[str, Any]:
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, 0)
    fd = _libc.syscall(SYS_OPENAT2, -100, path.encode(), how, ctypes.c_size_t(len(how)))
    if fd < 0:
        return {"error": ctypes.get_errno()}
    try:
        with open(f"/proc/self/fdinfo/{fd}") as info:
            number = next(int(line.split()[1]) for line in info if line.startswith("mnt_id:"))
        line = next(m for m in mountinfo.read() if m.mount_id == number)
        writable = not (line.flags & 1 or line.readonly_fs)
        return {
            "error": 0,
            "real": os.readlink(f"/proc/self/fd/{fd}"),
            "mountpoint": line.mountpoint,
            "root": line.root,
            "fstype": line.fstype,
            "writable": writable,
        }
    finally:
        os.close(fd)


def test_resolve_agrees_with_statmount(who: str, place: Path, require: Any) -> None:
    require("statmount", _has_statmount(), "Linux 6.8 has statmount(2)")

    def body() -> None:
        asked = ["/", "/tmp", "/dev/shm", str(place / "a"), str(place / "data" / "leaf"), "/proc/sys"]
        inside = launch(views(place)["strict for tests"], lambda: [ask_statmount(path) for path in asked])
        for path, (root, point, fstype) in zip(asked, inside.result, strict=True):
            model = filesystem.resolve(path, inside.plan)
            assert (model.mount_root, model.mountpoint, model.fstype) == (root, point, fstype), path

    throwaway(body, who=who)


def _has_statmount() -> bool:
    try:
        return bool(ask_statmount("/"))
    except OSError:
        return False


def ask_statmount(path: str) -> tuple[str, str, str]:
    """Root, mount point and type of the mount that answers for a path. Source: struct statmount in <linux/mount.h>."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.syscall(SYS_STATX, -100, path.encode(), 0, STATX_MNT_ID_UNIQUE, buffer):
        raise OSError(ctypes.get_errno(), path)
    (number,) = struct.unpack_from("Q", buffer, 0x90)
    request = struct.pack("IIQQ", 24, 0, number, STATMOUNT_MNT_ROOT | STATMOUNT_MNT_POINT | STATMOUNT_FS_TYPE)
    answer = ctypes.create_string_buffer(8192)
    if _libc.syscall(SYS_STATMOUNT, request, answer, ctypes.c_size_t(len(answer)), 0):
        raise OSError(ctypes.get_errno(), path)
    (fs_type,) = struct.unpack_from("I", answer, 36)
    root, point = struct.unpack_from("II", answer, 104)
    texts = answer.raw[512:]
    return tuple(texts[at : texts.index(b"\0", at)].decode() for at in (root, point, fs_type))  # type: ignore[return-value]


def test_a_mount_hidden_under_another_does_not_answer(place: Path, who: str) -> None:
    if who == "user":  # preparing the host takes root; what is asked is the same
        return

    def prepare() -> None:
        mount("below", str(place / "data"), "tmpfs")
        (place / "data" / "below").write_text("")
        mount("above", str(place / "data"), "tmpfs")
        (place / "data" / "above").write_text("")

    def body() -> None:
        inside = launch(Filesystem(root="readonly"), lambda: [os.listdir(place / "data"), kernel_table()])
        assert inside.result[0] == ["above"]
        assert filesystem.resolve(f"{place}/data/above", inside.plan).exists
        assert filesystem.resolve(f"{place}/data/below", inside.plan).error == errno.ENOENT
        assert model_table(inside.plan) == [tuple(row) for row in inside.result[1]]

    throwaway(body, prepare=prepare)


@pytest.mark.parametrize("path", ["relative", "", "/nul\0byte"])
def test_a_path_that_no_kernel_call_means_from_the_root_is_refused(path: str) -> None:
    plan = filesystem.compile(Filesystem(root="readonly"), context=context())
    for ask in (filesystem.resolve, lambda path, plan: filesystem.explain(errno.EACCES, path, plan)):
        with pytest.raises(PolicyError, match="relative|empty|NUL"):
            ask(path, plan)


@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOENT])
def test_an_error_inside_is_explained_in_words(who: str, place: Path, error: int) -> None:
    path = str(place / "data" / ("new" if error == errno.EROFS else "leaf"))
    view = Filesystem(root="readonly") if error == errno.EROFS else STRICT.filesystem

    def body() -> None:
        assert os.path.exists(f"{place}/data/leaf")
        inside = launch(view, lambda: provoke(path))
        assert inside.result == error
        said = filesystem.explain(error, path, inside.plan)
        expected = (
            "sealed for this sandbox, and read-only inside"
            if error == errno.EROFS
            else "/tmp is private tmpfs, which hides it"
        )
        assert expected in said, said

    throwaway(body, who=who)


def provoke(path: str) -> int:
    try:
        os.close(os.open(path, os.O_WRONLY | (os.O_CREAT if path.endswith("new") else 0)))
    except OSError as error:
        return error.errno or 0
    return 0
