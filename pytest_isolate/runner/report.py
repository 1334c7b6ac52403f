"""What a person sees: the header line, the word for a cause, the summary of leaks.

Owns: letters and words of the terminal. Refuses: to change an outcome: the category stays failed or passed, so
that exit codes, --lf and junit hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_isolate.outcome import Cause
from pytest_isolate.policy import Hardening, Policy
from pytest_isolate.runner import compat
from pytest_isolate.units import format_bytes, format_seconds

_LETTERS = {
    Cause.TIMEOUT: "T",
    Cause.OOM: "O",
    Cause.PIDS: "P",
    Cause.CPU: "C",
    Cause.FSIZE: "Z",
    Cause.NOFILE: "N",
    Cause.NETDENIED: "D",
    Cause.LEAK: "L",
    Cause.SETUP: "S",
}


#: Title of the section of a report that names what was left behind, and of the one that says which limits were reached.
LEAK_SECTION = "Leaked processes"
LIMITS_SECTION = "Limits reached"


@dataclass(slots=True)
class Tally:
    """What the run has seen, for the summary at its end."""

    leaks: list[tuple[str, list[str]]] = field(default_factory=list)
    limits: list[tuple[str, list[str]]] = field(default_factory=list)

    def note(self, report: Any) -> None:
        """Remember what a report tells of that is shown nowhere else, whichever process or xdist worker it came from."""
        for title, text in report.sections:
            if title == LEAK_SECTION:
                self.leaks.append((report.nodeid, text.splitlines()[1:]))
            elif title == LIMITS_SECTION and report.passed:
                self.limits.append((report.nodeid, text.splitlines()))


def status(report: Any) -> tuple[str, str, str] | None:
    """(category, letter, word) of a report with a cause; None for every other."""
    cause = getattr(report, "isolate_cause", None)
    if cause is None or hasattr(report, "wasxfail") or report.outcome == "rerun":
        return None
    letter = _LETTERS[Cause(cause)]
    if report.failed:
        return ("failed" if report.when == "call" else "error"), letter, str(cause)
    told = report.when == "teardown"  # a leak, or a limit that was reached: beside the word of the outcome
    return "", letter if told else "", str(cause) if told else ""


def summarize(terminal: Any, tally: Tally) -> None:
    """Name, at the end of the run, what tests left behind and reached: a test that passed shows its sections nowhere else."""
    if compat.verbosity(terminal.config) < 0:
        return
    for title, found in (
        ("leaked processes (killed)", tally.leaks),
        ("limits reached besides", tally.limits),
    ):
        if found:
            terminal.section(title, yellow=True)
        for nodeid, lines in found:
            terminal.line(nodeid)
            for line in lines:
                terminal.line(f"    {line}")


def _by_rlimit(policy: Policy) -> str:
    if policy.limits.memory_fallback != "rlimit":
        return ""
    return " for each process (RLIMIT_DATA: does not see shared memory, MAP_SHARED, nor the sum of processes)"


def _group_limits(policy: Policy) -> Iterator[tuple[str, str]]:
    limits = policy.limits
    yield "swap", "none" if limits.swap_bytes == 0 else format_bytes(limits.swap_bytes or 0) * bool(limits.swap_bytes)
    yield "pids", str(limits.pids or "")
    yield "cores", f"{limits.cpu_cores:g}" if limits.cpu_cores else ""
    yield "cpuset", limits.cpuset or ""
    yield "io", f"on {', '.join(limit.path for limit in limits.io)}" if limits.io else ""
    yield "rlimits", ",".join(sorted(limits.rlimits))


def describe(policy: Policy) -> str:
    """What a policy enforces, in a line."""
    parts = []
    if policy.namespaces:
        parts.append("namespaces " + ",".join(sorted(namespace.value for namespace in policy.namespaces)))
    if policy.filesystem.root != "host":
        parts.append(f"{policy.filesystem.root} file system")
    if policy.network.mode != "host":
        rules = " with rules" if policy.network.ruled and policy.network.mode != "policy" else ""
        parts.append(f"network {policy.network.mode}{rules}")
    if policy.network.tier:
        parts.append("network held without eBPF")
    if policy.limits.memory_bytes:
        parts.append(f"memory {format_bytes(policy.limits.memory_bytes)}{_by_rlimit(policy)}")
    parts += [f"{name} {value}" for name, value in _group_limits(policy) if value]
    if policy.limits.cpu_time_s:
        parts.append(f"CPU {format_seconds(policy.limits.cpu_time_s)}")
    if policy.timeout_s:
        parts.append(f"time-out {format_seconds(policy.timeout_s)}")
    parts += _hardening(policy.hardening)
    return ", ".join(parts) or "a process and session of its own"


def _hardening(hardening: Hardening) -> Iterator[str]:
    if hardening.capabilities is not None:
        yield "no capabilities" if not hardening.capabilities else f"{len(hardening.capabilities)} capabilities"
    if hardening.securebits:
        yield "securebits"
    if hardening.no_new_privs:
        yield "no new privileges"
    if hardening.seccomp != "none":
        yield f"seccomp {hardening.seccomp if isinstance(hardening.seccomp, str) else hardening.seccomp.name}"
    if hardening.landlock is not None:
        yield "Landlock"
    if hardening.close_fds:
        yield "no inherited descriptors"
    if hardening.umask is not None:
        yield f"umask {hardening.umask:03o}"
    if hardening.environment == "scrub":
        yield "a scrubbed environment"


def say_slow(item: pytest.Item, elapsed_s: float, deadline: float | None) -> None:
    """One line on the terminal while the test runs; nothing with -q."""
    terminal = item.config.pluginmanager.getplugin("terminalreporter")
    if terminal is None or compat.verbosity(item.config) < 0:
        return
    ends = f", ends in {format_seconds(deadline - time.monotonic())}" if deadline is not None else ""
    terminal.ensure_newline()
    terminal.write_line(f"SLOW {item.nodeid}: running for {format_seconds(elapsed_s)}{ends}", yellow=True)
