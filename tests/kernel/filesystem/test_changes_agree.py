"""What is told of the changes below an overlay against the same steps done for real: the listed ones, and seeded random ones."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.kernel import filesystem, native
from pytest_isolate.outcome import FilesChanged
from pytest_isolate.policy import Filesystem, Overlay
from tests.kernel.filesystem.asking import attempt
from tests.kernel.throwaway import NOBODY, context, launch, launch_plan, throwaway

pytestmark = [pytest.mark.usefixtures("drops_to_a_plain_user", "overlays")]

OLD_NS = 1_000_000_000_000_000_000  # the time of every file before the steps
RENAME_EXCHANGE, AT_FDCWD = 2, -100
SCRIPTS = 40
STEPS = 12
_libc = ctypes.CDLL(None, use_errno=True)

#: One step: the name of a function of STEP and its arguments; paths are relative to the directory of the overlay.
Step = tuple[str, ...]


def write(path: str, text: str) -> None:
    """Waits for no reader of a fifo."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644)
    os.write(fd, text.encode())
    os.close(fd)


def move(old: str, new: str) -> None:
    """As mv: a plain user's overlay renames no directory of the host."""
    if os.geteuid() == 0 or not os.path.isdir(old) or os.path.islink(old):
        os.rename(old, new)
        return
    if (os.path.realpath(new) + "/").startswith(os.path.realpath(old) + "/"):
        raise OSError(errno.EINVAL, "into itself")
    shutil.copytree(old, new, symlinks=True)
    shutil.rmtree(old)


def exchange(one: str, other: str) -> None:
    if _libc.renameat2(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), one)


def opened(path: str) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK))


STEP: dict[str, Callable[..., Any]] = {
    "write": write,
    "mkdir": os.mkdir,
    "unlink": os.unlink,
    "rmtree": shutil.rmtree,
    "move": move,
    "exchange": exchange,
    "link": lambda old, new: os.link(old, new, follow_symlinks=False),
    "symlink": os.symlink,
    "fifo": os.mkfifo,
    "chmod": lambda path, mode: os.chmod(path, int(mode, 8)),
    "chown": lambda path: os.chown(path, 1, 1, follow_symlinks=False),
    "as before": lambda path: os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False),
    "xattr": lambda path, value: os.setxattr(path, "user.isolate", value.encode()),
    "opened": opened,
}


def do(place: Path, steps: list[Step]) -> list[str]:
    """How each step ended: ``ok``, the name of an errno, or what shutil says."""
    os.chdir(place)
    return [one_step(*step) for step in steps]


def one_step(name: str, *words: str) -> str:
    try:
        STEP[name](*words)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


