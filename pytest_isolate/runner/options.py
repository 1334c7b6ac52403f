"""Every option of the runner, once: its name, default and meaning, and what an item's settings come to.

Owns: the table OPTIONS (from which the command line, ini, environment and marker forms are made), Settings.
Precedence: marker > command line > environment > ini > default.
Refuses: to start anything; a word without meaning raises pytest.UsageError.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pytest_isolate import units
from pytest_isolate.errors import IsolateError, PolicyError
from pytest_isolate.policy import Policy, unknown
from pytest_isolate.profile import WORDS, parse_profiles, truth, vary


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting. ``choices`` empty: the value is parsed by the policy word ``word``, or free text."""

    name: str
    metavar: str
    help: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    word: str = ""

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
    Option(name="net", metavar="MODE", word="net", help="network of a test: host, none, loopback, private, ..."),
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
        default="fork",
        choices=("fork", "fresh", "inprocess"),
        help="fork the warm interpreter (default), start a fresh one, or run in process without isolation",
    ),
    Option(
        name="scope",
        metavar="SCOPE",
        default="function",
        choices=("function", "class", "module"),
        help="what one sandbox runs: a test (default), or all tests of a class or module",
    ),
    Option(name="backend", metavar="NAMES", default="", help="backends to choose from, first preferred: native, fork"),
)
_BY_NAME = {option.name: option for option in OPTIONS}
#: Words of the marker that are no option: pytest-isolate's `resources`, and every policy word.
_MARKER_ONLY = ("resources", "enabled")
MARKER_HELP = (
    "isolate(timeout=, mem_limit=, cpu_limit=, profile=, scope=, mode=, leaks=, ...): run this test in a sandbox of "
    "its own, also without --isolate; the keywords change what is enforced. isolate(False) exempts it."
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
    parser.addini("isolate_profiles", "profiles of your own, as NAME: BASE, WORD=VALUE, ...", type="linelist")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for one item."""

    enabled: bool
    policy: Policy
    profile: str
    mode: str
    scope: str
    leaks: str
    missing: str
    slow_s: float
    backends: tuple[str, ...]


class Resolver:
    """Answers what settings an item has. Parses each distinct marker once."""

    def __init__(self, config: pytest.Config) -> None:
        self._off = bool(config.getoption("no_isolate"))
        self._words = {option.name: _configured(config, option) for option in OPTIONS}
        self._profiles = _usage(lambda: parse_profiles(config.getini("isolate_profiles") or ()))
        self._all = not self._off and _all_isolated(config)
        self._cache: dict[tuple[int, ...], Settings] = {}
        self._kept: list[pytest.Mark] = []
        self.default = self._settings(self._all, {}, "options")

    @property
    def isolates_all(self) -> bool:
        return self._all

    def item(self, item: pytest.Item) -> Settings:
        """The settings of ``item``.

        Raises:
            pytest.UsageError: a keyword or value of its marker has no meaning.
        """
        marks = tuple(item.iter_markers(name="isolate"))
        if not marks or self._off:
            return self.default
        key = tuple(id(mark) for mark in marks)
        if key not in self._cache:
            self._kept.extend(marks)  # ids stay unique as long as the marks live
            enabled, words = _marker_words(item, marks)
            self._cache[key] = self._settings(enabled, words, f"marker isolate of {item.nodeid}")
        return self._cache[key]

    def _settings(self, enabled: bool, marker: Mapping[str, Any], where: str) -> Settings:
        values = {**self._words, **{name: value for name, value in marker.items() if name in _BY_NAME}}
        for option in OPTIONS:
            if option.choices and values[option.name] not in option.choices:
                raise _usage_error(where, unknown(option.flag, str(values[option.name]), option.choices))
        if values["profile"] not in self._profiles:
            raise _usage_error(where, unknown("--isolate-profile", str(values["profile"]), self._profiles))
        words = {option.word: values[option.name] for option in OPTIONS if option.word}
        words |= {name: value for name, value in marker.items() if name in WORDS}
        try:
            policy = vary(self._profiles[values["profile"]], **words)
            slow_s = units.duration_s(values["slow"], what="--isolate-slow")
        except IsolateError as error:
            raise _usage_error(where, error) from error
        if policy.limits.memory_bytes:
            policy = replace(policy, limits=replace(policy.limits, memory_fallback="rlimit"))
        return Settings(
            enabled=enabled,
            policy=policy,
            profile=values["profile"],
            mode=values["mode"],
            scope=values["scope"],
            leaks=values["leaks"],
            missing=values["missing"],
            slow_s=slow_s,
            backends=tuple(name.strip() for name in str(values["backend"] or "").split(",") if name.strip()),
        )


def _configured(config: pytest.Config, option: Option) -> Any:
    """The value from the command line, else the environment, else ini, else the default."""
    for value in (config.getoption(option.dest), os.environ.get(option.env), config.getini(option.dest)):
        if value not in (None, ""):
            return value
    return option.default


def _all_isolated(config: pytest.Config) -> bool:
    if config.getoption("isolate"):
        return True
    if (value := os.environ.get("PYTEST_ISOLATE")) is not None:
        return _usage(lambda: truth(value, what="PYTEST_ISOLATE"))
    return bool(config.getini("isolate"))


def _marker_words(item: pytest.Item, marks: Iterable[pytest.Mark]) -> tuple[bool, dict[str, Any]]:
    """Merge the markers, closest last to win; check each keyword."""
    enabled, words = True, {}
    for mark in reversed(tuple(marks)):
        if len(mark.args) > 1 or any(not isinstance(arg, bool) for arg in mark.args):
            raise _usage_error(item.nodeid, PolicyError("marker isolate", f"{mark.args!r}", "give keywords"))
        enabled = mark.kwargs.get("enabled", mark.args[0] if mark.args else True)
        for name in mark.kwargs:
            if name not in _BY_NAME and name not in WORDS and name not in _MARKER_ONLY:
                known = {*_BY_NAME, *WORDS, *_MARKER_ONLY}
                raise _usage_error(item.nodeid, unknown("marker isolate keyword", name, known))
        words.update(mark.kwargs)
    return bool(enabled), words


def _usage(call: Any) -> Any:
    try:
        return call()
    except IsolateError as error:
        raise pytest.UsageError(f"pytest-isolate: {error}") from error


def _usage_error(where: str, error: IsolateError) -> pytest.UsageError:
    return pytest.UsageError(f"pytest-isolate: {where}: {error}")


def documented() -> Iterator[tuple[str, str, str, str]]:
    """(flag, ini name, environment name, help) of every option, for the reference page and its test."""
    for option in OPTIONS:
        yield option.flag, option.dest, option.env, option.help
