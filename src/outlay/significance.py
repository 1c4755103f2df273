"""Tests between strategies: paired over the same examples and seeds, and corrected for how many there are.

A test that finds nothing does not say that two strategies are equal: :func:`smallest_difference` says what it could have found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import TYPE_CHECKING

from outlay.errors import DataError
from outlay.grouping import Group, group
from outlay.metrics import LEVEL, N_BOOTSTRAP, Answered, Difference, Rule, featured
from outlay.metrics.bootstrap import ROUNDING, resampled_scores
from outlay.point import Point, PointRequest
from outlay.report.results import Results
from outlay.strategy import STRATEGIES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MOST_RESAMPLES = 20_000
"""Enough for Holm's first step over 500 comparisons, see :func:`n_resamples`."""
_CHUNK_CELLS = 2_000_000
_MOST_CELLS = 50_000_000
"""Features held at once: 400 MB."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust a family of p-values so that any wrong rejection among them is as rare as one test's (Holm 1979, step-down).

    The k-th smallest of m is max over j <= k of (m - j + 1) p_(j), at most 1; in the order given, and never below the plain
    p. Holds whatever the dependence between the tests.

    Raises:
        DataError: A value is not between 0 and 1.
    """
    order = _rising(p_values)
    adjusted, highest = [0.0] * len(order), 0.0
    for n_before, i in enumerate(order):
        highest = max(highest, (len(order) - n_before) * p_values[i])
        adjusted[i] = min(1.0, highest)
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjust a family of p-values so that the expected share of wrong ones among its rejections is bounded.

    Benjamini & Hochberg 1995, step-up. The k-th smallest of m is min over j >= k of m p_(j) / j, at most 1; in the order given.
    Holds for tests that are independent or positively dependent.

    Raises:
        DataError: A value is not between 0 and 1.
    """
    order = _rising(p_values)
    adjusted, lowest = [0.0] * len(order), 1.0
    for rank in range(len(order), 0, -1):
        i = order[rank - 1]
        lowest = min(lowest, len(order) * p_values[i] / rank)
        adjusted[i] = lowest
    return adjusted


def _rising(p_values: Sequence[float]) -> list[int]:
    for p in p_values:
        if not 0 <= p <= 1:
            raise DataError(f"{p} is no p-value; it must be from 0 to 1")
    return sorted(range(len(p_values)), key=lambda i: p_values[i])


def smallest_difference(low: float, high: float, n_comparisons: int = 1) -> float:
    """How small a difference a test could have told from none: half the width of its 95 % interval, in points.

    A true difference of this size is found about every second time, one 1.4 times as large at least four times out of five.
    Among several comparisons the half-width is scaled to the level of the first step of Holm's correction, by the ratio of the
    normal quantiles of 1 - 0.025 / n and 0.975.

    Raises:
        DataError: ``high`` is below ``low``, or there is no comparison.
    """
    if not low <= high or n_comparisons < 1:
        raise DataError(
            f"an interval from {low} to {high} among {n_comparisons} comparisons; give low <= high, 1 or more"
        )
    tail = (1 - LEVEL) / 2
    quantile = NormalDist().inv_cdf
    return (high - low) / 2 * quantile(1 - tail / n_comparisons) / quantile(1 - tail)


def permutation_test(
    metric: str,
    a: Sequence[Answered],
    b: Sequence[Answered],
    *,
    statistic: str | None = None,
    reading: Rule | None = None,
    n_rounds: int = N_BOOTSTRAP,
    seed: int = 0,
) -> float:
    """Return the two-sided p of "no difference" by approximate randomisation (Noreen 1989; for F1 Yeh 2000).

    If the systems are alike, their answers to an example may be swapped. Each round swaps those of half of the examples, drawn
    anew and jointly over seeds, and p = (1 + number of rounds with |d*| >= |d|) / (1 + n_rounds) where d is the difference of the
    means over seeds. It speaks of these seeds and of other examples; of other seeds only the bootstrap does
    (:func:`outlay.metrics.paired_bootstrap_scores`).

    Args:
        metric: One of `METRICS`.
        a: One per seed, over the same examples in the same order.
        b: The same seeds and examples.
        statistic: One of the metric's; the main one by default.
        reading: ``published`` or ``strict``; that of the main score by default.
        n_rounds: Number of rounds; no p is below 1 / (1 + n_rounds).
        seed: Seed of the rounds.

    Raises:
        LabelError: A gold answer is outside the label set.
        DataError: The metric, statistic or reading is unknown, or seeds and examples do not agree.
    """
    if len(a) != len(b):
        raise DataError(f"{len(a)} seeds are paired with {len(b)}; give both sides the same seeds")
    tables, value = featured(metric, [*a, *b], statistic=statistic, reading=reading)
    (p,) = _permuted([tables[: len(a)], tables[len(a) :]], [(0, 1)], value, n_rounds, seed)
    return p


def _permuted(
    sides: Sequence[Sequence[Floats]],
    pairs: Sequence[tuple[int, int]],
    value: Callable[[Floats], Floats],
    n_rounds: int,
    seed: int,
) -> list[float]:
    """The p of each pair of sides; a side is its features per seed, ``[n_examples, n_features]``."""
    import numpy as np

    n_sides, n_seeds = len(sides), len(sides[0])
    sums = np.array([[table.sum(0) for table in side] for side in sides])
    scores = value(sums).mean(-1)
    features = np.concatenate([table for side in sides for table in side], axis=1)
    n_as_large = [0] * len(pairs)
    for swaps in _swaps(len(features), n_rounds, seed):
        moved = (swaps @ features).reshape(len(swaps), n_sides, n_seeds, -1)
        for k, (i, j) in enumerate(pairs):
            gained = moved[:, j] - moved[:, i]
            permuted = (value(sums[i] + gained) - value(sums[j] - gained)).mean(-1)
            n_as_large[k] += int((abs(permuted) >= abs(scores[i] - scores[j]) - ROUNDING).sum())
    return [(1 + n) / (1 + n_rounds) for n in n_as_large]


def _swaps(n_examples: int, n_rounds: int, seed: int) -> Iterator[Floats]:
    """Yield which examples are swapped, 0 or 1, in chunks ``[n, n_examples]``."""
    import numpy as np

    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // n_examples)
    for start in range(0, n_rounds, chunk):
        drawn = rng.integers(0, 256, (min(chunk, n_rounds - start), (n_examples + 7) // 8), dtype=np.uint8)
        yield np.unpackbits(drawn, axis=1, count=n_examples).astype(np.float64)


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two strategy variants at one budget, first minus second, in points of the task's main score.

    Attributes:
        task: Name of the task.
        budget_usd: The total budget of both.
        added_usd: What comes on top of the initial labels, None where neither side says.
        n_initial: The initial labels of both, None where neither side says.
        first: Label of the first, as :func:`outlay.grouping.group` names it among the points of its task.
        second: Label of the second.
        mean: Difference of the means over the seeds that both have.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
        p: Two-sided p of "no difference" by the same resamples.
        p_permuted: Two-sided p by swapping answers, see :func:`permutation_test`; over examples alone.
        p_holm: ``p`` after Holm's correction over the family.
        p_bh: ``p`` after Benjamini and Hochberg's.
        n_comparisons: Size of the family.
        n_seeds: Seeds that both have.
        n_examples: Test examples.
        points: Ids of the points on either side, by seed.
    """

    task: str
    budget_usd: float
    added_usd: float | None
    n_initial: int | None
    first: str
    second: str
    mean: float
    low: float
    high: float
    p: float
    p_permuted: float
    p_holm: float
    p_bh: float
    n_comparisons: int
    n_seeds: int
    n_examples: int
    points: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def is_significant(self) -> bool:
        """Whether the difference is told from none at 95 % after Holm's correction."""
        return self.p_holm <= 1 - LEVEL

    @property
    def covers(self) -> str:
        """What interval and p generalise to; one seed says nothing of others."""
        return "examples" if self.n_seeds == 1 else "examples and seeds"

    @property
    def smallest(self) -> float:
        """How small a difference this test could have seen within its family, in points."""
        return smallest_difference(self.low, self.high, self.n_comparisons)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two sides, each the ids of the points of the seeds that both answered."""

    first: Group
    second: Group
    seeds: tuple[int, ...]
    points: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def task(self) -> str:
        """The task of both."""
        return self.first.points[0].request.task


def family(results: Results, *, n_bootstrap: int | None = None, seed: int = 0) -> tuple[PairedTest, ...]:
    """Every paired test that the answers of a results folder allow, corrected as one family.

    Within a task two variants are compared at equal budget, initial labels, pool, machine, prices and dev labels, on the seeds
    that both answered, where they differ in one thing: the strategy, with the same models; or, within a strategy, one model.
    What a strategy has no use for (the pool of one that distils nothing) is no difference. A point whose answers are gone has
    no row.

    Args:
        results: Points of one or several tasks with what their runs left.
        n_bootstrap: Number of resamples; by default :func:`n_resamples` of the family's size.
        seed: Seed of resamples and permutations; with it equal results give equal rows.

    Returns:
        One row per pair: by task, budget and the order of the points, the later variant minus the earlier.

    Raises:
        LabelError: A gold answer is outside its label set.
        DataError: Points of one task answer different examples, or not as their metric needs.
    """
    pairs = _pairs(results)
    n_draws = n_resamples(len(pairs)) if n_bootstrap is None else n_bootstrap
    tested: dict[int, tuple[Difference, float, int]] = {}
    for batch in _batches(results, pairs):
        tested.update(zip(batch, _tested(results, [pairs[i] for i in batch], n_draws, seed), strict=True))
    p_values = [tested[i][0].p_two_sided for i in range(len(pairs))]
    by_holm, by_bh = holm(p_values), benjamini_hochberg(p_values)
    rows = []
    for i, pair in enumerate(pairs):
        difference, p_permuted, n_examples = tested[i]
        one, other = pair.first.points[0].request, pair.second.points[0].request
        row = PairedTest(
            task=pair.task,
            budget_usd=one.budget_usd,
            added_usd=other.added_usd if one.added_usd is None else one.added_usd,
            n_initial=other.n_initial if one.n_initial is None else one.n_initial,
            first=pair.first.label,
            second=pair.second.label,
            mean=difference.mean,
            low=difference.low,
            high=difference.high,
            p=difference.p_two_sided,
            p_permuted=p_permuted,
            p_holm=by_holm[i],
            p_bh=by_bh[i],
            n_comparisons=len(pairs),
            n_seeds=len(pair.seeds),
            n_examples=n_examples,
            points=pair.points,
        )
        rows.append(row)
    return tuple(rows)


def n_resamples(n_comparisons: int) -> int:
    """As many resamples as let the first step of Holm's correction reject: 40 per comparison, from 1,000 to `MOST_RESAMPLES`.

    The least p of n resamples is 2 / (n + 1), so m comparisons need 2 m / (n + 1) <= 0.05. Beyond 500 comparisons Holm's p cannot
    reach 0.05 with the most resamples; Benjamini and Hochberg's can.
    """
    wanted = round(2 / (1 - LEVEL)) * n_comparisons
    return min(MOST_RESAMPLES, max(N_BOOTSTRAP, -(-wanted // 1000) * 1000))


def _pairs(results: Results) -> list[_Pair]:
    answered = {point for point, aftermath in results.left.items() if aftermath.answered is not None}
    if not answered:
        return []
    by_task: dict[str, list[Point]] = {}
    for point in results.points:
        by_task.setdefault(point.request.task, []).append(point)
    found = []
    for points in by_task.values():
        buckets: dict[tuple[object, ...], list[tuple[Group, dict[int, str]]]] = {}
        for each in group(points, unnamed=("n_initial", "added_usd")):
            of_seed = {point.request.seed: point.id for point in each.points if point.id in answered}
            if of_seed:
                buckets.setdefault(_circumstances(each.points[0].request), []).append((each, of_seed))
        found += [pair for bucket in buckets.values() for pair in _paired(bucket)]
    return found


def _paired(bucket: Sequence[tuple[Group, dict[int, str]]]) -> Iterator[_Pair]:
    for (second, others), (first, ones) in combinations(bucket, 2):
        seeds = tuple(sorted(set(ones) & set(others)))
        if seeds and is_told_apart(first.points[0].request, second.points[0].request):
            yield _Pair(first, second, seeds, (tuple(ones[s] for s in seeds), tuple(others[s] for s in seeds)))


def _circumstances(request: PointRequest) -> tuple[object, ...]:
    """What must be equal on both sides whatever the strategies."""
    return request.budget_usd, request.machine, request.clock, request.price_book, request.dev


def is_told_apart(one: PointRequest, other: PointRequest) -> bool:
    """Whether a difference has one cause: another strategy with the same models, or one other model within a strategy.

    Initial labels and pool must agree where both sides have them.
    """
    for a, b in ((one.n_initial, other.n_initial), (_pool(one), _pool(other))):
        if a is not None and b is not None and a != b:
            return False
    n_others = sum(a != b for a, b in zip(_models(one), _models(other), strict=True) if a is not None and b is not None)
    return n_others == (1 if one.variant == other.variant else 0)


def _pool(request: PointRequest) -> tuple[tuple[str, int], ...] | None:
    """The pool, ``None`` where no teacher labels it."""
    return None if request.teacher is None else request.pool


def _models(request: PointRequest) -> tuple[str | None, str | None]:
    """Teacher and student, ``None`` where the strategy brings its own."""
    policy = STRATEGIES.get(request.strategy)
    if policy is None:
        return request.teacher, request.student
    teacher = request.teacher if policy.taught_by == "teacher" else None
    return teacher, None if policy.starts_general else request.student


def _batches(results: Results, pairs: Sequence[_Pair]) -> Iterator[list[int]]:
    """Places of pairs that are resampled together: the same task and seeds, and no more features at once than fit."""
    alike: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for i, pair in enumerate(pairs):
        alike.setdefault((pair.task, pair.seeds), []).append(i)
    for places in alike.values():
        ids = pairs[places[0]].points[0]
        metric, (answered, *_) = _answers(results, ids)
        (table,), _ = featured(metric, [answered])
        most = max(2, _MOST_CELLS // (table.size * len(ids)))
        batch: list[int] = []
        sides: set[tuple[str, ...]] = set()
        for i in places:
            if len(sides | set(pairs[i].points)) > most:
                yield batch
                batch, sides = [], set()
            batch.append(i)
            sides |= set(pairs[i].points)
        yield batch


def _answers(results: Results, ids: Sequence[str]) -> tuple[str, list[Answered]]:
    """The one metric and the answers of points of a task."""
    answers, metrics = [], set()
    for left in (results.left[point] for point in ids):
        if left.answered is not None:
            answers.append(left.answered)
            metrics.add(left.metric or "none")
    if len(metrics) != 1:
        raise DataError(f"the points of one task are scored by {', '.join(sorted(metrics))}; score all by one metric")
    return metrics.pop(), answers


def _tested(
    results: Results, pairs: Sequence[_Pair], n_bootstrap: int, seed: int
) -> list[tuple[Difference, float, int]]:
    """Bootstrapped difference, permutation p and examples of each pair; a side is resampled once for all its pairs."""
    sides = list(dict.fromkeys(side for pair in pairs for side in pair.points))
    metric, answers = _answers(results, [point for side in sides for point in side])
    flat, value = featured(metric, answers)
    n_seeds, n_examples = len(sides[0]), len(flat[0])
    tables = [flat[i : i + n_seeds] for i in range(0, len(flat), n_seeds)]
    values, draws = resampled_scores(tables, value, seed, n_bootstrap)
    place = {side: i for i, side in enumerate(sides)}
    places = [(place[pair.points[0]], place[pair.points[1]]) for pair in pairs]
    permuted = _permuted(tables, places, value, N_BOOTSTRAP, seed)
    return [
        (Difference.of(values[i] - values[j], draws[i] - draws[j]), p, n_examples)
        for (i, j), p in zip(places, permuted, strict=True)
    ]
