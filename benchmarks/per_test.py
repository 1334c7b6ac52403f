"""`python benchmarks/per_test.py`: what one trivial test costs: plain, in a bare fork, in other plugins, and isolated.

Owns: the suite (500 empty tests in 10 modules), the rows, the order (one run of every row, then again: what the machine does
meanwhile hits all alike), medians, and the table. Time counts from the first test's start until the process is gone, so that no
plugin gains by leaving work for the end; start-up is left out, and measured on its own (the cost of being installed). CPU is that
of all of a run's processes, per test over plain, in ms.
Refuses: to judge. No figure here is asserted; tests do not run this.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
INCUMBENTS = ("pytest==9.1.1", "pytest-forked==1.7.5", "pytest-isolate==0.0.17")
MODULES = 10
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to run the suite. ``incumbent`` rows run in the other environment and are compared with its own plain row."""

    name: str
    args: tuple[str, ...]
    incumbent: bool = False
    is_plain: bool = False


ROWS: Sequence[Row] = (
    Row(name="plain pytest", args=("-p", "no:isolate"), is_plain=True),
    Row(name="bare os.fork (the floor)", args=("-p", "no:isolate", "-p", "bare_fork_plugin")),
    Row(name="--isolate, minimal", args=("--isolate", "--isolate-profile=minimal")),
    Row(name="--isolate, standard", args=("--isolate", "--isolate-profile=standard")),
    Row(name="--isolate, strict", args=("--isolate", "--isolate-profile=strict")),
    Row(name="--isolate, standard, two lanes", args=("--isolate", "--isolate-jobs=2")),
    Row(name="--isolate-scope=module, standard", args=("--isolate", "--isolate-scope=module")),
    Row(name="--isolate-scope=module, two lanes", args=("--isolate", "--isolate-scope=module", "--isolate-jobs=2")),
    Row(
        name="plain pytest 9.1.1",
        args=("-p", "no:pytest_isolate", "-p", "no:pytest_forked"),
        incumbent=True,
        is_plain=True,
    ),
    Row(name="pytest-forked 1.7.5", args=("-p", "no:pytest_isolate", "--forked"), incumbent=True),
    Row(name="pytest-isolate 0.0.17 (of the index)", args=("-p", "no:pytest_forked", "--isolate"), incumbent=True),
)
FLOOR = ROWS[1]


@dataclass(slots=True, kw_only=True)
class Samples:
    """What the rounds of one row at one heap size gave; ``refused`` holds why a row could not run."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    rss_kb: int = 0
    refused: str = ""

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_cpu_s(self) -> float:
        """Of all of a run's processes, from the start of the interpreter on; what neighbours do disturbs it less."""
        return statistics.median(self.cpu_s)


Results = dict[tuple[Row, int], Samples]


def write_suite(place: Path, tests: int) -> None:
    """``tests`` empty tests in MODULES files of (almost) equal length."""
    shutil.copy(HERE / "heap_conftest.py", place / "conftest.py")
    (place / "pytest.ini").write_text("[pytest]\n")
    for module in range(MODULES):
        numbers = range(module, tests, MODULES)
        (place / f"test_{module:02d}.py").write_text(
            "".join(f"def test_{number}():\n    pass\n\n" for number in numbers)
        )


def bare_environment(place: Path) -> dict[str, str]:
    """The caller's, without what changes how python and pytest run. Bytecode is kept, as in any installation, and below
    ``place``: a run that compiles what it imports measures the compiler. So are temporary directories: pytest looks at all
    that earlier runs left."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON", "COV_"))}
    scratch = place / "tmp"
    scratch.mkdir(exist_ok=True)
    return kept | {"PYTHONPYCACHEPREFIX": str(place / "pycache"), "TMPDIR": str(scratch)}


def environment(place: Path, heap_mb: int, note: Path) -> dict[str, str]:
    return bare_environment(place) | {
        "PYTHONPATH": str(HERE),
        "BENCH_HEAP_MB": str(heap_mb),
        "BENCH_NOTE": str(note),
        "PYTHONHASHSEED": "0",
    }


def run(command: Sequence[str], cwd: Path, env: dict[str, str]) -> tuple[int, str, float]:
    """Exit status, output, and the moment the process was gone. Whatever it leaves in its session is killed."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, output, time.monotonic()
    except subprocess.TimeoutExpired:
        return -1, f"not finished after {TIMEOUT_S:.0f} s", time.monotonic()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def sample(row: Row, python: str, place: Path, heap_mb: int, samples: Samples) -> None:
    """One run of one row; a run that fails, or fails a test, refuses the row with its reason."""
    note = place.parent / "note.json"
    note.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *row.args]
    used = children_cpu_s()
    status, output, ended = run(command, place, environment(place.parent, heap_mb, note))
    if status or not note.exists():
        lines = [line for line in output.strip().splitlines() if line.strip()] or ["no output"]
        errors = [line for line in lines if "error" in line.lower()] or lines
        samples.refused = f"exit status {status}: {errors[-1].strip()[:150]}"
        return
    content = json.loads(note.read_text())
    samples.rss_kb = content["rss_kb"]
    samples.seconds.append(ended - content["started"])
    samples.cpu_s.append(children_cpu_s() - used)


