"""A test's process as its parent holds it, and what came of it.

Owns: TestProcess and Verdict. Refuses: to start it (workers.py), to listen to it (conversation.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pytest_isolate import wire
from pytest_isolate.backend import Process
from pytest_isolate.outcome import Cause, Leftover
from pytest_isolate.policy import NO_LIMITS, Limits
from pytest_isolate.runner import crash
from pytest_isolate.runner.orders import Orders

if TYPE_CHECKING:
    from pytest_isolate.errors import IsolateError
    from pytest_isolate.hooks import Life
    from pytest_isolate.kernel.cgroups import Cgroup, CgroupUsage
    from pytest_isolate.kernel.filesystem import MountPlan
    from pytest_isolate.sandbox_network import SandboxNetwork


#: What the process level counts, by the names of Usage.
COSTS = ("user_s", "system_s", "max_rss_bytes")


@dataclass(slots=True)
class TestProcess:
    """A test's process as its parent holds it. Owner of the descriptors and output files.

    Reports arrive on ``report_fd``. ``places`` are those of the items it shares, by id, as they were when it was forked.
    ``view`` is what its paths mean, None where they mean what they mean here. ``told``: causes told of, of whatever item.
    """

    __test__ = False

    report_fd: int
    orders: Orders
    outputs: crash.Outputs
    reader: wire.Reader
    item: pytest.Item
    process: Process = field(init=False)
    last: pytest.Item = field(init=False)
    group: Any = None
    places: Mapping[int, int] = field(default_factory=dict)
    cgroup: Cgroup | None = None
    limits: Limits = NO_LIMITS
    network: SandboxNetwork | None = None
    life: Life | None = None
    view: MountPlan | None = None
    told: set[Cause] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    def kill(self) -> None:
        """End all of it: what its namespace or session shows, and what its cgroup holds."""
        self.process.kill()
        if self.cgroup is not None:
            self.cgroup.kill()

    def close(self) -> None:
        if self.report_fd >= 0:
            os.close(self.report_fd)
            self.report_fd = -1
            self.orders.close()
            self.outputs.close()


@dataclass(slots=True)
class Verdict:
    """What a conversation came to."""

    control: dict[str, Any] | None = None
    died: bool = False
    last: bool = False
    leftovers: list[Leftover] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)
    counted: CgroupUsage | None = None
    interrupted: bool = False
    again: bool = False
    cause: tuple[str, str] | None = None
    failed: bool = False
    #: The line of a limit that was reached and did not explain the test's failure.
    beside: str = ""
    complaint: IsolateError | None = None

    @property
    def over(self) -> bool:
        """True when its process takes no further item."""
        return self.died or self.last or self.control is not None
