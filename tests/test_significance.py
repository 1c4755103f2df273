"""Tests between strategies: corrections against plain formulas, permutations against counting every one, families by hand."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test as scipy_permutation_test

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point
from outlay.errors import DataError
from outlay.metrics import METRICS, Answered
from outlay.report import significance
from outlay.report.difference_table import lay_out_differences
from outlay.report.results import Header, Results
from outlay.report.significance import PairedTest, differs_in_one_choice, family, holm, permutation_test
from tests.test_report import point as scored_point
from tests.value_tables import paired_scores

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
    assert holm([]) == []


@given(P_VALUES)
def test_a_correction_keeps_the_order_and_lies_between_the_plain_p_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, corrected in zip(p_values, adjusted, strict=True):
        assert p * (1 - 1e-12) <= corrected <= min(1.0, len(p_values) * p) * (1 + 1e-12)
    by_p = [corrected for _, corrected in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value(wrong: float) -> None:
    with pytest.raises(DataError, match=f"^{wrong} .*from 0 to 1"):
        holm([0.5, wrong])


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
    # 2,048 assignments: counted one by one where there may be so many rounds, else drawn.
    counted = permutation_test("f1", a, b, statistic="macro_f1", n_rounds=2048)
    assert counted == pytest.approx(exact)
    found = permutation_test("f1", a, b, statistic="macro_f1", n_rounds=1023, seed=1)
    # Four standard errors of a share of 1,023 rounds.
    assert found == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 1023) ** 0.5)


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
    with pytest.raises(DataError, match=r"\b2\b.*\b1\b"):
        permutation_test("f1", a, b[:1])
    with pytest.raises(DataError, match="gold"):
        permutation_test("f1", a, drawn(9, 11, 2, (0.7, 0.7))[1])


# --- families --------------------------------------------------------------------------------------------------------


def point(strategy: str, budget_usd: float = 300.0, seed: int = 0, **changes: Any) -> Point:
    teacher = {"distill": "large", "self_distill": "small"}.get(strategy)
    return scored_point(strategy, budget_usd, seed, 50.0, **{"teacher": teacher, "student": "small", **changes})


def answers(share: float, seed: int, n_examples: int = 211, labels: tuple[str, ...] = LABELS) -> Answered:
    golds = [labels[i % len(labels)] for i in range(n_examples)]
    rng = np.random.default_rng(seed)
    wrong = labels[1:] + labels[:1]
    said = [gold if rng.random() < share else wrong[i % len(labels)] for i, gold in enumerate(golds)]
    return Answered(said, golds, labels)


def results(answered: list[tuple[Point, Answered | None]], metric: str = "f1") -> Results:
    left = {p.id: RunOutputs(f"run {i}", metric, said) for i, (p, said) in enumerate(answered)}
    return Results(Header("table2", "Table 2", "budgets"), tuple(p for p, _ in answered), left)


def pairs(rows: tuple[PairedTest, ...]) -> list[tuple[str, str]]:
    return [(row.first, row.second) for row in rows]


def test_a_row_holds_what_the_tests_of_one_pair_say() -> None:
    ours, theirs = ([answers(share, 10 * s + i) for s in range(2)] for i, share in enumerate((0.8, 0.7)))
    points = [point(name, seed=s, added_usd=100.0) for s in range(2) for name in ("annotate", "distill")]
    said = [each for s in range(2) for each in (theirs[s], ours[s])]
    (row,) = family(results(list(zip(points, said, strict=True))))
    expected = paired_scores("f1", ours, theirs)
    found = (row.mean, row.low, row.high, row.p, row.n_apart)
    assert found == pytest.approx((expected.mean, expected.low, expected.high, expected.p, expected.n_apart))
    assert row.p_permuted == permutation_test("f1", ours, theirs)
    assert (row.p_holm, row.n_comparisons) == (row.p, 1)
    assert (row.task, row.budget_usd, row.n_initial) == ("multipit_id", 300.0, 1000)
    assert (row.first, row.second) == ("distill", "annotate")
    assert (row.n_seeds, row.n_examples) == (2, 211)
    assert row.smallest == pytest.approx((row.high - row.low) / 2)
    assert row.p is not None
    assert row.is_significant == (row.p <= 0.05)


def test_a_family_is_corrected_as_one_over_tasks_and_budgets() -> None:
    chosen = []
    for t, task in enumerate(("fever", "multipit_id")):
        for b, budget in enumerate((200.0, 300.0)):
            for i, name in enumerate(("annotate", "distill", "self_distill")):
                share = 0.7 + 0.04 * i * (1 + t + b)
                chosen += [
                    (point(name, budget, s, task=task), answers(share, 1000 * s + 100 * t + 10 * b + i, 97 + 2 * t))
                    for s in range(4)
                ]
    rows = family(results(chosen))
    assert len(rows) == 12
    assert pairs(rows[:3]) == [("distill", "annotate"), ("self_distill", "annotate"), ("self_distill", "distill")]
    assert [row.task for row in rows] == ["fever"] * 6 + ["multipit_id"] * 6
    p_values = [row.p for row in rows if row.p is not None]
    assert [row.p_holm for row in rows] == holm(p_values)
    assert {row.n_comparisons for row in rows} == {12}
    verdicts = {(row.is_significant, p <= 0.05) for row, p in zip(rows, p_values, strict=True)}
    assert verdicts == {(True, True), (False, True), (False, False)}, "a correction that changes some verdict"
    assert all(row.smallest is not None and row.smallest > (row.high - row.low) / 2 for row in rows)
    assert rows == family(results(chosen))


def test_each_strategy_is_compared_with_the_best_rival_alone_in_a_family_of_its_own() -> None:
    own = [
        (point(name, seed=s), answers(share, 10 * s + i))
        for i, (name, share) in enumerate((("annotate", 0.9), ("distill", 0.6)))
        for s in range(2)
    ]
    cheap = [
        (
            scored_point(name, 300.0, s, test, teacher=None, student="other", n_initial=None, max_labels=90 + s),
            answers(share, 77 + 10 * s + i),
        )
        for i, (name, share, test) in enumerate((("rival_majority", 0.3, 30.0), ("rival_tfidf", 0.75, 75.0)))
        for s in range(2)
    ]
    alone, rows = family(results(own)), family(results([*own, *cheap]))
    best = "Rival: TF-IDF + regression"
    assert pairs(rows) == [("distill", "annotate"), ("annotate", best), ("distill", best)]
    assert rows[0] == alone[0]
    assert [row.n_comparisons for row in rows] == [1, 2, 2]
    assert [row.has_rival for row in rows] == [False, True, True]
    assert rows[1].mean > 0 > rows[2].mean
    table = lay_out_differences(rows)
    assert table is not None
    assert "over all 1 comparisons, and over all 2 with the best rival of a budget. Bold" in table.notes[-1]


def test_one_seed_is_no_evidence_about_a_method() -> None:
    """However large the difference: no p, no verdict, and no part in the correction of the others."""
    chosen = [(point("annotate"), answers(0.3, 1)), (point("distill"), answers(0.95, 2))]
    (row,) = family(results(chosen))
    assert (row.p, row.p_holm, row.smallest, row.n_comparisons, row.is_significant) == (None, None, None, 0, False)
    assert row.low > 0
    names = ("annotate", "distill")
    both = [(point(name, 400.0, s), answers(0.7 + 0.1 * i, 7 * s + i)) for s in (0, 1) for i, name in enumerate(names)]
    rows = family(results([*chosen, *both]))
    assert [row.n_comparisons for row in rows] == [1, 1]
    assert [row.p is None for row in rows] == [True, False]


def test_one_test_row_has_a_difference_and_no_test() -> None:
    sides = (("annotate", Answered(["b"], ["a"], LABELS)), ("distill", Answered(["a"], ["a"], LABELS)))
    (row,) = family(results([(point(name, seed=s), said) for s in range(3) for name, said in sides], "accuracy"))
    assert (row.mean, row.low, row.high, row.p, row.p_permuted, row.is_significant) == (
        100,
        -100,
        100,
        None,
        1.0,
        False,
    )


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 10, 30])
def test_no_p_is_below_two_over_two_to_the_rows(n: int, n_seeds: int) -> None:
    """Even where every seed of one side is right everywhere and every seed of the other is wrong."""
    sides = (("annotate", ["b"] * n), ("distill", ["a"] * n))
    chosen = [(point(name, seed=s), Answered(said, ["a"] * n, LABELS)) for s in range(n_seeds) for name, said in sides]
    (row,) = family(results(chosen, "accuracy"))
    least = max(2 / 2**n, 1 / 1001)
    assert row.p_permuted == pytest.approx(least, abs=0 if n <= 6 else 4 / 1001)
    if n_seeds > 1 and n > 1:
        assert row.p is not None
        assert row.p >= 2 / 2**n
        assert row.is_significant == (n >= 6)
        assert (row.low > 0) == (n >= 6)
    else:
        assert (row.p, row.is_significant) == (None, False)


@pytest.mark.parametrize("n", [1, 3, 5, 10, 30])
def test_equal_models_of_one_seed_are_never_significant_and_seldom_permuted_apart(n: int) -> None:
    rng = np.random.default_rng(n)
    n_worlds, n_apart = 120, 0
    for _ in range(n_worlds):
        sides = [Answered(list(map(str, rng.choice(["a", "b"], n))), ["a"] * n, LABELS) for _ in range(2)]
        (row,) = family(results([(point("annotate"), sides[0]), (point("distill"), sides[1])], "accuracy"))
        assert (row.is_significant, row.p, row.smallest) == (False, None, None)
        assert row.p_permuted >= 2 / 2**n
        n_apart += row.p_permuted <= 0.05
    # Three standard errors of the share promised; none at all where no p is that small.
    assert n_apart <= (0 if n <= 5 else n_worlds * (0.05 + 3 * (0.05 * 0.95 / n_worlds) ** 0.5))


AUTO = (("student", "auto"), ("teacher", "auto"))


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
        point("distill", methods=AUTO),
        point("annotate", methods=AUTO),
    ]
    told = {
        (i, j)
        for i, one in enumerate(chosen)
        for j, other in enumerate(chosen[:i])
        if differs_in_one_choice(one.request, other.request)
    }
    assert all(differs_in_one_choice(chosen[j].request, chosen[i].request) for i, j in told)
    assert told == {
        # Strategies with the same models, labels and pool; what annotates has no teacher and no pool.
        *((1, 0), (2, 0), (2, 1), (3, 2), (4, 2), (4, 3), (5, 0), (6, 1), (6, 2), (6, 5), (7, 0), (7, 6)),
        *((9, 8), (10, 8), (10, 9), (12, 0), (12, 1), (12, 2), (12, 6), (12, 7)),
        # What starts general brings its own student too.
        *((11, i) for i in (0, 1, 2, 5, 6, 7, 8, 9, 10)),
        (12, 11),
        # One model within a strategy.
        *((7, 1), (8, 1), (9, 0), (9, 6)),
        # One method within a strategy; strategies with the same method.
        *((13, 1), (14, 0), (14, 6), (14, 13)),
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
    assert len(family(results([(point("annotate"), said), (point("distill"), said)]))) == 1
    assert family(results([(point("annotate"), said), (point("distill", **change), said)])) == ()


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
    expected = paired_scores(
        "f1", [by_seed["self_distill", s] for s in (0, 2)], [by_seed["annotate", s] for s in (0, 2)]
    )
    assert (rows[1].mean, rows[1].p) == pytest.approx((expected.mean, expected.p))
    assert rows[0].p is None


def test_no_pair_depends_on_which_others_share_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("annotate", "distill", "self_distill", "general_distill")
    chosen = [(point(name, seed=s), answers(0.7, 7 * s + i)) for s in range(2) for i, name in enumerate(names)]
    whole = family(results(chosen))
    monkeypatch.setattr(significance, "MOST_FEATURES", 1)
    apart = family(results(chosen))
    assert pairs(whole) == pairs(apart)
    for one, other in zip(whole, apart, strict=True):
        assert (one.mean, one.low, one.high, one.p) == pytest.approx((other.mean, other.low, other.high, other.p))
        assert one.p_permuted == other.p_permuted


def test_answers_that_do_not_belong_together() -> None:
    one, other = point("annotate"), point("distill")
    with pytest.raises(DataError, match="gold"):
        family(results([(one, answers(0.7, 1)), (other, answers(0.7, 1, 210))]))
    mixed = results([(one, answers(0.7, 1)), (other, answers(0.7, 1))])
    left = {**mixed.outputs, other.id: dataclasses.replace(mixed.outputs[other.id], metric="accuracy")}
    with pytest.raises(DataError, match=r"accuracy, f1\b.*one metric"):
        family(dataclasses.replace(mixed, outputs=left))


def test_points_without_answers_are_in_no_pair() -> None:
    assert family(results([(point(name, seed=s), None) for name in ("annotate", "distill") for s in range(5)])) == ()
