"""Every option of the runner, once: its name, default and meaning.

Owns: the table OPTIONS, from which the command-line, ini, environment and marker forms are made.
Refuses: to parse values (settings.py), and to import anything: every pytest run with the plugin installed loads this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest


class Option(NamedTuple):
    """One setting. ``choices`` empty: the value is parsed by the policy word ``word``, or free text.

    ``per_run``: no marker changes it. ``for_all``: it counts, or chooses, where no test is isolated, too.
    """

    name: str
    metavar: str
    help: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    word: str = ""
    per_run: bool = False
    for_all: bool = False

    @property
    def flag(self) -> str:
        return "--isolate-" + self.name.replace("_", "-")

    @property
    def dest(self) -> str:
        return "isolate_" + self.name

    @property
    def env(self) -> str:
        return "PYTEST_ISOLATE_" + self.name.upper()


OPTIONS = (
    Option(name="profile", metavar="NAME", default="standard", help="minimal, standard, strict or one of your own"),
    Option(name="timeout", metavar="SECONDS", word="timeout", help="end a test, and all it started, after this time"),
    Option(name="grace", metavar="SECONDS", word="grace", help="time between SIGTERM and SIGKILL at a time-out (1)"),
    Option(name="slow", metavar="SECONDS", default="60", help="say SLOW when a test has run this long"),
    Option(name="mem_limit", metavar="SIZE", word="memory", help="memory of one test's processes together, as 512M"),
    Option(name="cpu_limit", metavar="SECONDS", word="cpu_time", help="CPU seconds a process of a test may use"),
    Option(
        name="net",
        metavar="MODE",
        word="net",
        help="network of a test: host, none, loopback, private (a veth to the host), shared (the host's, counted), or "
        "policy (the host's, denied but for isolate_net_allow and the marker netpolicy)",
    ),
    Option(
        name="bpf",
        for_all=True,
        metavar="HOW",
        default="libbpf",
        choices=("libbpf", "bcc"),
        help="what loads the network policy's eBPF: the object made with the package (default), or bcc at run time",
    ),
    Option(
        name="missing",
        metavar="HOW",
        default="error",
        choices=("error", "skip", "warn"),
        help="when this host cannot enforce what is asked: error (default), skip the tests, or warn and do without",
    ),
    Option(
        name="leaks",
        metavar="HOW",
        default="warn",
        choices=("warn", "fail", "ignore"),
        help="when a test leaves processes behind: they are killed, and warn (default), fail or ignore",
    ),
    Option(
        name="mode",
        metavar="HOW",
        default="auto",
        choices=("auto", "fork", "fresh", "inprocess"),
        help="fork the warm interpreter, start a fresh one, or run in process without isolation; auto (default): fork, but "
        "fresh where none of the backends named forks",
    ),
    Option(
        name="scope",
        metavar="SCOPE",
        default="function",
        choices=("function", "class", "module"),
        help="what one sandbox runs: a test (default), or all tests of a class or module",
    ),
    Option(
        name="jobs",
        metavar="N",
        per_run=True,
        default="1",
        help="run N tests at once from the one warm parent, which share its wide fixtures; auto: as many as there are CPUs",
    ),
    Option(
        name="cgroup",
        for_all=True,
        metavar="WHERE",
        per_run=True,
        default="auto",
        choices=("auto", "v1", "v2", "systemd", "none"),
        help="where group limits are held: auto (default), v1, v2, a scope of the systemd user manager, or none",
    ),
    Option(
        name="durations",
        for_all=True,
        metavar="N",
        per_run=True,
        help="after the run list the N tests that took most memory, CPU time, processes and I/O; 0: all",
    ),
    Option(
        name="record",
        for_all=True,
        metavar="FILE",
        per_run=True,
        help="write outcome, cause and peaks of every test to FILE, as JSON: figures to size limits by",
    ),
    Option(
        name="backend",
        for_all=True,
        metavar="NAMES",
        default="",
        help="backends to choose from, first preferred: native, fork, or what plugins offer; for programs, too. On the "
        "command line it isolates as --isolate does, but for tests that use the fixture sandbox: their programs are isolated",
    ),
)
MARKER_HELP = (
    "isolate(timeout=, mem_limit=, cpu_limit=, profile=, scope=, mode=, leaks=, serial=, ...): run this test in a sandbox of "
    "its own, also without --isolate; the keywords change what is enforced. isolate(False) exempts it."
)

NETPOLICY_HELP = (
    "netpolicy(allow=[...], deny=[...], log=[...], default='deny', errno=...): run this test isolated, and let it "
    "open connections only as said: '203.0.113.7:443/tcp', '10.0.0.0/8', 'localhost', 'db.test:5432'."
)


def add_options(parser: pytest.Parser) -> None:
    """Add the command-line and ini forms of OPTIONS."""
    group = parser.getgroup("isolate", "run each test in a Linux sandbox of its own")
    group.addoption("--isolate", action="store_true", default=None, dest="isolate", help="isolate every test")
    group.addoption("--no-isolate", action="store_true", dest="no_isolate", help="isolate no test, marked or not")
    parser.addini("isolate", "isolate every test", type="bool", default=None)
    for option in OPTIONS:
        group.addoption(option.flag, metavar=option.metavar, default=None, dest=option.dest, help=option.help)
        parser.addini(option.dest, option.help, default=None)
    parser.addini("isolate_net_allow", "what every network policy allows, as WHERE:PORT/PROTOCOL", type="linelist")
    parser.addini(
        "isolate_serial", "tests that run while no other does: node ids, or their beginnings", type="linelist"
    )
    parser.addini("isolate_profiles", "profiles of your own, as NAME: BASE, WORD=VALUE, ...", type="linelist")


def configured(config: pytest.Config, name: str) -> Any:
    """The value of an option from the command line, else the environment, else ini, else its default."""
    return next(_chosen(config, name), next(option.default for option in OPTIONS if option.name == name))


def is_chosen(config: pytest.Config, name: str) -> bool:
    """True where somebody gave the option a value."""
    return next(_chosen(config, name), None) is not None


def _chosen(config: pytest.Config, name: str) -> Iterator[Any]:
    """The values that an option was given, the one that holds first.

    An empty one of the environment or an ini file is none; on the command line it is a value, of a variable that is not set.
    """
    option = next(option for option in OPTIONS if option.name == name)
    values = config.getoption(option.dest), os.environ.get(option.env) or None, config.getini(option.dest) or None
    return (value for value in values if value is not None)


def listed(names: Any) -> tuple[str, ...]:
    """The parts of a text with commas."""
    return tuple(name.strip() for name in str(names or "").split(",") if name.strip())


def is_asked_for(config: pytest.Config) -> bool:
    """True when every test is to be isolated, by option, environment or ini; the value is checked by settings.py."""
    if config.getoption("no_isolate"):
        return False
    asked = config.getoption("isolate") or os.environ.get("PYTEST_ISOLATE") or config.getini("isolate")
    return bool(asked or names_backend(config))


def names_backend(config: pytest.Config) -> bool:
    """True when the command line says by which backend: that asks for isolation, too."""
    return bool(config.getoption("isolate_backend"))


def typed_limits(config: pytest.Config) -> list[str]:
    """Flags of the command line that say what a sandbox is to hold."""
    held = [option for option in OPTIONS if option.word or option.name == "profile"]
    return [option.flag for option in held if config.getoption(option.dest) is not None]


def without_effect(config: pytest.Config) -> list[str]:
    """Flags that somebody typed for isolated tests, where none is asked for. Those of addopts are meant for other runs."""
    if is_asked_for(config) or config.getoption("no_isolate"):
        return []
    typed = {str(word).partition("=")[0] for word in config.invocation_params.args}
    return [option.flag for option in OPTIONS if option.flag in typed and not option.for_all]


def uses_sandbox(item: pytest.Item) -> bool:
    """True for a test that starts programs in sandboxes by itself."""
    return not {"sandbox", "sandbox_session"}.isdisjoint(getattr(item, "fixturenames", ()))


def asks_for_network(item: pytest.Item) -> bool:
    """True for a test that is isolated because of its network policy."""
    return item.get_closest_marker("netpolicy") is not None or "net_policy" in getattr(item, "fixturenames", ())


def documented() -> Iterator[tuple[str, str, str, str]]:
    """(flag, ini name, environment name, help) of every option, for the reference page and its test."""
    for option in OPTIONS:
        yield option.flag, option.dest, option.env, option.help
