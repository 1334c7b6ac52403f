"""Tests that do what no test should: the run goes on, the right test is blamed, one clear line says why."""

from __future__ import annotations

import pytest

from .conftest import Run

_NEIGHBOURS = """
    import ctypes, os, resource, signal, socket, struct, sys, threading, time, pytest

    def test_before(): pass

    def test_hostile():
{body}

    def test_after(tmp_path):
        assert os.getcwd() and tmp_path.exists()
        assert os.getuid() == 0
"""


def run_hostile(pytester: pytest.Pytester, run: Run, body: str, *args: str) -> pytest.RunResult:
    lines = "\n".join(" " * 8 + line for line in body.splitlines())
    pytester.makepyfile(test_it=_NEIGHBOURS.format(body=lines))
    result = run("-rA", *args, timeout=90)
    text = str(result.stdout)
    assert "INTERNALERROR" not in text + str(result.stderr)
    result.stdout.fnmatch_lines_random(["PASSED test_it.py::test_before", "PASSED test_it.py::test_after"])
    return result


FAILS = {
    "closes every descriptor": (
        "os.closerange(3, 65536)",
        "*test closed pytest-isolate's report channel during call*",
    ),
    "closes every descriptor and opens others": (
        "os.closerange(3, 65536)\nglobals()[\"keep\"] = [open('/dev/null', 'w') for _ in range(64)]\ntime.sleep(0.1)",
        "*exited with status * before reporting*",
    ),
    "closes everything, stdio included": ("os.closerange(0, 65536)", "*report channel during call*"),
    "leaves with status 0": ("os._exit(0)", "*exited with status 0 before reporting, during call*"),
    "kills itself": ("os.kill(os.getpid(), 9)", "*killed by SIGKILL during call*"),
    "kills its session": ("os.killpg(0, 9)", "*killed by SIGKILL during call*"),
    "overflows the stack in C": (
        "@ctypes.CFUNCTYPE(None)\ndef down(): down()\nsys.setrecursionlimit(10**8)\ndown()",
        "*killed by SIGSEGV during call*",
    ),
    "raises SystemExit in a thread and dies": (
        "threading.Thread(target=os._exit, args=(3,)).start()\ntime.sleep(5)",
        "*exited with status 3 before*",
    ),
}


@pytest.mark.parametrize(("body", "line"), FAILS.values(), ids=FAILS)
def test_a_test_that_ends_its_own_process_fails_alone(
    pytester: pytest.Pytester, isolated: Run, body: str, line: str
) -> None:
    result = run_hostile(pytester, isolated, body)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines([line])
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_hostile*"])


def test_a_test_that_kills_its_whole_pid_namespace_fails_alone(pytester: pytest.Pytester, isolated: Run) -> None:
    body = """assert os.getpid() < 10, 'in a PID namespace of its own'
if os.fork() == 0: time.sleep(60)
os.kill(-1, 9)
os.kill(os.getpid(), 9)"""
    pytester.makeini("[pytest]\nisolate_profiles = walled: standard, namespaces=+pid")
    result = run_hostile(pytester, isolated, body, "--isolate-profile=walled")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*killed by SIGKILL during call*"])


def test_a_test_that_kills_its_monitor_fails_alone(pytester: pytest.Pytester, isolated: Run) -> None:
    result = run_hostile(pytester, isolated, "os.kill(os.getppid(), 9)\ntime.sleep(60)")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*killed by SIGKILL during call*"])


PASSES = {
    "forks without reaping": "for _ in range(20):\n    if os.fork() == 0: os._exit(0)",
    "forks children that live on": "for _ in range(5):\n    if os.fork() == 0: time.sleep(600)",
    "changes user and group": "os.setgid(65534)\nos.setuid(65534)",
    "deletes its working directory": ("import pathlib, tempfile\nd = tempfile.mkdtemp()\nos.chdir(d)\nos.rmdir(d)"),
    "has a thread that never ends": "threading.Thread(target=time.sleep, args=(600,)).start()",
    "ignores every signal": "for s in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(s, signal.SIG_IGN)",
    "leaves nothing of its limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))",
    "renames itself and changes its session": "os.setsid() if os.getsid(0) != os.getpid() else None",
    "empties its environment": "os.environ.clear()",
    "changes its root": "os.chroot('/usr')",
}


