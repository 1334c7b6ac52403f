"""The matrix as values: which machine each row boots, and where it is known to give less.

Owns: ROWS, LIMITS, and the choice of rows by name. Refuses: to boot anything.
A cell that is not ``enforced`` stands here with the reason; a row that answers otherwise, better or worse, fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

State = Literal["enforced", "degraded", "refused"]

#: The columns, as tests/vm/inside names its checks.
LIMITS = (
    "memory",
    "memory-high",
    "oom-group",
    "swap",
    "pids",
    "cpu",
    "cpu-weight",
    "cpuset",
    "io",
    "hugetlb",
    "freeze",
    "kill",
    "clone-into",
    "rlimits",
    "userns",
    "landlock",
    "seccomp",
    "bpf",
)

#: The lines of the second table, as tests/vm/ours names its checks: through the product, told in its words.
OURS = (
    "memory",
    "memory-high",
    "swap",
    "pids",
    "cpu",
    "cpu-weight",
    "cpu-time",
    "cpuset",
    "io",
    "hugetlb",
    "freeze",
    "kill",
    "header",
    "landlock",
    "tests",
)
#: Those of OURS that are a run of pytest: slow, and they need the row's own launcher.
SUITES = ("header", "landlock", "tests")
LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType({"kernel": LIMITS, "ours": OURS})

_GROUP_LIMITS = tuple(name for name in LIMITS if name not in ("rlimits", "userns", "landlock", "seccomp"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One environment. ``less``: limit -> the state it has here when that is not ``enforced``, for ``why``.

    ``ours_less`` says the same of the product, where it differs from the kernel: it may make good what the kernel lacks.
    ``mode`` is the product's --isolate-cgroup; ``require`` the features its tests may not skip (ISOLATE_REQUIRE);
    ``tests`` the project's own that are run there, ``environment`` what they see besides.

    ``packages``: None boots the host's own root; otherwise a Debian of ``root_suite`` with these packages.
    ``launch``: what is put before the command in the guest.
    """

    name: str
    why: str
    kernel_suite: str
    cgroup: Literal["v2", "v1", "hybrid", "systemd"] = "v2"
    user: Literal["root", "isolate"] = "root"
    root_suite: str = ""
    packages: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    launch: str = ""
    less: Mapping[str, State] = field(default_factory=lambda: MappingProxyType({}))
    ours_less: Mapping[str, State] = field(default_factory=lambda: MappingProxyType({}))
    mode: Literal["auto", "v1", "v2", "systemd"] = "auto"
    require: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("tests/kernel/cgroups",)
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    timeout_s: float = 3000.0

    def expected(self, layer: str, limit: str) -> State:
        """The state a cell must have; the product gives what the kernel gives, unless ``ours_less`` says otherwise."""
        if layer == "ours" and limit in self.ours_less:
            return self.ours_less[limit]
        return self.less.get(limit, "enforced")


