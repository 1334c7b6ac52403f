"""What a program writes, as sandbox.run gives it: whole, in order, at nobody's cost, and cut with a word where it is endless."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytest_isolate import Cause, Sandbox
from pytest_isolate.kernel import probe
from pytest_isolate.output import MAX_OUTPUT_BYTES


def test_standard_error_may_be_opened_anew(sandbox: Sandbox) -> None:
    outcome = sandbox.run(
        ["sh", "-c", "echo one >&2; echo two >/dev/stderr; echo three >&2; echo out >/proc/self/fd/1"]
    )
    assert (outcome.stdout, outcome.stderr) == ("out\n", "one\ntwo\nthree\n")


def test_merged_streams_are_in_the_order_they_were_written(sandbox: Sandbox) -> None:
    code = "for i in 1 2 3; do echo out $i; echo err $i >/dev/stderr; done"
    expected = "".join(f"out {i}\nerr {i}\n" for i in (1, 2, 3))
    assert sandbox.run(["sh", "-c", code], merge_stderr=True).stdout == expected


def test_output_is_not_the_programs_memory(sandbox: Sandbox, require: Callable[[str, bool, str], None]) -> None:
    feature = probe.feature("cgroup_memory")
    require("cgroup-memory", feature.available, feature.reason)
    outcome = sandbox.run(["head", "-c", "60000000", "/dev/zero"], memory="16M", text=False)
    assert (outcome.causes, len(outcome.stdout)) == ((), 60_000_000)
    hog = sandbox.run(["sh", "-c", "head -c 60000000 /dev/zero | tail -c 50000000"], memory="16M", text=False)
    assert hog.causes == (Cause.OOM,)


def test_output_is_no_file_that_a_limit_is_for(sandbox: Sandbox, tmp_path: Path) -> None:
    assert sandbox.run(["printf", "%5000d", "1"], rlimits={"FSIZE": 1000}).ok
    written = sandbox.run(["sh", "-c", "printf %5000d 1 >file"], rlimits={"FSIZE": 1000}, cwd=tmp_path)
    assert not written.ok


def test_what_is_too_much_to_keep_is_cut_and_that_is_said(sandbox: Sandbox) -> None:
    outcome = sandbox.run(["head", "-c", str(MAX_OUTPUT_BYTES + 5), "/dev/zero"], text=False)
    assert (outcome.ok, len(outcome.stdout)) == (True, MAX_OUTPUT_BYTES)
    assert outcome.detail == ("OUTPUT: standard output is cut: what came after 64 MiB is not kept",)
    whole = sandbox.run(["head", "-c", str(MAX_OUTPUT_BYTES), "/dev/zero"], text=False)
    assert (len(whole.stdout), whole.detail) == (MAX_OUTPUT_BYTES, ())


def test_who_holds_the_pipe_open_is_not_waited_for(sandbox: Sandbox) -> None:
    outcome = sandbox.run(["sh", "-c", "sleep 6180 & echo done"], timeout=30)
    assert (outcome.stdout, outcome.causes) == ("done\n", (Cause.LEAK,))


def test_an_endless_writer_is_ended_at_its_time(sandbox: Sandbox) -> None:
    outcome = sandbox.run(["yes"], timeout=0.3, grace=0.1)
    assert outcome.causes == (Cause.TIMEOUT,)
    assert str(outcome.stdout).startswith("y\ny\n")
