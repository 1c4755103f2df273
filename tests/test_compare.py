"""Grids: which points a comparison has, what it calls them, and which differences it tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from outlay.engine.point import Point
from outlay.errors import UsageError
from outlay.metrics import score
from outlay.money.amounts import PriceBook
from outlay.plan.request import Request
from outlay.report.results import Header
from outlay.report.study_report import StudyReport, write_study_report
from outlay.storage.store import Store
from outlay.study.grid import Grid
from outlay.study.runner import Session, Workplace, prepare_session, read_results
from tests.runs import FamilyWorld

BASE = Request("task", "annotate", 1, teacher="t1", general="g")


def asked(grid: Grid) -> list[tuple[str, str, str, str | None]]:
    return [(each.strategy, each.teacher, each.student, each.base) for each in grid.requests()]


def test_sizes_are_varied_where_they_make_a_difference() -> None:
    strategies = ("annotate", "distill", "self_distill", "general_distill")
    grid = Grid(BASE, strategies, (1,), (0,), teachers=("t1", "t2"), students=("cut:1", "cut:2"))
    assert asked(grid) == [
        ("annotate", "t1", "cut:1", None),
        ("annotate", "t1", "cut:2", None),
        ("distill", "t1", "cut:1", None),
        ("distill", "t1", "cut:2", None),
        # A cut student is a cut of the first teacher, whoever teaches it.
        ("distill", "t2", "cut:1", "t1"),
        ("distill", "t2", "cut:2", "t1"),
        ("self_distill", "t1", "cut:1", None),
        ("self_distill", "t1", "cut:2", None),
        ("general_distill", "t1", "cut:1", None),
    ]


def test_a_grid_of_one_is_the_plain_comparison() -> None:
    grid = Grid(replace(BASE, n_initial=5, student="s"), ("annotate", "distill"), (1, 2), (0, 1))
    assert [(o.seed, o.budget_micros, o.strategy, o.n_initial) for o in grid.requests()] == [
        (seed, budget, name, n)
        for seed in (0, 1)
        for budget in (1, 2)
        for name, n in (("annotate", 5), ("distill", 5), ("distill", None))
    ]
    assert {(o.teacher, o.student, o.base) for o in grid.requests()} == {("t1", "s", None)}
    fixed = replace(grid, with_rule=False).requests()
    assert fixed == [o for o in grid.requests() if o.n_initial is not None]
    named = Grid(replace(BASE, base="b"), ("distill",), (1,), (0,), teachers=("t1", "b"))
    assert asked(named) == [("distill", "t1", "cut:2", "b"), ("distill", "b", "cut:2", None)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"teachers": ("a", "a")}, "a is named twice among the teachers"),
        ({"students": ("a", "a")}, "a is named twice among the students"),
        ({"budgets_micros": (1, 1)}, "is named twice among the budgets"),
        ({"budgets_micros": ()}, "no budgets to compare"),
        ({"seeds": ()}, "no seeds to compare"),
        ({"seeds": (0, 1, 0)}, "0 is named twice among the seeds"),
    ],
)
def test_a_grid_that_makes_no_sense(change: dict[str, object], says: str) -> None:
    good: dict[str, object] = {"base": BASE, "strategies": ("annotate",), "budgets_micros": (1,), "seeds": (0,)}
    with pytest.raises(UsageError, match=says):
        Grid(**{**good, **change})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def families(shared_families: FamilyWorld) -> FamilyWorld:
    return shared_families.fresh()


def prepared(folder: Path, asked: list[Request]) -> Session:
    book = PriceBook.load()
    place = Workplace(folder / "out", Store(folder / "store"), book, book.get("cpu"))
    return prepare_session(asked, Header("compare", "A comparison", "plain"), place)


@pytest.mark.slow
def test_a_grid_of_sizes_end_to_end(families: FamilyWorld, tmp_path: Path) -> None:
    base = families.family_request("entities", "encoder", "encoder", general=str(families.checkpoints["encoder"]))
    grid = Grid(
        replace(base, n_initial=None),
        ("annotate", "distill", "general_distill"),
        (2_000_000,),
        (0, 1),
        teachers=(str(families.checkpoints["encoder"]), str(families.checkpoints["seq2seq"])),
        students=("cut:1", "cut:2"),
    )
    session = prepared(tmp_path, grid.requests())
    points = session.run()
    assert all(point.is_ok for point in points), [point.result.reason for point in points]
    assert len({point.id for point in points}) == len(points) == 2 * (2 + 4 + 1)
    report = StudyReport(read_results(session.place.folder, session.place.store))
    labels = [
        "annotate, student cut:1",
        "annotate, student cut:2",
        "distill (N by rule), teacher encoder, student cut:1",
        "distill (N by rule), teacher encoder, student cut:2",
        "distill (N by rule), teacher seq2seq, student cut:1",
        "distill (N by rule), teacher seq2seq, student cut:2",
        "general_distill",
    ]
    plain = report.tables[0]
    place = [column.text for column in plain.columns].index("Test")
    tested = [row.cells[place] for row in plain.rows]
    assert [row.heads for row in plain.rows] == [(label,) for label in labels]
    assert all(cell is not None and cell.low is not None and cell.high is not None for cell in tested)
    assert "micro F1, strict reading" in plain.notes[0]
    # Sizes within a strategy, strategies at equal sizes, and the general student beside everything.
    told = {(labels.index(test.second), labels.index(test.first)) for test in report.tests}
    sizes = {(0, 1), (2, 3), (2, 4), (3, 5), (4, 5)}
    assert {(test.n_comparisons, test.n_seeds) for test in report.tests} == {(len(told), 2)}
    assert all(test.p_holm is not None for test in report.tests)
    assert told == sizes | {(0, 2), (0, 4), (1, 3), (1, 5)} | {(i, 6) for i in range(6)}
    files = write_study_report(tmp_path / "out", read_results(session.place.folder, session.place.store))
    assert files["page"].read_text().count("<details>") == len(points)


def test_accuracy_rows_read_answers_as_their_score_does(families: FamilyWorld, tmp_path: Path) -> None:
    text = families.tasks["classes"].read_text().replace("metric: f1", "metric: accuracy").replace("classes", "exact")
    task = families.tasks["classes"].with_name("exact.yaml")
    task.write_text(text)
    request = families.family_request("classes", "seq2seq", "seq2seq", strategy="annotate", n_initial=None)
    session = prepared(tmp_path, [replace(request, task=str(task))])
    points = session.run()
    (row,) = StudyReport(read_results(session.place.folder, session.place.store)).means
    assert row.value is not None
    assert _is_close(row.value, points[0])
    # An untrained writer says nothing that is a label: published, that is the first one.
    golds = [example.label or "" for example in families.workbench.load(str(task))[1].test]
    silent = score("accuracy", [""] * len(golds), golds, ["warm", "cold"])
    assert row.value == pytest.approx(silent["accuracy/published"].value)


def _is_close(mean: float, point: Point) -> bool:
    return point.result.test is not None and abs(mean - point.result.test) < 1e-9
