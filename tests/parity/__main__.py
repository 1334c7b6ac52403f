"""`python -m tests.parity`: the ten public suites, plainly and with --isolate, and what differs.

Owns: running a suite and printing the tables. Exit status: 0 when nothing differs, 1 when something does, 2 when a suite could
not be prepared or did not finish. A test that differs between plain runs (--plain-runs 2) is listed, and called flaky.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.parity import compare, venvs
from tests.parity.suites import SUITES, Suite

#: Takes away what a container of Docker's defaults has not: namespaces, mounts, capabilities.
CONTAINED = (sys.executable, str(Path(__file__).resolve().parents[1] / "vm" / "inside" / "contain.py"), "--in-place")
RECORDER = Path(__file__).resolve().parent / "plugin"
OWN_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
#: Every kind of group limit, each so generous that no test of the suites comes near it.
LIMITED = "-o 'isolate_profiles=limited: standard, memory=2G, cpu_time=60, pids=500, cpu=2' --isolate-profile=limited"
#: Left behind by a run, read by the next: taken away so that every run starts alike.
STATE = (".pytest_cache", ".hypothesis")


class RunError(Exception):
    """pytest ended without writing its record: killed, timed out, or refused its arguments."""


@dataclass(kw_only=True)
class Result:
    """One suite: its plain runs, the other run, and what differs."""

    suite: Suite
    plain: list[compare.Run] = field(default_factory=list)
    other: compare.Run | None = None
    error: str = ""

    @property
    def flaky(self) -> set[str]:
        return compare.flaky(self.plain) if self.plain else set()

    @property
    def differences(self) -> list[compare.Difference]:
        if self.other is None:
            return []
        return compare.differences(self.plain[0], self.other)

    @property
    def verdict(self) -> list[compare.Difference]:
        """The differences that count: not of a test that plain runs disagree about."""
        return [difference for difference in self.differences if difference.nodeid not in self.flaky]


def run_suite(
    python: Path,
    tree: Path,
    record: Path,
    args: Sequence[str],
    timeout_s: float,
    more: Mapping[str, str],
    launch: Sequence[str] = (),
) -> compare.Run:
    """Run pytest once in the suite's directory; the wall time is that of the whole process. ``launch`` is put before it."""
    for name in STATE:
        shutil.rmtree(tree / name, ignore_errors=True)
    record.unlink(missing_ok=True)
    log = record.with_suffix(".log")
    recorded = ("-p", "parity_recorder", f"--basetemp={record.with_suffix('.tmp')}")
    command = [*launch, str(python), "-m", "pytest", *recorded, *args]
    environment = suite_environment(python) | {"PARITY_RECORD": str(record), **more}
    started = time.monotonic()
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        status = wait(process, timeout_s)
    wall_s = time.monotonic() - started
    if not record.exists():
        tail = "\n    ".join(log.read_text(errors="replace").splitlines()[-12:])
        at = Path(f"{record}.at")
        last = f" at {at.read_text()}" if at.exists() else ""
        raise RunError(
            f"{shlex.join(command)}\n    ended with {status}{last} and no record; its last lines:\n    {tail}"
        )
    content = json.loads(record.read_text())
    return compare.Run(
        exitstatus=content["exitstatus"],
        collected=content["collected"],
        wall_s=wall_s,
        tests=content["tests"],
        collect_errors=content["collect_errors"],
    )


