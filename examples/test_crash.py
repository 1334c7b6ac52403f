"""A C library that crashes.

Plain pytest: the interpreter itself is gone; every test after this one never runs, and there is no summary.
With --isolate: this test fails, with the signal and the Python line that was running; the rest goes on.
"""

import ctypes


def test_crash():
    print("about to read address 0")
    ctypes.string_at(0)


def test_after_the_crash_still_runs():
    assert True
