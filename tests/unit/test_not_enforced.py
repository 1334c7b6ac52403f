"""What the native backend does not do, it says: nothing is left out silently."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_isolate.backends.fork import ForkBackend
from pytest_isolate.backends.native import NativeBackend
from pytest_isolate.profile import MINIMAL, STANDARD, vary


@pytest.mark.parametrize("words", [{"seccomp": "default"}, {"landlock": True}])
def test_what_is_not_enforced_is_said_to_be_lacking(words: dict[str, Any]) -> None:
    lacking = NativeBackend().lacks(vary(STANDARD, **words))
    assert len(lacking) == 1
    assert next(iter(words)) in lacking[0]


def test_the_fork_backend_lacks_what_needs_a_cgroup_v2() -> None:
    assert "network policy" in ForkBackend().lacks(vary(MINIMAL, net="policy"))[0]
