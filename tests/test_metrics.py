"""Metrics of classes against scikit-learn, intervals against the truth of simulated data."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from outlay.errors import DataError, LabelError
from outlay.metrics import (
    METRICS,
    STATISTICS,
    Answered,
    main_score,
    mean_score,
    score,
)
from tests.value_tables import is_significant, mean_interval, paired_difference, paired_scores

LABELS = ("a", "b", "c")
PAIRS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, "?", ""))), min_size=1, max_size=30)


@given(PAIRS)
@settings(deadline=None)
def test_every_score_agrees_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    golds, answers = map(list, zip(*pairs, strict=True))
    scores = score("f1", answers, golds, LABELS)
    first = [answer if answer in LABELS else "a" for answer in answers]
    known = [label for label in LABELS if label in {*golds, *answers}]
    expected = {
        "micro_f1/published": f1_score(golds, first, average="micro"),
        "macro_f1/published": f1_score(golds, first, average="macro"),
        "accuracy/published": accuracy_score(golds, first),
        "micro_f1/strict": f1_score(golds, answers, average="micro", labels=known),
        "macro_f1/strict": f1_score(golds, answers, average="macro", labels=known),
        "accuracy/strict": accuracy_score(golds, answers),
    }
    assert set(scores) == set(expected)
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(100 * value), name
        assert scores[name].low <= scores[name].high


def test_the_two_readings_differ_only_in_unknown_answers() -> None:
    scores = score("accuracy", ["?", "b", "?"], ["a", "b", "b"], LABELS)
    assert scores["accuracy/published"].value == pytest.approx(200 / 3)
    assert scores["accuracy/strict"].value == pytest.approx(100 / 3)
    assert list(scores) == ["accuracy/published", "accuracy/strict", "macro_f1/published", "macro_f1/strict"]


def test_strict_micro_f1_counts_an_unknown_answer_as_a_miss_only() -> None:
    scores = score("f1", ["a", "?", "?"], ["a", "a", "b"], LABELS)
    precision, recall = 1 / 1, 1 / 3
    assert scores["micro_f1/strict"].value == pytest.approx(100 * 2 * precision * recall / (precision + recall))


def test_main_scores() -> None:
    assert {metric: main_score(metric) for metric in METRICS} == {
        "accuracy": "accuracy/published",
        "f1": "micro_f1/published",
        "entity_f1": "micro_f1/strict",
        "qa_f1": "f1/published",
        "bert_ibleu": "bert_ibleu/published",
    }
    for metric in METRICS:
        answer = "x [a]" if metric == "entity_f1" else "a"
        scores = score(metric, [answer], [answer], LABELS, sources=["b"], similarities=[0.5])
        assert next(iter(scores)) == main_score(metric)
        assert set(scores) == {
            f"{name}/{reading}" for name in STATISTICS[metric] for reading in ("published", "strict")
        }


def test_the_page_of_metrics_names_every_one_of_them() -> None:
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = {
        row.split("|")[1].strip(" `"): [cell.strip(" `") for cell in row.split("|")[3:5]]
        for row in page.splitlines()[8:13]
    }
    assert rows == {metric: [main_score(metric), ", ".join(STATISTICS[metric])] for metric in METRICS}


def test_the_interval_of_accuracy_is_the_binomial_one() -> None:
    n, p = 400, 0.8
    golds = ["a"] * n
    answers = ["a"] * int(n * p) + ["b"] * (n - int(n * p))
    found = score("accuracy", answers, golds, LABELS)["accuracy/strict"]
    # Wilson 1927, in shares
    z = NormalDist().inv_cdf(0.975)
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = [100 * (centre + side * half) / (1 + z * z / n) for side in (-1, 1)]
    assert (found.low, found.high) == pytest.approx(ends)


@pytest.mark.parametrize("n", [1, 2, 5, 50, 3000])
def test_all_right_is_not_certainty(n: int) -> None:
    """50 of 50 is 100 (92.9 to 100): Wilson's lower end is n / (n + z²), near the exact one, 0.025^(1/n)."""
    golds = ["a", "b"] * (n // 2) + ["a"] * (n % 2)
    found = score("accuracy", golds, golds, LABELS)["accuracy/published"]
    z = NormalDist().inv_cdf(0.975)
    assert (found.value, found.high) == (100, 100)
    assert found.low == pytest.approx(100 * n / (n + z * z))
    assert found.low == pytest.approx(100 * 0.025 ** (1 / n), abs=0.2 if n >= 50 else 20)
    wrong = score("accuracy", ["c"] * n, golds, LABELS)["accuracy/strict"]
    assert (wrong.value, wrong.low, wrong.high) == pytest.approx((0, 0, 100 - found.low))


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_no_statistic_is_certain_of_rows_that_agree(metric: str) -> None:
    gold = "x [a]" if metric == "entity_f1" else "a"
    found = score(metric, [gold] * 50, [gold] * 50, LABELS, sources=["b"] * 50, similarities=[0.5] * 50)
    for name, reading in found.items():
        assert reading.high - reading.low > 3, name
        assert reading.low <= reading.value <= reading.high


def test_bad_input_is_refused() -> None:
    with pytest.raises(LabelError, match="'z' of example 1"):
        score("accuracy", ["a", "a"], ["a", "z"], LABELS)
    with pytest.raises(DataError, match=r"\b1 predictions .*\b2\b"):
        score("accuracy", ["a"], ["a", "b"], LABELS)
    with pytest.raises(DataError, match="nothing to score"):
        score("accuracy", [], [], LABELS)
    with pytest.raises(DataError, match=r"'bleu'.*accuracy, f1"):
        score("bleu", ["a"], ["a"], LABELS)
    with pytest.raises(DataError, match="same examples"):
        mean_score("f1", [of(["a"], ["a"]), of(["a"], ["b"])])
    with pytest.raises(DataError, match="at least one seed"):
        mean_score("f1", [])
    with pytest.raises(DataError, match=r"'bleu'.*micro_f1, macro_f1, accuracy"):
        mean_score("f1", [of(["a"], ["a"])], statistic="bleu")
    with pytest.raises(DataError, match=r"'lenient'.*published, strict"):
        mean_score("f1", [of(["a"], ["a"])], reading="lenient")  # type: ignore[arg-type]


def of(predictions: list[str], golds: list[str]) -> Answered:
    return Answered(predictions, golds, LABELS)


def answers_of(rng: np.random.Generator, golds: list[str], right: float) -> list[str]:
    return [gold if rng.random() < right else str(rng.choice(LABELS)) for gold in golds]


def test_accuracy_by_either_road_is_the_same() -> None:
    rng = np.random.default_rng(0)
    golds = [str(x) for x in rng.choice(LABELS, 71)]
    a = [answers_of(rng, golds, 0.8) for _ in range(3)]
    b = [answers_of(rng, golds, 0.6) for _ in range(3)]
    right = [[[100.0 * (x == y) for x, y in zip(row, golds, strict=True)] for row in side] for side in (a, b)]
    by_values = paired_difference(*right)
    by_scores = paired_scores("accuracy", *([of(row, golds) for row in side] for side in (a, b)))
    assert by_scores.mean == pytest.approx(by_values.mean)
    assert (by_scores.low, by_scores.high) == pytest.approx((by_values.low, by_values.high))
    assert by_scores.p == pytest.approx(by_values.p)
    assert by_scores.n_apart == by_values.n_apart
    alone = mean_interval(right[0])
    same = mean_score("accuracy", [of(row, golds) for row in a])
    assert (same.value, same.low, same.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_paired_f1_agrees_with_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    golds = [str(x) for x in rng.choice(LABELS, 37, p=[0.7, 0.2, 0.1])]
    a, b = ([answers_of(rng, golds, right) for _ in range(2)] for right in (0.7, 0.5))

    def mean(side: list[list[str]], rows: np.ndarray, seeds: np.ndarray) -> float:
        picked = [([side[s][i] for i in rows], [golds[i] for i in rows]) for s in seeds]
        return float(np.mean([100 * f1_score(g, p, average="micro", labels=list(LABELS)) for p, g in picked]))

    everything = (np.arange(37), np.arange(2))
    found = paired_scores("f1", *([of(row, golds) for row in side] for side in (a, b)))
    assert found.mean == pytest.approx(mean(a, *everything) - mean(b, *everything))
    # Over rows alone: the jackknife's variance is that of resampled rows.
    draws = []
    for _ in range(120):
        drawn = rng.integers(0, 37, 37), np.arange(2)
        draws.append(mean(a, *drawn) - mean(b, *drawn))
    assert found.spread.rows**0.5 == pytest.approx(np.std(draws), rel=0.3)
    assert found.high - found.low >= 3.9 * np.std(draws)


def test_pairing_removes_what_both_sides_share() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 50, (1, 500))
    b = np.repeat(hard, 3, axis=0)
    found = paired_difference(b + 1, b)
    assert found.mean == pytest.approx(1)
    # What is left is the two rows that are added.
    assert found.high - found.low < 1.2
    assert is_significant(found)
    swapped = paired_difference(b, b + 1)
    assert (swapped.mean, swapped.p) == (pytest.approx(-1), pytest.approx(found.p))
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_no_difference_is_not_significant() -> None:
    same = np.random.default_rng(3).normal(0, 1, (3, 40))
    found = paired_difference(same, same)
    assert (found.p, found.n_apart) == (1, 0)


def test_many_labels_and_seeds_stay_quick() -> None:
    rng = np.random.default_rng(6)
    labels = [f"intent {i}" for i in range(77)]
    golds = [str(x) for x in rng.choice(labels, 3000)]
    side = [Answered([str(x) for x in rng.choice(labels, 3000)], golds, labels) for _ in range(2)]
    found = paired_scores("f1", side, side[::-1])
    assert found.mean == pytest.approx(0)