def measure(
    rows: Sequence[Row], pythons: Callable[[Row], str], place: Path, heaps: Sequence[int], rounds: int
) -> Results:
    """Interleaved: every row once per round. The first, unmeasured, run of each row warms caches and finds refusals."""
    results: Results = {(row, heap): Samples() for heap in heaps for row in rows}
    for heap in heaps:
        for round_number in range(rounds + 1):
            for row in rows:
                samples = results[row, heap]
                if not samples.refused:
                    sample(row, pythons(row), place, heap, samples)
                if round_number == 0:
                    samples.seconds.clear()
                    samples.cpu_s.clear()
            print(f"heap {heap} MB: round {round_number} of {rounds}", file=sys.stderr)
    return results


def over_plain_ms(
    results: Results, rows: Sequence[Row], row: Row, heap: int, tests: int, figure: str = "median_s"
) -> float | None:
    """Milliseconds per test that ``row`` costs more than the plain row of its own environment; None if one is missing."""
    plain = next(other for other in rows if other.is_plain and other.incumbent == row.incumbent)
    if not results[row, heap].seconds or not results[plain, heap].seconds:
        return None
    return float(getattr(results[row, heap], figure) - getattr(results[plain, heap], figure)) / tests * 1000


def lines_for(results: Results, rows: Sequence[Row], heap: int, tests: int) -> Iterator[str]:
    rss = max(results[row, heap].rss_kb for row in rows) // 1024
    yield f"\nheap {heap} MB (the process holds {rss} MB when the first test starts)"
    yield f"{'':38}{'run, s':>9}{'ms/test':>10}{'over plain':>12}{'of floor':>10}{'spread':>9}{'CPU':>10}{'of floor':>10}"
    floor = over_plain_ms(results, rows, FLOOR, heap, tests) if FLOOR in rows else None
    floor_cpu = over_plain_ms(results, rows, FLOOR, heap, tests, "median_cpu_s") if FLOOR in rows else None
    for row in rows:
        samples = results[row, heap]
        if samples.refused or not samples.seconds:
            yield f"{row.name:38} not measured: {samples.refused or 'no round'}"
            continue
        line = f"{row.name:38}{samples.median_s:9.3f}{samples.median_s / tests * 1000:10.3f}"
        cost = over_plain_ms(results, rows, row, heap, tests)
        cpu = over_plain_ms(results, rows, row, heap, tests, "median_cpu_s")
        if row.is_plain or cost is None:
            line += f"{'-':>12}{'-':>10}"
        else:
            line += f"{cost:12.3f}{f'{cost / floor:.2f}' if floor else '-':>10}"
        spread = (max(samples.seconds) - min(samples.seconds)) / samples.median_s
        line += f"{spread:9.0%}"
        if not row.is_plain and cpu is not None:
            line += f"{cpu:10.3f}{f'{cpu / floor_cpu:.2f}' if floor_cpu else '-':>10}"
        yield line


