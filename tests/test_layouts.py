from __future__ import annotations

import dataclasses
import io
import random
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point, Reading
from outlay.errors import DataError
from outlay.metrics import Answered, mean_score
from outlay.report.cells import hours, thousands
from outlay.report.difference_table import lay_out_differences
from outlay.report.layouts import lay_out
from outlay.report.published import rows
from outlay.report.results import Header, Layout, Results
from outlay.report.scores import ONE_SEED, ONE_SEED_PAIR
from outlay.report.significance import PairedTest, family
from outlay.report.table import Heading, PlacedCell, Table, TableCell, pivot
from outlay.report.table_formats import render_html, render_markdown, render_rich
from tests.made_results import LAYOUTS
from tests.test_report import point

TEACHER, STUDENT = "google/t5-v1_1-xxl", "google/t5-v1_1-small"


def made(strategy: str, added_usd: float, test: float | None, **changes: Any) -> Point:
    """A point of 1,000 labels ($200), whatever is changed."""
    seed = changes.pop("seed", 0)
    n_initial = changes.pop("n_initial", 1000)
    initial_usd = changes.pop("initial_usd", 0.2 * n_initial)
    teacher = changes.pop("teacher", None if strategy in ("annotate", "general_distill", "llm_annotate") else TEACHER)
    whole = {"student": STUDENT, "teacher": teacher, "task": "toy", "added_usd": added_usd, "n_initial": n_initial}
    return point(strategy, initial_usd + added_usd, seed, test, **{**whole, **changes})


def results(layout: Layout, points: list[Point], **left: Any) -> Results:
    aftermath = {p.id: RunOutputs(run=p.id[:8], **left) for p in points} if left else {}
    return Results(Header("study", "A study", layout), tuple(points), aftermath)


def published_points() -> tuple[list[Point], dict[str, RunOutputs]]:
    points, left = [], {}
    for row in rows("kang_table2_table11"):
        is_distill = row["strategy"] == "distill"
        each = made(
            row["strategy"],
            float(row["usd_additional"]),
            float(row["score"]) if row["score"] else None,
            task=row["task"],
            n_initial=int(row["n_initial"]),
            initial_usd=float(row["usd_initial"]),
            n_labels=int(row["n_initial"]) + int(row["n_additional_labels"] or 0),
            n_pool=int(row["n_unlabeled"] or 0),
            seconds={"a40": 3600.0 * float(row["gpu_hours"] or 0)},
        )
        points.append(each)
        teacher = float(row["teacher_score"]) if is_distill else None
        left[each.id] = RunOutputs(run=each.id, teacher_dev=teacher)
    return points, left


def written(laid: Table) -> list[tuple[tuple[str, ...], list[tuple[float | None, str]]]]:
    """Each row's headings with its cells as value and bracket."""
    empty = TableCell()
    return [(row.heads, [((c or empty).value, (c or empty).bracket) for c in row.cells]) for row in laid.rows]


# --- the published table, fed as points ------------------------------------------------------------------------------


def test_the_published_numbers_come_out_as_the_paper_prints_them() -> None:
    points, left = published_points()
    random.Random(7).shuffle(points)
    tables = lay_out(Results(Header("table2", "Table 2", "budgets"), tuple(points), left))
    by_task = {table.tasks[0]: table for table in tables if len(table.tasks) == 1}
    assert len(by_task) == 6
    n_cells = 0
    for row in rows("kang_table2_table11"):
        n, usd = int(row["n_initial"]), row["usd_initial"]
        table = by_task[row["task"]]
        words = {"annotate": "t5-v1_1-small (Annotate)"}
        words["distill"] = f"t5-v1_1-xxl [{row['teacher_score']}] ⇒ t5-v1_1-small (Distill)"
        heads = (f"{n // 1000}K (${usd})" if n >= 1000 else f"{n} (${usd})", words[row["strategy"]])
        (line,) = [each for each in table.rows if each.heads == heads]
        column = [c.text for c in table.columns].index(f"+${row['usd_additional']}")
        cell = line.cells[column]
        assert cell is not None
        if row["score"]:
            thing = f"(+{row['n_additional_labels']})"
            if row["strategy"] == "distill":
                thing = f"({row['gpu_hours']}h / {int(row['n_unlabeled']) // 1000}K)"
            assert (cell.text, cell.bracket) == (row["score"], thing)
            assert cell.published == float(row["score"])
        else:
            assert (cell.text, cell.note_numbers, cell.published) == ("na", (1,), None)
        n_cells += 1
    assert n_cells == sum(len(list(table.cells)) for table in by_task.values()) == 150
    # Where distilling wins in the paper's own bold print: Table 2, multipit_gen, N = 10K.
    lines = {row.heads: row for row in by_task["multipit_gen"].rows}
    bold = [
        [cell is not None and cell.is_best for cell in lines["10K ($3710)", words].cells]
        for words in ("t5-v1_1-small (Annotate)", "t5-v1_1-xxl [74.8] ⇒ t5-v1_1-small (Distill)")
    ]
    assert bold == [[False, True, False, False, False], [False, False, True, True, True]]


