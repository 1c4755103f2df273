"""Tests between strategies: corrections against plain formulas, permutations against counting every one, families by hand."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, norm
from scipy.stats import permutation_test as scipy_permutation_test

from outlay import significance
from outlay.errors import DataError
from outlay.metrics import METRICS, Answered, paired_bootstrap_scores
from outlay.point import Point, PointCircumstance, PointRequest, PointResult
from outlay.report.results import Aftermath, Header, Results
from outlay.significance import (
    PairedTest,
    benjamini_hochberg,
    family,
    holm,
    is_told_apart,
    n_resamples,
    permutation_test,
    smallest_difference,
)

LABELS = ("a", "b", "c")
P_VALUES = st.lists(st.floats(0, 1, allow_subnormal=False) | st.sampled_from([0.0, 0.01, 0.5, 1.0]), max_size=12)


# --- corrections -----------------------------------------------------------------------------------------------------


@given(P_VALUES)
def test_holm_rejects_what_the_stepwise_rule_rejects(p_values: list[float]) -> None:
    """By the rule itself: rising, each against alpha / (tests that are left), up to the first that fails."""
    adjusted = holm(p_values)
    for alpha in (0.013, 0.05, 0.2, 0.9):
        rejected = set()
        for n_done, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[i] > alpha / (len(p_values) - n_done):
                break
            rejected.add(i)
        near = {i for i, p in enumerate(adjusted) if abs(p - alpha) < 1e-9}
        assert {i for i, p in enumerate(adjusted) if p <= alpha} - near == rejected - near


def test_holm_by_hand() -> None:
    # The example of the `multipletests` formula: sorted p times (m - k + 1), made monotone, cut at 1.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert (holm([]), benjamini_hochberg([])) == ([], [])


@given(P_VALUES.filter(len))
def test_false_discoveries_against_scipy(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(list(false_discovery_control(p_values, method="bh")))


@given(P_VALUES)
def test_corrections_keep_the_order_and_lie_between_the_plain_p_and_bonferroni(p_values: list[float]) -> None:
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust(p_values)
        for p, corrected in zip(p_values, adjusted, strict=True):
            assert p * (1 - 1e-12) <= corrected <= min(1.0, len(p_values) * p) * (1 + 1e-12)
        by_p = [corrected for _, corrected in sorted(zip(p_values, adjusted, strict=True))]
        assert by_p == sorted(by_p)
    assert all(bh <= h * (1 + 1e-12) for h, bh in zip(holm(p_values), benjamini_hochberg(p_values), strict=True))


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value(wrong: float) -> None:
    for adjust in (holm, benjamini_hochberg):
        with pytest.raises(DataError, match="is no p-value; it must be from 0 to 1"):
            adjust([0.5, wrong])


# --- permutations ----------------------------------------------------------------------------------------------------


def drawn(
    seed: int, n_examples: int, n_seeds: int, right: tuple[float, float]
) -> tuple[list[Answered], list[Answered]]:
    rng = np.random.default_rng(seed)
    golds = [str(label) for label in rng.choice(LABELS, n_examples, p=(0.6, 0.3, 0.1))]

    def side(share: float) -> list[Answered]:
        said = [[g if rng.random() < share else str(rng.choice(LABELS)) for g in golds] for _ in range(n_seeds)]
        return [Answered(answers, golds, LABELS) for answers in said]

    return side(right[0]), side(right[1])


def macro_f1(said: Sequence[str], golds: Sequence[str]) -> float:
    present = {*golds, *said}
    n_right = Counter(gold for gold, answer in zip(golds, said, strict=True) if gold == answer)
    return 100 * sum(2 * n_right[label] / (golds.count(label) + said.count(label)) for label in present) / len(present)


def test_a_permutation_test_against_every_permutation() -> None:
    a, b = drawn(3, 11, 2, (0.9, 0.5))

    def difference(swapped: tuple[bool, ...]) -> float:
        total = 0.0
        for one, other in zip(a, b, strict=True):
            rows = [
                (y, x) if swap else (x, y)
                for x, y, swap in zip(one.predictions, other.predictions, swapped, strict=True)
            ]
            mine, theirs = map(list, zip(*rows, strict=True))
            total += (macro_f1(mine, one.golds) - macro_f1(theirs, one.golds)) / len(a)
        return total

    observed = difference((False,) * 11)
    everything = [difference(swapped) for swapped in product((False, True), repeat=11)]
    exact = float(np.mean([abs(each) >= abs(observed) - 1e-9 for each in everything]))
    assert 0.02 < exact < 0.5
    found = permutation_test("f1", a, b, statistic="macro_f1", n_rounds=4000, seed=1)
    # Four standard errors of a share of 4,000 rounds.
    assert found == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 4000) ** 0.5)


def test_for_means_it_is_the_sign_flip_test_of_scipy() -> None:
    (a,), (b,) = drawn(5, 97, 1, (0.8, 0.7))
    right = [[float(p == g) for p, g in zip(x.predictions, x.golds, strict=True)] for x in (a, b)]
    expected = scipy_permutation_test(
        right,
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=6000,
        rng=np.random.default_rng(0),
    ).pvalue
    found = permutation_test("accuracy", [a], [b], n_rounds=6000)
    assert 0.01 < expected < 0.9
    assert found == pytest.approx(expected, abs=0.03)


def test_equal_systems_always_swap_into_themselves() -> None:
    a, b = drawn(1, 53, 2, (0.7, 0.7))
    assert permutation_test("f1", a, a) == 1
    # Answers differ, the score does not: each swap leaves the sum of the two counts as it was.
    same = permutation_test("accuracy", [a[0], b[0]], [b[0], a[0]])
    assert same == 1


def test_a_permutation_p_has_a_floor_and_two_sides() -> None:
    a, b = drawn(2, 401, 3, (0.95, 0.4))
    assert (
        permutation_test("accuracy", a, b, n_rounds=199) == permutation_test("accuracy", b, a, n_rounds=199) == 1 / 200
    )
    assert permutation_test("accuracy", a, b, n_rounds=99, seed=1) == 1 / 100


def test_permutations_reject_a_true_null_as_often_as_promised() -> None:
    n_studies = 200
    p_values = []
    for study in range(n_studies):
        a, b = drawn(study, 83, 2, (0.7, 0.7))
        p_values.append(permutation_test("f1", a, b, n_rounds=199, seed=study))
    # Four standard errors of a share of 200.
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 4 * (0.05 * 0.95 / n_studies) ** 0.5
    assert np.mean(np.array(p_values) <= 0.5) > 0.3


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_can_be_permuted(metric: str) -> None:
    golds = ["x [a] y [b]", "y [b]", "x [c] z [a]"] * 7 if metric == "entity_f1" else ["a", "b", "c"] * 7
    sources = [f"source {i}" for i in range(21)]
    a = Answered(golds, golds, LABELS, sources, [0.9] * 21)
    b = Answered(golds[1:] + golds[:1], golds, LABELS, sources, [0.4] * 21)
    assert permutation_test(metric, [a], [b], n_rounds=499) == pytest.approx(1 / 500, abs=2 / 500)
    assert permutation_test(metric, [a], [a], n_rounds=499) == 1


def test_a_permutation_of_what_does_not_pair() -> None:
    a, b = drawn(1, 11, 2, (0.7, 0.7))
    with pytest.raises(DataError, match="2 seeds are paired with 1"):
        permutation_test("f1", a, b[:1])
    with pytest.raises(DataError, match="different gold answers"):
        permutation_test("f1", a, drawn(9, 11, 2, (0.7, 0.7))[1])


# --- what a test could have seen ------------------------------------------------------------------------------------


def test_the_smallest_difference_is_half_of_the_interval() -> None:
    assert smallest_difference(-1.0, 3.0) == pytest.approx(2.0)
    assert smallest_difference(-1.0, 3.0, 12) == pytest.approx(2 * norm.isf(0.025 / 12) / norm.isf(0.025))
    with pytest.raises(DataError, match="low <= high"):
        smallest_difference(1.0, 0.0)
    with pytest.raises(DataError, match="1 or more"):
        smallest_difference(0.0, 1.0, 0)


def test_a_difference_of_that_size_is_found_every_second_time() -> None:
    rng = np.random.default_rng(4)
    n_studies, n_found, n_larger = 300, 0, 0
    halves = []
    for study in range(n_studies):
        noise = rng.normal(0, 10, (1, 151))
        found = significance.Difference.of(noise.mean(), _means(noise, study))
        half = smallest_difference(found.low, found.high)
        halves.append(half)
        n_found += found.low + half > 0
        n_larger += found.low + 1.43 * half > 0
    assert n_found / n_studies == pytest.approx(0.5, abs=0.12)
    assert n_larger / n_studies == pytest.approx(0.8, abs=0.1)


def _means(values: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice(values[0], (400, values.shape[1])).mean(1)


def test_resamples_are_enough_for_the_first_step_of_the_correction() -> None:
    assert [n_resamples(m) for m in (0, 1, 25, 26, 200)] == [1000, 1000, 1000, 2000, 8000]
    for m in (1, 25, 26, 137, 500):
        assert holm([2 / (n_resamples(m) + 1)] + [1.0] * (m - 1))[0] <= 0.05
    assert n_resamples(10**6) == significance.MOST_RESAMPLES


# --- families --------------------------------------------------------------------------------------------------------


def point(strategy: str, budget_usd: float = 300.0, seed: int = 0, **changes: Any) -> Point:
    request = PointRequest(
        task="multipit_id",
        strategy=strategy,
        budget_usd=budget_usd,
        added_usd=None,
        n_initial=1000,
        seed=seed,
        teacher={"distill": "large", "self_distill": "small"}.get(strategy),
        student="small",
        machine="cpu",
        clock="flops",
        price_book="f" * 64,
        pool=(("train", 6905),),
        dev="given",
    )
    result = PointResult(
        status="ok",
        reason=None,
        test=50.0,
        dev=None,
        scores={},
        charge_usd=budget_usd,
        n_labels=1000,
        n_llm_labels=0,
        llm_tokens_in=0,
        llm_tokens_out=0,
        n_pool=0,
        n_dev=0,
        seconds={},
        flops=1,
        student_parameters=None,
        artifacts={},
    )
    return Point(dataclasses.replace(request, **changes), result, PointCircumstance())


def answers(share: float, seed: int, n_examples: int = 211, labels: tuple[str, ...] = LABELS) -> Answered:
    golds = [labels[i % len(labels)] for i in range(n_examples)]
    rng = np.random.default_rng(seed)
    wrong = labels[1:] + labels[:1]
    said = [gold if rng.random() < share else wrong[i % len(labels)] for i, gold in enumerate(golds)]
    return Answered(said, golds, labels)


def results(answered: list[tuple[Point, Answered | None]], metric: str = "f1") -> Results:
    left = {p.id: Aftermath(f"run {i}", metric, said) for i, (p, said) in enumerate(answered)}
    return Results(Header("table2", "Table 2", "budgets"), tuple(p for p, _ in answered), left)


def pairs(rows: tuple[PairedTest, ...]) -> list[tuple[str, str]]:
    return [(row.first, row.second) for row in rows]


def test_a_row_holds_what_the_tests_of_one_pair_say() -> None:
    ours, theirs = ([answers(share, 10 * s + i) for s in range(2)] for i, share in enumerate((0.8, 0.7)))
    points = [point(name, seed=s, added_usd=100.0) for s in range(2) for name in ("annotate", "distill")]
    said = [each for s in range(2) for each in (theirs[s], ours[s])]
    (row,) = family(results(list(zip(points, said, strict=True))))
    expected = paired_bootstrap_scores("f1", ours, theirs)
    found = (row.mean, row.low, row.high, row.p)
    assert found == pytest.approx((expected.mean, expected.low, expected.high, expected.p_two_sided))
    assert row.p_permuted == permutation_test("f1", ours, theirs)
    assert (row.p_holm, row.p_bh, row.n_comparisons) == (row.p, row.p, 1)
    assert (row.task, row.budget_usd, row.added_usd, row.n_initial) == ("multipit_id", 300.0, 100.0, 1000)
    assert (row.first, row.second) == ("distill", "annotate")
    assert (row.n_seeds, row.n_examples, row.covers) == (2, 211, "examples and seeds")
    assert row.points == ((points[1].id, points[3].id), (points[0].id, points[2].id))
    assert row.smallest == pytest.approx((row.high - row.low) / 2)
    assert row.is_significant == (row.p <= 0.05)


def test_a_family_is_corrected_as_one_over_tasks_and_budgets() -> None:
    chosen = []
    for t, task in enumerate(("fever", "multipit_id")):
        for b, budget in enumerate((200.0, 300.0)):
            for i, name in enumerate(("annotate", "distill", "self_distill")):
                share = 0.7 + 0.04 * i * (1 + t + b)
                chosen.append((point(name, budget, task=task), answers(share, 100 * t + 10 * b + i, 97 + 2 * t)))
    rows = family(results(chosen), n_bootstrap=600)
    assert len(rows) == 12
    assert pairs(rows[:3]) == [("distill", "annotate"), ("self_distill", "annotate"), ("self_distill", "distill")]
    assert [row.task for row in rows] == ["fever"] * 6 + ["multipit_id"] * 6
    assert [row.p_holm for row in rows] == holm([row.p for row in rows])
    assert [row.p_bh for row in rows] == benjamini_hochberg([row.p for row in rows])
    assert {row.n_comparisons for row in rows} == {12}
    assert all(row.covers == "examples" for row in rows)
    assert len({(row.is_significant, row.p <= 0.05) for row in rows}) == 3, "a correction that changes some verdict"
    assert rows == family(results(chosen), n_bootstrap=600)
    assert rows != family(results(chosen), n_bootstrap=600, seed=1)


def test_pairs_differ_in_one_thing() -> None:
    chosen = [
        point("annotate"),
        point("distill"),
        point("distill", n_initial=None),
        point("annotate", n_initial=500),
        point("distill", n_initial=500),
        point("distill", pool=(("train", 100),)),
        point("annotate", pool=(("train", 100),)),
        point("distill", teacher="larger"),
        point("distill", student="smaller"),
        point("annotate", student="smaller"),
        point("self_distill", student="smaller", teacher="smaller"),
        point("general_distill", student="general"),
        point("mix", teacher="large"),
    ]
    told = {
        (i, j)
        for i, one in enumerate(chosen)
        for j, other in enumerate(chosen[:i])
        if is_told_apart(one.request, other.request)
    }
    assert all(is_told_apart(chosen[j].request, chosen[i].request) for i, j in told)
    assert told == {
        # Strategies with the same models, labels and pool; what annotates has no teacher and no pool.
        *((1, 0), (2, 0), (2, 1), (3, 2), (4, 2), (4, 3), (5, 0), (6, 1), (6, 2), (6, 5), (7, 0), (7, 6)),
        *((9, 8), (10, 8), (10, 9), (12, 0), (12, 1), (12, 2), (12, 6), (12, 7)),
        # What starts general brings its own student too.
        *((11, i) for i in (0, 1, 2, 5, 6, 7, 8, 9, 10)),
        (12, 11),
        # One model within a strategy.
        *((7, 1), (8, 1), (9, 0), (9, 6)),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"budget_usd": 301.0},
        {"machine": "gpu"},
        {"price_book": "e" * 64},
        {"dev": None},
        {"task": "fever"},
        {"seed": 1},
    ],
)
def test_what_is_not_comparable_has_no_row(change: dict[str, Any]) -> None:
    said = answers(0.8, 1)
    assert len(family(results([(point("annotate"), said), (point("distill"), said)]), n_bootstrap=10)) == 1
    assert family(results([(point("annotate"), said), (point("distill", **change), said)]), n_bootstrap=10) == ()


def test_only_seeds_that_both_sides_answered_are_paired() -> None:
    chosen = [(point("annotate", seed=s), answers(0.7, s) if s != 1 else None) for s in range(3)]
    chosen += [(point("distill", seed=s), answers(0.8, 9 + s)) for s in (0, 1)]
    chosen += [(point("self_distill", seed=s), answers(0.8, 20 + s)) for s in range(3)]
    rows = family(results(chosen))
    assert {(row.first, row.second): row.n_seeds for row in rows} == {
        ("distill", "annotate"): 1,
        ("self_distill", "annotate"): 2,
        ("self_distill", "distill"): 2,
    }
    by_seed = {(p.request.strategy, p.request.seed): said for p, said in chosen if said is not None}
    expected = paired_bootstrap_scores(
        "f1", [by_seed["self_distill", s] for s in (0, 2)], [by_seed["annotate", s] for s in (0, 2)]
    )
    assert (rows[1].mean, rows[1].p) == pytest.approx((expected.mean, expected.p_two_sided))


def test_no_pair_depends_on_which_others_share_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("annotate", "distill", "self_distill", "general_distill")
    chosen = [(point(name, seed=s), answers(0.7, 7 * s + i)) for s in range(2) for i, name in enumerate(names)]
    whole = family(results(chosen), n_bootstrap=300)
    monkeypatch.setattr(significance, "_MOST_CELLS", 1)
    apart = family(results(chosen), n_bootstrap=300)
    assert pairs(whole) == pairs(apart)
    for one, other in zip(whole, apart, strict=True):
        assert (one.mean, one.low, one.high, one.p) == pytest.approx((other.mean, other.low, other.high, other.p))
        assert one.p_permuted == other.p_permuted


def test_answers_that_do_not_belong_together() -> None:
    one, other = point("annotate"), point("distill")
    with pytest.raises(DataError, match="different gold answers"):
        family(results([(one, answers(0.7, 1)), (other, answers(0.7, 1, 210))]))
    mixed = results([(one, answers(0.7, 1)), (other, answers(0.7, 1))])
    left = {**mixed.left, other.id: dataclasses.replace(mixed.left[other.id], metric="accuracy")}
    with pytest.raises(DataError, match="scored by accuracy, f1; score all by one metric"):
        family(dataclasses.replace(mixed, left=left))


def test_thousands_of_points_without_answers_cost_nothing() -> None:
    chosen = [(point("annotate", float(b), seed=s), None) for b in range(1, 1001) for s in range(5)]
    whole = results(chosen)
    before = time.process_time()
    assert family(whole) == ()
    assert time.process_time() - before < 0.5


def test_two_hundred_pairs_are_quick() -> None:
    said = {(i, s): answers(0.6 + 0.03 * i, 10 * i + s, 3000) for i in range(4) for s in range(2)}
    names = ("annotate", "distill", "self_distill", "general_distill")
    chosen = [
        (point(name, float(b), seed=s), said[i, s])
        for b in range(1, 35)
        for i, name in enumerate(names)
        for s in range(2)
    ]
    before = time.process_time()
    rows = family(results(chosen, "accuracy"), n_bootstrap=1000)
    took = time.process_time() - before
    assert (len(rows), rows[0].n_examples, rows[0].n_seeds) == (204, 3000, 2)
    assert took < 20, took
