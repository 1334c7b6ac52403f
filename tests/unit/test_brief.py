"""Which reports are told in a few numbers, and that those come back as pytest made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pytest_isolate import wire
from pytest_isolate.runner import brief


def passed(item: pytest.Item, when: Any = "call") -> pytest.TestReport:
    return pytest.TestReport.from_item_and_call(item, pytest.CallInfo.from_call(lambda: None, when=when))


@pytest.fixture
def teller(request: pytest.FixtureRequest) -> brief.Brief:
    teller = brief.Brief(request.config)
    teller.begins(request.node)
    return teller


@pytest.mark.parametrize("when", brief.PHASES)
@pytest.mark.filterwarnings("default")  # a mark is a keyword, too
def test_a_phase_that_passed_comes_back_as_it_was(
    request: pytest.FixtureRequest, teller: brief.Brief, when: str
) -> None:
    report = passed(request.node, when)
    told = teller.told(report)
    assert told is not None
    again = brief.read(request.node, json.loads(json.dumps(told)))
    assert vars(again) == vars(report)
    assert again.keywords["filterwarnings"] == 1


def _change(**fields: Any) -> Callable[[pytest.TestReport], object]:
    return lambda report: vars(report).update(fields)


@pytest.mark.parametrize(
    "change",
    {
        "failed": _change(outcome="failed"),
        "printed": _change(sections=[("Captured stdout call", "x")]),
        "has a property": _change(user_properties=[("a", 1)]),
        "is more": _change(wasxfail=""),
        "is elsewhere": _change(location=("other.py", 1, "test")),
        "has another keyword": lambda report: report.keywords.update(more=1),  # type: ignore[attr-defined]
        "took no time that is one": _change(duration=1),
        "took for ever": _change(duration=float("inf")),
        "is of no phase": _change(when="collect"),
        "says why": _change(longrepr="x"),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_a_report_that_says_more_is_told_whole(
    request: pytest.FixtureRequest, teller: brief.Brief, change: tuple[str, Callable[[pytest.TestReport], object]]
) -> None:
    report = passed(request.node)
    assert teller.told(report) is not None
    change[1](report)
    assert teller.told(report) is None


def test_a_report_of_another_kind_or_another_item_is_told_whole(
    request: pytest.FixtureRequest, teller: brief.Brief
) -> None:
    class Other(pytest.TestReport):
        pass

    assert (
        teller.told(Other.from_item_and_call(request.node, pytest.CallInfo.from_call(lambda: None, when="call")))
        is None
    )
    report = passed(next(item for item in request.session.items if item is not request.node))
    assert teller.told(report) is None


@pytest.mark.parametrize(
    "data",
    [None, [], {}, "call", ["call"], ["collect", 0.0, 0.0, 0.0], ["call", 1, 2, 3], ["call", 0.0, 0.0, float("nan")]],
)
def test_what_is_no_brief_report_is_refused(request: pytest.FixtureRequest, data: Any) -> None:
    with pytest.raises(wire.WireError, match="a report that pytest does not know"):
        brief.read(request.node, data)