def test_the_mean_over_tasks_is_that_of_the_published_numbers() -> None:
    points, left = published_points()
    (table,) = [t for t in lay_out(Results(Header("t", "t", "budgets"), tuple(points), left)) if len(t.tasks) == 6]
    scores = {
        (r["task"], r["n_initial"], r["usd_additional"], r["strategy"]): r["score"] for r in rows("kang_table2_table11")
    }
    gains: dict[str, list[float]] = {}
    for (task, n, usd, strategy), score in scores.items():
        if strategy == "distill" and score:
            gains.setdefault(task, []).append(float(score) - float(scores[task, n, usd, "annotate"]))
    means = [sum(gains[task]) / len(gains[task]) for task in table.tasks]
    (row,) = table.rows
    assert [cell and cell.value for cell in row.cells] == pytest.approx([*means, sum(means) / 6])
    assert [c.text for c in table.columns] == [*table.tasks, "Mean over tasks"]
    assert row.heads == ("Distill − Annotate",)


# --- small tables by hand --------------------------------------------------------------------------------------------


def test_budgets_in_markdown() -> None:
    spread = {0: -0.6, 1: 0.0, 2: 0.6}
    points = [made("annotate", 0.0, 53.0, n_labels=1000)]
    points += [made("annotate", 50.0, 53.0 + d, seed=s, n_labels=1250) for s, d in spread.items()]
    shown = {"n_pool": 16905, "seconds": {"cpu": 90.0}}
    points += [made("distill", 50.0, 80.0 + d if s else None, seed=s, **shown) for s, d in spread.items()]
    points += [made("distill", 0.0, None, reason="the teacher costs $0.02,\nraise the budget")]
    (table,) = lay_out(results("budgets", points, metric="accuracy", teacher_dev=84.64))
    # t interval of three seeds: 4.303 * 0.6 / sqrt(3) = 1.5; of two (80.0, 80.6): 12.706 * 0.424 / sqrt(2) = 3.8
    title, _, *rows_of_table = render_markdown(table).split("\n\n- ")[0].splitlines()
    assert title == f"### {table.title}"
    assert rows_of_table == [
        "| N (initial $) | Strategy | +$0 | +$50 |",
        "|---|---|---:|---:|",
        "| 1K ($200) | t5-v1_1-small (Annotate) | 53.0 (+0) | 53.0 ± 1.5 (+250) |",
        "|  | t5-v1_1-xxl [84.6] ⇒ t5-v1_1-small (Distill) | na¹ | **80.3 ± 3.8**² (2min / 16.9K) 2 of 3 seeds |",
    ]
    measure, *signs, first, second = table.notes
    assert measure.startswith("Test score, 0-100: accuracy, published reading; ±: half of the 95 % interval")
    assert [sign.split(":")[0] for sign in signs] == ["[ ]", "( )", "Bold"]
    assert first == "¹ na: the teacher costs $0.02, raise the budget"
    assert second == "² na: needs $412.00 for <the> teacher | pool"


