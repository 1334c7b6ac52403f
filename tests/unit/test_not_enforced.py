"""What a backend does not do, it says: nothing is left out silently."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_isolate.backends.fork import ForkBackend
from pytest_isolate.hardening import Landlock
from pytest_isolate.kernel import landlock
from pytest_isolate.profile import MINIMAL, vary


@pytest.mark.parametrize(("version", "words"), [(0, "Linux 5.13"), (2, "truncate"), (3, "TCP"), (5, "scopes")])
def test_a_kernel_whose_landlock_is_too_old_lacks_it(version: int, words: str) -> None:
    asked = Landlock(connect_tcp=(80,), scoped=True)
    assert words in " ".join(landlock.lacks(asked, version))
    assert list(landlock.lacks(asked, 6)) == []


@pytest.mark.parametrize("words", [{"seccomp": "default"}, {"landlock": True}, {"close_fds": True}, {"umask": "077"}])
def test_the_fork_backend_lacks_every_hardening(words: dict[str, Any]) -> None:
    assert "hardening" in ForkBackend().lacks(vary(MINIMAL, **words))[0]


def test_the_fork_backend_lacks_what_needs_a_cgroup_v2() -> None:
    assert "network policy" in ForkBackend().lacks(vary(MINIMAL, net="policy"))[0]
