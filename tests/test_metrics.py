"""Metrics of classes against scikit-learn, intervals against the truth of simulated data."""

from __future__ import annotations

import math
from pathlib import Path

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
    correctness,
    main_score,
    mean_interval,
    mean_score,
    paired_bootstrap,
    paired_bootstrap_scores,
    score,
)

LABELS = ("a", "b", "c")
PAIRS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, "?", ""))), min_size=1, max_size=30)


@given(PAIRS)
@settings(deadline=None)
def test_every_score_agrees_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    golds, answers = map(list, zip(*pairs, strict=True))
    scores = score("f1", answers, golds, LABELS, n_bootstrap=10)
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
        scores = score(metric, [answer], [answer], LABELS, sources=["b"], similarities=[0.5], n_bootstrap=2)
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


def test_intervals_depend_on_the_seed_alone() -> None:
    golds = ["a", "b"] * 50
    answers = ["a"] * 100
    assert score("f1", answers, golds, LABELS, seed=1) == score("f1", answers, golds, LABELS, seed=1)
    assert score("f1", answers, golds, LABELS, seed=1) != score("f1", answers, golds, LABELS, seed=2)


def test_the_interval_of_accuracy_is_the_binomial_one() -> None:
    n, p = 400, 0.8
    golds = ["a"] * n
    answers = ["a"] * int(n * p) + ["b"] * (n - int(n * p))
    found = score("accuracy", answers, golds, LABELS, n_bootstrap=4000)["accuracy/strict"]
    half = 196 * math.sqrt(p * (1 - p) / n)
    assert found.value - found.low == pytest.approx(half, rel=0.12)
    assert found.high - found.value == pytest.approx(half, rel=0.12)


def test_bad_input_is_refused() -> None:
    with pytest.raises(LabelError, match="'z' of example 1"):
        score("accuracy", ["a", "a"], ["a", "z"], LABELS)
    with pytest.raises(DataError, match="1 predictions meet 2"):
        score("accuracy", ["a"], ["a", "b"], LABELS)
    with pytest.raises(DataError, match="nothing to score"):
        score("accuracy", [], [], LABELS)
    with pytest.raises(DataError, match="'bleu' is unknown; choose one of accuracy, f1"):
        score("bleu", ["a"], ["a"], LABELS)
    with pytest.raises(DataError, match=r"shapes \(1, 2\) and \(1, 3\)"):
        paired_bootstrap([[0, 1]], [[0, 1, 1]])
    with pytest.raises(DataError, match="different numbers of examples"):
        mean_interval([[0, 1], [1]])
    with pytest.raises(DataError, match="shape"):
        mean_interval([1.0, 2.0])
    with pytest.raises(DataError, match="1 seeds are paired with 2"):
        paired_bootstrap_scores("f1", [of(["a"], ["a"])], [of(["a"], ["a"])] * 2)
    with pytest.raises(DataError, match="different gold answers"):
        mean_score("f1", [of(["a"], ["a"]), of(["a"], ["b"])])
    with pytest.raises(DataError, match="at least one seed"):
        mean_score("f1", [])
    with pytest.raises(DataError, match="statistic 'bleu' is unknown; choose one of micro_f1, macro_f1, accuracy"):
        mean_score("f1", [of(["a"], ["a"])], statistic="bleu")
    with pytest.raises(DataError, match="reading 'lenient' is unknown; choose one of published, strict"):
        mean_score("f1", [of(["a"], ["a"])], reading="lenient")  # type: ignore[arg-type]


def of(predictions: list[str], golds: list[str]) -> Answered:
    return Answered(predictions, golds, LABELS)


def answers_of(rng: np.random.Generator, golds: list[str], right: float) -> list[str]:
    return [gold if rng.random() < right else str(rng.choice(LABELS)) for gold in golds]


