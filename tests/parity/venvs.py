"""What a suite needs before it can run: its sdist, unpacked, and a virtual environment of its own.

Owns: the work directory's layout: sdists/, trees/<suite>, venvs/<suite>, runs/<suite>/.
Refuses: to reuse an environment whose requirements have changed (a stamp beside it says what it was made for).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.parity.suites import PYTEST, Suite

CHECKOUT = Path(__file__).resolve().parents[2]
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "-q")


class PrepareError(Exception):
    """A download or an installation failed; the text holds the command and its last lines."""


def command(*words: str | Path, cwd: Path | None = None) -> None:
    """Run a command that has to succeed; its output is shown only when it does not."""
    result = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if result.returncode:
        tail = "\n".join(result.stdout.splitlines()[-15:])
        raise PrepareError(f"{' '.join(map(str, words))}\n  failed with status {result.returncode}:\n{tail}")


def build_wheel(work: Path) -> Path:
    """Our package, built once from the checkout."""
    out = work / "wheel"
    shutil.rmtree(out, ignore_errors=True)
    command(sys.executable, *PIP, "wheel", "--no-deps", "-w", out, CHECKOUT)
    (wheel,) = out.glob("*.whl")
    return wheel


def fetch(suite: Suite, work: Path) -> Path:
    """The sdist of exactly the pinned version, downloaded once."""
    sdists = work / "sdists" / suite.name
    if not list(sdists.glob("*.tar.gz")):
        command(
            *(sys.executable, *PIP, "download", "--no-deps", "--no-binary", suite.name, "-d", sdists, suite.pin),
        )
    (sdist,) = sdists.glob("*.tar.gz")
    return sdist


def unpack(suite: Suite, work: Path) -> Path:
    """A fresh tree of the suite, with nothing in it from an earlier run."""
    place = work / "trees" / suite.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with tarfile.open(fetch(suite, work)) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(place, filter="data")
        else:
            archive.extractall(place)
    (tree,) = place.iterdir()
    return tree


def environment(suite: Suite, tree: Path, wheel: Path, work: Path, extra: Iterable[str]) -> Path:
    """The python of a virtual environment that holds pytest, the suite's needs, the suite and our package.

    ``extra``: requirements, or directories of plugins for our package, which come after it.
    """
    venv = work / "venvs" / suite.name
    own = [Path(name).resolve() for name in extra if os.path.isdir(name)]
    requires = [PYTEST, *suite.requires, *(name for name in extra if not os.path.isdir(name))]
    stamp = venv / "made-for.txt"
    python = venv / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != "\n".join(requires):
        shutil.rmtree(venv, ignore_errors=True)
        command(sys.executable, "-m", "venv", venv)
        command(python, *PIP, "install", *requires)
        stamp.write_text("\n".join(requires))
    command(python, *PIP, "install", "-e", tree)
    command(python, *PIP, "install", wheel)
    command(python, *PIP, "install", "--force-reinstall", "--no-deps", wheel, *own)
    return python
