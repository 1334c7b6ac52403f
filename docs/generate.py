"""`python -m docs.generate`: writes docs/reference/options.md and hooks.md from the tables that the code reads.

Owns: the text of these pages, and the two marked tables of docs/explanation/profiles.md. `--check` writes nothing and exits with 1
when a page is not what would be written; `--parity FILE` puts the table of a parity run (`tox -e parity | tee FILE`) into its place.
Refuses: to make up a figure: without a parity run, its place says that there was none.
"""

from __future__ import annotations

import argparse
import inspect
import platform
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pytest_isolate import hookspecs
from pytest_isolate.hooks import NAMES
from pytest_isolate.kernel import probe
from pytest_isolate.profile import PROFILES, WORDS
from pytest_isolate.runner import fixtures, report
from pytest_isolate.runner.options import MARKER_HELP, OPTIONS

DOCS = Path(__file__).resolve().parent
HOOKS_PAGE = DOCS / "reference" / "hooks.md"
OPTIONS_PAGE = DOCS / "reference" / "options.md"
PROFILES_PAGE = DOCS / "explanation" / "profiles.md"
BACKENDS_PAGE = DOCS / "how-to" / "backends.md"

#: Every word of profile.WORDS: its values, and what it does. A test compares the keys.
WORD_TEXTS = {
    "namespaces": ("`pid,uts`, `+net`, `-ipc`, `all`, `none`", "the namespaces; with + or - added to, or taken from, the profile's"),
    "net": (
        "`host`, `none`, `loopback`, `private`, `shared`, `policy`",
        "the network: the host's, no interface up, 127.0.0.1 only, a veth to the host, the host's counted, the host's by rules",
    ),
    "net_allow": ("`127.0.0.1:80/tcp`, a list", "may be opened to; rules turn `host` and `shared` into `policy`"),
    "net_deny": ("as above", "may not be opened to; the longest prefix decides, then deny"),
    "net_log": ("as above", "may be opened to, and each flow is told"),
    "net_default": ("`deny`, `allow`", "for what no rule speaks of; `deny` where there are rules"),
    "net_errno": ("`ECONNREFUSED`", "what a refused call answers; EPERM unless said"),
    "fs": ("`host`, `readonly`, `minimal`, a `Filesystem`", "the view of the file system"),
    "memory": ("`512M`", "memory of the whole tree together"),
    "memory_high": ("`400M`", "from here on the tree is slowed down and its memory reclaimed"),
    "memory_fallback": ("`none`, `rlimit`", "holder of `memory` where no cgroup is; `rlimit` (RLIMIT_DATA) cannot see MAP_SHARED"),
    "swap": ("`0`, `64M`", "swap of the whole tree"),
    "pids": ("`50`", "processes and threads of the whole tree"),
    "cpu": ("`0.5`", "cores of the whole tree together"),
    "cpu_weight": ("`1` to `10000`", "share of the CPU when others want it, too; 100 is usual"),
    "cpuset": ("`0-1`", "the CPUs it may run on"),
    "io": ("`IoLimit` values", "bytes and operations per second on a block device"),
    "hugetlb": ('`{"2MB": "64M"}`', "memory of the whole tree in huge pages of a size"),
    "cpu_time": ("`2`, `1.5m`", "CPU time of each process, in whole seconds (RLIMIT_CPU)"),
    "rlimits": ('`{"NOFILE": 64}`', "limits of each process, by the names of getrlimit(2); a pair is (soft, hard)"),
    "timeout": ("`10`, `1.5m`", "wall time; then SIGTERM, and after `grace` SIGKILL to all"),
    "grace": ("`1`", "time between SIGTERM and SIGKILL"),
    "hostname": ("`box`", "the hostname inside"),
    "capabilities": ("`keep`, `drop`, `CHOWN,KILL`", "privileges that remain"),
    "no_new_privs": ("`yes`, `no`", "setuid programs give nothing"),
    "securebits": ("`yes`, `no`", "user 0 gets no capability back by execve or setuid, for good; takes CAP_SETPCAP"),
    "seccomp": (
        "`none`, `default`, a `SeccompProfile`",
        "a filter; `default` refuses mounts, namespaces, modules, kexec, keyrings, eBPF, raw sockets, io_uring, debuggers that attach",
    ),
    "seccomp_refuse": ("`ptrace,chroot=ENOSYS`", "system calls to refuse besides, with EPERM or the errno that is named"),
    "landlock": ("`yes`, `no`, a `Landlock`", "writes only below `/tmp`, `/var/tmp`, `/dev` and `/proc`, whatever the view shows"),
    "landlock_read": ("`/usr,/lib`", "paths below which files may be read and executed; `/` unless said"),
    "landlock_write": ("`/tmp,/dev`", "paths below which everything may be done"),
    "landlock_connect": ("`80,443`, `none`", "TCP ports to connect to; needs Linux 6.7"),
    "landlock_bind": ("`8080`, `none`", "TCP ports to bind; needs Linux 6.7"),
    "landlock_scoped": ("`yes`, `no`", "no signal and no abstract socket reaches out; needs Linux 6.12"),
    "umask": ("`077`", "of the processes inside"),
    "environment": ("`keep`, `scrub`", "`scrub`: of what is inherited, only `HOME`, `PATH`, `LANG` and the like"),
    "close_fds": ("`yes`, `no`", "inherited descriptors above 2 are closed; not in a forked test, to which pytest's own belong"),
    "session": ("`yes`, `no`", "a session of its own, off the terminal"),
}  # fmt: skip

