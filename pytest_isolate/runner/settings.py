"""What the options come to for one item: Settings, resolved once for each distinct set of markers.

Owns: precedence (marker > command line > environment > ini > default) and the checks of every value.
Refuses: to start anything; a word without meaning raises pytest.UsageError.
"""

from __future__ import annotations

import functools
import os
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pytest_isolate import units
from pytest_isolate.errors import IsolateError, PolicyError
from pytest_isolate.policy import Policy, unknown
from pytest_isolate.profile import WORDS, parse_profiles, truth, vary
from pytest_isolate.remembered import Recent
from pytest_isolate.runner import network
from pytest_isolate.runner.options import (
    OPTIONS,
    asks_for_network,
    configured,
    is_chosen,
    listed,
    names_backend,
    typed_limits,
    uses_sandbox,
)

_BY_NAME = {option.name: option for option in OPTIONS}
#: Option and word that mean one thing, in both orders.
_TWO_NAMES = [
    pair
    for option in OPTIONS
    if option.word and option.word != option.name
    for pair in ((option.name, option.word), (option.word, option.name))
]
#: Below this not even the first page tables and buffers of a forked interpreter fit; the kernel then answers ENOMEM.
_LEAST_MEMORY_BYTES = 1024 * 1024
#: Open files: what pytest and its plugins have, and what each test that runs takes here (pipes, output, cgroup, network).
_FILES_OF_PYTEST = 64
_FILES_OF_A_TEST = 16
#: Equal settings are looked for among so many distinct ones: a suite has few, or they hang on parameters and are many.
_LOOKED_AT = 64
#: Words of the marker that are no option. `resources` shares out GPUs in pytest-isolate; nobody does so here.
_MARKER_ONLY = ("resources", "enabled", "serial")
#: Variables of the environment that begin as options do and are no option.
_ENVIRONMENT_ONLY = ("PYTEST_ISOLATE_BPF_DEBUG",)


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
    serial: bool = False  # no other test runs, and none is forked, while it does
    resources: tuple[str, ...] = ()  # names asked for by the marker's resources=, which nothing here shares out


