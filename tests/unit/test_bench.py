"""`pytest-isolate bench` measures what it says: every row of the floor and of ours succeeds, and nothing else loads it. No figure is judged."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from types import ModuleType

import pytest

from pytest_isolate.bench import forkexec, lookup, memory, network, parallel, pidns, soak
from pytest_isolate.bench.measure import Effort, Samples, in_turns
from pytest_isolate.bench.network.packets import Busy
from pytest_isolate.bench.table import Table
from pytest_isolate.errors import IsolateError
from pytest_isolate.kernel import probe
from pytest_isolate.networks import of_this_process
from tests.conftest import require
from tests.kernel.throwaway import ROOT

LITTLE = {"rounds": 1, "batch": 2}


@pytest.fixture(autouse=True)
def _root() -> None:
    require("root", os.geteuid() == 0, "makes namespaces without a user namespace")


@pytest.mark.parametrize("row", ["standard", "simple", "pid", "user", "mnt+pivot", "all+pivot"])
def test_a_start_succeeds_through_every_door(row: str) -> None:
    (table,) = forkexec.measure(Effort(**LITTLE, only=frozenset({row})))
    errors = {who: int(cells[table.head.index("errors") - 1]) for who, *cells in table.rows}
    ours = {who: found for who, found in errors.items() if who.startswith(("C floor", "iso_", "native", "Sandbox"))}
    assert len(ours) >= 4
    assert set(ours.values()) == {0}


def test_as_many_at_once_as_there_are_cores() -> None:
    (table,) = parallel.measure(Effort(**LITTLE, only=frozenset({"standard"})))
    assert {row[table.head.index("errors")] for row in table.rows} == {"0"}
    assert {"C floor", "iso_spawn (C)", "native.spawn (Python)", "Sandbox.run (Python)"} <= {
        row[0] for row in table.rows
    }


def test_what_waits_holds_memory_that_a_cgroup_counts() -> None:
    feature = probe.feature("cgroup_memory")
    require("cgroup-memory", feature.available, feature.reason)
    (table,) = memory.measure(Effort(**LITTLE, only=frozenset({"standard"})))
    charged = {who: int(kib) for who, kib in table.rows}
    assert set(charged) == {"native.spawn", "Sandbox.spawn", "subprocess.Popen"}
    assert all(10 < kib < 10_000 for kib in charged.values()), charged  # a task's stack in the kernel alone is 16


def test_a_soak_ends_by_the_clock() -> None:
    (table,) = soak.measure(Effort(seconds=0.5))
    assert len(table.rows) == 10
    assert {row[table.head.index("errors")] for row in table.rows} == {"0"}


def test_a_section_of_the_page_is_written_alone() -> None:
    page = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n<!-- begin: y -->\nstays\n<!-- end: y -->\n"
    assert all_benchmarks().written(page, "x", "new\n") == page.replace("old", "new")
    with pytest.raises(SystemExit, match="has no marks <!-- begin: z -->"):
        all_benchmarks().written(page, "z", "new")


def test_every_section_has_its_place_in_the_page() -> None:
    module = all_benchmarks()
    page = module.PAGE.read_text()
    for section in module.SECTIONS:
        assert module.written(page, section, "x") != page, section


def all_benchmarks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("all_benchmarks", ROOT / "benchmarks" / "all.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operations_in_deep_namespaces_and_in_sandboxes_succeed() -> None:
    (table,) = pidns.measure(Effort(**LITTLE, only=frozenset({"thread"})))
    assert [row[0] for row in table.rows][-2:] == ["sandbox, own PID namespace", "sandbox, flat"]
    assert {row[table.head.index("errors")] for row in table.rows} == {"0"}


def test_paths_are_looked_up_in_every_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup.shutil, "which", lambda _name: None)  # gVisor takes seconds
    (table,) = lookup.measure(Effort(**LITTLE))
    assert {row[0] for row in table.rows} > {
        "host, tmpfs",
        "bind",
        "overlay",
        "private tmpfs",
        "minimal root",
        "across a mount",
    }
    assert all("-" not in row[:-1] for row in table.rows)


def test_the_network_s_parts_measure_and_every_packet_they_make_is_counted() -> None:
    try:
        of_this_process().engine()
    except IsolateError as error:
        require("bpf", False, str(error))
    of_this_process().close()
    tables = network.measure(Effort(**LITTLE, only=frozenset({"packets", "exact", "pertest"})))
    rows = {(table.title.split(":")[0], row[0]): row for table in tables for row in table.rows}
    exact = {name: row[1] for (_, name), row in rows.items() if "counted" in name}
    assert len(exact) == 8
    assert set(exact.values()) == {"0"}
    assert {title for title, _ in rows} == {"packets", "per test"}
    loaded = rows["per test", "programs and maps loaded by libbpf"]
    assert loaded[3:5] in (("<= 2", "reached"), ("<= 2", "MISSED"))


def test_a_pace_that_was_not_reached_is_said_to_be_extrapolated() -> None:
    reached = Busy(used_s=0.3, took_s=1.0, made=990_000, asked=1_000_000)
    short = Busy(used_s=0.05, took_s=1.0, made=170_000, asked=1_000_000)
    assert (reached.words, short.words) == ("1000 K/s", "1000 K/s, extrapolated from 170 K/s")
    assert round(short.percent, 1) == 29.4


def test_competitors_take_turns_and_errors_are_no_times() -> None:
    order: list[str] = []

    def competitor(name: str) -> list[int]:
        order.append(name)
        return [10, 30, -22]

    found = in_turns({name: lambda _count, name=name: competitor(name) for name in "ab"}, Effort(rounds=2, batch=3))
    assert order == ["a", "b", "b", "a"]
    assert (found["a"].median_ns, found["a"].errors, len(found["a"].times_ns)) == (20, 2, 4)
    assert found["a"].over(found["b"]) == 1
    slow, fast = Samples(rounds_ns=[40, 90, 200]), Samples(rounds_ns=[10, 30, 100])
    assert slow.over(fast) == 3  # of 4, 3 and 2: not 90 / 30 by chance, nor the ratio of all
    assert math.isnan(slow.over(Samples(rounds_ns=[math.nan] * 3)))
    assert math.isnan(Samples().median_ns)


def test_a_table_is_the_same_for_people_and_in_markdown() -> None:
    table = Table(title="t", head=("who", "us"), rows=(("a", "1"), ("long", "22")), notes=("note",))
    assert list(table.text()) == ["t", "who   us", "a      1", "long  22", "note"]
    assert list(table.markdown())[:5] == ["### t", "", "| who | us |", "| --- | --: |", "| a | 1 |"]


def test_the_plugin_does_not_load_it() -> None:
    code = (
        "import sys, pytest_isolate.runner.plugin, pytest_isolate.cli; print([m for m in sys.modules if '.bench' in m])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
