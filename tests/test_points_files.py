from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path

import pytest

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import PointCircumstance, Reading
from outlay.report import flat_files
from outlay.report.results import Header, Results
from tests.test_report import point

GOLDEN = Path(__file__).parent / "golden" / "points.csv"


@pytest.fixture
def results() -> Results:
    first = point(
        "annotate",
        300.0,
        0,
        73.25,
        scores={"accuracy/published": Reading(73.25, 72.0, 1 / 3 + 74), "macro_f1/strict": Reading(0.0, 0.0, 0.1)},
        artifacts={"student": "a" * 64},
    )
    second = point(
        "distill",
        300.1,
        1,
        80.5,
        added_usd=100.1,
        pool=(("web, “rows”", 7), ("train", 3)),
        seconds={"a40": 0.1 + 0.2, "cpu": 2.0},
        artifacts={"teacher": "b" * 64, "student": "c" * 64},
        flops=3 * 10**19,
    )
    environment: dict[str, str | int | float | None] = {"torch": "2.13", "threads": 2, "load": 0.5, "odd": 1}
    second = dataclasses.replace(second, circumstance=PointCircumstance(0.25, 12.5, None, "d" * 64, environment))
    third = point("distill", 300.2, 2, None, reason='it failed,\nso "this"', status="failed")
    third = dataclasses.replace(
        third, circumstance=PointCircumstance(environment={"threads": 1, "load": 1, "odd": "x"})
    )
    left = {
        first.id: RunOutputs("run-1", "accuracy", charges_usd={"labels": 299.0, "student": 0.5}),
        second.id: RunOutputs("run-2", "accuracy", teacher_dev=84.6, charges_usd={"labels": 200.0, "other": 0.000001}),
    }
    return Results(Header("s", "A study", "plain"), (first, second, third), left)


def test_both_files_hold_every_value_of_every_point(results: Results, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = flat_files.write_points_parquet(tmp_path / "new" / "points.parquet", results)
    columns = parquet.read_table(path).to_pydict()
    written = flat_files.write_points_csv(tmp_path / "points.csv", results)
    # Three points read off by hand once, each of their values in its column; a column more or fewer shows here.
    assert written.read_bytes() == GOLDEN.read_bytes()
    with written.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["new", "points.csv", "points.parquet"]
    assert list(columns) == list(records[0])
    for name, values in columns.items():
        for record, value in zip(records, values, strict=True):
            assert (type(value)(record[name]) if value is not None else record[name] or None) == value, name
    assert columns["flops"] == [10**15, 3 * 10**19, 10**15]
    assert columns["environment:threads"] == [None, 2, 1]


def test_no_part_of_a_point_is_left_out(results: Results) -> None:
    names = [field.name for field in flat_files.fields(results)]
    assert len(set(names)) == len(names)
    document = results.points[1].to_json()
    flat = {"scores", "seconds", "artifacts", "environment"}
    for part in document.values():
        for name, value in part.items():
            if name not in flat:
                assert name in names
            elif name in ("seconds", "environment"):
                assert {f"{name}:{each}" for each in value} <= set(names)
    assert {"digest:student", "digest:teacher", "score:accuracy/published:low", "charge_usd:other"} <= set(names)
    assert names.index("cash_usd") > max(
        i for i, name in enumerate(names) if name.startswith(("score:", "charge_usd:"))
    )


def test_without_pyarrow_no_file_is_written(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert flat_files.write_points_parquet(tmp_path / "points.parquet", results) is None
    assert list(tmp_path.iterdir()) == []
    assert "pip install 'outlay[data]'" in flat_files.NEEDS_PYARROW