@pytest.mark.parametrize("body", PASSES.values(), ids=PASSES)
def test_a_test_that_spoils_its_process_harms_nobody(pytester: pytest.Pytester, isolated: Run, body: str) -> None:
    result = run_hostile(pytester, isolated, body, "--isolate-timeout=30")
    outcomes = result.parseoutcomes()
    assert outcomes.get("passed") == 3 or (
        outcomes["passed"],
        outcomes.get("failed", 0) + outcomes.get("errors", 0),
    ) in ((2, 1), (3, 1))
    if outcomes["passed"] == 2:
        result.stdout.fnmatch_lines(["* test_it.py::test_hostile*"])


_CHANNEL = """
import struct, json
def our_pipes():
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            link = os.readlink(f"/proc/self/fd/{{fd}}")
            flags = [l for l in open(f"/proc/self/fdinfo/{{fd}}") if l.startswith("flags")][0].split()[1]
        except OSError:
            continue
        if link.startswith(("pipe:", "socket:")) and fd > 2 and flags[-1] in "12":
            yield fd
assert list(our_pipes()), "no channel found"
def frame(body, size=None):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return struct.pack("!4sI", b"iso1", len(body) if size is None else size) + body
for fd in our_pipes():
    os.write(fd, {content})
time.sleep(5)
"""
GARBAGE = {
    "10 000 lines of noise": ('b"garbage\\n" * 10000', "*does not start with a frame header*"),
    "a frame that claims 4 GB": ("frame(b'x', 2**32 - 1)", "*claims 4294967295 bytes*"),
    "a frame that holds no JSON": ("frame(b'{{{')", "*no JSON of ours*"),
    "JSON nested too deep": ("frame(b'[' * 100000)", "*no JSON of ours*"),
    "a frame of an unknown kind": ("frame(['launch', 1])", "*a frame of kind 'launch'*"),
    "a report that is none": ("frame(['report', {'a': 1}])", "*a report that pytest does not know*"),
    "a phase that passed for ever": (
        "frame(['passed', ['call', [1e400, 0.0, 0.0]]])",
        "*a report that pytest does not know*",
    ),
    "a report of an unknown type": (
        "frame(['report', {'$report_type': 'Evil'}])",
        "*a report that pytest does not know*",
    ),
    "a timer of no time": ('frame(b\'["timer", {"timeout_s": NaN}]\')', "*a timer of nan seconds*"),
    "a timer for ever": ("frame(['timer', {'timeout_s': 1e300}])", "*a timer of 1e+300 seconds*"),
    "a warning that is none": ("frame(['warning', 3])", "*a warning that pytest does not know*"),
    "an end that is none": (
        "frame(['done', {'control': {'kind': 'exit', 'text': 1}}])",
        "*an end that says nothing known*",
    ),
    "a report of another test": (
        "frame(['report', {'nodeid': 'test_it.py::test_after', 'location': ['test_it.py', 1, 'test_after'], 'keywords': {}, "
        "'outcome': 'failed', 'longrepr': 'forged', 'when': 'call', 'sections': [], 'user_properties': [], "
        "'duration': 1, 'start': 1, 'stop': 2, '$report_type': 'TestReport'}])",
        "*a report of another test, test_it.py::test_after*",
    ),
}