class Resolver:
    """Answers what settings an item has. Parses each distinct marker once."""

    def __init__(self, config: pytest.Config) -> None:
        self._off = bool(config.getoption("no_isolate"))
        _usage(lambda: _check_environment(os.environ))
        self._words = {option.name: configured(config, option.name) for option in OPTIONS}
        self._profile_chosen = is_chosen(config, "profile")
        self._typed = typed_limits(config)
        self._profiles = _usage(lambda: parse_profiles(config.getini("isolate_profiles") or ()))
        self._always = tuple(config.getini("isolate_net_allow") or ())
        self._serial = tuple(config.getini("isolate_serial") or ())
        self._all = not self._off and _all_isolated(config)
        self._by_backend = not self._off and names_backend(config)
        self._cache: dict[tuple[int, ...], Settings] = {}
        self._recent = Recent[Settings]()
        self._kept: list[pytest.Mark] = []
        self._distinct: list[Settings] = []
        self.default = self._settings(self._all or self._by_backend, {}, "options")
        self._exempt = self.default if self._all else replace(self.default, enabled=False)
        self.jobs  # noqa: B018 (a word without meaning is refused now)
        _usage(lambda: network.check_allowed(self._always))

    @property
    def cgroup_mode(self) -> str:
        return str(self._words["cgroup"])

    @property
    def accounts(self) -> bool:
        """True when the cost of every test is asked for, limited or not."""
        return any(self._words[name] is not None for name in ("durations", "record"))

    @functools.cached_property
    def jobs(self) -> int:
        """How many tests may run at once."""
        asked, files = str(self._words["jobs"]), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = (
            sys.maxsize if files == resource.RLIM_INFINITY else max(1, (files - _FILES_OF_PYTEST) // _FILES_OF_A_TEST)
        )
        if asked == "auto":
            return min(len(os.sched_getaffinity(0)), most)
        if not asked.isdecimal() or not int(asked):
            error = PolicyError("--isolate-jobs", f"{asked!r} is no number of tests", "write 1 or more, or auto")
            raise _usage_error("options", error)
        if int(asked) > most:
            why = f"for {asked} tests at once a limit of {files} open files is too low"
            raise _usage_error(
                "options", PolicyError("--isolate-jobs", why, f"write {most} or less, or raise ulimit -n")
            )
        return int(asked)

    @property
    def bpf_front_end(self) -> str:
        return str(self._words["bpf"])

    @property
    def isolates_all(self) -> bool:
        return self._all or self._by_backend

    @property
    def all_by_name(self) -> bool:
        """False where tests are isolated for the sake of a backend's name alone, which may be meant for programs."""
        return self._all

    def item(self, item: pytest.Item) -> Settings:
        """The settings of ``item``.

        Raises:
            pytest.UsageError: a keyword or value of its marker has no meaning.
        """
        return self._recent.of(item, lambda: self._serialized(item, self._of_markers(item)))

    def look_again(self, item: pytest.Item | None = None) -> None:
        """Markers may have been added to ``item``; None: to any."""
        self._recent.forget(item)

    def _serialized(self, item: pytest.Item, settings: Settings) -> Settings:
        if not settings.serial and item.nodeid.startswith(self._serial):
            return self._one_of_equals(replace(settings, serial=True))
        return settings

    def but_for_serial(self, settings: Settings) -> Settings:
        """The same ones for all that differ in nothing else: they may share a process."""
        if not settings.serial:
            return settings
        alike = replace(settings, serial=False)
        return next((one for one in (self.default, self._exempt) if one == alike), None) or self._one_of_equals(alike)

    def _of_markers(self, item: pytest.Item) -> Settings:
        marks = tuple(item.iter_markers(name="isolate"))
        networked = asks_for_network(item)
        if not (marks or networked) or self._off:
            return self._exempt if uses_sandbox(item) else self.default
        rules = tuple(item.iter_markers(name="netpolicy"))
        adjustable = "net_policy" in getattr(item, "fixturenames", ())
        key = (adjustable, *(id(mark) for mark in (*marks, *rules)))
        if key not in self._cache:
            self._kept.extend((*marks, *rules))  # ids stay unique as long as the marks live
            enabled, words = _marker_words(item, marks) if marks else (self.isolates_all or networked, {})
            where = f"markers of {item.nodeid}" if rules else f"marker isolate of {item.nodeid}"
            asked = network.Asked(rules, adjustable, item.nodeid) if networked else None
            self._cache[key] = self._one_of_equals(self._settings(enabled, words, where, asked))
        return self._cache[key]

    def _one_of_equals(self, settings: Settings) -> Settings:
        """Whose markers say the same have the same settings: they share a group's process, a plan and a probe."""
        known = next((other for other in self._distinct[-_LOOKED_AT:] if other == settings), None)
        if known is None:
            self._distinct.append(settings)
        return known or settings

    def _settings(
        self, enabled: bool, marker: Mapping[str, Any], where: str, asked: network.Asked | None = None
    ) -> Settings:
        values = {**self._words, **{name: value for name, value in marker.items() if name in _BY_NAME}}
        for option in OPTIONS:
            if option.choices and values[option.name] not in option.choices:
                raise _usage_error(where, unknown(option.flag, str(values[option.name]), option.choices))
        backends = listed(values["backend"])
        if backends and "profile" not in marker and not self._profile_chosen:
            values["profile"] = _usage(lambda: _profile_of(backends)) or values["profile"]
        if values["profile"] not in self._profiles:
            raise _usage_error(where, unknown("--isolate-profile", str(values["profile"]), self._profiles))
        mode = values["mode"] if values["mode"] != "auto" else _usage(lambda: _mode_of(backends))
        if enabled and mode == "inprocess":
            self._check_in_process(marker, where)
        words = {option.word: values[option.name] for option in OPTIONS if option.word}
        words |= {name: value for name, value in marker.items() if name in WORDS}
        try:
            policy = vary(self._profiles[values["profile"]], **words)
            if asked is not None:
                asked.check(exempt=not enabled, mode=mode)
                policy = asked.add_to(policy)
            policy = network.with_always_allowed(policy, self._always)
            if mode == "fork":
                policy = _with_what_pytest_has_open(policy, marker)
            slow_s = units.duration_s(values["slow"], what="--isolate-slow")
        except IsolateError as error:
            raise _usage_error(where, error) from error
        if policy.limits.memory_bytes:
            if policy.limits.memory_bytes < _LEAST_MEMORY_BYTES:
                raise _usage_error(where, _no_room(policy.limits.memory_bytes))
            if self.cgroup_mode == "none":  # asked for: report.describe says what RLIMIT_DATA cannot see
                policy = replace(policy, limits=replace(policy.limits, memory_fallback="rlimit"))
        return Settings(
            enabled=enabled,
            policy=policy,
            profile=values["profile"],
            mode=mode,
            scope=values["scope"],
            leaks=values["leaks"],
            missing=values["missing"],
            slow_s=slow_s,
            backends=backends,
            serial=_usage(lambda: truth(marker.get("serial", False), what="marker isolate serial")),
            resources=_resources(marker.get("resources"), where),
        )

    def _check_in_process(self, marker: Mapping[str, Any], where: str) -> None:
        """Who says both, in one place, does not know that nothing holds there. A marker alone is an exemption, of all that holds."""
        limits = self._typed if "mode" not in marker else sorted({*marker} - {"mode", "enabled", "scope", "leaks"})
        if limits:
            why = f"it runs in pytest's own process, where nothing holds {', '.join(limits)}"
            raise _usage_error(where, PolicyError("mode inprocess", why, "leave out the one or the other"))


def _with_what_pytest_has_open(policy: Policy, marker: Mapping[str, Any]) -> Policy:
    """A forked test is a part of the run: its reports, its captured output and what wide fixtures have open are descriptors.

    Raises:
        PolicyError: the test's own marker asks to close them.
    """
    if not policy.hardening.close_fds:
        return policy
    if "close_fds" in marker:
        why = (
            "a test that is forked off pytest writes its reports to such descriptors, and wide fixtures have some open"
        )
        raise PolicyError("close_fds", why, 'use mode="fresh"')
    return replace(policy, hardening=replace(policy.hardening, close_fds=False))


def _check_environment(names: Iterable[str]) -> None:
    """A name that begins as ours and is none would be a limit that nobody holds."""
    known = {*(option.env for option in OPTIONS), *_ENVIRONMENT_ONLY}
    for name in names:
        if name.startswith("PYTEST_ISOLATE_") and name not in known:
            raise unknown("environment variable", name, known)


def _profile_of(backends: tuple[str, ...]) -> str:
    from pytest_isolate.registry import usual_profile

    return usual_profile(backends)


def _mode_of(backends: tuple[str, ...]) -> str:
    """A fork of the warm interpreter; where all that are named only start programs, a new interpreter in each sandbox."""
    if not backends:
        return "fork"
    from pytest_isolate.registry import starts

    return "fork" if starts(backends, "tests") or not starts(backends, "fresh") else "fresh"


def _all_isolated(config: pytest.Config) -> bool:
    if config.getoption("isolate"):
        return True
    if (value := os.environ.get("PYTEST_ISOLATE")) is not None:
        return bool(_usage(lambda: truth(value, what="PYTEST_ISOLATE")))
    return bool(config.getini("isolate"))


def _marker_words(item: pytest.Item, marks: Iterable[pytest.Mark]) -> tuple[bool, dict[str, Any]]:
    """Merge the markers, closest last to win; check each keyword."""
    enabled = True
    words: dict[str, Any] = {}
    for mark in reversed(tuple(marks)):
        if len(mark.args) > 1 or any(not isinstance(arg, bool) for arg in mark.args):
            raise _usage_error(item.nodeid, PolicyError("marker isolate", f"{mark.args!r}", "give keywords"))
        switch = mark.kwargs.get("enabled", mark.args[0] if mark.args else True)
        enabled = _usage(lambda switch=switch: truth(switch, what="marker isolate enabled"))
        for name in mark.kwargs:
            if name in _BY_NAME and _BY_NAME[name].per_run:
                flag = _BY_NAME[name].flag
                raise _usage_error(
                    item.nodeid, PolicyError(f"marker isolate {name}=", "it holds for a whole run", f"use {flag}")
                )
            if name not in _BY_NAME and name not in WORDS and name not in _MARKER_ONLY:
                known = {*_BY_NAME, *WORDS, *_MARKER_ONLY}
                raise _usage_error(item.nodeid, unknown("marker isolate keyword", name, known))
        for name, other in _TWO_NAMES:
            if name in mark.kwargs and other in mark.kwargs:
                error = PolicyError("marker isolate", f"{name}= and {other}= say the same", "leave one out")
                raise _usage_error(item.nodeid, error)
            if name in mark.kwargs:
                words.pop(other, None)
        words.update(mark.kwargs)
    return enabled, words


def _resources(asked: Any, where: str) -> tuple[str, ...]:
    """The names of what ``resources={"gpu": 0.5}`` asks for; an empty mapping asks for nothing."""
    if asked is None:
        return ()
    if not isinstance(asked, Mapping):
        raise _usage_error(where, PolicyError("resources", f"{asked!r} is not a mapping", "leave it out"))
    return tuple(sorted(str(name) for name, amount in asked.items() if amount))


def _no_room(memory_bytes: int) -> PolicyError:
    what = f"memory limit of {units.format_bytes(memory_bytes)}"
    return PolicyError(
        what, "no Python process can run in it", f"write {units.format_bytes(_LEAST_MEMORY_BYTES)} or more"
    )


def _usage(call: Any) -> Any:
    try:
        return call()
    except IsolateError as error:
        raise pytest.UsageError(f"pytest-isolate: {error}") from error


def _usage_error(where: str, error: IsolateError) -> pytest.UsageError:
    return pytest.UsageError(f"pytest-isolate: {where}: {error}")
