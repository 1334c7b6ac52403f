"""Holds every backend to what it claims: control, enforcement, nothing left.

Owns: how a case is run and judged. Refuses: to know any backend: all that are found are asked, or those of
``--isolate-backend=a,b``. A capability that a backend says it lacks is skipped as *not claimed*; one that it claims and does
not enforce fails.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate import groups, networks
from pytest_isolate.backend import Kind
from pytest_isolate.calls import CallFailed
from pytest_isolate.errors import BackendUnavailable, IsolateError
from pytest_isolate.policy import Filesystem, Tmpfs
from pytest_isolate.registry import backends, verdicts
from pytest_isolate.sandbox import Sandbox
from pytest_isolate.testing import require
from pytest_isolate.testing.cases import CASES, HERE, IN_SHM, MINIMAL, PYTHON, SECRET, Case

#: ``--isolate-backend`` names who is held to his promise, not who runs these tests.
pytestmark = pytest.mark.isolate(False)
Column = tuple[str, Kind]
_TIMEOUT_S = 60.0
#: Run in fresh interpreters, a test each: what each does has to come through the backend as it is.
_FRESH = """
import os, signal, sys

def test_passes():
    print("said")
    print("on both", file=sys.stderr)

def test_fails():
    assert os.getpid() == 0

def test_crashes():
    os.write(1, b"last words")
    os.kill(os.getpid(), signal.SIGSEGV)

def test_goes_on():
    assert os.read(0, 1) == b""
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "column" in metafunc.fixturenames:
        named = str(metafunc.config.getoption("isolate_backend", None) or "")
        found = backends(tuple(filter(None, named.split(","))))
        columns = [(backend.name, kind) for backend in found for kind in ("programs", "tests") if kind in backend.runs]
        metafunc.parametrize("column", columns, ids=[f"{name}({kind})" for name, kind in columns])
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=[case.capability.value for case in CASES])


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory of the host."""
    return furnished(tmp_path / "inside")


def furnished(place: Path) -> Path:
    """A directory with the files that cases speak of."""
    for name in ("other", "empty", "masked"):
        (place / name).mkdir(parents=True)
    (place / "other" / "content").write_text("content")
    (place / "masked" / "inside").write_text("content")
    return place


def located(value: Any, here: Path) -> Any:
    """``value``, a policy or a text, with its directory filled in."""
    if isinstance(value, str):
        return value.replace(HERE, str(here))
    if isinstance(value, tuple):
        return tuple(located(part, here) for part in value)
    if hasattr(value, "__dataclass_fields__"):
        from dataclasses import fields, replace

        return replace(value, **{field.name: located(getattr(value, field.name), here) for field in fields(value)})
    return value


def printed(code: str) -> str:
    """What ``code`` prints, run here: in a fork of this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    return out.getvalue().strip()


class Inside:
    """Runs a case's code under its policy, by one backend, as a program or as a function."""

    def __init__(self, column: Column, case: Case, here: Path) -> None:
        self._name, self._kind = column
        self._case = case
        self.policy = located(case.policy, here)
        self._here = here

    def lacking(self) -> list[str]:
        (verdict,) = verdicts(self.policy, (self._name,), kind=self._kind)
        return list(verdict.lacking)

    def prints(self) -> str:
        """Of a function that was ended: why."""
        with _inherited() as fd:
            code = self._code(fd)
            with Sandbox(self.policy, backends=[self._name], name="conformance") as sandbox:
                if self._kind == "tests":
                    try:
                        return str(sandbox.python(printed, code, policy={"timeout": _TIMEOUT_S}))
                    except CallFailed as error:
                        return str(error)
                outcome = sandbox.run([PYTHON, "-I", "-S", "-c", code], cwd="/", timeout=_TIMEOUT_S)
                if outcome.returncode not in self._case.status:
                    pytest.fail(
                        f"the program {outcome.status}: {outcome.stderr[-2000:]} {outcome.detail}", pytrace=False
                    )
                return str(outcome.stdout).strip()

    def prints_outside(self) -> str:
        """In a directory of its own: there it may do what it is kept from inside."""
        place = furnished(self._here.parent / "outside")
        with _inherited() as fd, contextlib.ExitStack() as undo:
            undo.callback(Path(IN_SHM).unlink, missing_ok=True)
            command = [PYTHON, "-I", "-S", "-c", self._code(fd, place)]
            return subprocess.run(command, capture_output=True, text=True, pass_fds=[fd], check=True).stdout.strip()

    def _code(self, fd: int, here: Path | None = None) -> str:
        return str(located(self._case.code, here or self._here)).replace("@FD@", str(fd))


