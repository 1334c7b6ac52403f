"""What tests of sandboxes below the runner share.

Owns: the fixture `sandbox`: one of the library's, where this host can make any. Refuses: the plugin's fixture of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pytest_isolate import Sandbox
from pytest_isolate.kernel import probe


@pytest.fixture
def sandbox(require: Callable[[str, bool, str], None]) -> Iterator[Sandbox]:
    feature = probe.feature("sandbox")
    require("namespaces", feature.available, feature.reason)
    with Sandbox() as made:
        yield made
