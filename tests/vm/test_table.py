"""Cells are judged by the row, and nothing that is missing looks fine. Boots nothing."""

from __future__ import annotations

import json

import pytest

from . import rows, table
from .rows import LIMITS, ROWS, Row

ROW = Row(name="r", why="a test", kernel_suite="none", less={"kill": "degraded"})


def lines(**states: str) -> str:
    """What a guest prints when every limit is as ROW says, but for ``states``."""
    told = {limit: ROW.expected(limit) for limit in LIMITS} | states
    checks = [json.dumps({"check": limit, "state": state, "evidence": "seen"}) for limit, state in told.items()]
    return "\n".join(["noise", *checks, '{"other": 1}'])


def after(output: str) -> table.Tested:
    return table.Tested(row=ROW, cells=table.judge(ROW, table.answers(output)), boot_s=1.5, wall_s=20)


def test_a_row_that_answers_as_it_says_is_ok() -> None:
    done = after(lines())
    assert done.ok
    assert table.summary([done]) == f"1 rows, {len(LIMITS)} cells: 0 untested, 0 not as the row says"


@pytest.mark.parametrize(("limit", "state"), [("memory", "refused"), ("memory", "failed"), ("kill", "enforced")])
def test_worse_and_better_than_expected_both_fail(limit: str, state: str) -> None:
    done = after(lines(**{limit: state}))
    assert not done.ok
    assert state.upper() in table.render([done])
    assert f"{limit:<12} {state.upper()} (expected {ROW.expected(limit)}): seen" in table.evidence(done)


def test_a_limit_without_a_line_is_untested_and_fails() -> None:
    done = after(lines().replace('"check": "pids"', '"check": "pidz"'))
    assert not done.ok
    assert "1 untested, 0 not as the row says" in table.summary([done])


def test_a_row_that_could_not_boot_has_every_cell_untested() -> None:
    done = table.Tested(row=ROW, cells=table.judge(ROW, {}), error="no kernel")
    assert not done.ok
    assert f"{len(LIMITS)} untested" in table.summary([done])
    assert done.as_json()["error"] == "no kernel"


def test_every_row_and_limit_of_the_table_is_shown() -> None:
    shown = table.render([after(lines()), after(lines())]).splitlines()
    assert shown[0].split() == ["r", "r"]
    assert [line.split()[0] for line in shown[1 : 1 + len(LIMITS)]] == list(LIMITS)


def test_an_exact_name_is_one_row_and_a_family_is_all_of_its_rows() -> None:
    assert [row.name for row in rows.choose(["6.1"])] == ["6.1"]
    assert [row.name for row in rows.choose(["userns-off"])] == ["userns-off-clone", "userns-off-max"]
    assert rows.choose([]) == ROWS
    with pytest.raises(LookupError, match=r"row '6\.2': unknown"):
        rows.choose(["6.2"])


def test_rows_name_only_limits_that_exist_and_say_why() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert set(row.less) <= set(LIMITS)
        assert row.why