@contextlib.contextmanager
def _inherited() -> Iterator[int]:
    """A descriptor that a program inherits unless someone closes it."""
    fd = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def inside(column: Column, case: Case, here: Path) -> Inside:
    """The case under the backend, where it claims it."""
    found = Inside(column, case, here)
    if column[1] == "tests" and case.capability.value == "close_fds":
        pytest.skip("not claimed: what a test function has open is its own")
    try:
        groups.of_this_process().settle(found.policy)
        tier = networks.of_this_process().settle(found.policy, lambda _: None)
    except BackendUnavailable as error:
        pytest.skip(f"no backend's affair: {error}")
    if tier is not None:
        pytest.skip(f"no backend's affair: the network is held without eBPF here, by {tier}")
    if lacking := found.lacking():
        pytest.skip(f"not claimed: {'; '.join(lacking)}")
    return found


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable as a continuous integration has them; a scrubbed environment has it no more."""
    monkeypatch.setenv(SECRET, "secret")


@pytest.fixture(autouse=True)
def nothing_left(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mounts, processes and files are afterwards what they were before. Temporary files go where nobody else makes any."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    _host()  # whatever is opened once for all is open now
    before = _host()
    yield
    after = _host()
    for what, found in after.items():
        new = found - before[what]
        assert not new, f"left behind: {what} {sorted(new)}"
    assert sorted(map(str, here.rglob("*"))) == sorted(str(here / name) for name in _FILES), "files of the host changed"


_FILES = ("other", "other/content", "empty", "masked", "masked/inside")


def _host() -> dict[str, set[str]]:
    pid = os.getpid()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        points = {line.split(" ", 1)[1] for line in mounts}
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
        running = set(children.read().split())
    left = {name for name in os.listdir(tempfile.gettempdir()) if re.match(r"pytest-isolate", name)}
    left |= {IN_SHM} if os.path.exists(IN_SHM) else set()
    return {"mount": points, "process": running, "file": left}


def test_the_case_can_fail(case: Case, here: Path) -> None:
    """The control: without a sandbox the code is able to run, and what it prints does not look enforced."""
    outside = Inside(("native", "programs"), case, here).prints_outside()
    if case.capability.value == "capabilities" and os.geteuid() != 0:
        pytest.skip("a plain user has none to lose")
    assert outside
    assert not case.enforced(outside, outside), outside


def test_what_is_claimed_is_enforced(inside: Inside, case: Case) -> None:
    outside = inside.prints_outside()
    found = inside.prints()
    assert case.enforced(found, outside), f"inside it printed {found!r}, outside {outside!r}"


def test_a_backend_that_was_promised_works_here(column: Column) -> None:
    """One that does not claims nothing, and would be green: ISOLATE_REQUIRE names those that have to work."""
    (verdict,) = verdicts(MINIMAL, (column[0],), kind=column[1])
    require(column[0], bool(verdict), "; ".join(verdict.lacking))


def test_a_program_ends_as_it_would_outside(column: Column) -> None:
    """Status, signal, output and input are the program's own under every backend."""
    name, kind = column
    if kind != "programs" or not _works(name):
        pytest.skip("starts no programs here")
    with Sandbox(MINIMAL, backends=[name]) as sandbox:
        assert sandbox.run(["sh", "-c", "exit 7"]).status.code == 7
        assert sandbox.run(["sh", "-c", "kill -SEGV $$"]).status.signal == 11
        assert sandbox.run(["cat"], input="in").stdout == "in"
        assert sandbox.run(["sh", "-c", "echo out; echo err >&2"]).stderr == "err\n"
        merged = sandbox.run(["sh", "-c", "echo out; echo err >&2"], merge_stderr=True).stdout.splitlines()
        assert (sorted(merged, reverse=True) if _relays_output(name) else merged) == ["out", "err"]
        assert (
            sandbox.run(
                ["sh", "-c", 'echo "$GREETING"; pwd'], env={"GREETING": "hi", "PATH": os.environ["PATH"]}, cwd="/usr"
            ).stdout
            == "hi\n/usr\n"
        )