def test_self_distillation_in_markdown() -> None:
    pool = (("rows", 100_000),)
    points = [
        made("self_distill", 0.0, 70.0, n_initial=5000, task="fever", pool=pool, teacher=STUDENT),
        made("distill", 0.0, 74.5, n_initial=5000, task="fever", pool=pool),
        made("distill", 0.0, 74.0, n_initial=1000, task="fever", pool=pool),
        made("distill", 0.0, 80.0, n_initial=5000, task="toy", pool=pool),
    ]
    left = {
        p.id: RunOutputs(run=p.id, teacher_dev=dev) for p, dev in zip(points, (72.0, 83.0, 78.0, 85.0), strict=True)
    }
    (mine,) = lay_out(Results(Header("table3", "Table 3", "self"), tuple(points), left))
    assert render_markdown(mine).splitlines()[2:6] == [
        "| Teacher ⇒ student | fever: N=1K, 100K rows | fever: N=5K, 100K rows | toy: N=5K, 100K rows |",
        "|---|---:|---:|---:|",
        "| t5-v1_1-small ⇒ t5-v1_1-small (Self-distill) | – | 70.0 [72.0] paper 67.6 | – |",
        "| t5-v1_1-xxl ⇒ t5-v1_1-small (Distill) | 74.0 [78.0] | **74.5** [83.0] paper 74.2 | 80.0 [85.0] |",
    ]
    (_, paper) = lay_out(Results(Header("table3", "Table 3", "self"), tuple(points[1:]), left))
    assert render_markdown(paper).splitlines()[2:6] == [
        "| Teacher ⇒ student | fever |",
        "|---|---:|",
        "| T5-Small ⇒ T5-Small (Self-distill) | 67.6 [67.2] |",
        "| T5-XXL ⇒ T5-Small (Distill) | **74.2** [78.0] |",
    ]
    assert paper.is_published
    assert paper.notes[0].startswith("Kang et al. 2023")


def test_labels_and_rows_with_their_frontier() -> None:
    def at(n: int, rows: int, charge_usd: float, test: float) -> Point:
        changes = {"n_initial": n, "pool": (("all", rows),), "charge_usd": charge_usd, "n_pool": rows}
        return made("distill" if rows else "annotate", 0.0, test, **changes)

    points = [at(100, 0, 20.0, 50.0), at(100, 1000, 20.5, 60.0), at(500, 0, 100.0, 55.0), at(500, 1000, 101.0, 60.0)]
    (table,) = lay_out(results("pool", points))
    assert render_markdown(table).splitlines()[2:6] == [
        "| Labels (initial $) | 0 | 1K |",
        "|---|---:|---:|",
        "| 100 ($20) | **50.0** ($20.00) | **60.0** ($20.50) |",
        "| 500 ($100) | 55.0 ($100.00) | 60.0 ($101.00) tied |",
    ]


def test_annotating_to_the_same_score() -> None:
    curve = [(10.0, 50.0), (100.0, 60.0), (1000.0, 70.0), (10_000.0, 69.0)]
    labelled = [made("annotate", usd - 1, test, n_initial=5, charge_usd=usd, task="nq") for usd, test in curve]
    taught = [
        made("distill", 1.0, 65.0, n_initial=5, charge_usd=20.0, task="nq"),
        made("distill", 2.0, 71.0, n_initial=5, task="nq"),
    ]
    match, annotation, paper = lay_out(results("match", [*labelled, *taught]))
    assert render_markdown(match).splitlines()[2:9] == [
        "| Model | nq |",
        "|---|---:|",
        "| t5-v1_1-xxl ⇒ t5-v1_1-small (Distill): N=5, +$1 | 65.0 ($20.00) |",
        "| t5-v1_1-small (Annotate), the same score | $316.23 |",
        "| t5-v1_1-xxl ⇒ t5-v1_1-small (Distill): N=5, +$2 | **71.0** ($2.50) |",
        "| t5-v1_1-small (Annotate), the same score | not reached |",
        "| t5-v1_1-small (Annotate), the dearest | 69.0 ($10,000.00) |",
    ]
    assert "| nq, t5-v1_1-small | $10 | 1,499 | $10.00 | 50.0 |" in render_markdown(annotation)
    assert "| T5-Small (Annotate), the same score | 17.8 ($3,321) |" in render_markdown(paper)


def test_the_same_score_has_ends_where_the_scores_have() -> None:
    curve = [(10.0, 50.0), (100.0, 60.0), (1000.0, 70.0)]
    labelled = [
        made("annotate", usd - 1, test + d, n_initial=5, seed=s, charge_usd=usd)
        for usd, test in curve
        for s, d in enumerate((-1, 0, 1))
    ]
    taught = [made("distill", 1.0, 62.0 + d, n_initial=5, seed=s, charge_usd=20.0) for s, d in enumerate((-1, 0, 1))]
    table = lay_out(results("match", [*labelled, *taught]))[0]
    half = 4.302653 / 3**0.5
    low, high = (10 ** (2 + (2 + way * 2 * half) / 10) for way in (-1, 1))
    same = table.rows[1].cells[0]
    assert same is not None
    assert (same.value, same.low, same.high) == pytest.approx((10**2.2, low, high))
    assert same.text == f"$158.49 [${low:.2f}, ${high:.2f}]"