_HEAD = """\
# Options

<!-- Written by `python -m docs.generate` from pytest_isolate/runner/options.py and pytest_isolate/profile.py. Do not edit. -->

Every setting has four forms, and the first that is given wins: the **marker's** keyword, the **command line**, the
**environment**, the **ini** file. A value that has no meaning stops the run before the first test, and names the nearest that has.

## Which tests

| command line | environment | ini | effect |
|---|---|---|---|
| `--isolate` | `PYTEST_ISOLATE=yes` | `isolate = true` | isolate every test |
| `--no-isolate` | | | isolate no test, marked or not |
| | | `isolate_profiles` | profiles of your own, one per line: `NAME: BASE, WORD=VALUE, ...` |
| | | `isolate_serial` | tests that run while no other does, one per line: a node id or its beginning, as `--deselect` takes it |
| | | `isolate_net_allow` | what every network policy allows, one per line: `WHERE:PORT/PROTOCOL` |

`@pytest.mark.isolate` isolates a test also without `--isolate`; `@pytest.mark.isolate(False)` exempts it.

## How
"""

_MARKER_TAIL = """\
Its keywords are the names in the column *marker* above, `enabled`, `serial`, and every word below. `resources=`, by which the
older plugin pytest-isolate shares out GPUs, is not enforced: it is an error, or what `--isolate-missing` says."""

_FEATURES_HEAD = """\
## Features that `pytest-isolate doctor` answers for

`pytest-isolate doctor --require NAME,NAME` exits with 1 unless all of them are there."""


def options_page() -> str:
    """The whole page."""
    sections = [
        _HEAD.rstrip(),
        _table(("command line", "environment", "ini", "marker", "default", "effect"), _option_rows()),
        "## The marker\n\n`" + MARKER_HELP.partition(": ")[0] + "`: " + MARKER_HELP.partition(": ")[2],
        _MARKER_TAIL,
        "## Words of a policy\n\nKeywords of the marker and of `sandbox.run`; words of a profile in ini (a list has spaces there).",
        _table(("word", "values", "effect"), _word_rows()),
        "Sizes are `512`, `64K`, `512M`, `2G`; times are seconds, or `1.5m`, `2h`, `500ms`.",
        "## Fixtures",
        _table(("fixture", "scope", "what it gives"), _fixture_rows()),
        _FEATURES_HEAD,
        _table(("feature", "what it is"), _feature_rows()),
    ]
    return "\n\n".join(sections) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _option_rows() -> Iterator[tuple[str, ...]]:
    for option in OPTIONS:
        value = "|".join(option.choices) or option.metavar
        default = f"`{option.default}`" if option.default else ""
        yield (
            f"`{option.flag}={value}`",
            f"`{option.env}`",
            f"`{option.dest}`",
            "" if option.per_run else f"`{option.name}=`",
            default,
            option.help,
        )