_PYTHON = ("python3", "python3-pytest", "python3-pyroute2", "kmod", "iproute2", "procps")
_SYSTEMD = ("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "python3-jeepney", *_PYTHON)

_V1_LESS: Mapping[str, State] = {"memory-high": "refused", "oom-group": "refused", "kill": "degraded"}
_LOW_TIER: Mapping[str, State] = {"cpu-time": "refused", "header": "degraded"}
_V2_TESTS = (
    "cgroup2",
    "cgroup2-memory",
    "cgroup2-pids",
    "cgroup2-cpu",
    "cgroup2-io",
    "cgroup2-cpuset",
    "hugepages",
    "swap",
)
_V1_TESTS = ("cgroup1", "cgroup1-io", "hugepages", "swap")
#: Views of the file system are made by other calls before 5.12; in these rows the folder is run on both sides of that.
_FILE_SYSTEM_TESTS = ("tests/kernel/cgroups", "tests/kernel/filesystem", "tests/kernel/test_native_mounts.py")
_NO_GROUPS: Mapping[str, State] = dict.fromkeys(_GROUP_LIMITS, "refused")

ROWS = (
    Row(
        name="5.10",
        why="Debian 11, the old end: no cgroup.kill (5.14), no Landlock (5.13), no memory.peak (5.19)",
        kernel_suite="bullseye",
        less={"kill": "degraded", "landlock": "refused"},
        ours_less={"kill": "enforced"},
        require=(*_V2_TESTS, "overlay-upper"),
        tests=_FILE_SYSTEM_TESTS,
    ),
    Row(
        name="6.1",
        why="Debian 12, unified cgroups, root: everything works, every limit's verdict is told",
        kernel_suite="bookworm",
        require=_V2_TESTS,
        tests=(
            "tests/kernel/cgroups",
            "tests/kernel/limits",
            "tests/pytest/test_limits.py",
            "tests/pytest/test_limits_refused.py",
            "tests/pytest/test_limits_left.py",
            "tests/pytest/test_costs.py",
        ),
    ),
    Row(
        name="6.1-network",
        why="the same machine: the network policy, by clsact where later kernels have tcx",
        kernel_suite="bookworm",
        require=("cgroup2", "bpf"),
        tests=("tests/kernel/network",),
        environment=MappingProxyType({"ISOLATE_FRONT_ENDS": "libbpf"}),  # bcc compiles for minutes on an emulated CPU
    ),
    Row(
        name="6.12",
        why="Debian 13, unified cgroups, root",
        kernel_suite="trixie",
        require=(*_V2_TESTS, "overlay-upper", "mount_setattr", "idmapped-mounts"),
        tests=_FILE_SYSTEM_TESTS,
    ),
    Row(
        name="6.1-v1",
        why="one v1 hierarchy per controller and no v2: nothing to clone into or to attach eBPF to",
        kernel_suite="bookworm",
        cgroup="v1",
        less={**_V1_LESS, "clone-into": "refused", "bpf": "refused"},
        ours_less={"kill": "enforced"},
        require=_V1_TESTS,
    ),
    Row(
        name="6.1-hybrid",
        why="v1 controllers beside an empty v2 hierarchy, which takes eBPF and clone3",
        kernel_suite="bookworm",
        cgroup="hybrid",
        less=_V1_LESS,
        ours_less={"kill": "enforced"},
        require=("cgroup2", *_V1_TESTS),
    ),
    Row(
        name="systemd",
        why="a plain user of a systemd host, in a scope the user manager delegated: memory, pids and cpu are the user's",
        kernel_suite="bookworm",
        cgroup="systemd",
        user="isolate",
        root_suite="bookworm",
        packages=_SYSTEMD,
        launch="systemd-run --user --scope --quiet -p Delegate=yes",
        less={"cpuset": "refused", "io": "refused", "hugetlb": "refused", "bpf": "refused"},
        mode="systemd",
    ),
    Row(
        name="userns-off-clone",
        why="a plain user, kernel.unprivileged_userns_clone=0 (Debian's switch, EPERM), no delegated cgroup",
        kernel_suite="bookworm",
        user="isolate",
        sysctls={"kernel.unprivileged_userns_clone": "0"},
        less={**_NO_GROUPS, "userns": "refused"},
        ours_less=_LOW_TIER,
    ),
    Row(
        name="userns-off-max",
        why="a plain user, user.max_user_namespaces=0 (ENOSPC), no delegated cgroup",
        kernel_suite="bookworm",
        user="isolate",
        sysctls={"user.max_user_namespaces": "0"},
        less={**_NO_GROUPS, "userns": "refused"},
        ours_less=_LOW_TIER,
    ),
    Row(
        name="container-like",
        why="as Docker starts one: 14 capabilities, a seccomp filter, masked /proc, cgroups read-only",
        kernel_suite="bookworm",
        launch="python3 /isolate/checkout/tests/vm/inside/contain.py",
        less={**_NO_GROUPS, "userns": "refused"},
        ours_less=_LOW_TIER,
    ),
    Row(
        name="python3.13",
        why="Debian 13 with its own Python and pytest",
        kernel_suite="trixie",
        root_suite="trixie",
        packages=_PYTHON,
    ),
    Row(
        name="python3.14",
        why="Debian unstable with its own Python and pytest, and the newest kernel Debian has",
        kernel_suite="sid",
        root_suite="sid",
        packages=_PYTHON,
    ),
)


def choose(names: Iterable[str]) -> tuple[Row, ...]:
    """The rows called exactly so, else those whose name goes on after ``NAME-``; all of them for no name.

    Raises:
        LookupError: a name no row has.
    """
    chosen: list[Row] = []
    for name in names:
        exact = [row for row in ROWS if row.name == name]
        found = exact or [row for row in ROWS if row.name.startswith(f"{name}-")]
        if not found:
            raise LookupError(f"row {name!r}: unknown. Use one of {', '.join(row.name for row in ROWS)}.")
        chosen += [row for row in found if row not in chosen]
    return tuple(chosen) or ROWS