_REPORT = {
    "nodeid": "test_it.py::test_hostile",
    "location": ["test_it.py", 1, "test_hostile"],
    "keywords": {},
    "outcome": "failed",
    "longrepr": "forged",
    "when": "call",
    "sections": [],
    "user_properties": [],
    "duration": 1,
    "$report_type": "TestReport",
}
#: Reporters would stumble over these, and with them the run.
_ODD: dict[str, dict[str, object]] = {
    "keywords that are a list": {"keywords": ["a"]},
    "a place of one word": {"location": [1]},
    "a cause that is none": {"isolate_cause": []},
    "a cause of None": {"isolate_cause": None},
    "a skip without its place": {"outcome": "skipped"},
    "an xfail for no text": {"outcome": "skipped", "wasxfail": 5},
    "a field named as a method": {"toterminal": 1},
    "an endless duration": {"duration": 10**400},
}
for _name, _fields in _ODD.items():
    _odd = {**_REPORT, "location": {"()": _REPORT["location"]}, **_fields}
    GARBAGE[f"a report with {_name}"] = f"frame(['report', {_odd!r}])", "*a report that pytest does not know*"
GARBAGE |= {
    "a timer of 400 digits": ("frame(['timer', {'timeout_s': 10**400}])", "*a timer without seconds*"),
    "a warning of an endless line": (
        "frame(['warning', {'category': ['builtins', 'UserWarning'], 'text': '', 'filename': '', 'lineno': float('inf'), "
        "'line': None, 'when': '', 'nodeid': '', 'location': None}])",
        "*a warning that pytest does not know*",
    ),
    "endless leftovers": (
        "frame(['done', {'control': None, 'leftovers': [[float('inf'), '', 1]]}])",
        "*leftovers that are no processes*",
    ),
    "an end with a cost that is none": (
        "frame(['done', {'control': None, 'user_s': []}])",
        "*an end that says nothing*",
    ),
    "an end after more tries than there are": (
        "frame(['done', {'control': None, 'execution_count': 10**9}])",
        "*an end that says nothing known*",
    ),
    "an end with no status of a process": (
        "frame(['done', {'control': {'kind': 'exit', 'text': '', 'returncode': 10**30}}])",
        "*an end that says nothing known*",
    ),
    "an end in its midst": ("frame(['done', {'control': None}])", "*an end before the report of its teardown*"),
}


@pytest.mark.parametrize(("content", "line"), GARBAGE.values(), ids=GARBAGE)
def test_garbage_on_our_channel_is_the_fault_of_the_test_that_wrote_it(
    pytester: pytest.Pytester, isolated: Run, content: str, line: str
) -> None:
    result = run_hostile(
        pytester, isolated, _CHANNEL.replace("{{", "{").replace("}}", "}").replace("{content}", content)
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["the test wrote to pytest-isolate's report channel during call: " + line])


@pytest.mark.parametrize("options", [(), ("--isolate-scope=module",), ("--isolate-jobs=2",)])
def test_after_a_report_that_is_not_taken_nothing_is_believed(
    pytester: pytest.Pytester, isolated: Run, options: tuple[str, ...]
) -> None:
    """The rest was in the channel before the process could be ended: a failure was lost, and the run was green."""
    pytester.makeconftest(
        """
        import pytest
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_makereport(item, call):
            report = (yield).get_result()
            if report.when == "call":
                report.user_properties = [("a", 1, 2)]
        """
    )
    pytester.makepyfile(test_it="def test_bad(): assert 0")
    for _ in range(4):
        result = isolated(*options)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.assert_outcomes(failed=1)


def test_a_hook_that_gives_reports_no_cause_is_told_of_and_the_run_goes_on(
    pytester: pytest.Pytester, isolated: Run
) -> None:
    pytester.makeconftest(
        """
        import pytest
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_makereport(item, call):
            report = (yield).get_result()
            if report.failed:
                report.isolate_cause = None
        """
    )
    pytester.makepyfile(test_it="def test_bad(): assert 0\ndef test_after(): pass")
    result = isolated()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*during call: a report that pytest does not know*"])


def test_a_hundred_megabytes_of_output_are_cut_in_the_middle(pytester: pytest.Pytester, isolated: Run) -> None:
    body = """
chunk = "x" * 999 + chr(10)
print("the beginning")
for _ in range(100_000): print(chunk, end="")
print("the end")
os.write(2, b"y" * 1_000_000)
assert False
"""
    result = run_hostile(pytester, isolated, body)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["the beginning", "*characters not shown*", "the end"])
    assert len(str(result.stdout)) < 10_000_000