@pytest.fixture
def place(outside_tmp: Path, who: str) -> Path:
    """Two directories alike and different, with content two floors down."""
    place = outside_tmp / "place"
    for name in ("d/f", "d/g", "d/sub/a", "d/sub/b", "d/sub/deep/x", "c/f", "c/h", "c/sub/a", "top", "top2"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(os.path.basename(name) if name.endswith("a") else name)
    os.symlink("top", place / "ln")
    os.symlink("f", place / "d" / "ln")
    for path in [place, *place.rglob("*")]:
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
        if who == "user":
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    place.chmod(0o777)
    outside_tmp.chmod(0o777)
    return place


def states(place: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that a program can tell of each path; the time of what is no directory."""
    found = {}
    for path in place.rglob("*"):
        status = path.lstat()
        content: Any = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_text(), status.st_mtime_ns
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path), status.st_mtime_ns
        elif not stat.S_ISDIR(status.st_mode):
            content = status.st_mtime_ns
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        found[str(path.relative_to(place))] = (status.st_mode, status.st_uid, status.st_gid, content, xattrs)
    return found


def difference(before: dict[str, Any], after: dict[str, Any], at: Path) -> FilesChanged:
    gone = {path for path in before if path not in after}
    return FilesChanged(
        added=tuple(sorted(f"{at}/{path}" for path in after if path not in before)),
        modified=tuple(sorted(f"{at}/{path}" for path in after if path in before and after[path] != before[path])),
        deleted=tuple(sorted(f"{at}/{path}" for path in gone if os.path.dirname(path) not in gone)),
    )


def check(place: Path, steps: list[Step], *, all_succeed: bool = False) -> FilesChanged:
    """The steps in a sandbox and on a copy: they end alike, the sandbox tells the difference, and its host keeps what it had."""
    before = states(place)
    inside = launch(Filesystem(overlays=(Overlay(target=str(place)),)), lambda: do(place, steps))
    assert states(place) == before
    copy = place.parent / "copy"
    shutil.copytree(place, copy, symlinks=True)
    try:
        ends = do(copy, steps)
        assert ends == inside.result, list(zip(steps, ends, inside.result, strict=True))
        assert not all_succeed or set(ends) == {"ok"}, list(zip(steps, ends, strict=True))
        expected = difference(before, states(copy), place)
    finally:
        os.chdir("/")
        shutil.rmtree(copy)
    assert inside.changed == expected, steps
    return expected


CASES: dict[str, list[Step]] = {
    "renamed and back": [("move", "d", "e"), ("move", "e", "d")],
    "renamed, changed below": [("move", "d", "e"), ("write", "e/sub/a", "x")],
    "changed below, renamed": [("write", "d/sub/a", "x"), ("move", "d", "e")],
    "renamed, removed below": [("move", "d", "e"), ("unlink", "e/f"), ("unlink", "e/sub/a")],
    "swapped": [("move", "d", "t"), ("move", "c", "d"), ("move", "t", "c")],
    "onto one that is gone": [("rmtree", "c"), ("move", "d", "c")],
    "into another, its child out": [("move", "d", "c/d"), ("move", "c/d/sub", "s")],
    "renamed, made anew": [("move", "d", "e"), ("mkdir", "d"), ("write", "d/f", "x")],
    "a file instead": [("rmtree", "d"), ("write", "d", "x")],
    "a directory instead": [("unlink", "top"), ("mkdir", "top"), ("write", "top/x", "x")],
    "a renamed directory instead of a file": [("unlink", "top"), ("move", "d", "top"), ("unlink", "top/f")],
    "opened only": [("opened", "top"), ("opened", "d/sub/a")],
}


@pytest.mark.parametrize("case", CASES)
def test_renamed_and_replaced_directories_are_told_as_they_are(who: str, place: Path, case: str) -> None:
    def body() -> None:
        check(place, CASES[case], all_succeed=True)

    throwaway(body, who=who)


def test_an_exchange_of_two_directories_is_told_as_it_is(who: str, place: Path) -> None:
    if who == "user":  # EXDEV in a user namespace, as any rename of a directory
        return

    def body() -> None:
        check(place, [("exchange", "c", "d"), ("write", "c/g", "x")], all_succeed=True)

    throwaway(body)


def test_an_extended_attribute_alone_is_a_change(who: str, place: Path, require: Any) -> None:
    require("tmpfs-user-xattrs", _tmpfs_has_user_xattrs(), "Linux 6.6 has user xattrs on tmpfs")

    def body() -> None:
        expected = FilesChanged(modified=(f"{place}/d/sub", f"{place}/top"))
        assert check(place, [("xattr", "top", "1"), ("xattr", "d/sub", "1")], all_succeed=True) == expected

    throwaway(body, who=who)


def test_marks_that_the_program_sets_itself_are_none(place: Path, who: str) -> None:
    """Below a privileged overlay ``user.overlay.*`` are xattrs as any, which a program may set."""

    def forge() -> list[str]:
        (place / "empty").write_text("")
        return [
            attempt(lambda: os.setxattr(place / "d", "user.overlay.opaque", b"y")),
            attempt(lambda: os.setxattr(place / "d", "user.overlay.redirect", b"/../../../etc")),
            attempt(lambda: os.setxattr(place / "empty", "user.overlay.whiteout", b"")),
        ]

    def body() -> None:
        changed = launch(Filesystem(overlays=(Overlay(target=str(place)),)), forge).changed
        assert changed.added == (f"{place}/empty",)
        assert changed.deleted == ()

    throwaway(body, who=who)


def test_a_directory_that_its_owner_closed_is_told_as_unread(who: str, place: Path) -> None:
    def close() -> None:
        (place / "closed").mkdir()
        (place / "closed" / "in").write_text("")
        (place / "closed").chmod(0)

    def body() -> None:
        changed = launch(Filesystem(overlays=(Overlay(target=str(place)),)), close).changed
        inside = () if who == "user" else (f"{place}/closed/in",)
        assert changed == FilesChanged(added=(f"{place}/closed", *inside), incomplete=who == "user")

    throwaway(body, who=who)


def test_what_a_large_lower_tree_has_is_not_walked(place: Path, who: str) -> None:
    """The limit counts entries that are looked at: two hundred files beside the change are none of them."""
    many = place / "many"
    many.mkdir()
    for number in range(200):
        (many / str(number)).write_text("")
    if who == "user":
        os.chown(many, NOBODY, NOBODY)

    def body() -> None:
        plan = filesystem.compile(Filesystem(overlays=(Overlay(target=str(place)),)), context=context())
        with filesystem.Layers(plan) as layers:
            child = native.fork(launch_plan(layers))
            if child is None:
                (many / "new").write_text("")
                os._exit(0)
            with child:
                child.wait(20)
                assert layers.changed(limit=10) == FilesChanged(added=(f"{many}/new",))

    throwaway(body, who=who)


def scripts() -> Iterator[list[Step]]:
    dice = random.Random(8)
    for _ in range(SCRIPTS):
        yield [_step(dice) for _ in range(STEPS)]


def _path(dice: random.Random) -> str:
    folder = dice.choice(["", "", "d/", "c/", "e/", "d/sub/", "c/sub/", "e/sub/"])
    return folder + dice.choice(["d", "c", "e", "f", "g", "sub", "sub", "a", "b", "ln", "top", "new"])


def _step(dice: random.Random) -> Step:
    one, other = _path(dice), _path(dice)
    folders = ["d", "c", "e", "d/sub", "c/sub", "e/sub", "e/d"]
    name = dice.choice(
        [*STEP, "move", "move folder", "move folder", "move folder", "rmtree", "write", "unlink", "mkdir"]
    )
    match name:
        case "move folder":
            return "move", dice.choice(folders), dice.choice(folders)
        case "exchange" if os.geteuid() == 0:
            return "exchange", dice.choice(folders), dice.choice(folders)
        case "write" | "xattr":
            return name, one, dice.choice("xy")
        case "chmod":
            return name, one, dice.choice(["700", "755", "775" if os.geteuid() else "644", "4755"])
        case "move" | "link":
            return name, one, other
        case "symlink":
            return name, dice.choice(["f", "top"]), other
        case "exchange":
            return "opened", one
        case "chown":
            return ("chown", one) if os.geteuid() == 0 else ("opened", one)
        case "rmtree" | "mkdir":
            return name, dice.choice([one, *folders])
        case _:
            return name, one


def test_random_steps_are_told_as_they_are(who: str, place: Path, require: Any) -> None:
    require("tmpfs-user-xattrs", _tmpfs_has_user_xattrs(), "Linux 6.6 has user xattrs on tmpfs")

    def body() -> int:
        told = [check(place, steps) for steps in scripts()]
        return sum(len(each.added) + len(each.modified) + len(each.deleted) for each in told)

    assert throwaway(body, who=who) > SCRIPTS


def _tmpfs_has_user_xattrs() -> bool:
    fd = os.memfd_create("xattrs")
    try:
        os.setxattr(fd, "user.isolate", b"")
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
