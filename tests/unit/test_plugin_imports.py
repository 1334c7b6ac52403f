"""A backend plugin is what a third party would write: it imports floors 0 and 3 of pytest_isolate and nothing else of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
ALLOWED = {
    "pytest_isolate",
    *(
        f"pytest_isolate.{name}"
        for name in (
            "policy",
            "hardening",
            "outcome",
            "errors",
            "units",
            "capability",
            "hookspecs",
            "hooks",
            "backend",
            "registry",
            "tool",
            "oci",
            "testing",
        )
    ),
}


def imported_modules(source: str) -> Iterator[str]:
    """Each module that ``source`` imports, by its full name; ``from pytest_isolate import x`` gives pytest_isolate.x."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "pytest_isolate":
                yield from (f"pytest_isolate.{alias.name}" for alias in node.names)
            else:
                yield node.module


def forbidden(source: str) -> list[str]:
    submodules = {path.stem for path in (PLUGINS.parent / "pytest_isolate").iterdir()}
    return [
        name
        for name in imported_modules(source)
        if name.startswith("pytest_isolate.")
        and name not in ALLOWED
        and (name.count(".") > 1 or name.split(".")[1] in submodules)
    ]


def private_names(source: str) -> list[str]:
    return [
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pytest_isolate")
        for alias in node.names
        if alias.name.startswith("_")
    ]


@pytest.mark.parametrize("name", ["kernel", "network", "runner", "backends"])
@pytest.mark.parametrize(
    "form", ["import pytest_isolate.{}", "from pytest_isolate import {}", "from pytest_isolate.{}.x import y"]
)
def test_other_floors_are_recognised(form: str, name: str) -> None:
    assert forbidden(form.format(name))


def test_floors_0_and_3_and_public_names_are_free() -> None:
    assert not forbidden(
        "from pytest_isolate.policy import Policy\nfrom pytest_isolate import Policy, backend\nimport ctypes"
    )


def test_private_names_are_recognised() -> None:
    assert private_names("from pytest_isolate.policy import _choice") == ["_choice"]


def test_every_plugin_keeps_to_floors_0_and_3() -> None:
    sources = [path for path in PLUGINS.rglob("*.py") if not {"build", "tests", ".tox", ".venv"} & set(path.parts)]
    offences = [
        f"{path.relative_to(PLUGINS)}: {name}"
        for path in sources
        for name in (*forbidden(path.read_text()), *private_names(path.read_text()))
    ]
    assert offences == []
