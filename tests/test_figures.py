from __future__ import annotations

import dataclasses
import math
import re
import statistics
from html import unescape
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import UsageError
from outlay.report import figures
from outlay.report.axes import HEIGHT, LETTER_PX, Box, log_ticks, place_labels, score_axis, x_axis
from outlay.report.figure_data import lay_out_figures
from outlay.report.figure_parts import DataPoint, Figure, Panel, ReferenceLine, Series
from outlay.report.figures import figure_svg, save
from outlay.report.palette import PALETTE, SHAPES
from outlay.report.results import Header, Layout, Results
from outlay.report.seed_means import means
from tests.made_results import LAYOUTS, SOME_LAYOUTS, TASKS, made
from tests.test_report import point

MARK = re.compile(r'<a xlink:href="([^"]*)"><path aria-label="([^"]*)"')


def marks_of(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """Link and words of every mark in the drawing."""
    return [(link, unescape(words)) for link, words in MARK.findall(figure_svg(spec))]


@pytest.mark.parametrize("layout", SOME_LAYOUTS)
def test_every_mean_with_a_score_is_a_mark_that_says_its_values_and_links_to_its_point(layout: Layout) -> None:
    results = made(layout)
    found = means(results)
    specs = figures.figures(results, found)
    assert list(specs) == [f"figure-{task}" for task in TASKS]
    for task in TASKS:
        drawn = marks_of(specs[f"figure-{task}"])
        scored = [mean for mean in found if mean.request.task == task and mean.value is not None]
        assert {link for link, _ in drawn} == {f"#point-{mean.ids[0]}" for mean in scored}
        if layout == "costs":
            continue
        assert len(drawn) == len(scored)
        words = dict(drawn)
        for mean in scored:
            said = words[f"#point-{mean.ids[0]}"]
            assert mean.value is not None
            assert mean.charge_usd is not None
            assert (
                f"; charge: ${mean.charge_usd:,.2f}; test: {mean.value:.2f}; 95 % interval: {mean.low:.2f} to" in said
            )
            assert mean.request.strategy in said or layout == "pool"


def test_the_parts_of_a_charge_add_up_and_are_drawn_at_their_length() -> None:
    (task, _), results = TASKS, made("costs")
    figure = lay_out_figures(results, means(results))[task]
    for row in dict.fromkeys(bar.row for bar in figure.bars):
        own = [bar for bar in figure.bars if bar.row == row]
        (charge,) = {p.result.charge_usd for p in results.points if any(p.id == bar.point for bar in own)}
        assert sum(bar.end - bar.start for bar in own) == pytest.approx(charge)
        assert all(bar.end == following.start for bar, following in pairwise(own))
    words = [said for _, said in marks_of(figures.draw(figure))]
    assert "annotate, $229.00; labels: $228.97; of charge: $232.47" in words


def test_marks_stand_where_their_values_are() -> None:
    results = made("pool")
    found = {mean.ids[0]: mean for mean in means(results)}
    svg = figure_svg(figures.figures(results)["figure-fever"])
    pattern = r'#point-(\w+)"><path aria-label="[^"]*"[^>]*transform="translate\(([-\d.]+),([-\d.]+)\)'
    places = {each: (float(x), float(y)) for each, x, y in re.findall(pattern, svg)}
    assert len(places) == 15
    logs = {each: math.log(found[each].charge_usd or 0) for each in places}
    # On a log axis pixels are linear in the log of the charge; they fall linearly with the score.
    slope = statistics.linear_regression(list(logs.values()), [places[each][0] for each in logs])
    line = statistics.linear_regression([found[each].value or 0 for each in logs], [places[each][1] for each in logs])
    for each, (x, y) in places.items():
        assert x == pytest.approx(slope.intercept + slope.slope * logs[each], abs=0.01)
        assert y == pytest.approx(line.intercept + line.slope * (found[each].value or 0), abs=0.01)
    assert slope.slope > 0 > line.slope


def test_the_frontier_of_figure_2_is_drawn_through_what_nothing_beats() -> None:
    results = made("pool")
    (panel,) = lay_out_figures(results, means(results))["fever"].panels
    wanted = [
        (mark.x, mark.y)
        for mark in panel.data_points
        if not any(o.x <= mark.x and o.y >= mark.y and (o.x, o.y) != (mark.x, mark.y) for o in panel.data_points)
    ]
    assert list(panel.front) == sorted(wanted)
    assert len(wanted) > 2
    series = {mark.series.name for mark in panel.data_points}
    assert series == {"U = 0 (annotate)", "U = 10K", "U = 100K"}
    assert {mark.label for mark in panel.data_points} == {"100", "500", "1K", "5K", "10K"}


def test_panels_and_axes_of_tables_and_figures() -> None:
    def drawn(layout: Layout) -> Figure:
        results = made(layout)
        return lay_out_figures(results, means(results))["fever"]

    budgets = drawn("budgets")
    assert [panel.title for panel in budgets.panels] == ["N = 100", "N = 1,000", "N = 5,000"]
    assert {mark.x for mark in budgets.panels[0].data_points} == {100.0, 200.0, 300.0}
    (initial,) = drawn("initial").panels
    assert (initial.title, {mark.x for mark in initial.data_points}) == (
        "$200.00 added",
        {100, 500, 1000, 5000, 10_000},
    )
    students = {mark.series for mark in drawn("students").panels[0].data_points}
    assert {each.name for each in students} == {
        f"{strategy}, {size}" for strategy in ("annotate", "distill") for size in ("t5-small", "t5-base", "t5-large")
    }
    # One colour per size, one shape and dash per strategy.
    assert len({each.color for each in students}) == 3
    assert len({(each.shape, each.dash) for each in students}) == 2
    teachers = {mark.series.name for mark in drawn("teachers").panels[0].data_points}
    assert teachers == {"annotate", "distill, t5-large", "distill, t5-xl", "distill, t5-xxl"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_two_series_look_alike(layout: Layout) -> None:
    results = made(layout)
    for figure in lay_out_figures(results, means(results)).values():
        series = {mark.series for panel in figure.panels for mark in panel.data_points}
        assert len({(PALETTE[each.color], SHAPES[each.shape]) for each in series}) == len(series)


def test_what_annotation_costs_to_match() -> None:
    results = made("match")
    drawn = lay_out_figures(results, means(results))["fever"].panels[0]
    (level,) = drawn.reference_lines
    (distilled,) = [mark for mark in drawn.data_points if mark.series.name == "distill"]
    assert (level.y, level.start) == (distilled.y, distilled.x)
    assert level.text == f"matched at ${level.end:,.2f}"


def test_words_beside_marks_cover_neither_marks_nor_words() -> None:
    results = made("pool")
    for figure in lay_out_figures(results, means(results)).values():
        (panel,) = figure.panels
        labels = place_labels(figure, panel, HEIGHT)
        across, up = x_axis(figure), score_axis(figure)
        boxes = []
        for label in labels:
            width = len(label.text) * LETTER_PX * 0.9
            left = across.px(label.x) + label.dx - {"left": 0, "right": width, "center": width / 2}[label.align]
            middle = up.px(label.y) - label.dy
            boxes.append(Box(left, middle - 7, left + width, middle + 7))
        assert len(labels) > 8
        assert not any(one.meets(other) for one, other in combinations(boxes, 2))
        for mark in panel.data_points:
            spot = Box(*2 * (across.px(mark.x), up.px(mark.y)))
            assert not any(box.meets(spot) for box in boxes)


def test_a_charge_of_nothing_has_no_place_on_a_log_axis_and_that_is_said() -> None:
    free = point("annotate", 300.0, 0, 60.0, charge_usd=0.0)
    paid = [point("distill", 300.0, 0, 80.0), point("distill", 400.0, 0, 82.0)]
    results = Results(Header("x", "x", "plain"), (free, *paid), {})
    figure = lay_out_figures(results, means(results))["multipit_id"]
    assert len(figure.panels[0].data_points) == 2
    (note,) = figure.notes[-1:]
    assert note.startswith("1 of 3 marks are left out")
    assert "starts at 79" in str(figures.draw(figure)["title"]["subtitle"])


def test_a_task_without_a_score_has_no_figure() -> None:
    lost = Results(Header("x", "x", "budgets"), (point("distill", 300.0, 0, None),), {})
    assert figures.figures(lost) == {}


def test_log_ticks_are_round_and_never_too_few() -> None:
    assert log_ticks(15, 2100) == [20, 50, 100, 200, 500, 1000, 2000]
    assert log_ticks(200, 450) == [200, 300, 400]
    assert log_ticks(0.005, 90_000) == [0.01, 0.1, 1, 10, 100, 1000, 10_000]


def test_a_crowd_is_drawn_small_and_without_bars() -> None:
    base = made("plain", n_seeds=1, tasks=("fever",)).points[0]
    crowd = tuple(
        dataclasses.replace(
            base,
            request=dataclasses.replace(base.request, n_initial=100 + i),
            result=dataclasses.replace(base.result, charge_usd=10.0 + i, test=50 + i % 37),
        )
        for i in range(199)
    )
    for layout in ("plain", "budgets", "self", "pool"):
        spec = figures.figures(Results(Header("x", "x", layout), crowd, {}))["figure-fever"]
        assert len(marks_of(spec)) == 199
        kinds = {layer["mark"]["type"] for layer in spec["layer"]}
        assert kinds <= {"line", "point"}


def test_pictures_as_svg_png_and_pdf(tmp_path: Path) -> None:
    spec = figures.figures(made("match"))["figure-fever"]
    svg = save(spec, tmp_path / "new" / "figure.svg").read_text()
    assert svg.startswith("<svg")
    assert 'xlink:href="report.html#point-' in svg
    assert svg.count("<title>") == 5
    assert ' id="' not in svg  # several stand in one page
    png = save(spec, tmp_path / "figure.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert 800 <= int.from_bytes(png[16:20]) <= 1100
    assert save(spec, tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF-")
    with pytest.raises(UsageError, match=r"\.gif.*\.png, \.svg or \.pdf"):
        save(spec, tmp_path / "figure.gif")


def test_a_level_is_written_above_or_below_its_line() -> None:
    series = Series("annotate", 1, 1)
    data_points = tuple(DataPoint(series, x, y, y - 1, y + 1, None, "", "") for x, y in ((10.0, 50.0), (1000.0, 70.0)))
    panel = Panel(None, data_points, reference_lines=(ReferenceLine(60.0, 20.0, 500.0, "matched at $500.00"),))
    figure = Figure("scatter", "t", (), "charge", (panel,), is_log=True)
    (label,) = place_labels(figure, panel, HEIGHT)
    assert label.x == pytest.approx(100.0)
    assert (label.y, label.dx, abs(label.dy)) == (60.0, 0.0, 12.0)


# --- marks that would hide each other ---------------------------------------------------------------------------------

PLACED = re.compile(r'#point-(\w+)"><path aria-label="[^"]*"[^>]*transform="translate\(([-\d.]+),([-\d.]+)\)')
MARK_PX = 11
"""Width of a mark."""


def at_one_budget(usd: tuple[float, ...] = (229.0,)) -> Results:
    """Strategies and rivals that all spend what they may, but for cents."""
    points = [
        point(strategy, budget, seed, 60.0 + i + seed, charge_usd=budget - 0.01 * i)
        for budget in usd
        for i, strategy in enumerate(("annotate", "distill", "self_distill", "rival_tfidf", "rival_probe"))
        for seed in range(3)
    ]
    return Results(Header("compare", "x", "plain"), tuple(points), {})


def closest(spec: dict[str, Any]) -> float:
    """The least distance between the middles of two marks of a drawing with one panel, in pixels."""
    found = [(float(x), float(y)) for _, x, y in PLACED.findall(figure_svg(spec))]
    assert len(found) == 5
    return min(math.dist(one, other) for one, other in combinations(found, 2))


def test_at_one_budget_every_strategy_has_a_row_of_its_own() -> None:
    results = at_one_budget()
    figure = lay_out_figures(results, means(results))["multipit_id"]
    assert (figure.kind, len(figure.panels), figure.title) == ("dots", 1, "multipit_id: test score at $229.00")
    spec = figures.draw(figure)
    assert closest(spec) > MARK_PX
    rows = [record["row"] for record in spec["layer"][1]["data"]["values"]]
    assert len(set(rows)) == len(rows) == 5
    assert spec["layer"][0]["encoding"]["x2"]["field"] == "high"


def test_marks_that_would_hide_each_other_get_rows_by_budget() -> None:
    results = at_one_budget(usd=(229.0, 458.0))
    figure = lay_out_figures(results, means(results))["multipit_id"]
    assert [panel.title for panel in figure.panels] == ["$229.00 in all", "$458.00 in all"]
    drawn = figures.draw(figure)
    for panel in drawn["vconcat"]:
        ids = [record["row"] for record in panel["layer"][1]["data"]["values"]]
        assert ids == ["annotate", "distill", "self_distill", "Rival: TF-IDF + regression", "Rival: probe"]
    # One scale, so that budgets can be compared down the page.
    assert len({str(panel["layer"][1]["encoding"]["x"]["scale"]) for panel in drawn["vconcat"]}) == 1
    many = at_one_budget(usd=(100.0, 200.0, 300.0, 400.0, 500.0))
    figure = lay_out_figures(many, means(many))["multipit_id"]
    assert (figure.kind, figure.is_dodged) == ("scatter", True)
    offsets = {layer["mark"]["xOffset"] for layer in figures.draw(figure)["layer"] if "xOffset" in layer["mark"]}
    assert len(offsets) == 5


def test_charges_that_differ_at_one_budget_are_told_in_the_rows() -> None:
    points = [
        *(point(name, 300.0, 0, 70.0, charge_usd=299.0) for name in ("annotate", "self_distill")),
        point("distill", 300.0, 0, 79.0, charge_usd=200.0),
    ]
    results = Results(Header("compare", "x", "plain"), tuple(points), {})
    figure = lay_out_figures(results, means(results))["multipit_id"]
    assert [mark.label for mark in figure.data_points] == [
        "annotate: $299.00",
        "self_distill: $299.00",
        "distill: $200.00",
    ]
    apart = Results(results.header, (points[0], points[2]), {})
    assert lay_out_figures(apart, means(apart))["multipit_id"].kind == "scatter"


def test_long_names_of_rows_are_broken_between_words() -> None:
    results = made("self", tasks=("fever",))
    (panel,) = lay_out_figures(results, means(results))["fever"].panels
    long = tuple(
        dataclasses.replace(each, label=f"{each.series.name}, with a name that no phone is wide enough for")
        for each in panel.data_points
    )
    drawn = figures.draw(Figure("dots", "t", (), "score", (dataclasses.replace(panel, data_points=long),)))
    lines = [record["text"] for layer in drawn["layer"][3:] for record in layer["data"]["values"]]
    assert max(map(len, lines)) <= figures.ROW_LETTERS
    assert sorted(" ".join(lines).split()) == sorted(" ".join(each.label or "" for each in long).split())
    assert drawn["width"] > 150
