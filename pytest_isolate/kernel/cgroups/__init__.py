"""Control groups: v1, v2 and hybrid behind one interface.

    with open_manager(run_id) as manager:
        with manager.create("gw0-test_x", Limits(memory_bytes=2**28, pids=50)) as cgroup:
            ...  # start a child in cgroup.dir_fd and cgroup.procs_fds
            cgroup.kill()
            cgroup.verdicts(), cgroup.usage()

Standard library only; jeepney is imported when mode="systemd" asks for it.
"""

from pytest_isolate.kernel.cgroups.evidence import throttling, verdicts
from pytest_isolate.kernel.cgroups.group import Cgroup
from pytest_isolate.kernel.cgroups.layout import Hierarchy, Layout, discover
from pytest_isolate.kernel.cgroups.run import ACCOUNTING, MODES, Capability, CgroupManager, open_manager, sweep
from pytest_isolate.kernel.cgroups.usage import CgroupEvents, CgroupUsage, Pressure

__all__ = [
    "ACCOUNTING",
    "MODES",
    "Capability",
    "Cgroup",
    "CgroupEvents",
    "CgroupManager",
    "CgroupUsage",
    "Hierarchy",
    "Layout",
    "Pressure",
    "discover",
    "open_manager",
    "sweep",
    "throttling",
    "verdicts",
]