def test_costs_by_part() -> None:
    points = [
        made("annotate", 50.0, 53.0, charge_usd=250.0),
        made("distill", 50.0, 80.0, charge_usd=203.5, n_pool=7000),
        made("distill", 0.0, None, charge_usd=0.0),
    ]
    charges = [
        {"labels": 250.0, "student": 0.0},
        {"labels": 200.0, "teacher": 2.0, "targets": 1.0, "student": 0.25, "scores": 0.25},
    ]
    left = {p.id: RunOutputs(run=p.id, charges_usd=each) for p, each in zip(points, charges, strict=False)}
    (table,) = lay_out(Results(Header("table6", "Table 6", "costs"), tuple(points), left))
    distilled = "t5-v1_1-xxl ⇒ t5-v1_1-small (Distill): N=1K"
    assert render_markdown(table).splitlines()[2:7] == [
        "| Task | Bought | Labels | Teacher | Distillation: targets and student | Student | Scoring | Charge | Test |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        "| toy | t5-v1_1-small (Annotate): N=1K, +$50 | $250.00 | – | – | $0.00 | $0.00 | $250.00 | 53.0 |",
        f"|  | {distilled}, +$50, 7K rows | $200.00 | $2.00 | $1.25 | – | $0.2500 | $203.50 | **80.0** |",
        f"|  | {distilled}, +$0 | – | – | – | – | – | – | na¹ |",
    ]


def test_the_published_costs_stand_beside_those_of_the_same_work() -> None:
    pool = (("all", 100_000),)
    each = made("distill", 1000.0, 80.0, task="fever", n_initial=5000, pool=pool, n_pool=100_000)
    charges = {"labels": 645.0, "teacher": 20.0, "targets": 50.0, "student": 20.0}
    left = {each.id: RunOutputs(run="r", charges_usd=charges)}
    (table,) = lay_out(Results(Header("table6", "Table 6", "costs"), (each,), left))[:1]
    beside = {column.text: cell for column, cell in zip(table.columns, table.rows[0].cells, strict=True) if cell}
    assert [beside[name].published for name in ("Labels", "Teacher", "Scoring", "Charge")] == [645.0, 22.5, None, None]
    distillation = beside["Distillation: targets and student"]
    assert (distillation.text, distillation.beneath) == ("$70.00", ("paper $78.00",))


def test_general_distillation_beside_the_published_numbers() -> None:
    points = [
        made("annotate", 300.0, 45.0, task="stanceosaurus", initial_usd=364.0, n_labels=1824),
        made("general_distill", 300.0, 52.0, task="stanceosaurus", initial_usd=364.0, n_labels=1824),
        made(
            "annotate", 300.0, 55.0, task="stanceosaurus", initial_usd=364.0, n_labels=1824, student="bert-base-cased"
        ),
        made("distill", 300.0, 57.0, task="stanceosaurus", initial_usd=364.0, n_pool=126_000),
    ]
    mine, paper = lay_out(results("general", points))
    assert [row.heads[0] for row in mine.rows] == [
        "t5-v1_1-small (Annotate)",
        "bert-base-cased (Annotate)",
        "General distillation + annotate",
        "t5-v1_1-xxl ⇒ t5-v1_1-small (Distill)",
    ]
    assert [(c.text, c.over) for c in mine.columns] == [("$664 (N=1K)", "stanceosaurus")]
    assert [cell.published for cell in mine.cells] == [44.7, 56.0, 56.3, 56.9]
    assert [(c.text, c.over) for c in paper.columns] == [
        ("$664 (N=1K)", "stanceosaurus"),
        ("$2120 (N=5K)", "stanceosaurus"),
    ]
    assert [cell.value for cell in paper.cells] == [44.7, 50.3, 56.3, 57.5, 56.0, 59.0, 56.9, 60.5]


