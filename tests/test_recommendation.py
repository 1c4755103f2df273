"""The summary of a report: what to take at a budget and a size, and what is not worth more than a rival."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from operator import eq

import pytest

from outlay.engine.point import Point, Reading
from outlay.errors import UsageError
from outlay.metrics import featured, mean_score
from outlay.metrics.scoring import Side
from outlay.report.results import Bounds, Header, Results
from outlay.report.study_report import StudyReport
from outlay.study.request import Setup
from tests.made_results import made as report_of
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
    one = point(strategy, usd, seed, test, charge_usd=charge, student_parameters=parameters, teacher=teacher, **changes)
    # `dev` of a request is the kind of dev labels.
    return replace(one, result=replace(one.result, dev=dev), circumstance=replace(one.circumstance, latency_ms=ms))


def summary(*points: Point, **bounds: float) -> list[str]:
    results = Results(Header("compare", "What a score costs", "plain", bounds=Bounds(**bounds)), points, {})
    return list(StudyReport(results).summary)


BIG, SMALL, TINY = 22_000_000, 1_000_000, 50_000


def test_the_best_dev_score_of_the_largest_budget_is_taken_whoever_has_it() -> None:
    lines = summary(
        made("annotate", 90.0, dev=99.0, usd=10.0),
        made("annotate", 80.0, dev=81.0, parameters=BIG, ms=5.25),
        made("rival_tfidf", 79.0, dev=82.5, charge=12.5, parameters=SMALL, ms=0.031),
    )
    assert lines == [
        "For $20: Rival: TF-IDF + regression. 79.0 on test (one seed); 1.0 points under annotating.",
        "chosen by its dev score, 82.5; charge $12.50, 4.0 MB, 0.031 ms a row",
    ]


def test_test_scores_choose_nothing() -> None:
    (line,) = summary(made("annotate", 80.0), made("distill", 79.0))
    assert line.startswith("For $20: no row is chosen, since none has a dev score")
    assert line.endswith("The highest on test is annotate, 80.0.")
    first, second = summary(made("annotate", 80.0), made("distill", 70.0, dev=60.0))
    assert first.startswith("For $20: distill. 70.0 on test")
    assert second.startswith("chosen by its dev score, 60.0")


def test_of_equals_the_cheaper_one_and_then_the_smaller_one_is_taken() -> None:
    equal = [
        made("annotate", 80.0, dev=81.0, charge=9.0, parameters=BIG),
        made("rival_tfidf", 80.0, dev=81.0, charge=9.0, parameters=SMALL),
    ]
    assert summary(*equal)[0].startswith("For $20: Rival: TF-IDF")
    assert summary(made("distill", 80.0, dev=81.0, charge=8.0, parameters=BIG), *equal)[0].startswith(
        "For $20: distill"
    )


def test_size_and_speed_bound_what_is_taken_and_unknown_ones_do_not_fit() -> None:
    points = (
        made("annotate", 90.0, dev=91.0, parameters=BIG, ms=1.0),
        made("distill", 85.0, dev=86.0, parameters=SMALL, ms=9.0),
        made("self_distill", 84.0, dev=85.0),
        made("rival_tfidf", 80.0, dev=81.0, parameters=TINY, ms=0.02),
    )
    assert summary(*points, max_student_mb=88)[0].startswith("For $20 within 88 MB: annotate.")
    assert summary(*points, max_student_mb=4)[0].startswith("For $20 within 4 MB: distill.")
    sentence, costs, *_ = summary(*points, max_student_mb=4, max_ms=8)
    assert sentence.startswith("For $20 within 4 MB and 8 ms a row: Rival: TF-IDF + regression. 80.0 on test")
    assert costs.endswith("charge $10.00, 0.2 MB, 0.02 ms a row")
    nothing = summary(*points, max_student_mb=0.1)[0]
    assert nothing == "For $20 within 0.1 MB: nothing. The smallest is Rival: TF-IDF + regression: test 80.0."
    assert summary(made("annotate", 90.0), max_ms=1)[0].endswith("nothing; no size is known.")


# --- the numbers of the sentence --------------------------------------------------------------------------------------

SENTENCE = re.compile(
    r"(?:(?P<task>\w+), f|F)or \$(?P<budget>[\d.,]+): (?P<name>[^.]+)\. (?P<test>[\d.]+) (?P<span>± [\d.]+|\([^)]+\)) "
    r"on (?P<n>[\d,]+) test rows(?P<one> \(one seed\))?; "
    r"(?:(?P<gap>[\d.]+) (?P<by>± [\d.]+|\([^)]+\)) points (?P<side>over|under)|not told apart from) (?P<other>[^:]+)"
    r"(?:: (?P<signed>\S+) (?P<half>± [\d.]+|\([^)]+\)) points)?\."
)


def width(text: str) -> float:
    """The width of the interval that a text shows: "± 1.3", or "(70.1 to 78.2)"."""
    numbers = [float(each.replace("−", "-")) for each in re.findall(r"[−+]?[\d.]+", text)]
    return 2 * numbers[0] if len(numbers) == 1 else numbers[1] - numbers[0]


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_the_numbers_of_the_sentence_are_those_of_the_answers(n_seeds: int) -> None:
    results = report_of("plain", n_seeds=n_seeds, missing=False)
    for task, sentence in zip(results.tasks, (each.sentence for each in StudyReport(results).summaries), strict=True):
        found = SENTENCE.fullmatch(sentence)
        assert found is not None, sentence
        assert found["task"] == task
        assert (found["one"] is not None) == (n_seeds == 1)
        points = [each for each in results.points if each.request.task == task]
        budget = max(each.request.budget_usd for each in points)
        assert float(found["budget"].replace(",", "")) == budget
        seeds: dict[str, list[Point]] = {}
        for each in points:
            if each.request.budget_usd == budget:
                seeds.setdefault(each.request.strategy, []).append(each)
        dev = {name: statistics.fmean(each.result.dev or 0.0 for each in of_name) for name, of_name in seeds.items()}
        # Of equals the cheaper one.
        best = max(seeds, key=lambda name: (dev[name], -seeds[name][0].result.charge_usd))
        other = max((name for name in seeds if name != best), key=lambda name: (name == "annotate", dev[name]))
        assert found["name"] == best
        assert found["other"] == {"annotate": "annotating"}.get(other, other)

        answers = {
            name: [answered for each in seeds[name] if (answered := results.outputs[each.id].answered) is not None]
            for name in (best, other)
        }
        assert int(found["n"]) == len(answers[best][0].golds)
        right = {
            name: [100 * statistics.fmean(map(eq, of_seed.predictions, of_seed.golds)) for of_seed in of_name]
            for name, of_name in answers.items()
        }
        mean = mean_score("accuracy", answers[best])
        assert float(found["test"]) == pytest.approx(statistics.fmean(right[best]), abs=0.051)
        assert width(found["span"]) == pytest.approx(mean.high - mean.low, abs=0.11)

        tables, value = featured("accuracy", [*answers[best], *answers[other]])
        gap = Side.of(tables[:n_seeds], value).minus(Side.of(tables[n_seeds:], value))
        size = statistics.fmean(right[best]) - statistics.fmean(right[other])
        if found["gap"] is None:
            shown, span = float(found["signed"].replace("−", "-")), found["half"]
        else:
            shown, span = (1 if found["side"] == "over" else -1) * float(found["gap"]), found["by"]
        assert shown == pytest.approx(size, abs=0.051)
        assert width(span) == pytest.approx(gap.high - gap.low, abs=0.11)
        assert (found["gap"] is None) == (gap.low <= 0 <= gap.high)


def test_without_answers_the_difference_has_the_interval_over_its_seeds() -> None:
    tests = {"annotate": (70.0, 72.0, 71.0), "distill": (79.0, 80.0, 83.0)}
    points = [
        made(name, test, dev=test, seed=seed) for name, of_name in tests.items() for seed, test in enumerate(of_name)
    ]
    # Differences 9, 8 and 12; 4.302653 is Student's for two degrees of freedom.
    half = 4.302653 * statistics.stdev((9.0, 8.0, 12.0)) / 3**0.5
    assert summary(*points)[0].endswith(f"; 9.7 ± {half:.1f} points over annotating.")
    apart = [
        made("annotate", 70.0, dev=70.0),
        made("annotate", 60.0, dev=60.0, seed=1),
        made("distill", 75.0, dev=75.0),
    ]
    assert summary(*apart)[0].endswith("; 5.0 points over annotating on the seed that both have.")


def test_the_teacher_is_told_where_its_score_is_known_of_every_seed() -> None:
    seeds = [made("distill", 80.0 + seed, dev=80.0, seed=seed) for seed in (0, 1)]
    taught = [
        replace(each, result=replace(each.result, teacher_test=Reading(84.0 + 2 * i, 80.0, 90.0)))
        for i, each in enumerate(seeds)
    ]
    assert summary(*taught)[0].endswith("; the teacher itself scores 85.0.")
    assert "teacher" not in summary(taught[0], seeds[1])[0]
    (sentence, *_) = summary(*taught, *(made("annotate", 70.0, dev=70.0, seed=seed) for seed in (0, 1)))
    assert sentence.endswith("points over annotating; the teacher itself scores 85.0.")


def test_what_annotates_is_held_against_the_next_by_dev() -> None:
    points = [made("annotate", 80.0, dev=90.0), made("distill", 70.0, dev=60.0), made("self_distill", 60.0, dev=70.0)]
    assert summary(*points)[0].endswith("; 20.0 points over self_distill.")


def test_rows_that_are_not_above_the_best_rival_of_their_budget_are_named() -> None:
    lines = summary(
        made("annotate", 80.0, usd=10.0),
        made("distill", 81.0, usd=10.0),
        made("rival_tfidf", 80.0, usd=10.0),
        made("rival_majority", 20.0, usd=10.0),
        made("annotate", 90.0, dev=90.0),
        made("rival_tfidf", 82.0, dev=80.0),
    )
    assert lines[2:] == [
        "not worth more than a rival ($10.00 in all; Rival: TF-IDF + regression has 80.0): annotate (80.0)"
    ]


def test_means_over_seeds_are_compared_though_rivals_differ_in_their_labels() -> None:
    points = [made("annotate", 80.0 + seed, dev=80.0, seed=seed) for seed in (0, 1)]
    points += [made("rival_tfidf", 81.0, seed=seed, max_labels=30 + seed) for seed in (0, 1)]
    assert summary(*points)[2:] == [
        "not worth more than a rival ($20.00 in all; Rival: TF-IDF + regression has 81.0): annotate (80.5)"
    ]


def test_tasks_students_and_failures_stay_apart() -> None:
    lines = summary(
        made("annotate", 80.0, dev=80.0, student="cut:2", task="one"),
        made("annotate", 70.0, dev=70.0, student="cut:4", task="one"),
        made("rival_probe", 75.0, dev=75.0, student="cut:2", task="one"),
        made("rival_probe", None, student="cut:4", task="one"),
        made("annotate", 60.0, task="two"),
    )
    assert lines == [
        "one, for $20: annotate, student cut:2. 80.0 on test (one seed); 10.0 points over annotate, student cut:4.",
        "chosen by its dev score, 80.0; charge $10.00",
        "not worth more than a rival (one, $20.00 in all; Rival: probe of cut:2 has 75.0): annotate, student cut:4 (70.0)",
        "two, for $20: annotate. 60.0 on test (one seed).",
        "charge $10.00",
    ]


def test_no_score_no_summary() -> None:
    assert summary() == []
    assert summary(made("annotate", None)) == []


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