def test_a_hundred_megabytes_before_a_crash_are_cut_as_well(pytester: pytest.Pytester, isolated: Run) -> None:
    body = """
print("the beginning")
for _ in range(100): os.write(1, b"x" * 1_000_000)
os.abort()
"""
    result = run_hostile(pytester, isolated, body)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*killed by SIGABRT during call*", "the beginning*", "*not shown*"])
    assert len(str(result.stdout)) < 10_000_000


@pytest.mark.parametrize(
    "how", ["bytearray(10**9)", "[bytearray(10**6) for _ in range(1000)]", "mmap.mmap(-1, 10**9).write(b'x' * 10**9)"]
)
def test_a_test_that_fills_the_memory_is_stopped_at_its_limit(
    pytester: pytest.Pytester, isolated: Run, how: str
) -> None:
    """The third is shared memory, which RLIMIT_DATA does not see."""
    result = run_hostile(pytester, isolated, f"import mmap\nkeep = {how}", "--isolate-mem-limit=200M")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["OOM test_it.py::test_hostile*"])


def test_the_working_directory_of_the_run_may_vanish(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile(
        test_it="""
        import os, shutil
        def test_1(): pass
        def test_2():
            os.mkdir("inside")
            os.chdir("inside")
            os.rmdir(os.getcwd())
        def test_3(): assert os.getcwd()
        """
    )
    isolated().assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--isolate-mem-limit=",), "*memory: '' is not a size*"),
        (("--isolate-timeout=",), "*timeout: '' is not a duration*"),
        (("--isolate-mode=inprocess", "--isolate-mem-limit=50M"), "*nothing holds --isolate-mem-limit*"),
        (("--isolate-mode=inprocess", "--isolate-profile=strict"), "*nothing holds --isolate-profile*"),
        (("-o", "isolate_profiles=a: standard\na: strict"), "*profile 'a': there are two of that name*"),
        (("-o", "isolate_net_allow=localhost:http"), "*'http' is not a port*"),
    ],
    ids=str,
)
def test_an_option_that_would_hold_nothing_is_refused(
    pytester: pytest.Pytester, isolated: Run, args: tuple[str, ...], line: str
) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = isolated(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])


def test_an_empty_variable_of_the_environment_is_none(
    pytester: pytest.Pytester, isolated: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ISOLATE_MEM_LIMIT", "")
    pytester.makepyfile("def test_it(): pass")
    isolated().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ('mode="inprocess", memory="50M", timeout=2', "*nothing holds memory, timeout*"),
        ('memory="1G", mem_limit="50M"', "*mem_limit= and memory= say the same*"),
        ('enabled="perhaps"', "*'perhaps' is neither yes nor no*"),
    ],
)
def test_a_marker_that_contradicts_itself_is_refused(
    pytester: pytest.Pytester, plain: Run, words: str, line: str
) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.isolate({words})\ndef test_it(): pass")
    result = plain()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])


def test_the_nearest_marker_wins_under_either_of_two_names(pytester: pytest.Pytester, plain: Run) -> None:
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.mark.isolate(memory="4G")
        class TestIt:
            @pytest.mark.isolate(mem_limit="64M")
            def test_it(self): bytearray(200 << 20)
        @pytest.mark.isolate(enabled="no")
        def test_out(): assert os.getpid() == int(os.environ["RUNNER"])
        """
    )
    pytester.makeconftest("import os\nos.environ['RUNNER'] = str(os.getpid())")
    plain().assert_outcomes(passed=1, failed=1)


def test_without_isolation_by_mode_the_header_says_so(pytester: pytest.Pytester, isolated: Run) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = isolated("--isolate-mode=inprocess")
    result.stdout.fnmatch_lines(["isolate: NO TEST IS ISOLATED: by its mode, inprocess, *"])