def test_a_program_that_hangs_is_ended_with_all_it_started(column: Column) -> None:
    name, kind = column
    if kind != "programs" or not _works(name):
        pytest.skip("starts no programs here")
    seconds = 86400 + os.getpid()  # of this run, and not of another beside it
    with Sandbox(MINIMAL, backends=[name]) as sandbox:
        outcome = sandbox.run(["sh", "-c", f"sleep {seconds} & sleep {seconds}"], timeout=3, grace=0.2)
    assert [cause.value for cause in outcome.causes][:1] == ["TIMEOUT"]
    assert f"sleep\0{seconds}\0" not in _command_lines()


def test_a_program_that_is_not_there_is_the_callers_error(column: Column) -> None:
    name, kind = column
    if kind != "programs" or not _works(name):
        pytest.skip("starts no programs here")
    with Sandbox(MINIMAL, backends=[name]) as sandbox, pytest.raises(IsolateError):
        sandbox.run(["pytest-isolate-no-such-program"])


def test_a_place_that_is_not_there_is_the_callers_error_and_is_not_made(column: Column, here: Path) -> None:
    """A tool makes the mount points and the working directory that it does not find: on the host, where the view is the host's."""
    name, kind = column
    if kind != "programs" or not _works(name):
        pytest.skip("starts no programs here")
    missing = [here / "no target", here / "no directory"]
    with Sandbox(MINIMAL, backends=[name]) as sandbox:
        with pytest.raises(IsolateError):
            sandbox.run(["true"], fs=Filesystem(proc=False, tmpfs=(Tmpfs(target=str(missing[0])),)))
        with pytest.raises(IsolateError):
            sandbox.run(["true"], cwd=missing[1])
    assert not any(place.exists() for place in missing)


def test_a_test_in_a_fresh_interpreter_is_told_as_it_ended(
    column: Column, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Through whatever the backend does with the three descriptors that it is given."""
    name, kind = column
    (backend,) = backends((name,))
    if kind != "programs" or "fresh" not in backend.runs:
        pytest.skip("not claimed: fresh interpreters")
    (verdict,) = verdicts(MINIMAL, (name,), kind="fresh")
    require(name, bool(verdict), "; ".join(verdict.lacking))
    (tmp_path / "test_fresh.py").write_text(_FRESH)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text("".join(_conftests(request.config)))
    loaded = [word for plugin in request.config.option.plugins for word in ("-p", plugin)]
    words = [*loaded, "-p", "no:cacheprovider", "-v", "-rA", f"--isolate-backend={name}", "--isolate-mode=fresh"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--isolate-profile=minimal", "test_fresh.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=2 * _TIMEOUT_S,
        check=False,
    )
    said_of_it = f"{result.stdout}\n{result.stderr}"
    told = {line.partition(" ")[0]: line for line in result.stdout.splitlines() if line.startswith("test_fresh.py::")}
    assert [line.split()[1] for line in told.values()] == ["PASSED", "FAILED", "FAILED", "PASSED"], said_of_it
    kept = () if _relays_output(name) else ("last words",)
    for said in ("said", "on both", "assert os.getpid() == 0", "SIGSEGV", *kept):
        assert said in result.stdout, said_of_it


def _conftests(config: pytest.Config) -> Iterator[str]:
    """What executes the conftest files of whoever runs this suite that have a backend in them."""
    for plugin in config.pluginmanager.get_plugins():
        path = Path(getattr(plugin, "__file__", None) or "")
        if path.name == "conftest.py" and hasattr(plugin, "pytest_isolate_backends"):
            yield f"exec(compile(open({str(path)!r}, encoding='utf-8').read(), {str(path)!r}, 'exec'))\n"


def _works(name: str) -> bool:
    (verdict,) = verdicts(MINIMAL, (name,))
    return bool(verdict)


def _relays_output(name: str) -> bool:
    """Asked after it has been chosen: a backend may know only then which tool it has."""
    (backend,) = backends((name,))
    return getattr(backend, "relays_output", False)


def _command_lines() -> str:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as line:
            found.append(line.read())
    return "\n".join(found)