def test_the_papers_table_stands_apart_where_no_number_fits() -> None:
    points = [
        made("annotate", 5.0, 60.0, task="fever", n_initial=50),
        made("distill", 5.0, 61.0, task="fever", n_initial=50),
    ]
    mine, paper = lay_out(results("budgets", points))
    assert all(cell.published is None for cell in mine.cells)
    assert "“paper”" not in render_markdown(mine)
    assert (paper.title, paper.is_published) == ("In the paper, Tables 2 and 11: fever", True)
    assert [cell.text for cell in paper.rows[0].cells if cell] == ["50.3", "49.3", "49.7", "49.7"]
    assert [row.heads[0] for row in paper.rows] == ["100 ($13)"] * 2 + ["1K ($129)"] * 2 + ["5K ($645)"] * 2
    assert [table.is_published for table in lay_out(results("budgets", [made("annotate", 5.0, 60.0)]))] == [False]


# --- intervals and measures ------------------------------------------------------------------------------------------


def test_intervals_are_over_examples_where_the_answers_are_there() -> None:
    rng = random.Random(5)
    points = [made("annotate", 50.0, 60.0, seed=seed) for seed in range(3)]
    golds = [rng.choice("AB") for _ in range(61)]
    answered = [Answered([rng.choice((g, "B")) for g in golds], golds, ("A", "B")) for _ in points]
    left = {p.id: RunOutputs(run=p.id, metric="accuracy", answered=a) for p, a in zip(points, answered, strict=True)}
    (table,) = lay_out(Results(Header("s", "s", "students"), tuple(points), left))
    (cell,) = table.cells
    expected = mean_score("accuracy", answered)
    assert (cell.low, cell.high) == (min(60.0, expected.low), max(60.0, expected.high))
    assert cell.covers == "seeds and rows"
    assert "new seeds and new test rows" in table.notes[0]
    gone = {name: dataclasses.replace(each, answered=None) for name, each in list(left.items())[:1]}
    (table,) = lay_out(Results(Header("s", "s", "students"), tuple(points), left | gone))
    (cell,) = table.cells
    assert (cell.low, cell.high, cell.covers) == (60.0, 60.0, "seeds")


def test_the_measure_is_read_from_the_scores_where_the_run_is_gone() -> None:
    scores = {"macro_f1/strict": Reading(50.0, 49.0, 51.0), "micro_f1/strict": Reading(61.0, 60.0, 62.0)}
    (table,) = lay_out(results("students", [made("annotate", 5.0, 61.0, scores=scores)]))
    assert "micro F1, strict reading" in table.notes[0]
    assert f"of {ONE_SEED} (one seed)" in table.notes[0]


# --- every point has a home ------------------------------------------------------------------------------------------


def mixed_points(rng: random.Random) -> list[Point]:
    """A grid with holes, several of everything, N by rule, and strategies that a layout may not expect."""
    points = []
    for task in ("toy", "fever"):
        for strategy in ("annotate", "distill", "self_distill", "general_distill", "llm_annotate", "surprise"):
            for n_initial, added, seed in [(n, a, s) for n in (100, 1000) for a in (0.0, 50.0) for s in (0, 1)]:
                if rng.random() < 0.3:
                    continue
                changes: dict[str, Any] = {
                    "student": rng.choice((STUDENT, "cut:2")),
                    "machine": rng.choice(("cpu", "a40")),
                }
                changes["pool"] = ((rng.choice(("train", "web")), rng.choice((0, 1000))),)
                test = None if rng.random() < 0.2 else 50 + 40 * rng.random()
                points.append(made(strategy, added, test, task=task, n_initial=n_initial, seed=seed, **changes))
    by_rule = point("distill", 300.0, 0, 70.0, task="toy", n_initial=None)
    return list({each.id: each for each in [*points, by_rule]}.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(5))
