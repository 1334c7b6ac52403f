"""A test that eats memory.

Plain pytest: eats the machine's, until the kernel ends some process: often another one.
With --isolate: the limit is that of this test and all it starts together, and it is this test that is ended.
"""

import pytest


@pytest.mark.isolate(mem_limit="256M")
def test_memory():
    hoard = [bytearray(16 * 1024 * 1024) for _ in range(64)]  # 1 GiB
    assert hoard
