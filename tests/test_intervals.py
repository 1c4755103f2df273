"""Intervals and p-values against closed forms and scipy; how often they are wrong is in test_levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from outlay.metrics import Answered, mean_score
from outlay.metrics.intervals import Spread, half_of_means, reading_of, row_values, t_quantile, t_tail, within_ends
from tests.value_tables import is_significant, mean_interval, paired_difference, paired_scores

Z = stats.norm.isf(0.025)


@pytest.mark.parametrize("df", [*range(1, 40), 100, 999, 1000, 1001, 30_000, math.inf])
def test_students_t_against_scipy(df: float) -> None:
    known = stats.norm if math.isinf(df) else stats.t(df)
    for x in (0.0, 0.1, 1.0, 2.5, 5.0, 20.0):
        assert t_tail(x, df) == pytest.approx(2 * known.sf(x), abs=3e-7)
    for alpha in (0.9, 0.5, 0.05, 0.01, 1e-3, 1e-4):
        assert t_quantile(alpha, df) == pytest.approx(known.isf(alpha / 2), rel=1e-5)


def test_no_degree_of_freedom_says_nothing() -> None:
    assert (t_tail(100.0, 0), t_quantile(0.05, 0)) == (1.0, math.inf)
    assert half_of_means([3.0]) is None


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=40))
def test_the_interval_of_independent_values_against_scipy(values: list[float]) -> None:
    half = half_of_means(values)
    assert half is not None
    known = stats.t.isf(0.025, len(values) - 1) * stats.sem(values)
    assert half == pytest.approx(known, rel=1e-5, abs=1e-9)


# --- one seed --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_one_seed_of_right_and_wrong_has_wilsons_interval(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    found = mean_interval([[100.0] * k + [0.0] * (n - k)])
    known = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((100 * known.low, 100 * known.high), abs=1e-4)


def test_one_row_of_no_known_kind_may_be_anything() -> None:
    found = mean_interval([[42.0]])
    assert (found.value, found.low, found.high) == (42, 0, 100)
    found = mean_interval([[42.0], [42.0]])
    assert (found.low, found.high) == (0, 100)


def test_rows_that_all_score_alike_are_bounded_by_how_many_they_are() -> None:
    """Fifty rows of 50 points each show no spread: the bound is that of fifty tosses."""
    found = mean_interval([[50.0] * 50])
    known = within_ends(50.0, 0.0, stats.t.isf(0.025, 49) ** 2 / 50)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert 25 < found.high - found.low < 30


def test_a_difference_of_one_seed_is_bonett_and_prices_without_a_test() -> None:
    """Adjusted Wald interval for paired proportions (2012), with Student's quantile in place of the normal one."""
    n_first, n_second, n = 31, 12, 120
    found = paired_difference(
        [[100.0] * n_first + [0.0] * (n - n_first)], [[0.0] * (n - n_second) + [100.0] * n_second]
    )
    first, second = (n_first + 1) / (n + 2), (n_second + 1) / (n + 2)
    half = stats.t.isf(0.025, n - 1) * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    assert (found.low, found.high) == pytest.approx(
        (100 * (first - second - half), 100 * (first - second + half)), rel=1e-4
    )
    assert (found.p, found.n_apart) == (None, n_first + n_second)


@pytest.mark.parametrize(("n", "n_seeds"), [(1, 1), (50, 1), (50, 3), (3000, 5)])
def test_where_nothing_differs_the_interval_is_no_point(n: int, n_seeds: int) -> None:
    same = np.random.default_rng(n).choice([0.0, 100.0], (n_seeds, n))
    found = paired_difference(same, same)
    assert (found.mean, found.n_apart) == (0, 0)
    assert found.low == pytest.approx(-found.high)
    # Two rows that might have come and did not; the rule of three allows 3.7 / n.
    assert found.high == pytest.approx(100 if n == 1 else 100 * t_quantile(0.05, n - 1) * math.sqrt(2) / (n + 2))
    assert found.p == (None if n_seeds == 1 or n == 1 else 1.0)


# --- seeds -----------------------------------------------------------------------------------------------------------


def anova(table: np.ndarray) -> tuple[float, float, float]:
    """Variance of the mean by seeds, by rows and by single cells, from the mean squares of a plain loop."""
    n_seeds, n = table.shape
    grand = table.sum() / table.size
    by_seed = [sum(row) / n for row in table]
    by_row = [sum(column) / n_seeds for column in table.T]
    seeds = n * sum((m - grand) ** 2 for m in by_seed) / (n_seeds - 1)
    rows = n_seeds * sum((m - grand) ** 2 for m in by_row) / (n - 1)
    cells = sum((table[s, i] - by_seed[s] - by_row[i] + grand) ** 2 for s in range(n_seeds) for i in range(n))
    return seeds / table.size, rows / table.size, cells / ((n_seeds - 1) * (n - 1)) / table.size