def test_every_point_is_at_home_in_one_cell(layout: Layout, seed: int) -> None:
    points = mixed_points(random.Random(seed))
    tables = lay_out(results(layout, points))
    by_id = {each.id: each for each in points}
    homes = Counter(name for table in tables for cell in table.cells for name in cell.points)
    assert homes == Counter(by_id.keys())
    for table in tables:
        for cell in table.cells:
            of_cell = [by_id[name] for name in cell.points]
            assert len({each.request.seed for each in of_cell}) == len(of_cell)
            tests = [each.result.test for each in of_cell if each.result.test is not None]
            assert not cell.points or cell.value == (pytest.approx(sum(tests) / len(tests)) if tests else None)
            assert len({dataclasses.replace(each.request, seed=0, pool=()) for each in of_cell}) <= 1
        assert all(len(row.cells) == len(table.columns) for row in table.rows)
        assert len({row.heads for row in table.rows}) == len(table.rows) or layout in ("match", "costs", "plain"), (
            table.title
        )
        assert len({(column.over, column.text) for column in table.columns}) == len(table.columns)


def test_two_cells_in_one_place_are_refused() -> None:
    item = PlacedCell(Heading((0,), "row"), Heading((0,), "column"), TableCell(1.0))
    with pytest.raises(DataError, match="'row' at 'column'"):
        pivot("t", ("s",), [item, item])