def wait(process: subprocess.Popen[bytes], timeout_s: float) -> str:
    """Wait for the end; after ``timeout_s`` the whole session of the run is killed."""
    try:
        return f"status {process.wait(timeout_s)}"
    except subprocess.TimeoutExpired:
        return f"a time-out after {timeout_s:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def suite_environment(python: Path) -> dict[str, str]:
    """Ours without what would reach into the run; a fixed hash seed, so that parametrised ids are the same each time."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "COV_", "TOX_", "VIRTUAL_ENV", "PYTHONPATH", "ISOLATE_"))
    }
    path = f"{python.parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return kept | {"PYTHONPATH": str(RECORDER), "PYTHONHASHSEED": "0", "COLUMNS": "120", "PATH": path}


def other_args(options: argparse.Namespace) -> str:
    """What the other run gets."""
    return f"{options.args} {LIMITED}" if options.limits else options.args


def measure(suite: Suite, wheel: Path, work: Path, options: argparse.Namespace) -> Result:
    """Prepare one suite and make all of its runs; what goes wrong is kept in the result."""
    result = Result(suite=suite)
    environment, launch = dict(suite.environment), CONTAINED if options.contained else ()
    if suite.own_network and os.geteuid() == 0:
        launch = (*launch, *OWN_NETWORK)
    try:
        tree = venvs.unpack(suite, work)
        python = venvs.environment(suite, tree, wheel, work, options.plugin)
        runs = work / "runs" / suite.name
        shutil.rmtree(runs, ignore_errors=True)
        runs.mkdir(parents=True)
        for number in range(1, options.plain_runs + 1):
            plainly = ["-p", "no:isolate", *suite.args]
            plain = run_suite(
                python, tree, runs / f"plain-{number}.json", plainly, options.timeout, environment, launch
            )
            if reason := compare.incomplete(plain):
                raise RunError(
                    f"run plainly, {reason}: there is nothing to compare with; see {runs}/plain-{number}.log"
                )
            result.plain.append(plain)
        if not options.plain_only:
            args = [*shlex.split(other_args(options)), *suite.args]
            if suite.serial:
                args += ["-o", "isolate_serial=" + "\n".join(suite.serial)]
            result.other = run_suite(python, tree, runs / "other.json", args, options.timeout, environment, launch)
    except (venvs.PrepareError, RunError) as error:
        result.error = str(error)
    return result


COLUMNS = (
    "suite",
    "tests",
    "passed",
    "failed",
    "errors",
    "skipped",
    "xfail",
    "differ",
    "flaky",
    "plain s",
    "other s",
    "ratio",
)


def row(result: Result) -> tuple[str, ...]:
    """One line of the table; a dash where a run does not exist."""
    name = f"{result.suite.name} {result.suite.version}"
    if not result.plain:
        return (name, *("-" for _ in COLUMNS[1:]))
    plain = result.plain[0]
    counts = compare.summary(plain)
    wall_s = min(run.wall_s for run in result.plain)
    numbers = [
        counts["tests"],
        counts["passed"],
        counts["failed"],
        counts["error"] + counts["collection"],
        counts["skipped"],
        counts["xfailed"] + counts["xpassed"],
    ]
    if result.other is None:
        return (name, *map(str, numbers), "-", str(len(result.flaky)), f"{wall_s:.1f}", "-", "-")
    ratio = result.other.wall_s / wall_s
    tail = (f"{wall_s:.1f}", f"{result.other.wall_s:.1f}", f"{ratio:.2f}")
    return (name, *map(str, numbers), str(len(result.verdict)), str(len(result.flaky)), *tail)


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    for cells in rows:
        yield "  ".join(
            [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
        )


def details(result: Result, limit: int) -> Iterator[str]:
    """By name: what could not run, what failed plainly, what is flaky, what differs."""
    name = result.suite.name
    if result.error:
        yield f"{name}: {result.error}"
    if result.plain:
        for nodeid, why in result.plain[0].collect_errors.items():
            yield f"{name}: collection error plainly: {nodeid}: {why}"
        for nodeid, reports in result.plain[0].tests.items():
            if (outcome := compare.outcome_of(reports)) in ("failed", "error"):
                why = next(report["why"] for report in reports if report["outcome"] == "failed")
                yield f"{name}: {outcome} plainly: {nodeid}: {why}"
    for nodeid in sorted(result.flaky):
        yield f"{name}: flaky plainly: {nodeid}"
    for difference in result.verdict[:limit]:
        yield f"{name}: DIFFERS: {difference.nodeid}: {difference.plain} -> {difference.other}: {difference.why}"
    if len(result.verdict) > limit:
        yield f"{name}: ... and {len(result.verdict) - limit} more (--show 0 lists all)"


def _joined(words: list[str]) -> list[str]:
    """``--args --isolate`` as ``--args=--isolate``: argparse takes the second word for an option of its own."""
    if "--args" in words[:-1]:
        place = words.index("--args")
        words[place : place + 2] = [f"--args={words[place + 1]}"]
    return words


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [suite.name for suite in SUITES]
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--suite", nargs="+", metavar="NAME", choices=names, default=names, help=f"of: {', '.join(names)}"
    )
    parser.add_argument("--args", default="--isolate", help="what the other run gets (default: %(default)s)")
    parser.add_argument("--limits", action="store_true", help="the other run has generous limits of every kind on")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="REQUIREMENT",
        help="installed as well, e.g. pytest-forked, or a directory such as plugins/landlock",
    )
    parser.add_argument(
        "--contained", action="store_true", help="both runs in what Docker's defaults make, here; needs root"
    )
    parser.add_argument("--plain-runs", type=int, default=1, metavar="N", help="2 or more find flaky tests")
    parser.add_argument("--plain-only", action="store_true", help="no other run")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keeps downloads and environments for the next time")
    parser.add_argument("--keep", action="store_true", help="keep the temporary directory too, and say where it is")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="for one run of one suite")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="differences listed per suite (0: all)")
    options = parser.parse_args(_joined(list(sys.argv[1:] if argv is None else argv)))
    if options.plain_runs < 1:
        parser.error("--plain-runs: there is nothing to compare with fewer than 1")
    return options


@contextlib.contextmanager
def work_directory(options: argparse.Namespace) -> Iterator[Path]:
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
        yield options.work.resolve()
        return
    place = Path(tempfile.mkdtemp(prefix="isolate-parity-"))
    try:
        yield place
    finally:
        if options.keep:
            print(f"kept: {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)


def exit_status(results: Sequence[Result]) -> int:
    if any(result.error for result in results):
        return 2
    return 1 if any(result.verdict for result in results) else 0


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    other = "nothing else" if options.plain_only else other_args(options)
    where = "in a container as Docker's defaults make it, " if options.contained else ""
    machine = f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} CPUs"
    today = dt.datetime.now(dt.timezone.utc).date()
    print(f"{where}plainly against: {other}   {machine}, load {os.getloadavg()[0]:.1f}, {today}", flush=True)
    results = []
    with work_directory(options) as work:
        # A suite without a configuration has none, and not the one of the checkout that this directory may lie in.
        (work / "pytest.ini").write_text("[pytest]\n")
        wheel = venvs.build_wheel(work)
        for suite in SUITES:
            if suite.name in options.suite:
                results.append(measure(suite, wheel, work, options))
                print("  ".join(row(results[-1])), flush=True)
    print()
    for line in (line for result in results for line in details(result, options.show or sys.maxsize)):
        print(line)
    print()
    print("\n".join(table([COLUMNS, *(row(result) for result in results)])))
    status = exit_status(results)
    compared = [result for result in results if result.other and not result.error]
    tests = sum(len(result.plain[0].tests) for result in compared)
    differ = sum(len(result.verdict) for result in compared)
    plain_s = sum(min(run.wall_s for run in result.plain) for result in compared)
    other_s = sum(result.other.wall_s for result in compared if result.other)
    total = f"; {other_s:.1f} s against {plain_s:.1f} s plainly, ratio {other_s / plain_s:.2f}" if compared else ""
    print(f"\n{tests} tests in {len(compared)} suites, {differ} outcomes differ{total}")
    if failed := [result.suite.name for result in results if result.error]:
        print(f"not compared, see above: {', '.join(failed)}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
