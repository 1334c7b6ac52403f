"""Cells are judged by the row, and nothing that is missing looks fine. Boots nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import debian, rows, run, table
from .__main__ import main
from .rows import LAYERS, LIMITS, ROWS, Row

ROW = Row(name="r", why="a test", kernel_suite="none", less={"kill": "degraded"})


CELLS = sum(map(len, LAYERS.values()))


def lines(**states: str) -> str:
    """What a guest prints when every cell is as ROW says, but for the kernel's ``states``."""
    told: dict[tuple[str, str], str] = {
        (layer, limit): ROW.expected(layer, limit) for layer, limits in LAYERS.items() for limit in limits
    }
    told |= {("kernel", limit): state for limit, state in states.items()}
    checks = [
        json.dumps({"layer": layer, "check": limit, "state": state, "evidence": "seen"})
        for (layer, limit), state in told.items()
    ]
    return "\n".join(["noise", *checks, '{"other": 1}'])


def after(output: str) -> table.Tested:
    return table.Tested(row=ROW, cells=table.judge(ROW, table.answers(output)), boot_s=1.5, wall_s=20)


def test_what_a_guest_said_before_it_was_lost_counts_and_a_line_cut_short_does_not() -> None:
    whole, cut = ({"layer": "kernel", "check": name, "state": "enforced", "evidence": "x"} for name in ("pids", "cpu"))
    found = table.answers(json.dumps(whole) + "\n" + json.dumps(cut)[:-9])
    assert list(found) == [("kernel", "pids")]


def test_a_row_that_answers_as_it_says_is_ok() -> None:
    done = after(lines())
    assert done.ok
    assert table.summary([done]) == f"1 rows, {CELLS} cells: 0 untested, 0 not as the row says"


@pytest.mark.parametrize(("limit", "state"), [("memory", "refused"), ("memory", "failed"), ("kill", "enforced")])
def test_worse_and_better_than_expected_both_fail(limit: str, state: str) -> None:
    done = after(lines(**{limit: state}))
    assert not done.ok
    assert state.upper() in table.render([done])
    assert f"{limit:<12} {state.upper()} (expected {ROW.expected('kernel', limit)}): seen" in table.evidence(done)


def test_a_limit_without_a_line_is_untested_and_fails() -> None:
    done = after(lines().replace('"kernel", "check": "pids"', '"kernel", "check": "pidz"'))
    assert not done.ok
    assert "1 untested, 0 not as the row says" in table.summary([done])


def test_what_a_guest_said_besides_is_kept_for_who_asks_why() -> None:
    assert table.besides("Traceback\n" + lines()) == 'Traceback\nnoise\n{"other": 1}'


def test_a_row_that_could_not_boot_has_every_cell_untested() -> None:
    done = table.Tested(row=ROW, cells=table.judge(ROW, {}), error="no kernel")
    assert not done.ok
    assert f"{CELLS} untested" in table.summary([done])
    assert done.as_json()["error"] == "no kernel"


def test_every_row_and_limit_of_the_table_is_shown() -> None:
    shown = table.render([after(lines()), after(lines())]).splitlines()
    assert shown[0].split() == ["r", "r"]
    words = [line.split()[0] for line in shown if line]
    for layer, limits in LAYERS.items():
        start = words.index(f"[{layer}]") + 1
        assert words[start : start + len(limits)] == list(limits)


def test_the_product_may_make_good_what_the_kernel_lacks() -> None:
    row = Row(name="r", why="a test", kernel_suite="none", less={"kill": "degraded"}, ours_less={"kill": "enforced"})
    assert (row.expected("kernel", "kill"), row.expected("ours", "kill")) == ("degraded", "enforced")
    assert row.expected("ours", "memory") == "enforced"


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
        assert set(row.ours_less) <= set(LAYERS["ours"])
        assert row.why


def test_a_checkout_that_is_not_built_is_told_before_anything_boots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(debian, "missing_packages", list)
    monkeypatch.setattr(run, "CHECKOUT", tmp_path)
    assert main(["6.1"]) == 2
    said = capsys.readouterr().err
    assert (
        said == "this checkout is not built (pytest_isolate/_native/libisolate.so is missing): pip install -e . first\n"
    )