# --- drawings --------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """The table of a page as a grid of texts, every spanned place filled."""

    def __init__(self) -> None:
        super().__init__()
        self.grid: dict[tuple[int, int], str] = {}
        self.scopes: Counter[str] = Counter()
        self.caption = ""
        self._row, self._open, self._inside = -1, [], ""
        self.items: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag if tag in ("caption", "li", "th", "td") else self._inside
        given = dict(attrs)
        if tag == "tr":
            self._row += 1
        elif tag == "li":
            self.items.append("")
        elif tag == "br":
            self.handle_data(" ")
        elif tag in ("th", "td"):
            if tag == "th":
                self.scopes[given["scope"] or ""] += 1
            first = next(i for i in range(99) if (self._row, i) not in self.grid)
            down, right = int(given.get("rowspan") or 1), int(given.get("colspan") or 1)
            self._open = [(self._row + i, first + j) for i in range(down) for j in range(right)]
            self.grid.update(dict.fromkeys(self._open, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("caption", "li", "th", "td"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "caption":
            self.caption += data
        elif self._inside == "li":
            self.items[-1] += data
        elif self._inside:
            self.grid |= {place: self.grid[place] + data for place in self._open}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_html_and_markdown_say_the_same(layout: Layout) -> None:
    raised = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
    for laid in lay_out(results(layout, mixed_points(random.Random(11)), metric="f1", teacher_dev=81.25)):
        reader = Reader()
        html = render_html(laid)
        reader.feed(html)
        assert reader.caption == laid.title
        assert reader.items == list(laid.notes)
        n_rows, n_columns = (1 + max(place[i] for place in reader.grid) for i in (0, 1))
        assert len(reader.grid) == n_rows * n_columns, "a place is spanned twice or not at all"
        body = [line for line in render_markdown(laid).splitlines() if line.startswith("|")][2:]
        n_heads = n_rows - len(body)
        above = ""
        for i, line in enumerate(body):
            expected = [text.replace("**", "").strip() for text in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(laid.stub) > 1:
                above = expected[0] = expected[0] or above
            found = [reader.grid[n_heads + i, j] for j in range(n_columns)]
            assert [" ".join(text.split()) for text in found] == [text.translate(raised) for text in expected]
        assert reader.scopes["row"] == len(body)
        assert reader.scopes["col"] == len(laid.columns) + len(laid.stub)


def test_the_terminal_shows_every_cell() -> None:
    from rich.console import Console

    for laid in lay_out(results("budgets", mixed_points(random.Random(3)), teacher_dev=80.0)):
        console = Console(width=250, record=True, file=io.StringIO())
        console.print(render_rich(laid))
        text = console.export_text()
        for cell in laid.cells:
            assert cell.text in text
            assert all(line in text for line in cell.beneath)


def test_nothing_of_a_point_can_break_a_page() -> None:
    (table,) = lay_out(results("students", [made("annotate", 5.0, None, reason="<script>alert(1)</script> & more")]))
    assert "<script>" not in render_html(table)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in render_html(table)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1min"),
        (3569.0, "59min"),
        (3571.0, "1h"),
        (5400.0, "1.5h"),
        (54 * 3600.0, "54h"),
    ],
)
def test_machine_time_in_words(seconds: float, text: str) -> None:
    assert hours(seconds) == text


def test_counts_in_words() -> None:
    assert [thousands(n) for n in (0, 999, 1000, 16905, 111_000)] == ["0", "999", "1K", "16.9K", "111K"]


# --- differences -----------------------------------------------------------------------------------------------------


def paired(mean: float, low: float, high: float, p_holm: float | None, **changes: Any) -> PairedTest:
    """A test of three seeds and three comparisons, whatever is changed."""
    whole: dict[str, Any] = {
        **{"task": "toy", "budget_usd": 250.0, "n_initial": 1000, "first": "distill"},
        **{"second": "annotate", "p": p_holm, "p_permuted": 1.0, "smallest": 2.26, "n_comparisons": 3},
        **{"n_seeds": 3, "n_examples": 2909, "n_apart": 300},
    }
    return PairedTest(mean=mean, low=low, high=high, p_holm=p_holm, **(whole | changes))


def test_differences() -> None:
    tests = [
        paired(6.94, 5.1, 8.7, 0.0004),
        paired(-1.7, -3.0, -0.6, 0.04, first="self_distill"),
        paired(0.5, -1.2, 2.1, 0.6, budget_usd=300.0, n_initial=None),
        paired(9.5, 8.2, 10.1, None, budget_usd=400.0, n_initial=None, n_seeds=1, smallest=None),
        paired(0.0, -0.1, 0.1, 1.0, budget_usd=400.0, n_initial=None, first="mix", n_apart=0),
        paired(50.0, -100.0, 100.0, None, budget_usd=500.0, n_initial=None, smallest=None, n_examples=1),
    ]
    table = lay_out_differences(tests)
    assert table is not None
    assert render_markdown(table).split("\n\n- ")[0].splitlines() == [
        "### Differences",
        "",
        "| Task, budget | Pair | Difference | p | Verdict |",
        "|---|---|---:|---:|---:|",
        "| toy, $250 (N=1K) | distill − annotate | **+6.9 [+5.1, +8.7]** | < 0.001 | distill is ahead |",
        "|  | self_distill − annotate | **−1.7 [−3.0, −0.6]** | 0.040 | annotate is ahead |",
        "| toy, $300 | distill − annotate | +0.5 [−1.2, +2.1] | 0.600 | not told apart; 2.3 points would be |",
        "| toy, $400 | distill − annotate | +9.5 [+8.2, +10.1] | – | one seed, no test |",
        "|  | mix − annotate | 0.0 [−0.1, +0.1] | 1.000 | every test row scored alike |",
        "| toy, $500 | distill − annotate | +50.0 [−100.0, +100.0] | – | too few test rows for a test |",
    ]
    span, one_seed, correction = table.notes
    assert f"{ONE_SEED_PAIR} where there is one seed" in span
    assert "1 to 2,909 rows, 1 to 3 seeds" in span
    assert "no test" in one_seed
    assert "all 3 comparisons" in correction
    assert "0.05" in correction
    assert '<th scope="rowgroup" rowspan="2">toy, $250 (N=1K)</th>' in render_html(table)
    assert lay_out_differences([]) is None


def test_the_tests_of_a_study_are_laid_out() -> None:
    rng = random.Random(1)
    golds = [rng.choice("AB") for _ in range(67)]
    points = [
        made(name, 50.0, test, seed=s) for s in range(5) for name, test in (("annotate", 60.0), ("distill", 90.0))
    ]
    said = [each for _ in range(5) for each in ([rng.choice("AB") for _ in golds], golds)]
    left = {
        p.id: RunOutputs(run=p.id, metric="accuracy", answered=Answered(s, golds, ("A", "B")))
        for p, s in zip(points, said, strict=True)
    }
    (test,) = family(Results(Header("s", "s", "budgets"), tuple(points), left))
    table = lay_out_differences([test])
    assert table is not None
    assert table.rows[0].heads == ("toy, $250 (N=1K)", "distill − annotate")
    assert [cell.words for cell in table.cells][1:] == ["< 0.001", "distill is ahead"]
    # With one seed there is neither a p nor a verdict, however large the difference.
    (alone,) = family(Results(Header("s", "s", "budgets"), tuple(points[:2]), left))
    table = lay_out_differences([alone])
    assert table is not None
    assert [cell.words for cell in table.cells][1:] == ["one seed, no test"]
    assert not any(cell.is_best for cell in table.cells)
    assert [column.text for column in table.columns] == ["Difference", "Verdict"]
    assert "p:" not in " ".join(table.notes)
