"""What docs/results shows is what its points say (bench/redraw.py)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.auto_methods import RULES, judge, mean_loss
from bench.method_tables import KINDS, few_labels_table, kind_of, read, seconds_table
from bench.redraw import (
    COMPARISONS,
    RESULTS,
    ROOT,
    comparison,
    comparison_page,
    scores_of,
    study_page,
    study_results,
)
from outlay.report.study_report import StudyReport

STUDIES = sorted(path for path in (RESULTS / "studies").iterdir())


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_tables_of_a_study_are_drawn_from_its_points(folder: Path) -> None:
    report = StudyReport(study_results(folder))
    assert (folder / "README.md").read_text(encoding="utf-8") == study_page(folder, report), "run bench/redraw.py"
    # One seed each, and no answers kept: no test may stand there.
    assert {point.request.seed for point in report.results.points} == {0}
    assert report.tests == ()


@pytest.mark.parametrize(("name", "page"), [(name, page) for name, pages in COMPARISONS.items() for page in pages])
def test_the_tables_of_a_comparison_are_drawn_from_its_points(name: str, page: str) -> None:
    assert (ROOT / page).read_text(encoding="utf-8") == comparison_page(name, ROOT / page), "run bench/redraw.py"


def test_the_tables_of_methods_are_drawn_from_their_points() -> None:
    page, scores = (RESULTS / "few_labels.md").read_text(encoding="utf-8"), read()
    drawn = {(kind_of(cell[0]), cell[2]) for cell in scores}
    assert len(drawn) == 5
    tables = [few_labels_table(scores, kind, size) for kind, size in drawn]
    for drawn_table in [*tables, *map(seconds_table, KINDS)]:
        assert drawn_table in page, "run bench/method_tables.py few_labels"
    losses = judge(scores, RULES["by size of the student"])
    assert f"{mean_loss(losses):.2f} points on average to the best of all methods in hindsight" in page
    assert all(len(seeds) == 3 for of in scores.values() for seeds in of.values())


def test_a_changed_figure_is_found(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    wrong = (
        (RESULTS / "wlp.md")
        .read_text(encoding="utf-8")
        .replace("65.9 ± 1.9", "66.9 ± 0.2")
        .replace("seed +7.5", "seed +9.5")
    )
    page.write_text(wrong, encoding="utf-8")
    assert comparison_page("wlp", page) == (RESULTS / "wlp.md").read_text(encoding="utf-8") != wrong


def test_sentences_hold_the_scores_that_were_drawn() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    annotate, distill = (cell.text for cell in scores_of(StudyReport(comparison("wlp")).tables[0]).values())
    assert f"a teacher scores {distill} strict F1 where 384 more labels score {annotate}" in readme
    tests = scores_of(StudyReport(comparison("multipit_id")).tables[0])
    for budget in ("$300.00", "$400.00"):
        annotated, distilled, alone = (tests[name, budget] for name in ("annotate", "distill", "self_distill"))
        # "about 7 points more than annotating at both budgets, and the intervals do not meet"
        assert 6 <= (distilled.value or 0) - (annotated.value or 0) <= 8
        assert (annotated.high or 100) < (distilled.low or 0)
        # "self-distillation stays near annotating ... with intervals that overlap"
        assert (alone.low or 100) < (annotated.high or 0)
        assert (alone.high or 100) < (distilled.low or 0)


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *RESULTS.rglob("*.md")]), ids=lambda page: str(page.relative_to(ROOT))
)
def test_no_page_of_results_claims_a_test(page: Path) -> None:
    """Nothing there has answers that were kept, so nothing was tested."""
    text = page.read_text(encoding="utf-8")
    for word in (r"significan", r"\bp 0\.", r"beats? annotating", r"beyond doubt", r"told apart", r"is ahead \|"):
        assert not re.search(word, text), f"{page}: {word}"
    if page.parent.parent.name == "studies":
        assert "(one seed)" in text
