"""The report of a study as a whole: its parts agree, and the table of frontiers says what the frontier is."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from html import escape

import pytest

from outlay.plan.strategies import STRATEGIES
from outlay.plan.strategy_words import BY_RULE, NEEDS, STRATEGY_WORDS
from outlay.report.grouping import lines_on_strategies
from outlay.report.results import Layout
from outlay.report.seed_means import SeedMean, means
from outlay.report.study_report import LEAST_SPAN, N_CHARGES, StudyReport, lay_out_frontiers
from outlay.report.table import Table
from outlay.report.table_formats import UNBROKEN_LETTERS, render_rich
from tests.made_results import LAYOUTS, SOME_LAYOUTS, made


@pytest.mark.parametrize("layout", SOME_LAYOUTS)
def test_every_layout_has_its_tables_figures_and_page(layout: Layout) -> None:
    report = StudyReport(made(layout))
    markdown, page = report.markdown(), report.page()
    assert report.results.header.title in markdown
    for table in report.tables:
        assert f"### {table.title}" in markdown
        for note in table.notes:
            assert f"- {note}" in markdown
    # Once, below the first table, and on the page.
    told = lines_on_strategies(point.request for point in report.results.points)
    assert told
    assert all(f"- {line}" in markdown.partition(f"### {report.tables[1].title}")[0] for line in told)
    assert all(markdown.count(f"- {line}\n") == page.count(f"<li>{escape(line)}</li>") == 1 for line in told)
    assert set(report.figures) == {f"figure-{task}" for task in report.results.tasks}
    assert page.count("<svg") == len(report.figures)
    assert all(f'id="point-{point.id}"' in page for point in report.results.points)
    assert [test for test in report.tests if test.n_seeds != 3] == []


def test_strategies_that_occur_are_told_and_no_others() -> None:
    assert set(STRATEGY_WORDS) == set(STRATEGIES)
    assert set(NEEDS) < set(STRATEGIES)
    requests = [point.request for point in made("budgets").points]
    only = [request for request in requests if request.strategy == "annotate"]
    assert lines_on_strategies(only) == [f"annotate: {STRATEGY_WORDS['annotate']}"]
    taught = [replace(request, strategy="distill", teacher="t", n_initial=None) for request in only]
    assert lines_on_strategies([*taught, *only])[1:] == [f"distill: {STRATEGY_WORDS['distill']}", BY_RULE]
    assert lines_on_strategies([replace(request, strategy="rival_probe") for request in only]) == []


def scores_at(marks: list[SeedMean], task: str, usd: float) -> float | None:
    """By hand: the best score that so many dollars buy or, between two marks of the front, a line in log dollars."""
    own = sorted(
        (m.charge_usd, m.value) for m in marks if m.request.task == task and m.value is not None and m.charge_usd
    )
    front: list[tuple[float, float]] = []
    for charge, value in own:
        if not front or value > front[-1][1]:
            # Of equal charges the best counts.
            front = [each for each in front if each[0] != charge] + [(charge, value)]
    if usd < front[0][0]:
        return None
    before = [each for each in front if each[0] <= usd * (1 + 1e-12)]
    after = [each for each in front if each[0] > usd * (1 + 1e-12)]
    if not after:
        return before[-1][1]
    (x0, y0), (x1, y1) = before[-1], after[0]
    return y0 + (y1 - y0) * math.log(usd / x0) / math.log(x1 / x0)


def test_the_table_of_frontiers_against_a_count_by_hand() -> None:
    marks = means(made("pool"))
    table = lay_out_frontiers(marks)
    assert table is not None
    tasks = ["fever", "multipit_id"]
    charges = sorted({m.charge_usd for m in marks if m.value is not None and m.charge_usd})
    grid = [charges[0] * (charges[-1] / charges[0]) ** (i / (N_CHARGES - 1)) for i in range(N_CHARGES)]
    assert [row.heads for row in table.rows] == [(task,) for task in tasks] + [("mean over tasks",)]
    for row, task in zip(table.rows, tasks, strict=False):
        found = [None if cell is None else cell.value for cell in row.cells[:N_CHARGES]]
        expected = [scores_at(marks, task, usd) for usd in grid]
        assert found == [None if each is None else pytest.approx(each) for each in expected]
        n_marks = sum(m.request.task == task and m.value is not None for m in marks)
        counts = row.cells[-1]
        assert counts is not None
        assert sum(map(int, counts.text.split(", "))) == n_marks
    for i, usd in enumerate(grid):
        mean = table.rows[-1].cells[i]
        both = [scores_at(marks, task, usd) for task in tasks]
        assert mean is not None
        if None in both:
            assert mean.value is None
        else:
            assert mean.value == pytest.approx(sum(each for each in both if each is not None) / 2)


def test_charges_that_are_all_alike_make_no_frontier() -> None:
    marks = [replace(mark, charge_usd=100 + i * 1e-3) for i, mark in enumerate(means(made("self")))]
    assert lay_out_frontiers(marks) is None
    apart = [replace(mark, charge_usd=100 * LEAST_SPAN**i) for i, mark in enumerate(marks)]
    assert lay_out_frontiers(apart) is not None
    assert lay_out_frontiers([]) is None


# --- narrow terminals -------------------------------------------------------------------------------------------------


def printed(table: Table, n_columns: int) -> list[str]:
    from rich.console import Console

    console = Console(width=n_columns, file=io.StringIO(), color_system=None)
    console.print(render_rich(replace(table, notes=())))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_columns", [60, pytest.param(80, marks=pytest.mark.slow), 118])
def test_no_value_is_broken_or_cut_in_a_terminal(layout: Layout, n_columns: int) -> None:
    for table in StudyReport(made(layout)).tables:
        lines = printed(table, n_columns)
        assert max(map(len, lines)) <= n_columns
        assert "…" not in "".join(lines)
        shown = {part.strip() for line in lines for part in re.split("[│┃]", line)}
        for cell in table.cells:
            if len(cell.text) <= UNBROKEN_LETTERS:
                assert cell.text + cell.note_signs in shown, "\n".join(lines)
        assert {column.text for column in table.columns if " " not in column.text} <= shown


def test_a_table_that_fits_is_one_and_a_wider_one_has_its_names_in_every_part() -> None:
    (table, *_) = StudyReport(made("plain")).tables
    names = [row.heads[0] for row in table.rows]
    for n_columns, n_parts in ((200, 1), (60, 2)):
        lines = printed(table, n_columns)
        n_found = sum("Strategy" in line for line in lines)
        assert (n_found == 1) if n_parts == 1 else (n_found >= n_parts)
        assert sum(any(line.startswith(f"│ {name} ") for name in names) for line in lines) == n_found * len(names)
