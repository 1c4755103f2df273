"""The summary of a report: what to take at a budget and a size, and what is not worth more than a rival."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outlay.engine.point import Point
from outlay.errors import UsageError
from outlay.report.recommendation import summary_lines
from outlay.report.results import Bounds, Header, Results
from outlay.report.seed_means import means
from outlay.study.request import Setup
from tests.test_report import point


def made(
    strategy: str,
    test: float | None,
    *,
    dev: float | None = None,
    usd: float = 20.0,
    charge: float = 10.0,
    parameters: int | None = None,
    ms: float | None = None,
    seed: int = 0,
    **changes: object,
) -> Point:
    teacher = changes.pop("teacher", None)
    one = point(
        strategy, usd, seed, test, dev=dev, charge_usd=charge, student_parameters=parameters, teacher=teacher, **changes
    )
    return replace(one, circumstance=replace(one.circumstance, latency_ms=ms))


def summary(*points: Point, **bounds: float) -> list[str]:
    results = Results(Header("compare", "What a score costs", "plain"), points, {})
    return summary_lines(means(results), Bounds(**bounds))


BIG, SMALL, TINY = 22_000_000, 1_000_000, 50_000


def test_the_best_dev_score_of_the_largest_budget_is_taken_whoever_has_it() -> None:
    lines = summary(
        made("annotate", 90.0, dev=99.0, usd=10.0),
        made("annotate", 80.0, dev=81.0, parameters=BIG, ms=5.25),
        made("rival_tfidf", 79.0, dev=82.5, charge=12.5, parameters=SMALL, ms=0.031),
    )
    assert lines == [
        "take ($20.00 in all): Rival: TF-IDF + regression: dev 82.5, test 79.0, charge $12.50, 4.0 MB, 0.031 ms a row"
    ]


def test_the_test_score_chooses_where_no_row_has_a_dev_score() -> None:
    (line,) = summary(made("annotate", 80.0), made("rival_probe", 79.0, student="cut:2"))
    assert line == "take ($20.00 in all): annotate: test 80.0, charge $10.00"


def test_of_equals_the_cheaper_one_and_then_the_smaller_one_is_taken() -> None:
    equal = [
        made("annotate", 80.0, charge=9.0, parameters=BIG),
        made("rival_tfidf", 80.0, charge=9.0, parameters=SMALL),
    ]
    assert summary(*equal)[0].startswith("take ($20.00 in all): Rival: TF-IDF")
    assert summary(made("distill", 80.0, charge=8.0, parameters=BIG), *equal)[0].startswith(
        "take ($20.00 in all): distill"
    )


def test_size_and_speed_bound_what_is_taken_and_unknown_ones_do_not_fit() -> None:
    points = (
        made("annotate", 90.0, parameters=BIG, ms=1.0),
        made("distill", 85.0, parameters=SMALL, ms=9.0),
        made("self_distill", 84.0),
        made("rival_tfidf", 80.0, parameters=TINY, ms=0.02),
    )
    assert summary(*points, max_student_mb=88)[0].startswith("take ($20.00 in all, within 88 MB): annotate")
    assert "): distill: " in summary(*points, max_student_mb=4)[0]
    assert summary(*points, max_student_mb=4, max_ms=8)[0] == (
        "take ($20.00 in all, within 4 MB and 8 ms a row): Rival: TF-IDF + regression: test 80.0, charge $10.00, 0.2 MB, "
        "0.02 ms a row"
    )
    nothing = summary(*points, max_student_mb=0.1)[0]
    assert nothing.startswith(
        "take ($20.00 in all, within 0.1 MB): nothing; the smallest is Rival: TF-IDF + regression:"
    )
    assert summary(made("annotate", 90.0), max_ms=1)[0].endswith("nothing; no size is known")


def test_rows_that_are_not_above_the_best_rival_of_their_budget_are_named() -> None:
    lines = summary(
        made("annotate", 80.0, usd=10.0),
        made("distill", 81.0, usd=10.0),
        made("rival_tfidf", 80.0, usd=10.0),
        made("rival_majority", 20.0, usd=10.0),
        made("annotate", 90.0),
        made("rival_tfidf", 82.0),
    )
    assert lines[1:] == [
        "not worth more than a rival ($10.00 in all; Rival: TF-IDF + regression has 80.0): annotate (80.0)"
    ]


def test_means_over_seeds_are_compared_though_rivals_differ_in_their_labels() -> None:
    points = [made("annotate", 80.0 + seed, seed=seed) for seed in (0, 1)]
    points += [made("rival_tfidf", 81.0, seed=seed, max_labels=30 + seed) for seed in (0, 1)]
    assert summary(*points)[1:] == [
        "not worth more than a rival ($20.00 in all; Rival: TF-IDF + regression has 81.0): annotate (80.5)"
    ]


def test_tasks_students_and_failures_stay_apart() -> None:
    lines = summary(
        made("annotate", 80.0, student="cut:2", task="one"),
        made("annotate", 70.0, student="cut:4", task="one"),
        made("rival_probe", 75.0, student="cut:2", task="one"),
        made("rival_probe", None, student="cut:4", task="one"),
        made("annotate", 60.0, task="two"),
    )
    assert lines == [
        "take (one, $20.00 in all): annotate, student cut:2: test 80.0, charge $10.00",
        "not worth more than a rival (one, $20.00 in all; Rival: probe of cut:2 has 75.0): annotate, student cut:4 (70.0)",
    ]


def test_one_row_without_bounds_says_nothing() -> None:
    assert summary(made("annotate", 80.0)) == []
    assert summary() == []


@pytest.mark.parametrize("wrong", [{"max_ms": 0.0}, {"max_student_mb": -1.0}, {"max_ms": float("nan")}])
def test_bounds_are_above_zero(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be above 0"):
        Setup(**wrong)  # type: ignore[arg-type]


def test_a_header_keeps_its_bounds() -> None:
    bound = Header("compare", "c", "plain", notes=("n",), bounds=Bounds(10.0, None))
    assert Header.from_json(bound.to_json()) == bound
    plain = replace(bound, bounds=Bounds())
    assert "bounds" not in plain.to_json()
    assert Header.from_json(plain.to_json()) == plain
