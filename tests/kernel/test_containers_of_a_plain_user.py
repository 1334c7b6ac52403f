"""The backend oci without root: a container in a user namespace, of the host's directories."""

from __future__ import annotations

import os
from typing import Any

import pytest
import pytest_isolate_oci

from pytest_isolate import MINIMAL, STANDARD, Sandbox, hooks
from pytest_isolate.policy import Policy
from tests.conftest import require
from tests.kernel.throwaway import throwaway


@pytest.mark.parametrize("policy", [MINIMAL, STANDARD], ids=["minimal", "standard"])
def test_a_plain_user_has_containers(policy: Policy) -> None:
    require("root", os.geteuid() == 0, "becomes a plain user by itself")

    def body() -> Any:
        backend = pytest_isolate_oci.Oci()
        if lacking := backend.lacks(policy):
            return "; ".join(lacking)
        manager = hooks.plugin_manager()
        manager.register(pytest_isolate_oci)
        with Sandbox(policy, hooks=hooks.Hooks(manager), backends=["oci"]) as sandbox:
            outcome = sandbox.run(["sh", "-c", "id -u; readlink /proc/self/ns/user; exit 3"])
        return [outcome.status.code, *outcome.stdout.split(), os.geteuid(), os.readlink("/proc/self/ns/user")]

    found = throwaway(body, who="user")
    require("oci-of-a-plain-user", isinstance(found, list), str(found))
    code, inside, theirs, outside, ours = found
    assert (code, inside) == (3, "0")
    assert outside != 0
    assert theirs != ours