def test_seeds_and_rows_are_told_apart_as_in_a_two_way_table() -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(0, 3, (4, 1)) + rng.normal(0, 20, (1, 57)) + rng.normal(0, 9, (4, 57)) + 50
    seeds, rows, cells = anova(table)
    found = Spread.of(table, rows=rows, df_rows=56)
    assert (found.seeds, found.shared) == pytest.approx((seeds, rows - cells))
    quantiles = stats.t.isf(0.025, 3), stats.t.isf(0.025, 56)
    half = (seeds * quantiles[0] + (rows - cells) * quantiles[1]) / math.sqrt(seeds + rows - cells)
    assert found.half() == pytest.approx(max(half, quantiles[1] * math.sqrt(rows)), rel=1e-5)


@settings(deadline=None)
@example(seeds=1.1e-308, rows=1.0, share=1.0, n_seeds=2, n=31, alpha=0.5)
@example(seeds=1e-28, rows=1.0, share=1.0, n_seeds=30, n=31, alpha=0.05)
@given(
    st.floats(0, 50),
    st.floats(0.01, 50),
    st.floats(0, 1),
    st.integers(1, 12),
    st.integers(2, 5000),
    st.floats(0.001, 0.5),
)
def test_a_p_is_the_level_whose_interval_just_reaches_nothing(
    seeds: float, rows: float, share: float, n_seeds: int, n: int, alpha: float
) -> None:
    spread = Spread(seeds if n_seeds > 1 else 0.0, rows, share * rows if n_seeds > 1 else rows, n_seeds, n - 1)
    assert spread.p(spread.half(alpha)) == pytest.approx(alpha, rel=1e-3)
    assert spread.p(0.0) == 1.0
    assert spread.half(alpha) >= t_quantile(alpha, n - 1) * math.sqrt(rows) * (1 - 1e-9), (
        "never surer than over rows alone"
    )
    assert spread.half(alpha / 2) >= spread.half(alpha)


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(2, 40), st.integers(0, 10_000))
def test_an_interval_holds_its_value_and_turns_with_its_sides(n_seeds: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    share = rng.random()
    a, b = (100.0 * (rng.random((n_seeds, n)) < share) for _ in range(2))
    found, turned = paired_difference(a, b), paired_difference(b, a)
    assert -100 <= found.low <= found.mean <= found.high <= 100
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-found.mean, -found.high, -found.low))
    assert turned.p == pytest.approx(found.p)
    assert found.p is not None
    assert found.p >= min(1.0, 2 / 2**found.n_apart)
    if is_significant(found):
        assert not found.low <= 0 <= found.high
    alone = mean_interval(a)
    assert 0 <= alone.low <= alone.value <= alone.high <= 100


def test_many_seeds_that_agree_come_to_the_interval_over_rows() -> None:
    one = np.random.default_rng(5).choice([0.0, 100.0], (1, 400))
    alone, many = mean_interval(one), mean_interval(np.repeat(one, 50, axis=0))
    assert (many.low, many.high) == pytest.approx((alone.low, alone.high))


# --- statistics that are no mean over rows ----------------------------------------------------------------------------


def test_the_parts_of_a_mean_are_the_rows_themselves() -> None:
    rng = np.random.default_rng(1)
    features = np.stack([rng.random(31), np.ones(31)], axis=1)
    assert row_values(features, lambda sums: sums[..., 0] / sums[..., 1]) == pytest.approx(features[:, 0])


def test_the_interval_of_f1_covers_it_in_made_up_answers() -> None:
    """Micro F1 of a tagger's entities, one seed, rows drawn from a large population whose F1 is known."""
    rng = np.random.default_rng(8)

    def rows(n: int) -> np.ndarray:
        n_gold = rng.poisson(2.0, n)
        hard = rng.beta(6, 2, n)
        right = rng.binomial(n_gold, hard)
        return np.stack([right, n_gold, right + rng.poisson(0.5, n)], axis=1).astype(float)

    def f1(sums: np.ndarray) -> np.ndarray:
        return 200 * sums[..., 0] / (sums[..., 1] + sums[..., 2])

    truth, n_covered, n_worlds = float(f1(rows(400_000).sum(0))), 0, 400
    for _ in range(n_worlds):
        sample = rows(150)
        found = reading_of(float(f1(sample.sum(0))), row_values(sample, f1)[None])
        n_covered += found.low <= truth <= found.high
    assert 0.92 <= n_covered / n_worlds <= 0.98


@pytest.mark.parametrize("statistic", ["micro_f1", "macro_f1", "accuracy"])
def test_f1_of_equal_strategies_is_seldom_told_apart(statistic: str) -> None:
    rng = np.random.default_rng(11)
    labels = ("a", "b", "c")
    n_told, n_worlds, n = 0, 60, 150
    for _ in range(n_worlds):
        golds = [str(label) for label in rng.choice(labels, n, p=(0.6, 0.3, 0.1))]
        sides = []
        for _side in range(2):
            said = []
            for _seed in range(3):
                right = rng.random(n) < 0.7 + rng.normal(0, 0.03)
                said.append([g if ok else str(rng.choice(labels)) for g, ok in zip(golds, right, strict=True)])
            sides.append([Answered(answers, golds, labels) for answers in said])
        n_told += is_significant(paired_scores("f1", *sides, statistic=statistic))
        assert mean_score("f1", sides[0], statistic=statistic).low > 0
    assert n_told <= 0.05 * n_worlds + 2 * math.sqrt(0.05 * 0.95 * n_worlds)