def _word_rows() -> Iterator[tuple[str, ...]]:
    for word in WORDS:
        values, effect = WORD_TEXTS[word]
        yield f"`{word}`", values, effect


def _fixture_rows() -> Iterator[tuple[str, ...]]:
    for name, function, scope in fixture_functions():
        yield f"`{name}`", scope, (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")


def fixture_functions() -> Iterator[tuple[str, object, str]]:
    """(name, function, scope) of every fixture in runner/fixtures.py, whatever this version of pytest wraps it in."""
    for name, value in vars(fixtures).items():
        marker = getattr(value, "_fixture_function_marker", None) or getattr(value, "_pytestfixturefunction", None)
        if marker is not None and not name.startswith("_"):
            function = getattr(value, "_fixture_function", None) or inspect.unwrap(value)
            yield name, function, str(getattr(marker, "scope", "function"))


def _feature_rows() -> Iterator[tuple[str, ...]]:
    for name, meaning in probe.meanings().items():
        yield f"`{name}`", meaning


# ---- reference/hooks.md ----

_HOOKS_HEAD = """\
# Hooks

<!-- Written by `python -m docs.generate` from pytest_isolate/hookspecs.py. Do not edit. -->

In a `conftest.py` they are functions of these names, undecorated. In a package, decorate them with `pytest.hookimpl` (or
`pluggy.HookimplMarker("pytest")`) and name the module under the entry points `pytest_isolate`: it is then imported when a run
isolates something, and in no other. Take only the arguments you need. A hook called `pytest_isolate_...` that does not exist
stops the run, and the one that was meant is named. A hook that raises is blamed by plugin, file and line: the test is an ERROR,
not a failure.

Without pytest, register plugins with `manager = pytest_isolate.hooks.plugin_manager()` and give
`Sandbox(hooks=Hooks(manager))`; a sandbox that is given none uses those of the installed packages.

They are called in this order; `backends` and `select` before the first sandbox of a policy, the others for each sandbox."""

#: Beneath the prose of a hook: an example.
_EXAMPLES = {
    "pytest_isolate_child": """\
```python
def pytest_isolate_child(item):
    engine = item.session.config.stash.get(ENGINE, None)
    if engine is not None:
        engine.dispose(close=False)  # the parent keeps its connections, the child makes its own
```""",
    "pytest_isolate_guards": """\
```python
def pytest_isolate_guards(policy):
    return [licence_server()]  # a context manager
```""",
    "pytest_isolate_finished": """\
```python
def pytest_isolate_finished(sandbox, outcome):
    statsd.gauge(f"tests.rss.{sandbox.name}", outcome.usage.max_rss_bytes)
```""",
}


def hooks_page() -> str:
    """The whole page."""
    sections = [_HOOKS_HEAD]
    for name in NAMES:
        function = getattr(hookspecs, name)
        first = " The first answer that is not None holds." if function.pytest_spec["firstresult"] else ""
        sections.append(f"## `{name}({', '.join(inspect.signature(function).parameters)})`")
        prose, _, arguments = inspect.getdoc(function).partition("\n\nArgs:\n")  # type: ignore[union-attr]
        sections.append(f"{prose.replace('``', '`')}{first}")
        if arguments:
            sections.append(
                re.sub(r"^(\w+): ", r"- `\1`: ", textwrap.dedent(arguments).replace("``", "`"), flags=re.MULTILINE)
            )
        sections.extend([_EXAMPLES[name]] if name in _EXAMPLES else [])
    return "\n\n".join(sections) + "\n"


# ---- the marked tables of explanation/profiles.md ----


def profiles_table() -> str:
    """What each built-in profile holds, in the words of the header line of a run."""
    return _table(
        ("profile", "enforces"), ((f"`{name}`", report.describe(policy)) for name, policy in PROFILES.items())
    )


def parity_table(output: str) -> str:
    """The table of a parity run's output, with the line that says what was compared and the one that says the result."""
    lines = output.splitlines()
    place = next((number for number, line in enumerate(lines) if re.match(r"suite\s{2,}tests\s", line)), None)
    if place is None:
        raise SystemExit("error: no table in that file. Is it the output of `python -m tests.parity`?")
    rows = []
    for line in lines[place:]:
        if not line.strip():
            break
        rows.append(re.split(r"\s{2,}", line.strip()))
    compared = next((line for line in lines if line.startswith("plainly against:")), "")
    result = next((line for line in reversed(lines) if "outcomes differ" in line), "")
    return "\n\n".join(filter(None, [compared, _table(rows[0], rows[1:]), result]))


def backends_table(outputs: Iterable[str]) -> str:
    """The tables of runs of the conformance suite side by side, a column for each backend, with how each run closed."""
    columns: dict[str, dict[str, str]] = {}
    closing = []
    for output in outputs:
        lines = output.splitlines()
        rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("| ")]
        if not rows or rows[0][0] != "capability":
            raise SystemExit(
                "error: no table in that file. Is it the output of `pytest --pyargs pytest_isolate.testing`?"
            )
        for place, name in enumerate(rows[0][1:], start=1):
            columns[name] = {row[0]: row[place] for row in rows[1:]}
        closing.append(next(line.strip("= ") for line in reversed(lines) if re.search(r"\d+ passed", line)))
    found = sorted(columns)
    rows = [(name, *(columns[column].get(name, "-") for column in found)) for name in next(iter(columns.values()))]
    return "\n\n".join([_table(("capability", *found), rows), f"Linux {platform.release()}: {'; '.join(closing)}."])


