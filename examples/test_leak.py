"""A test that passes and leaves a daemon running.

Plain pytest: the daemon outlives the run, and the next one meets it.
With --isolate: it is killed and named. Here that counts as a failure (leaks="fail"); by default it is a warning.
"""

import subprocess

import pytest


@pytest.mark.isolate(leaks="fail")
def test_leak():
    subprocess.run("sleep 3600 &", shell=True)
