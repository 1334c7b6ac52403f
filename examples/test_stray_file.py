"""A test that writes beside its tmp_path, as code with a hard-coded path does.

Plain pytest: the file stays behind, and changes what later tests find.
With --isolate, profile strict: the host's file systems are read-only, tmp_path excepted. The write fails.
"""

import pathlib

import pytest


@pytest.mark.isolate(profile="strict")
def test_stray_file(tmp_path):
    (tmp_path / "report.txt").write_text("here it belongs")
    pathlib.Path("/var/tmp/isolate-example-stray.txt").write_text("here it does not")