def filled(page: str, mark: str, text: str) -> str:
    """The page with what is between ``<!-- mark:begin -->`` and ``<!-- mark:end -->`` replaced."""
    pattern = re.compile(f"(<!-- {mark}:begin[^>]*-->\n).*?(<!-- {mark}:end -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"error: the page has no place marked {mark}")
    return pattern.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)


def pages() -> dict[Path, str]:
    """Every page with generated parts, as it should be now."""
    return {
        OPTIONS_PAGE: options_page(),
        HOOKS_PAGE: hooks_page(),
        PROFILES_PAGE: filled(PROFILES_PAGE.read_text(), "profiles", profiles_table()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write, or with --check compare; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is out of date")
    parser.add_argument(
        "--parity", metavar="FILE", type=Path, help="the output of a parity run, for docs/explanation/profiles.md"
    )
    parser.add_argument(
        "--backends",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="outputs of the conformance suite, for docs/how-to/backends.md",
    )
    arguments = parser.parse_args(argv)
    if arguments.backends:
        table = backends_table(path.read_text() for path in arguments.backends)
        BACKENDS_PAGE.write_text(filled(BACKENDS_PAGE.read_text(), "backends", table))
    if arguments.parity:
        table = parity_table(arguments.parity.read_text())
        PROFILES_PAGE.write_text(filled(PROFILES_PAGE.read_text(), "parity", table))
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{'out of date' if arguments.check else 'written'}: {path.relative_to(DOCS.parent)}")
        if not arguments.check:
            path.write_text(pages()[path])
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
