"""A skip names the feature that is missing, and is a failure where the run was told to require it."""

from __future__ import annotations

import pytest

from tests.conftest import require


def test_what_is_available_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOLATE_REQUIRE", "cgroup2")
    require("cgroup2", True, "")


def test_what_is_missing_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISOLATE_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs cgroup2: not mounted"):
        require("cgroup2", False, "not mounted")


def test_what_is_missing_and_required_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOLATE_REQUIRE", "bpf, cgroup2")
    with pytest.raises(pytest.fail.Exception, match="ISOLATE_REQUIRE names 'cgroup2'"):
        require("cgroup2", False, "not mounted")


@pytest.mark.parametrize("feature", ["", "user namespaces", "bpf,cgroup2", " bpf"])
def test_a_name_that_could_not_be_required_is_no_name(feature: str) -> None:
    with pytest.raises(ValueError, match="write one word"):
        require(feature, True, "")
