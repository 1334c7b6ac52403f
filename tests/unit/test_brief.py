"""Which reports are told in a few words, and that those come back as pytest made them."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from _pytest import reports

from pytest_isolate import wire
from pytest_isolate.runner import brief, frames


def passed(item: pytest.Item, when: Any = "call") -> pytest.TestReport:
    return pytest.TestReport.from_item_and_call(item, pytest.CallInfo.from_call(lambda: None, when=when))


def sent(told: Any) -> Any:
    """As it comes out of the channel: tuples stay tuples."""
    return json.loads(json.dumps(wire.encode(told)), object_hook=wire._restore)


@pytest.fixture
def teller(request: pytest.FixtureRequest) -> brief.Brief:
    return brief.Brief(request.config)


@pytest.fixture
def heard(request: pytest.FixtureRequest) -> brief.Heard:
    return brief.Heard(request.node)


@pytest.mark.filterwarnings("default")  # a mark is a keyword, too
def test_phases_that_passed_come_back_as_they_were(
    request: pytest.FixtureRequest, teller: brief.Brief, heard: brief.Heard
) -> None:
    lengths = []
    for when in brief.PHASES:
        report = passed(request.node, when)
        told = teller.told(report)
        assert told is not None
        lengths.append(len(told))
        again = heard.read(sent(told))
        assert vars(again) == vars(report)
        assert list(again.keywords) == list(report.keywords)
        assert again.keywords["filterwarnings"] == 1
    assert lengths[0] > lengths[1] == lengths[2]  # what they have in common is told once


def test_what_the_test_changes_is_told_again(
    request: pytest.FixtureRequest, teller: brief.Brief, heard: brief.Heard
) -> None:
    heard.read(sent(teller.told(passed(request.node, "setup"))))
    report = passed(request.node)
    report.keywords, report.location = {"late": 1, **report.keywords}, ("other.py", 3, "moved")
    again = heard.read(sent(teller.told(report)))
    assert (next(iter(again.keywords)), again.location) == ("late", ("other.py", 3, "moved"))
    assert vars(heard.read(sent(teller.told(passed(request.node))))) | {"start": 0, "stop": 0, "duration": 0} == vars(
        passed(request.node)
    ) | {"start": 0, "stop": 0, "duration": 0}


def test_each_item_is_introduced(request: pytest.FixtureRequest, teller: brief.Brief) -> None:
    first = teller.told(passed(request.node))
    teller.begins()
    again = teller.told(passed(request.node))
    assert first is not None
    assert again is not None
    assert again[2:] == first[2:]


def _change(**fields: Any) -> Callable[[pytest.TestReport], object]:
    return lambda report: vars(report).update(fields)


@pytest.mark.parametrize(
    "change",
    {
        "failed": _change(outcome="failed"),
        "printed": _change(sections=[("Captured stdout call", "x")]),
        "has a property": _change(user_properties=[("a", 1)]),
        "is more": _change(wasxfail=""),
        "is at a place of another kind": _change(location=["other.py", 1, "test"]),
        "has a keyword with a value": lambda report: report.keywords.update(more=True),  # type: ignore[attr-defined]
        "has a keyword that is no text": lambda report: report.keywords.update({object: 1}),  # type: ignore[attr-defined]
        "took no time that is one": _change(duration=1),
        "took for ever": _change(duration=float("inf")),
        "is of no phase": _change(when="collect"),
        "says why": _change(longrepr="x"),
        "says nothing, but in its own way": _change(longrepr=""),
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


def test_a_report_of_another_kind_is_told_whole(request: pytest.FixtureRequest, teller: brief.Brief) -> None:
    class Other(pytest.TestReport):
        pass

    call = pytest.CallInfo.from_call(lambda: None, when="call")
    assert teller.told(Other.from_item_and_call(request.node, call)) is None


def _nowhere() -> Any:
    space: dict[str, Any] = {}
    exec("def hook(config, report): return None", space)  # its __module__ is None
    return space["hook"]


@functools.wraps(reports.pytest_report_to_serializable)
def _disguised(config: pytest.Config, report: Any) -> None:
    return None


class Plugin:
    pass


@contextlib.contextmanager
def joined(request: pytest.FixtureRequest, **hooks: Any) -> Iterator[None]:
    plugin = Plugin()
    vars(plugin).update(hooks)
    request.config.pluginmanager.register(plugin, "strange")
    try:
        yield
    finally:
        request.config.pluginmanager.unregister(plugin)


@pytest.mark.parametrize("hook", [_nowhere(), _disguised], ids=["of no module", "disguised as pytest's"])
def test_where_a_plugin_takes_part_in_telling_all_is_told_whole(
    request: pytest.FixtureRequest, teller: brief.Brief, hook: Any
) -> None:
    report = passed(request.node)
    with joined(request, pytest_report_to_serializable=hook):  # it may join at any time, and leave
        assert teller.told(report) is None
    assert teller.told(report) is not None


def test_a_plugin_that_joined_only_here_is_asked(
    request: pytest.FixtureRequest, teller: brief.Brief, heard: brief.Heard
) -> None:
    report, asked = passed(request.node), []
    told = sent(teller.told(report))

    def ask(config: pytest.Config, data: dict[str, Any]) -> None:
        asked.append(data["nodeid"])

    with joined(request, pytest_report_from_serializable=ask):
        again = frames.read_passed(heard, told)
    assert vars(again) == vars(report)
    assert asked == [report.nodeid]


_HEAD = ["x", {"()": ["f.py", 1, "t"]}, ["k"]]


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        "call",
        ["call"],
        ["call", [0.0] * len(brief._TIMES)],  # nothing was told that it could go on from
        ["collect", [0.0] * len(brief._TIMES), *_HEAD],
        ["call", [1] * len(brief._TIMES), *_HEAD],
        ["call", [float("nan")] * len(brief._TIMES), *_HEAD],
        ["call", [0.0] * len(brief._TIMES), "x", ["f.py", 1], ["k"]],
        ["call", [0.0] * len(brief._TIMES), "x", ("f.py", 1, "t"), [["k"]]],
        ["call", [0.0] * len(brief._TIMES), "x", ("f.py", 1, "t"), "k"],
        ["call", [0.0] * len(brief._TIMES), "x", ("f.py", 1, "t"), ["k"], 1],
        ["call", [0.0] * len(brief._TIMES), "another test", ("f.py", 1, "t"), ["k"]],
        [["call"], [0.0] * len(brief._TIMES), *_HEAD],
    ],
)
def test_what_is_no_brief_report_is_refused(request: pytest.FixtureRequest, heard: brief.Heard, data: Any) -> None:
    with pytest.raises(wire.WireError, match="a report that pytest does not know|a report of another test"):
        frames.read_passed(heard, data)
