"""pytest in the guest: what the header of an isolated run says, and whether the project's own tests pass here.

Owns: running pytest in a child and reading its words back.
Refuses: to call a run fine that had no test, or whose status is not 0.
"""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from tests.vm.inside.telling import SUITE_DEADLINE_S, Degraded, Refused

_HANGS_S = SUITE_DEADLINE_S - 60
_RUNNER = "import os, sys, pytest; os.environ['RUNNER'] = str(os.getpid()); sys.exit(pytest.main(sys.argv[1:]))"
_PLUGIN = os.path.abspath(f"{__file__}/../../../../plugins/landlock")
_CONFINED = """\
def test_confined():
    with open("/proc/self/status") as file:
        said = file.read()
    assert "NoNewPrivs:\\t1" in said and "Seccomp:\\t2" in said
"""
_SAMPLE = """\
import os

def test_inside():
    assert os.getpid() != int(os.environ["RUNNER"])
"""


def _environment() -> dict[str, str]:
    """Plugins are loaded by name only: what else the Python that runs the matrix has installed is not under test."""
    return {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def header() -> str:
    """The header lines of ``pytest --isolate`` here, taking what this host can do; the test ran in another process."""
    said = _header(_SAMPLE, "--isolate", "--isolate-missing=warn", "--isolate-mem-limit=256M")
    if any("DEGRADED" in line for line in said):
        raise Degraded(" / ".join(said))
    return " / ".join(said)


def landlock() -> str:
    """The header by the backend of that name, which needs neither privilege nor namespaces; the test was confined."""
    return " / ".join(_header(_CONFINED, "-p", "pytest_isolate_landlock", "--isolate-backend=landlock"))


def _header(sample: str, *options: str) -> list[str]:
    """What the header says of isolation in a run of the sample, which passes.

    Raises:
        Refused: the run did not begin; the text is its one line.
    """
    with tempfile.TemporaryDirectory() as place:
        with open(f"{place}/test_sample.py", "w") as file:
            file.write(sample)
        words = ["-p", "pytest_isolate.runner.plugin", *options, "-p", "no:cacheprovider", place]
        environment = _environment()
        environment["PYTHONPATH"] = f"{environment.get('PYTHONPATH', '')}:{_PLUGIN}"
        done = subprocess.run(
            [sys.executable, "-c", _RUNNER, *words],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    said = [line.strip() for line in done.stdout.splitlines() if line.startswith("isolate")]
    if done.returncode == 4:  # of pytest: its arguments cannot be done
        raise Refused(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert said, "the header says nothing: " + done.stdout
    return said


def own_tests(paths: list[str]) -> str:
    """How many of the tests in ``paths`` passed, and each reason why others were skipped."""
    assert paths, "no tests are named"
    with tempfile.TemporaryDirectory() as place:
        report = f"{place}/report.xml"
        options = [
            "-v",  # a test that hangs is the last one named
            "-rfE",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            f"--basetemp={place}/tmp",
            *paths,
        ]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *options],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_HANGS_S,
            )
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"still running after {_HANGS_S} s: {(late.stdout or b'')[-600:].decode()}") from None
        said = (done.stdout[-3000:] + done.stderr[-1000:]).decode(errors="replace")
        assert os.path.exists(report), said
        cases = list(ET.parse(report).getroot().iter("testcase"))
    assert done.returncode == 0, "\n".join(_failed(cases)) or said
    reasons = [skip.get("message", "") for case in cases for skip in case.iter("skipped")]
    assert len(cases) > len(reasons), f"every test was skipped: {set(reasons)}"
    counted = [f"{count} skipped: {reason}" for reason, count in collections.Counter(map(_feature, reasons)).items()]
    return "; ".join([f"{len(cases) - len(reasons)} passed", *counted])


def _failed(cases: list[ET.Element]) -> Iterator[str]:
    """Each test that failed, and the end of what it said."""
    for case in cases:
        for kind in ("failure", "error"):
            for found in case.iter(kind):
                yield f"{case.get('classname')}::{case.get('name')}: {(found.text or '')[-1500:]}"


def _feature(reason: str) -> str:
    """``needs cgroup1`` of ``needs cgroup1: this host's layout is v2``: what differs per test is left out."""
    return reason.removeprefix("Skipped: ").split(":")[0]
