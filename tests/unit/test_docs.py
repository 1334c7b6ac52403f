"""Everything a user can write or read is documented, and the generated pages are those the code makes (idea: datasette's test_docs)."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate
from pytest_isolate import calls, cli, errors, running
from pytest_isolate.cli import run
from pytest_isolate.outcome import Cause
from pytest_isolate.policy import NETWORK_MODES
from pytest_isolate.profile import PROFILES, WORDS
from pytest_isolate.runner import options, report, settings

DOCS = Path(generate.__file__).parent
PAGES = sorted(DOCS.rglob("*.md"))


def text(*names: str) -> str:
    return "\n".join((DOCS / name).read_text() for name in names)


def hooks() -> list[str]:
    """Of hookspecs.py, once there is one: an undocumented hook fails the test below then."""
    if importlib.util.find_spec("pytest_isolate.hookspecs") is None:
        return []
    module = importlib.import_module("pytest_isolate.hookspecs")
    return [name for name in vars(module) if name.startswith("pytest_isolate_")]


def error_classes() -> list[str]:
    modules = (calls, errors, running)
    return sorted({
        name
        for module in modules
        for name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Exception) and value.__module__ == module.__name__
    })  # fmt: skip


def test_the_generated_pages_are_up_to_date() -> None:
    stale = [str(path) for path, page in generate.pages().items() if path.read_text() != page]
    assert stale == [], "run `python -m docs.generate`"


def test_every_option_is_documented_in_all_of_its_forms() -> None:
    page = text("reference/options.md")
    for forms in options.documented():
        for form in forms:
            assert form in page, form
    for form in ("--isolate`", "--no-isolate`", "PYTEST_ISOLATE=", "isolate_profiles"):
        assert form in page, form


def test_every_word_of_a_policy_is_documented_and_no_other() -> None:
    assert set(generate.WORD_TEXTS) == set(WORDS)
    page = text("reference/options.md")
    for word in WORDS:
        assert f"| `{word}` |" in page


def test_every_keyword_of_the_marker_is_documented() -> None:
    page = text("reference/options.md")
    for name in (*settings._MARKER_ONLY, *(option.name for option in options.OPTIONS if not option.per_run)):
        assert f"`{name}`" in page or f"`{name}=`" in page, name


def test_every_fixture_is_documented() -> None:
    found = [name for name, _, _ in generate.fixture_functions()]
    assert "sandbox" in found, "the list is not empty because nothing was looked at"
    for name in found:
        assert f"| `{name}` |" in text("reference/options.md")


def test_every_cause_is_documented_with_its_letter() -> None:
    page = text("reference/outcomes.md")
    for cause in Cause:
        assert f"| `{cause.value}` | {report._LETTERS[cause]} |" in page, cause


def test_every_error_is_documented() -> None:
    found = error_classes()
    assert {"PolicyError", "SetupError", "ProgramFailed"} <= set(found)
    for name in found:
        assert name in text("reference/outcomes.md"), name


def test_every_hook_is_documented() -> None:
    pages = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in hooks() if f"`{name}" not in pages] == []


def test_every_option_and_exit_status_of_run_is_documented() -> None:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}
    page = text("reference/run.md")
    assert [flag for flag in sorted(flags) if not re.search(rf"`{flag}[ `]", page)] == []
    for status in (run.EXIT_TIMEOUT, run.EXIT_SANDBOX, f"{run.EXIT_NOT_EXECUTABLE}, {run.EXIT_NOT_FOUND}"):
        assert f"| {status} |" in page


def test_every_profile_and_enforced_network_mode_is_explained() -> None:
    for name in PROFILES:
        assert f"`{name}`" in text("explanation/profiles.md")
    for mode in set(NETWORK_MODES) - {"private", "shared", "policy"}:  # these no backend enforces: asking is an error
        assert mode in text("reference/options.md")


def test_every_subcommand_and_exit_status_is_documented() -> None:
    pages = "\n".join(page.read_text() for page in PAGES)
    for command in cli.COMMANDS:
        assert f"pytest-isolate {command}" in pages
    for status in (cli.EXIT_OK, cli.EXIT_NO, cli.EXIT_USAGE):
        assert f"| {status} |" in text("reference/outcomes.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    known = {"--isolate", "--no-isolate", *(option.flag for option in options.OPTIONS)}
    named = set(re.findall(r"(?<![\w-])--(?:no-)?isolate(?:-[a-z]+)*", page.read_text()))
    assert named <= known


def test_the_check_notices_a_page_that_is_out_of_date(tmp_path: Path) -> None:
    copy = tmp_path / "docs"
    for path in [DOCS / "generate.py", *PAGES]:
        (copy / path.relative_to(DOCS)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(DOCS)).write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "docs.generate", "--check"]
    assert subprocess.run(command, cwd=tmp_path).returncode == 0
    page = copy / "reference" / "options.md"
    page.write_text(page.read_text().replace("--isolate-timeout", "--isolate-time"))
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "out of date: docs/reference/options.md\n")


_PARITY = """\
plainly against: --isolate   Python 3.11.2, Linux 6.1, 2 CPUs
idna 3.10  1  1

suite      tests  passed
idna 3.10      1       1

1 tests in 1 suites, 0 outcomes differ
"""


def test_a_parity_run_fills_its_place_and_nothing_else() -> None:
    page = (DOCS / "explanation" / "profiles.md").read_text()
    filled = generate.filled(page, "parity", generate.parity_table(_PARITY))
    assert "| suite | tests | passed |\n| --- | --- | --- |\n| idna 3.10 | 1 | 1 |" in filled
    assert "0 outcomes differ" in filled
    assert generate.filled(filled, "parity", "x") == generate.filled(page, "parity", "x")


def test_what_is_not_the_output_of_a_parity_run_is_refused() -> None:
    with pytest.raises(SystemExit, match="no table"):
        generate.parity_table("nothing\n")
