"""A pytest plugin that writes every report of a run to a JSON file: what happened, not what was printed.

Owns: the record (see `record`). Stands alone: it is loaded with -p into suites that know nothing of this repository.
Refuses: to run in xdist's workers; the controller sees every report once.
"""

from __future__ import annotations

import json
import os

import pytest


def record(report: pytest.TestReport) -> dict[str, object]:
    """One report: phase, outcome as a reader of the summary would call it, whether of a subtest, and why."""
    return {
        "when": report.when,
        "outcome": _outcome(report),
        "subtest": type(report).__name__ in ("SubtestReport", "SubTestReport"),
        "why": _last_line(report) if report.outcome != "passed" else "",
    }


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return {"skipped": "xfailed", "passed": "xpassed"}.get(report.outcome, report.outcome)
    return report.outcome


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    if isinstance(longrepr, tuple):
        return str(longrepr[-1])[:300]
    crash = getattr(longrepr, "reprcrash", None)
    lines = str(crash.message if crash is not None else longrepr or "").strip().splitlines()
    return lines[0][:300] if lines else ""


class Recorder:
    """Keeps the reports by nodeid, in order, and writes them when the session ends."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.collected = 0
        self.tests: dict[str, list[dict[str, object]]] = {}
        self.collect_errors: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected = len({item.nodeid for item in session.items})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """For the reader of a run that does not end: which test it was at."""
        with open(f"{self.path}.at", "w") as file:
            file.write(nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests.setdefault(report.nodeid, []).append(record(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.collect_errors[report.nodeid] = _last_line(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        content = {
            "exitstatus": int(exitstatus),
            "collected": self.collected,
            "tests": self.tests,
            "collect_errors": self.collect_errors,
        }
        partial = f"{self.path}.partial"
        with open(partial, "w") as file:
            json.dump(content, file)
        os.replace(partial, self.path)


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("PARITY_RECORD")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(path), "parity-recorder-instance")
