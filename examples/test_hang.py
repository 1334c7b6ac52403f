"""A test that waits for something that never comes, in a thread that no exception can reach.

Plain pytest: waits forever.
With --isolate: after the test's time-out it is ended, with all it started; the report shows where it stood.
"""

import threading

import pytest


@pytest.mark.isolate(timeout=1)
def test_hang():
    threading.Event().wait()