def import_cost(python: str, place: Path, rounds: int) -> Iterator[str]:
    """What being installed costs a run that does not ask for isolation, and what it loads."""
    one = place / "one"
    one.mkdir()
    (one / "pytest.ini").write_text("[pytest]\n")
    (one / "test_one.py").write_text("def test_one():\n    pass\n")
    env = bare_environment(place)
    base = [python, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    times: dict[str, list[float]] = {"with": [], "without": []}
    cpu: dict[str, list[float]] = {"with": [], "without": []}
    for round_number in range(rounds + 1):
        for name, extra in (("with", []), ("without", ["-p", "no:isolate"])):
            started, used = time.monotonic(), children_cpu_s()
            status, output, ended = run([*base, *extra], one, env)
            if status:
                yield f"cost of being installed: not measured: {output.strip()[-200:]}"
                return
            if round_number:
                times[name].append(ended - started)
                cpu[name].append(children_cpu_s() - used)
    wall_ms, cpu_ms = (
        statistics.median(a - b for a, b in zip(kind["with"], kind["without"], strict=True)) * 1000
        for kind in (times, cpu)
    )
    yield (
        f"\ncost of being installed, without --isolate: {wall_ms:+.1f} ms, {cpu_ms:+.1f} ms of CPU time (pytest "
        f"--collect-only of one test takes {statistics.median(times['without']) * 1000:.1f} ms with -p no:isolate; "
        f"medians of {rounds} rounds)"
    )
    yield f"loaded without --isolate that should not be: {', '.join(loaded_needlessly(base, one, env)) or 'nothing'}"


def children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


PROBE = """
import json, sys
def pytest_collection_finish(session):
    with open("/proc/self/maps") as maps:
        ours = sorted({line.split()[-1] for line in maps if "_native" in line or "libbpf" in line or "libbcc" in line})
    found = [name for name in ("bcc", "pyroute2", "ctypes.util") if name in sys.modules]
    json.dump(ours + found, open("loaded.json", "w"))
"""


def loaded_needlessly(base: Sequence[str], place: Path, env: dict[str, str]) -> list[str]:
    """Modules and libraries that no run without --isolate may load, and this one did."""
    (place / "conftest.py").write_text(PROBE)
    run(base, place, env)
    found: list[str] = json.loads((place / "loaded.json").read_text())
    return found


def incumbents(place: Path) -> str:
    """The python of an environment with the other plugins, which need an older pytest."""
    venv = place / "incumbents"
    python = str(venv / "bin" / "python")
    if not (venv / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q", "install"]
        subprocess.run([*pip, *INCUMBENTS], check=True, stdin=subprocess.DEVNULL)
        (venv / "made").touch()
    return python


def machine() -> Iterator[str]:
    import pytest

    with open("/proc/cpuinfo") as info:
        model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")
    with contextlib.suppress(OSError), open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        yield f"transparent huge pages: {file.read().strip()}"
    yield f"{model}, {len(os.sched_getaffinity(0))} CPUs, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}"
    yield f"Python {platform.python_version()}, pytest {pytest.__version__}, {dt.date.today()}"  # noqa: DTZ011 (a date for a reader)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="per_test.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heaps", default="0,100,300", metavar="MB,MB,...")
    parser.add_argument("--rows", default="", metavar="WORD,...", help="only rows whose name holds one of the words")
    parser.add_argument("--no-incumbents", action="store_true", help="leave out what has to be downloaded")
    parser.add_argument("--work", type=Path, help="keeps the incumbents' environment for the next time")
    parser.add_argument("--json", type=Path, help="write every sample there")
    parser.add_argument(
        "--quick", action="store_true", help="60 tests, 2 rounds, heaps of 0 and 50 MB: does it run at all"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.tests, options.rounds, options.heaps = 60, 2, "0,50"
    return options


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    words = [word for word in options.rows.split(",") if word]
    rows = [row for row in ROWS if not (row.incumbent and options.no_incumbents)]
    return [row for row in rows if not words or row.is_plain or row is FLOOR or any(word in row.name for word in words)]


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    heaps = [int(heap) for heap in options.heaps.split(",")]
    rows = chosen_rows(options)
    with tempfile.TemporaryDirectory(prefix="isolate-bench-") as temporary:
        suite = Path(temporary) / "suite"
        suite.mkdir()
        write_suite(suite, options.tests)
        other = incumbents(options.work or Path(temporary)) if any(row.incumbent for row in rows) else ""
        results = measure(rows, lambda row: other if row.incumbent else sys.executable, suite, heaps, options.rounds)
        print("\n".join(machine()))
        print(f"{options.tests} empty tests in {MODULES} modules, medians of {options.rounds} interleaved rounds")
        for heap in heaps:
            print("\n".join(lines_for(results, rows, heap, options.tests)))
        print("\n".join(import_cost(sys.executable, Path(temporary), 5 if options.quick else 21)))
    if options.json:
        samples = [
            {"row": row.name, "heap_mb": heap, "seconds": s.seconds, "refused": s.refused}
            for (row, heap), s in results.items()
        ]
        options.json.write_text(json.dumps({"tests": options.tests, "samples": samples}, indent=1))
    return 1 if any(samples.refused for samples in results.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
