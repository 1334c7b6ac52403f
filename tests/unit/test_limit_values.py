"""Values that no limit takes: refused where they enter, in one line that names limit, value and what to write.

Owns: the library's values (Limits, IoLimit, Policy) and the words. Refuses: pytest and the kernel (tests/pytest, tests/kernel).
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from pytest_isolate import IoLimit, Limits, Policy, PolicyError
from pytest_isolate.policy import RLIMIT_UNITS, UNLIMITED
from pytest_isolate.profile import STANDARD, parse_profiles, vary
from pytest_isolate.ranges import IO, LIMITS, MAX_SECONDS, Range
from pytest_isolate.units import MAX_BYTES, shown

NAN, INFINITY = float("nan"), float("inf")
#: Numbers for nothing, and what is no number, whatever the limit.
SENSELESS = (-1, -0.5, NAN, INFINITY, -INFINITY, 2**64, 2**70, 10**400, 10**5000, True, False, "", "lots", [1], b"1")
WORDS = ("memory", "memory_high", "swap", "pids", "cpu", "cpu_weight", "cpu_time", "timeout", "grace")


def one_line(caught: pytest.ExceptionInfo[PolicyError], *parts: str) -> None:
    """The limit, why, and what to do: short, and on one line."""
    text = str(caught.value)
    assert all(part in text for part in parts), text
    assert "\n" not in text
    assert len(text) < 250
    assert re.search(r"\. Write ", text), text


@pytest.mark.parametrize("value", SENSELESS, ids=shown)
@pytest.mark.parametrize("word", WORDS)
def test_a_word_refuses_what_is_no_number_for_it(word: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=rf"^{word}: ") as caught:
        vary(STANDARD, **{word: value})
    one_line(caught)


@pytest.mark.parametrize("value", SENSELESS, ids=shown)
@pytest.mark.parametrize("field", LIMITS)
def test_the_library_refuses_it_too(field: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=rf"^{LIMITS[field].what}: ") as caught:
        Limits(**{field: value})
    one_line(caught, LIMITS[field].write.removeprefix("write "))


@pytest.mark.parametrize("field", sorted({*LIMITS, *IO}))
def test_the_ends_of_a_range_are_taken_and_what_is_beyond_is_refused(field: str) -> None:
    def make(value: float) -> object:
        return Limits(**{field: value}) if field in LIMITS else IoLimit(path="/", **{field: value})  # type: ignore[arg-type]

    admissible = {**LIMITS, **IO}[field]
    for value in (admissible.least, admissible.most):
        assert getattr(make(value), field) == value
    for value in (admissible.least - 0.0005 if not admissible.whole else admissible.least - 1, admissible.most + 1):
        with pytest.raises(PolicyError, match=rf"^{admissible.what}: ") as caught:
            make(value)
        one_line(caught, str(value))


@pytest.mark.parametrize("word", ["memory", "pids", "cpu", "cpu_weight", "cpu_time", "timeout"])
@pytest.mark.parametrize("value", [0, "0", 0.0])
def test_nothing_at_all_is_no_limit_but_of_swap(word: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=rf"^{word}: "):
        vary(STANDARD, **{word: value})
    assert vary(STANDARD, swap=value).limits.swap_bytes == 0


@pytest.mark.parametrize(
    ("word", "value", "line"),
    [
        ("pids", 2**22 + 1, "pids: 4194305 is out of range. Write 1 to 4194304 processes."),
        ("pids", INFINITY, "pids: inf is not a whole number. Write 1 to 4194304 processes."),
        ("cpu", "nan", "cpu: nan is out of range. Write 0.001 to 10000 cores."),
        ("cpu_weight", 10_001, "cpu_weight: 10001 is out of range. Write 1 to 10000 (100 is usual)."),
        (
            "cpu_time",
            2**62,
            f"cpu_time: 4.611686018427388e+18 is out of range. Write 0.000001 to {MAX_SECONDS} seconds.",
        ),
        ("timeout", "1e9", "timeout: '1e9' is not a duration. Write positive seconds, such as 1.5, 500ms or 2m."),
        ("memory", 2**63, f"memory: {2**63} is more than the kernel can count. Write less than 8192P."),
        ("io", "/dev/vda", "io: '/dev/vda' is no list of IoLimit. Write [IoLimit(path=\"/\", read_bps=1_000_000)]."),
        ("io", "", "io: '' is no list of IoLimit. Write [IoLimit(path=\"/\", read_bps=1_000_000)]."),
        ("io", 5, 'io: 5 is no list of IoLimit. Write [IoLimit(path="/", read_bps=1_000_000)].'),
        (
            "io",
            {"path": "/"},
            "io: {'path': '/'} is no list of IoLimit. Write [IoLimit(path=\"/\", read_bps=1_000_000)].",
        ),
        ("cpuset", "", "cpuset: '' is not a list of CPUs. Write their numbers, such as 0-3,8."),
        ("cpuset", " ", "cpuset: ' ' is not a list of CPUs. Write their numbers, such as 0-3,8."),
        ("cpuset", -1, "cpuset: '-1' is not a list of CPUs. Write their numbers, such as 0-3,8."),
        ("cpuset", "0,", "cpuset: '0,' is not a list of CPUs. Write their numbers, such as 0-3,8."),
        ("memory_fallback", "rlimits", "memory_fallback 'rlimits': unknown. Did you mean 'rlimit'?"),
    ],
    ids=str,
)
def test_the_line_says_what_to_write(word: str, value: Any, line: str) -> None:
    with pytest.raises(PolicyError) as caught:
        vary(STANDARD, **{word: value})
    assert str(caught.value) == line


@pytest.mark.parametrize("name", RLIMIT_UNITS)
@pytest.mark.parametrize("value", [*SENSELESS[1:], -2, 1.5, 2**63, 2**64 - 1, (1, 2**70), (True, True)], ids=shown)
def test_an_rlimit_refuses_what_would_become_another(name: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=rf"^rlimit {name}: ") as caught:
        vary(STANDARD, rlimits={name: value})
    one_line(caught)


def test_an_rlimit_says_its_range_and_the_word_for_none() -> None:
    with pytest.raises(PolicyError) as caught:
        vary(STANDARD, rlimits={"NOFILE": 2**64 - 1})
    said = f"rlimit NOFILE: {2**64 - 1} is out of range. Write 0 to {MAX_BYTES} (count), or 'unlimited'."
    assert str(caught.value) == said
    with pytest.raises(PolicyError, match=r"^rlimit CPU: 0 is out of range\. Write 1 to 9223372036 \(seconds\)"):
        vary(STANDARD, rlimits={"CPU": 0})
    for none in (None, "unlimited", "infinity", UNLIMITED):
        assert vary(STANDARD, rlimits={"NOFILE": none}).limits.rlimits["NOFILE"] == (UNLIMITED, UNLIMITED)


def test_the_most_of_an_rlimit_is_taken_with_its_hard_limit() -> None:
    found = vary(STANDARD, rlimits={"CPU": MAX_SECONDS, "RTTIME": MAX_BYTES, "AS": MAX_BYTES, "CORE": 0, "FSIZE": "0"})
    assert found.limits.rlimits == {
        "CPU": (MAX_SECONDS, MAX_SECONDS),
        "RTTIME": (MAX_BYTES, MAX_BYTES),
        "AS": (MAX_BYTES, MAX_BYTES),
        "CORE": (0, 0),
        "FSIZE": (0, 0),
    }


@pytest.mark.parametrize("pair", [(1,), 5, (1, 2, 3), (1.5, 2), (2, 1), (-1, 5), (-1.0, -1.0)])
def test_the_library_takes_pairs_of_rlimits_only(pair: Any) -> None:
    with pytest.raises(PolicyError, match=r"^rlimit NOFILE: "):
        Limits(rlimits={"NOFILE": pair})


@pytest.mark.parametrize("value", SENSELESS, ids=shown)
def test_a_device_refuses_it_as_well(value: Any) -> None:
    for field, admissible in IO.items():
        with pytest.raises(PolicyError, match=rf"^{admissible.what}: ") as caught:
            IoLimit(path="/", **{field: value})
        one_line(caught, admissible.write.removeprefix("write "))
    with pytest.raises(PolicyError, match=r"^hugetlb 2MB: "):
        Limits(hugetlb_bytes={"2MB": value})
    with pytest.raises(PolicyError, match=r"^hugetlb 2MB: "):
        vary(STANDARD, hugetlb={"2MB": value})


@pytest.mark.parametrize("path", ["", 5, None])
def test_a_device_needs_a_path(path: Any) -> None:
    with pytest.raises(PolicyError, match=r"^io path: "):
        IoLimit(path=path, read_bps=1)


@pytest.mark.parametrize("value", [v for v in SENSELESS if v is not False], ids=shown)
def test_time_is_checked_without_words_too(value: Any) -> None:
    for field in ("timeout_s", "grace_s"):
        with pytest.raises(PolicyError, match=rf"^{field.removesuffix('_s')}: "):
            Policy(**{field: value})


@pytest.mark.parametrize("cpuset", ["0", "0-1", "0,2-3", "0-7:1/2", " 1 ", "0\n", 0])
def test_lists_of_cpus_as_the_kernel_reads_them(cpuset: Any) -> None:
    assert vary(STANDARD, cpuset=cpuset).limits.cpuset == str(cpuset)


_SETTINGS = (
    "memory=0 pids=-1 pids=nan cpu=inf cpu_weight=10001 cpu_time=0 cpu_time=99999999999 timeout=nan swap=-1 io=/dev/vda "
    "cpuset= rlimits=5 hugetlb=5 memory_high=16E"
)


@pytest.mark.parametrize("setting", _SETTINGS.split())
def test_a_profile_of_the_ini_file_refuses_it(setting: str) -> None:
    with pytest.raises(PolicyError, match=rf"^{setting.partition('=')[0]}: "):
        parse_profiles([f"mine: standard, {setting}"])


def test_what_to_write_is_written_out() -> None:
    assert Range(what="x", least=10, most=MAX_BYTES, unit="bytes").write == f"write 10 to {MAX_BYTES} bytes"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("namespaces", 5),
        ("namespaces", [None]),
        ("namespaces", {"pid": 1}),
        ("net_allow", 5),
        ("landlock_read", 5),
        ("seccomp", 5),
        ("seccomp_refuse", 5),
        ("seccomp_refuse", {"ptrace": 1}),
        ("capabilities", [5]),
        ("memory_fallback", 5),
        ("hostname", "\ud800"),
        ("net_default", "x"),
    ],
)
def test_what_no_word_can_read_is_refused_by_its_name(word: str, value: object) -> None:
    with pytest.raises(PolicyError, match=f"^({word}|network default|namespace)\\b") as refused:
        vary(STANDARD, **{word: value})
    assert "Use ," not in str(refused.value)
    assert str(refused.value).count("\n") == 0
