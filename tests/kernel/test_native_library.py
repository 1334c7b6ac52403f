"""The library is loaded when first needed, and its absence is told with a remedy."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel import library, native
from tests.kernel.launching import plan
from tests.kernel.throwaway import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_importing_the_module_loads_no_library() -> None:
    code = "import pytest_isolate.kernel.native; print('libisolate' in open('/proc/self/maps').read())"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).stdout == b"False\n"


@pytest.mark.parametrize("name", ["libisolate.so", "isolate-init"])
def test_a_missing_file_is_told_with_a_remedy(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_DIRECTORY", tmp_path)
    with pytest.raises(BackendUnavailable, match=rf"{name}.*does not exist. Build it with `make -C native`"):
        library.find(name)


def test_a_broken_library_is_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libisolate.so").write_bytes(b"not a library")
    monkeypatch.setattr(library, "_DIRECTORY", tmp_path)
    with pytest.raises(BackendUnavailable, match=r"too short.*Build it with"):
        library.load.__wrapped__()


def test_an_empty_argv_is_refused() -> None:
    with pytest.raises(ValueError, match="argv is empty"):
        native.spawn(plan(), [])
