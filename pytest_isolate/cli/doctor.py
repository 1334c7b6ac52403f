"""`pytest-isolate doctor`: a table of features, the profiles they amount to, and what to do about each no.

Owns: the words and the JSON of that answer. Refuses: to change the host; `--ci` prints what to add, and adds nothing.
Exit status: 0 when the profile `standard` can be enforced here, else 1 (with --require: when every feature named is there).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_isolate.cli import EXIT_NO, EXIT_OK, version
from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel import probe
from pytest_isolate.kernel.surroundings import Surroundings, observe
from pytest_isolate.profile import PROFILES
from pytest_isolate.registry import choose

if TYPE_CHECKING:
    from pytest_isolate.kernel.probe import Feature


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `doctor`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the whole answer as one JSON object")
    form.add_argument("--ci", action="store_true", help="print what to add for the CI runner this runs on")
    form.add_argument(
        "--explain", metavar="TESTID", help="what a test would run under, and why each backend was taken or not"
    )
    parser.add_argument(
        "--require", metavar="FEATURES", default="", help="exit with 1 unless all of these, comma-separated, are there"
    )


def run(arguments: argparse.Namespace) -> int:
    """Answer in the form asked for; the exit status."""
    if arguments.explain is not None:
        return explain(arguments.explain)
    required = [name.strip() for name in arguments.require.split(",") if name.strip()]
    missing = [feature for feature in map(probe.feature, required) if not feature]  # a typing error ends here
    answer = Answer.here()
    if arguments.ci:
        from pytest_isolate.cli import ci

        print(ci.advice(answer.place, answer.features))
    elif arguments.json:
        print(json.dumps(answer.plain(), indent=2))
    else:
        print("\n".join(answer.lines(width=_width())))
    for feature in missing:
        print(f"required: {feature}", file=sys.stderr)
    enough = not missing if required else answer.profiles["standard"].available
    return EXIT_OK if enough else EXIT_NO


def explain(testid: str) -> int:
    """Ask pytest itself which settings the test has: a plugin of ours answers after the collection, and runs nothing."""
    command = [sys.executable, "-m", "pytest", "-p", "pytest_isolate.runner.explain", "--collect-only", "-q", testid]
    return subprocess.run(command, env={**os.environ, "PYTEST_ISOLATE": "no"}).returncode


def _width() -> int:
    return max(80, min(shutil.get_terminal_size((120, 24)).columns, 140))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Whether a profile can be enforced here: by which backend, or why not."""

    available: bool
    backend: str = ""
    reason: str = ""
    remedy: str = ""


def _profile(name: str) -> Profile:
    try:
        return Profile(available=True, backend=choose(PROFILES[name]).name)
    except BackendUnavailable as error:
        return Profile(available=False, reason=error.why, remedy=error.remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All that the doctor found."""

    place: Surroundings
    features: Mapping[str, Feature]
    profiles: Mapping[str, Profile]

    @classmethod
    def here(cls) -> Answer:
        return cls(place=observe(), features=probe.capabilities(), profiles={name: _profile(name) for name in PROFILES})

    def plain(self) -> dict[str, Any]:
        """For JSON. Keys of a feature are those of the class Feature."""
        return {
            "version": version(),
            "surroundings": dataclasses.asdict(self.place),
            "profiles": {name: dataclasses.asdict(profile) for name, profile in self.profiles.items()},
            "features": {name: dataclasses.asdict(feature) for name, feature in self.features.items()},
        }

    def lines(self, width: int) -> Iterator[str]:
        """The table for people."""
        yield f"pytest-isolate {version()} on {self.place}"
        yield ""
        column = max(map(len, self.features)) + 2
        above = ""
        for name, feature in self.features.items():
            yield f"{name:<{column}}{'yes' if feature else 'no ':<5}{feature.meaning}{_found(feature)}"
            why = f"{feature.step} {feature.reason} {feature.remedy}"
            same = not feature and why == above
            yield from [f"{'':<{column + 5}}as above"] if same else _why_not(feature, column + 5, width)
            above = why
        yield ""
        yield "Profiles (pytest --isolate --isolate-profile=NAME)"
        for name, profile in self.profiles.items():
            how = f"yes  by the backend {profile.backend}" if profile.available else f"no   {profile.reason}"
            yield from _wrapped(f"{name:<{column}}{how}", "", " " * (column + 5), width)
        yield from _next_steps(self)


def _found(feature: Feature) -> str:
    return f" ({feature.reason})" if feature and feature.reason else ""


def _why_not(feature: Feature, indent: int, width: int) -> Iterator[str]:
    if feature:
        return
    place = f"failed at {feature.step}: " if feature.step else ""
    yield from _wrapped(f"{place}{feature.reason}", " " * indent, " " * indent, width)
    if feature.remedy:
        yield from _wrapped(f"fix: {feature.remedy}", " " * indent, " " * (indent + 5), width)


def _wrapped(text: str, first: str, rest: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _next_steps(answer: Answer) -> Iterator[str]:
    if not all(profile.available for profile in answer.profiles.values()):
        yield ""
        yield "`pytest-isolate doctor --ci` prints what to add for this runner; docs/how-to/ci.md has the recipes."
