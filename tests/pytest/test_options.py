"""Options, ini, environment, markers and profiles: who wins, and one clear line for what has no meaning."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from .conftest import ROOT, Run

_PIDS = """
    import os, pytest
    PARENT = {parent}
    def test_it(): assert (os.getppid() == PARENT or os.getpid() == PARENT) is {same}
"""


def isolates(result: pytest.RunResult) -> bool:
    return "isolate: profile" in str(result.stdout)


_WHERE = """
    import os
    def pytest_configure(config): os.environ["OUTER_PID"] = str(os.getpid())
"""
_TELL = """
    import os, pytest
    def test_it(): print("ISOLATED" if os.environ["OUTER_PID"] != str(os.getpid()) else "IN PROCESS")
"""


@pytest.fixture
def tells(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(_WHERE)
    pytester.makepyfile(test_it=_TELL)


def told(result: pytest.RunResult) -> str:
    result.assert_outcomes(passed=1)
    return "ISOLATED" if "\nISOLATED" in str(result.stdout) else "IN PROCESS"


@pytest.mark.usefixtures("tells")
def test_nothing_is_isolated_unless_asked(pytester: pytest.Pytester, plain: Run) -> None:
    result = plain("-rP")
    assert told(result) == "IN PROCESS"
    assert not [line for line in result.outlines if line.startswith("isolate")]


@pytest.mark.usefixtures("tells")
def test_options_that_want_isolation_say_so_where_none_is_asked_for(pytester: pytest.Pytester, plain: Run) -> None:
    words = ("--isolate-profile=strict", "--isolate-timeout", "5", "--isolate-durations=1")
    said = "isolate: NO TEST IS ISOLATED: for --isolate-profile, --isolate-timeout to hold, add --isolate"
    assert said in plain(*words).outlines
    assert "NO TEST IS ISOLATED" not in str(plain(*words, "--no-isolate").stdout)
    assert "NO TEST IS ISOLATED" not in str(plain(*words, "--isolate").stdout)
    pytester.makeini("[pytest]\naddopts = --isolate-profile=strict\n")
    assert "NO TEST IS ISOLATED" not in str(plain().stdout)
    pytester.makepyfile(test_marked="import pytest\n@pytest.mark.isolate\ndef test_it(): pass")
    assert "NO TEST IS ISOLATED" not in str(plain(*words).stdout)


@pytest.mark.usefixtures("tells")
def test_isolation_is_switched_by_option_environment_ini_and_marker(
    pytester: pytest.Pytester, plain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(plain("-rP", "--isolate")) == "ISOLATED"
    assert told(plain("-rP", "-o", "isolate=true")) == "ISOLATED"
    monkeypatch.setenv("PYTEST_ISOLATE", "1")
    assert told(plain("-rP")) == "ISOLATED"
    assert told(plain("-rP", "--no-isolate")) == "IN PROCESS"
    monkeypatch.setenv("PYTEST_ISOLATE", "no")
    assert told(plain("-rP", "-o", "isolate=true")) == "IN PROCESS"
    assert told(plain("-rP", "--isolate")) == "ISOLATED"


def test_markers_isolate_or_exempt_a_test_and_no_isolate_overrules_them(pytester: pytest.Pytester, plain: Run) -> None:
    pytester.makeconftest(_WHERE)
    pytester.makepyfile(
        test_it="""
        import os, pytest
        def apart(): return os.environ["OUTER_PID"] != str(os.getpid())
        @pytest.mark.isolate
        def test_bare(): assert apart()
        @pytest.mark.isolate()
        def test_called(): assert apart()
        @pytest.mark.isolate(timeout=30, mem_limit="4G", cpu_limit=100, resources={})
        def test_keywords_of_the_other_plugin(): assert apart()
        @pytest.mark.isolate(False)
        def test_exempt(): assert not apart()
        @pytest.mark.isolate(enabled=False)
        def test_not_enabled(): assert not apart()
        @pytest.mark.isolate(mode="inprocess")
        def test_in_process(): assert not apart()
        @pytest.mark.isolate(False)
        class TestExempt:
            def test_inherits(self): assert not apart()
            @pytest.mark.isolate(True)
            def test_closest_wins(self): assert apart()
        """
    )
    plain("--strict-markers").assert_outcomes(passed=8)
    plain("--isolate").assert_outcomes(passed=8)
    plain("--no-isolate").assert_outcomes(passed=4, failed=4)


@pytest.mark.parametrize(
    "hook",
    [
        "def pytest_collection_finish(session):\n    items = session.items\n",
        "@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_protocol(item):\n    items = [item]\n",
    ],
    ids=["after the collection", "at its turn"],
)
@pytest.mark.parametrize("tests", [1, 4, 9])
@pytest.mark.parametrize("scope", ["function", "module"])
def test_a_marker_holds_that_was_added_after_the_collection(
    pytester: pytest.Pytester, isolated: Run, hook: str, tests: int, scope: str
) -> None:
    mark = "    for item in items:\n        item.add_marker(pytest.mark.isolate(enabled=False))\n"
    pytester.makeconftest("import pytest\n" + hook + mark + ("    yield\n" if "wrapper" in hook else ""))
    pytester.makepyfile(
        test_it=f"""
        import os, pytest
        PARENT = os.getpid()
        @pytest.mark.parametrize("n", range({tests}))
        def test_it(n): assert os.getpid() == PARENT
        """
    )
    isolated(f"--isolate-scope={scope}").assert_outcomes(passed=tests)


def test_marker_beats_command_line_beats_environment_beats_ini(
    pytester: pytest.Pytester, plain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        test_it="""
        import time, pytest
        def test_unmarked(): time.sleep(60)
        @pytest.mark.isolate(timeout=0.2)
        def test_marked(): time.sleep(60)
        """
    )
    pytester.makeini("[pytest]\nisolate = yes\nisolate_timeout = 0.6")

    def deadlines(*args: str) -> list[str]:
        result = plain(*args)
        result.assert_outcomes(failed=2)
        return [line.split(" after ")[1].split(";")[0] for line in result.outlines if line.startswith("TIMEOUT: ")]

    assert deadlines() == ["600 ms", "200 ms"]
    monkeypatch.setenv("PYTEST_ISOLATE_TIMEOUT", "0.5")
    assert deadlines() == ["500 ms", "200 ms"]
    assert deadlines("--isolate-timeout=0.4") == ["400 ms", "200 ms"]


def test_a_profile_of_ones_own_in_ini_builds_on_another(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makeini(
        """
        [pytest]
        isolate_profiles =
            ci: standard, timeout=0.3, hostname=isolated-host
            offline: ci, net=none
        """
    )
    pytester.makepyfile(
        test_it="""
        import os, socket, time
        def test_host(): assert os.uname().nodename == "isolated-host"
        def test_no_network(): assert [name for _, name in socket.if_nameindex()] == ["lo"]
        def test_hangs(): time.sleep(60)
        """
    )
    result = isolated("--isolate-profile=offline", "-v")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["isolate: profile offline (*network none*time-out 300 ms*)*", "*::test_hangs TIMEOUT*"]
    )


def test_minimal_has_no_namespaces_and_still_contains_crashes_and_leaks(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makepyfile(
        test_it="""
        import os, subprocess
        def test_namespace(): assert os.stat("/proc/self/ns/pid").st_ino == os.stat(f"/proc/{os.getppid()}/ns/pid").st_ino
        def test_crashes(): os.abort()
        def test_leaks(): subprocess.Popen(["sleep", "6730"])
        """
    )
    result = isolated("--isolate-profile=minimal", "-v")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["isolate: profile minimal (a process and session of its own)*", "*::test_leaks LEAK*", "*sleep 6730*"]
    )


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--isolate-profile=standart",), "*standart*standard*"),
        (("--isolate-missing=perhaps",), "*--isolate-missing*perhaps*error*skip*warn*"),
        (("--isolate-leaks=no",), "*--isolate-leaks*no*ignore*"),
        (("--isolate-scope=package",), "*--isolate-scope*package*module*"),
        (("--isolate-mode=thread",), "*--isolate-mode*thread*fork*"),
        (("--isolate-timeout=soon",), "*timeout*soon*"),
        (("--isolate-timeout=-1",), "*timeout*-1*"),
        (("--isolate-timeout=nan",), "*timeout*nan*"),
        (("--isolate-mem-limit=lots",), "*memory*lots*"),
        (("--isolate-cpu-limit=0",), "*cpu_time*0*"),
        (("--isolate-slow=never",), "*slow*never*"),
        (("--isolate-net=wifi",), "*net*wifi*loopback*"),
        (("--isolate-backend=docker",), "*backend*docker*"),
        (("-o", "isolate_profiles=ci: standard, memroy=1G"), "*memroy*memory*"),
        (("-o", "isolate_profiles=ci: standrad"), "*standrad*standard*"),
        (("-o", "isolate_profiles=standard: minimal"), "*built-in*"),
        (("-o", "isolate_leaks=sometimes"), "*sometimes*"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_without_meaning_is_one_line_and_a_usage_error(
    pytester: pytest.Pytester, isolated: Run, args: tuple[str, ...], line: str
) -> None:
    pytester.makepyfile(test_it="def test_it(): pass")
    result = isolated(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])
    errors = [line for line in result.errlines if line.strip()]
    assert len(errors) == 1, errors
    assert errors[0].startswith("ERROR: ")
    assert "Traceback" not in str(result.stderr) + str(result.stdout)


@pytest.mark.parametrize(
    ("marker", "line"),
    [
        ("timout=3", "*test_it.py::test_it*timout*timeout*"),
        ("timeout='soon'", "*test_it.py::test_it*timeout*soon*"),
        ("profile='nome'", "*test_it.py::test_it*nome*"),
        ("'standard'", "*test_it.py::test_it*standard*keywords*"),
        ("mem_limit='1k'", "*memory*"),
        ("rlimits={'NOFILES': 3}", "*NOFILES*NOFILE*"),
    ],
)
def test_a_marker_without_meaning_is_found_before_the_first_test_runs(
    pytester: pytest.Pytester, plain: Run, marker: str, line: str
) -> None:
    pytester.makepyfile(
        test_it=f"""
        import pathlib, pytest
        def test_first(): pathlib.Path("ran").touch()
        @pytest.mark.isolate({marker})
        def test_it(): pass
        """
    )
    result = plain()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert not (pytester.path / "ran").exists()
    result.stderr.fnmatch_lines([line])
    assert len([line for line in result.errlines if line.strip()]) == 1


def test_the_option_takes_no_value_and_so_swallows_no_path(pytester: pytest.Pytester, plain: Run) -> None:
    pytester.makepyfile(test_a="def test_it(): pass", test_b="def test_it(): pass")
    plain("--isolate", "test_a.py").assert_outcomes(passed=1)


def test_the_header_is_one_line_and_quiet_is_quiet(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(test_it="import subprocess\ndef test_it(): subprocess.Popen(['sleep', '6731'])")
    result = isolated("--isolate-timeout=30")
    assert sum(line.startswith("isolate:") for line in result.outlines) == 1
    result.stdout.fnmatch_lines(["isolate: profile standard (namespaces *, time-out 30 s), backend native"])
    quiet = isolated("-q")
    assert not [line for line in quiet.outlines if "isolate" in line or "leak" in line.lower()]
    assert len([line for line in quiet.outlines if line.strip()]) == 2


def test_the_other_distribution_of_the_same_name_is_named_with_the_fix(
    pytester: pytest.Pytester, plain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It owns pytest_isolate/plugin.py and --isolate; pip installs both into one folder."""
    shutil.copytree(
        pathlib.Path(ROOT) / "pytest_isolate",
        pytester.path / "site" / "pytest_isolate",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (pytester.path / "site" / "pytest_isolate" / "plugin.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--isolate', action='store_true')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(pytester.path / "site"))
    pytester.makepyfile(test_it="def test_it(): pass")
    for args in ((), ("--isolate",), ("-p", "pytest_isolate.plugin", "--isolate")):
        result = plain(*args)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*pytest-isolate is installed too*pip uninstall -y pytest-isolate*"])
        assert "Traceback" not in str(result.stderr)


def test_a_collect_only_run_starts_no_process(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(test_it="def test_it(): pass")
    result = isolated("--collect-only", "-q")
    result.stdout.fnmatch_lines(["test_it.py::test_it"])


def test_a_misspelt_variable_of_the_environment_is_refused(
    pytester: pytest.Pytester, isolated: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("def test_it(): pass")
    monkeypatch.setenv("PYTEST_ISOLATE_TIEMOUT", "3")
    result = isolated()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: pytest-isolate: *'PYTEST_ISOLATE_TIEMOUT': unknown. Did you mean 'PYTEST_ISOLATE_TIMEOUT'?"]
    )
    monkeypatch.delenv("PYTEST_ISOLATE_TIEMOUT")
    monkeypatch.setenv("PYTEST_ISOLATED", "somebody else's")
    isolated().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "missing", ["logging", "faulthandler", "junitxml", "cacheprovider", "warnings", "unittest", "skipping"]
)
@pytest.mark.parametrize("words", [(), ("--isolate-scope=module",), ("--isolate-jobs=2",), ("--isolate-mode=fresh",)])
def test_a_plugin_of_pytest_s_own_may_be_left_out(
    pytester: pytest.Pytester, isolated: Run, missing: str, words: tuple[str, ...]
) -> None:
    pytester.makepyfile("import os\ndef test_it(): print('said')\ndef test_dies(): os._exit(3)")
    result = isolated("-p", f"no:{missing}", *words)
    result.assert_outcomes(passed=1, failed=1)