def test_accuracy_by_either_road_is_the_same_draw_by_draw() -> None:
    rng = np.random.default_rng(0)
    golds = [str(x) for x in rng.choice(LABELS, 71)]
    a = [answers_of(rng, golds, 0.8) for _ in range(3)]
    b = [answers_of(rng, golds, 0.6) for _ in range(3)]
    right = [[correctness(row, golds, LABELS) for row in side] for side in (a, b)]
    by_values = paired_bootstrap(*right, seed=5)
    by_scores = paired_bootstrap_scores("accuracy", *([of(row, golds) for row in side] for side in (a, b)), seed=5)
    assert by_scores.mean == pytest.approx(by_values.mean)
    assert (by_scores.low, by_scores.high) == pytest.approx((by_values.low, by_values.high))
    assert by_scores.p_two_sided == by_values.p_two_sided
    alone = mean_interval(right[0], seed=5)
    same = mean_score("accuracy", [of(row, golds) for row in a], seed=5)
    assert (same.value, same.low, same.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_paired_f1_agrees_with_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    golds = [str(x) for x in rng.choice(LABELS, 37, p=[0.7, 0.2, 0.1])]
    a, b = ([answers_of(rng, golds, right) for _ in range(2)] for right in (0.7, 0.5))

    def mean(side: list[list[str]], rows: np.ndarray, seeds: np.ndarray) -> float:
        picked = [([side[s][i] for i in rows], [golds[i] for i in rows]) for s in seeds]
        return float(np.mean([100 * f1_score(g, p, average="micro", labels=list(LABELS)) for p, g in picked]))

    everything = (np.arange(37), np.arange(2))
    found = paired_bootstrap_scores("f1", *([of(row, golds) for row in side] for side in (a, b)))
    assert found.mean == pytest.approx(mean(a, *everything) - mean(b, *everything))
    draws = []
    for _ in range(300):
        drawn = rng.integers(0, 37, 37), rng.integers(0, 2, 2)
        draws.append(mean(a, *drawn) - mean(b, *drawn))
    assert found.low == pytest.approx(np.quantile(draws, 0.025), abs=4)
    assert found.high == pytest.approx(np.quantile(draws, 0.975), abs=4)


def test_pairing_removes_what_both_sides_share() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 50, (1, 500))
    b = np.repeat(hard, 3, axis=0)
    found = paired_bootstrap(b + 1, b)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.significant
    assert found.p_two_sided < 0.01
    swapped = paired_bootstrap(b, b + 1)
    assert (swapped.mean, swapped.p_two_sided) == (pytest.approx(-1), found.p_two_sided)


def test_no_difference_is_not_significant() -> None:
    same = np.random.default_rng(3).normal(0, 1, (3, 40))
    found = paired_bootstrap(same, same)
    assert found.p_two_sided == 1
    assert not found.significant


@pytest.mark.parametrize(("n_seeds", "seed_noise"), [(1, 0.0), (10, 0.0), (10, 3.0)])
def test_intervals_cover_the_truth(n_seeds: int, seed_noise: float) -> None:
    """The 95 % interval over examples and seeds holds the true mean in at least 90 % of simulated studies."""
    rng = np.random.default_rng(4)
    truth, n_studies = 2.0, 200
    n_covered = 0
    for study in range(n_studies):
        examples = rng.normal(0, 20, (1, 100))
        seeds = rng.normal(0, seed_noise, (n_seeds, 1))
        found = mean_interval(truth + examples + seeds, n_bootstrap=400, seed=study)
        n_covered += found.low <= truth <= found.high
    assert 0.90 <= n_covered / n_studies <= 0.99


def test_a_true_null_is_rejected_about_as_often_as_promised() -> None:
    rng = np.random.default_rng(5)
    n_studies = 200
    rejected = 0
    for study in range(n_studies):
        examples = rng.normal(0, 20, (1, 150))
        rejected += paired_bootstrap(examples, np.zeros((1, 150)), n_bootstrap=400, seed=study).p_two_sided < 0.05
    assert rejected / n_studies <= 0.10


def test_many_labels_and_seeds_stay_quick() -> None:
    rng = np.random.default_rng(6)
    labels = [f"intent {i}" for i in range(77)]
    golds = [str(x) for x in rng.choice(labels, 3000)]
    side = [Answered([str(x) for x in rng.choice(labels, 3000)], golds, labels) for _ in range(2)]
    found = paired_bootstrap_scores("f1", side, side[::-1])
    assert found.mean == pytest.approx(0)
