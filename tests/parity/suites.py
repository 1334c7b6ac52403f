"""Which public suites are run, at which version, and what each needs.

Owns: the table. Every sdist below holds its tests; versions are pinned, so that a difference is ours and not a new release's.
Refuses: to choose tests. A suite is run as its own tox or CI runs it, from its own directory, with its own configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PYTEST = "pytest>=9.2,<10"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """``args``: what the project's own tox passes to pytest beyond its configuration; ``note``: what a reader should know.

    ``serial``: the tests that an isolated run is told to run while no other does, as a user would (ini isolate_serial).
    ``own_network``: as root, both runs are made in a network namespace of their own, where nobody else adds an interface.
    """

    name: str
    version: str
    requires: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    serial: tuple[str, ...] = ()
    own_network: bool = False
    note: str = ""

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"


_HYPOTHESIS = "hypothesis==6.170.15"
_XDIST = "pytest-xdist==3.8.0"

SUITES: Sequence[Suite] = (
    Suite(
        name="attrs",
        version="26.1.0",
        requires=("cloudpickle==3.1.2", _HYPOTHESIS, "pympler==1.1", _XDIST, "psutil==7.2.2"),
        note="its tox adds -n auto; here it runs in one process. test_mypy.yml needs a plugin of its mypy env: not collected",
    ),
    Suite(name="click", version="8.5.1", note="its configuration leaves out the tests marked stress"),
    Suite(
        name="packaging",
        version="26.3",
        requires=(_HYPOTHESIS, "pretend==1.0.9", "tomli_w==1.2.0", "pip"),
        note="its configuration leaves out the tests marked property",
    ),
    Suite(
        name="werkzeug",
        version="3.1.9",
        requires=(
            "cffi==2.1.1",
            "cryptography==50.0.2",
            "ephemeral-port-reserve==1.1.4",
            "pytest-timeout==2.4.0",
            "watchdog==6.0.0",
        ),
        note="starts development servers as subprocesses; watchdog as its uv.lock has it: "
        "with 7.1.0 its test_reloader_sys_path[watchdog] hangs, plainly too",
    ),
    Suite(
        name="psutil",
        version="7.2.2",
        requires=("psleak", "pytest-instafail==0.5.0", _XDIST, "setuptools"),
        args=("-o", "verbosity_subtests=0"),
        # Its test_invocation imports setuptools, which refuses a process whose earlier tests imported distutils: plainly it
        # fails by the others' doing, alone in its process it passes. So setuptools is told to leave distutils alone.
        environment=(("SETUPTOOLS_USE_DISTUTILS", "stdlib"),),
        # Its class takes the process of setUpClass for the test's own. That one forks the next test meanwhile, and the two looks
        # that are compared, 0.1 ms apart, told "running" and "disk-sleep" in 7 runs of 120.
        serial=("tests/test_linux.py::TestProcessAgainstStatus::test_status",),
        own_network=True,  # test_net_if_addrs looks twice at the interfaces, of which other runs on the host make some meanwhile
        note="its configuration sets -s (no capture) and asks for instafail and xdist; its verbosity_subtests is a string, which "
        "pytest 9.2 refuses in the middle of the run: given again with -o. Looks at the processes of the host; one test "
        "compares two looks at the state of pytest's own process, and is run while that does nothing (isolate_serial)",
    ),
    Suite(name="cachetools", version="8.0.0", note="its tox adds --cov, which measures and decides nothing"),
    Suite(name="itsdangerous", version="2.2.0", requires=("freezegun==1.5.5",)),
    Suite(name="markupsafe", version="3.0.4", note="has a C extension"),
    Suite(
        name="python-dateutil",
        version="4.0.0",
        requires=(_HYPOTHESIS, "freezegun==1.5.5", "attrs==26.1.0", "pytest-cov==7.1.0"),
        args=("tests", "docs"),
        note="its tox adds -n auto and --cov; here it runs in one process, unmeasured (pytest-cov is there for its marker)",
    ),
    Suite(name="idna", version="3.20", requires=(_HYPOTHESIS,)),
)
