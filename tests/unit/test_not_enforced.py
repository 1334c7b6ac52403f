"""What the native backend does not do, it says: nothing is left out silently."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_isolate.backends.native import NativeBackend
from pytest_isolate.profile import STANDARD, vary


@pytest.mark.parametrize(
    "words", [{"net": "policy"}, {"net": "private"}, {"net": "shared"}, {"seccomp": "default"}, {"landlock": True}]
)
def test_what_is_not_enforced_is_said_to_be_lacking(words: dict[str, Any]) -> None:
    lacking = NativeBackend().lacks(vary(STANDARD, **words))
    assert len(lacking) == 1
    assert next(iter(words)).replace("net", "network") in lacking[0]
