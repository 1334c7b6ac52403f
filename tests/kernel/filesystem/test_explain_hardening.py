"""What hardening refuses is explained by the rule that refuses it: the error is provoked in a sandbox, then asked about."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.hardening import SeccompProfile
from pytest_isolate.kernel import landlock
from pytest_isolate.policy import Bind, Filesystem
from pytest_isolate.sandbox import Sandbox
from tests.kernel.filesystem.asking import place_in

READ, WRITE = "open(path).read()", "open(path, 'w').close()"


@pytest.fixture
def place() -> Any:
    yield from place_in("/var/tmp", "root")


@pytest.fixture
def landlocked(require: Any) -> None:
    require("landlock", landlock.abi() >= 1, "Linux 5.13 has Landlock")


def provoke(sandbox: Sandbox, action: str, path: str, **words: Any) -> int:
    """The errno of ``action`` inside; 0 for none."""
    code = f"import sys\npath = {path!r}\ntry:\n    {action}\nexcept OSError as error:\n    sys.exit(error.errno)"
    ended = sandbox.run(["python3", "-c", code], **words)
    assert ended.status.code is not None, ended.stderr
    return ended.status.code


@pytest.mark.usefixtures("landlocked")
@pytest.mark.parametrize("name", ["new", "file"])
def test_landlock_is_named_for_what_it_does_not_let_be_written(place: Path, name: str) -> None:
    path = str(place / name)
    words = {
        "fs": Filesystem(binds=(Bind(source=str(place), target=str(place), writable=True),)),
        "landlock_write": "/dev",
    }
    with Sandbox() as sandbox:
        assert provoke(sandbox, WRITE, path, **{**words, "landlock_write": f"/dev {place}"}) == 0
        (place / "new").unlink(missing_ok=True)
        assert provoke(sandbox, WRITE, path, **words) == errno.EACCES
        said = sandbox.explain(errno.EACCES, path, **words)
        assert "Landlock lets it be read, listed and executed (landlock_read has /), but not written" in said
        assert f"beneath landlock_write (/dev). Add {place} there" in said
        allowed = sandbox.explain(errno.EACCES, path, **{**words, "landlock_write": f"/dev {place}"})
        assert "Landlock" not in allowed


@pytest.mark.usefixtures("landlocked")
def test_landlock_is_named_for_what_it_does_not_let_be_read(place: Path) -> None:
    path = str(place / "file")
    read = sorted(
        entry.path for entry in os.scandir("/") if entry.is_dir() and entry.name not in ("var", "proc", "dev")
    )
    words = {"fs": "readonly", "landlock_read": " ".join(read), "landlock_write": "/dev /proc"}
    with Sandbox() as sandbox:
        assert provoke(sandbox, READ, path, fs="readonly") == 0
        assert provoke(sandbox, READ, path, **words) == errno.EACCES
        said = sandbox.explain(errno.EACCES, path, **words)
        assert f"it is beneath neither landlock_read ({', '.join(read)}) nor landlock_write (/dev, /proc)" in said


@pytest.mark.usefixtures("landlocked")
def test_a_rule_holds_beneath_a_directory_by_whatever_name_it_is_reached(place: Path) -> None:
    view = Filesystem(binds=(Bind(source=str(place / "old"), target="/srv", writable=True),))
    with Sandbox() as sandbox:
        words = {"fs": view, "landlock_write": f"/dev {place}/old"}
        assert provoke(sandbox, WRITE, "/srv/new", **words) == 0
        assert "Landlock" not in sandbox.explain(errno.EACCES, "/srv/new", **words)


def test_seccomp_is_named_for_what_it_answers(place: Path) -> None:
    with Sandbox() as sandbox:
        mounting = "import ctypes, os; ctypes.CDLL(None, use_errno=True).mount(b't', path.encode(), b'tmpfs', 0, 0)"
        action = f"{mounting}; raise OSError(ctypes.get_errno(), path)"
        assert provoke(sandbox, action, str(place), fs="readonly", seccomp="default") == errno.EPERM
        said = sandbox.explain(errno.EPERM, str(place), fs="readonly", seccomp="default")
        assert "the seccomp profile default answers EPERM to " in said
        assert "mount, mount_setattr" in said
        assert "seccomp" not in sandbox.explain(errno.EACCES, str(place), fs="readonly", seccomp="default")
        assert "seccomp" not in sandbox.explain(errno.EPERM, str(place), fs="readonly")


def test_a_profile_of_ones_own_is_named_for_any_errno_it_answers(place: Path) -> None:
    profile = SeccompProfile(name="no-directories", refuse={"mkdir": "ENOSPC", "mkdirat": "ENOSPC"})
    with Sandbox() as sandbox:
        words = {
            "fs": Filesystem(binds=(Bind(source=str(place), target=str(place), writable=True),)),
            "seccomp": profile,
        }
        assert provoke(sandbox, "import os; os.mkdir(path)", str(place / "new"), **words) == errno.ENOSPC
        said = sandbox.explain(errno.ENOSPC, str(place / "new"), **words)
        assert "the seccomp profile no-directories answers ENOSPC to mkdir, mkdirat, whatever the path" in said


def test_permissions_bind_root_where_the_capability_is_gone(place: Path, require: Any) -> None:
    require("root", os.geteuid() == 0, "a plain user is bound by them anyway")
    path = place / "file"
    os.chown(path, 1, 1)
    path.chmod(0o600)
    with Sandbox() as sandbox:
        assert provoke(sandbox, READ, str(path), fs="readonly") == 0
        assert provoke(sandbox, READ, str(path), fs="readonly", capabilities="drop") == errno.EACCES
        said = sandbox.explain(errno.EACCES, str(path), fs="readonly", capabilities="drop")
        assert "its permissions are 0600, owner 1:1" in said
        assert "root too, who keeps no CAP_DAC_OVERRIDE" in said
        assert "they bind all but root" in sandbox.explain(errno.EACCES, str(path), fs="readonly")
