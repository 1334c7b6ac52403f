"""A host that cannot enforce what is asked: --isolate-missing=error|skip|warn, on a process really without means."""

from __future__ import annotations

import os
import pathlib
import platform
import sys

import pytest

from tests.conftest import require

from .conftest import HANGS_S, Run

RESTRICTED = pathlib.Path(__file__).with_name("restricted.py")


@pytest.fixture(name="restricted")
def restricted_run(pytester: pytest.Pytester, plain: Run) -> Run:
    """``isolated`` where clone and unshare refuse every namespace."""
    require("seccomp-filter", platform.machine() in ("x86_64", "aarch64"), "its numbers are known for two machines")

    def run(*args: object, how: tuple[str, ...] = ()) -> pytest.RunResult:
        command = [
            sys.executable,
            RESTRICTED,
            *how,
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "pytest_isolate.runner.plugin",
            "--isolate",
        ]
        return pytester.run(*command, *args, timeout=HANGS_S)

    return run


@pytest.fixture(name="suite", autouse=True)
def suite_of_three(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import errno, ctypes, os, time, pytest
        def test_refused():
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.unshare(0x10000000) == -1 and ctypes.get_errno() == errno.EPERM
        def test_crashes(): os.abort()
        @pytest.mark.isolate(False)
        def test_exempt(): pass
        """
    )


def test_by_default_the_run_is_refused_in_one_line_that_says_what_to_do(restricted: Run) -> None:
    result = restricted()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in result.errlines if line.strip()]
    assert len(errors) == 1, errors
    assert errors[0].startswith("ERROR: pytest-isolate: no backend on this host can enforce the policy: native lacks")
    assert "EPERM" in errors[0]
    assert "The seccomp filter that this process runs under refuses it" in errors[0] or "security-opt" in errors[0], (
        errors
    )
    assert "as root" not in errors[0].lower() or os.geteuid() != 0, "root is told to become root"
    assert "--isolate-missing=skip|warn" in errors[0]
    assert "test_it.py" not in str(result.stdout)


def test_skip_skips_the_isolated_tests_and_says_why(restricted: Run) -> None:
    result = restricted("--isolate-missing=skip", "-rs")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "isolate: isolated tests are skipped, because *EPERM*",
            "SKIPPED *pytest-isolate: no backend on this host*EPERM*",
        ]
    )


def test_warn_goes_on_with_less_and_says_so_in_the_header(restricted: Run) -> None:
    result = restricted("--isolate-missing=warn")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["isolate: DEGRADED standard -> minimal, because *EPERM*", "*killed by SIGABRT during call*"]
    )


def test_the_best_tier_keeps_what_needs_no_namespaces(restricted: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nisolate_profiles =\n    hard: strict, umask=036, seccomp=default")
    pytester.makepyfile(test_it="import os\ndef test_umask(): assert os.umask(0) == 0o36")
    result = restricted("--isolate-missing=warn", "--isolate-profile=hard")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "isolate: profile hard (*), backend native",
            "isolate: DEGRADED hard -> minimal with its hardening, because *EPERM*doctor --ci*",
        ]
    )


def test_where_namespaces_can_be_made_and_mounts_cannot_that_tier_is_found(
    restricted: Run, pytester: pytest.Pytester
) -> None:
    """Ubuntu 24.04: `unshare` works for a plain user, and nothing in it does. Only the whole sequence, tried, tells."""
    pytester.makepyfile(
        test_it="""
        import os
        def test_namespaces():
            assert os.readlink("/proc/self/ns/ipc") != os.environ["OUTSIDE"]
        """
    )
    pytester.makeconftest("import os\nos.environ.setdefault('OUTSIDE', os.readlink('/proc/self/ns/ipc'))")
    refused = restricted(how=("--no-mounts",))
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(
        ["ERROR: *native lacks sandbox setup failed at mounts*: EACCES (Permission denied). The *"]
    )
    result = restricted("--isolate-missing=warn", how=("--no-mounts",))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "isolate: profile standard (namespaces ipc,uts), backend native",
            "isolate: DEGRADED standard -> standard without its mounts, because native lacks *EACCES*doctor --ci*",
        ]
    )


def test_programs_run_where_the_container_refuses_unshare(restricted: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="def test_one(sandbox): assert sandbox.run(['true'], namespaces='none').ok")
    restricted("--isolate-profile=minimal").assert_outcomes(passed=1)


def test_asking_for_less_works_without_a_word(restricted: Run) -> None:
    result = restricted("--isolate-profile=minimal")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.no_fnmatch_line("*DEGRADED*")


@pytest.mark.parametrize("how", ["error", "skip", "warn"])
def test_the_older_plugins_resources_are_not_dropped_in_silence(
    pytester: pytest.Pytester, isolated: Run, how: str
) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        @pytest.mark.isolate(resources={"gpu": 0.5})
        def test_wants_half_a_gpu(): pass
        """
    )
    result = isolated(f"--isolate-missing={how}", "-rs")
    line = "marker isolate resources=gpu: this plugin does not share out GPUs between tests"
    match how:
        case "error":
            assert result.ret == pytest.ExitCode.USAGE_ERROR
            result.stderr.fnmatch_lines(
                [f"ERROR: pytest-isolate: {line}. Leave it out, set CUDA_VISIBLE_DEVICES in a fixture, *"]
            )
        case "skip":
            result.assert_outcomes(skipped=1)
            result.stdout.fnmatch_lines([f"SKIPPED*pytest-isolate: {line}*"])
        case "warn":
            result.assert_outcomes(passed=1)
            result.stdout.fnmatch_lines([f"isolate: DEGRADED {line}"])


@pytest.mark.parametrize(
    "limits",
    [
        ("--isolate-mem-limit=512M",),
        ("--isolate-mem-limit=512M", "-o", "isolate_profiles=few: standard, pids=20", "--isolate-profile=few"),
    ],
    ids=["memory", "memory and pids"],
)
def test_a_limit_that_goes_with_the_namespaces_is_named_in_the_header(
    pytester: pytest.Pytester, restricted: Run, limits: tuple[str, ...]
) -> None:
    require("root", os.geteuid() == 0, "the cgroup mounts are made read-only")
    pytester.makepyfile(
        test_it="import resource\ndef test_it(): assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 512 << 20"
    )
    result = restricted("--isolate-missing=warn", *limits, how=("--read-only-cgroups",))
    result.assert_outcomes(passed=1)
    lines = [
        "isolate: DEGRADED memory_bytes not held as asked but by RLIMIT_DATA, for each process and without MAP_SHARED: *EROFS*"
    ]
    lines += ["isolate: DEGRADED pids not held: *EROFS*"] * (len(limits) > 1)
    result.stdout.fnmatch_lines([*lines, "isolate: DEGRADED * -> minimal, because *EPERM*"])
