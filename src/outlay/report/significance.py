"""Paired tests between strategies over the same test rows and seeds, corrected for multiple comparisons.

One seed is no evidence about a method: such a pair has a difference, an interval for these two models, and no test.
A test without a finding does not show that two strategies are equal: `PairedTest.smallest` is the difference it could have found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING

from outlay.engine.point import Point, PointRequest
from outlay.errors import DataError
from outlay.metrics import ALPHA, Answered, Difference, Rule, featured
from outlay.metrics.intervals import ROUNDING
from outlay.metrics.scoring import Side
from outlay.plan.strategies import STRATEGIES
from outlay.report.grouping import Group, group
from outlay.report.results import Results
from outlay.report.seed_means import mean_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

N_ROUNDS = 1000
"""Rounds of a permutation test; where there are no more assignments than this, each is counted once instead."""
_CHUNK_CELLS = 2_000_000
MOST_FEATURES = 50_000_000
"""Maximum number of features in memory at once: 400 MB."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the familywise error rate is that of one test (Holm 1979, step-down).

    The k-th smallest of m is max over j <= k of (m - j + 1) p_(j), at most 1; in the order given, and never below the plain
    p. Holds whatever the dependence between the tests.

    Raises:
        DataError: A value is not between 0 and 1.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise DataError(f"{p} is no p-value; it must be from 0 to 1")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(order), 0.0
    for n_before, i in enumerate(order):
        highest = max(highest, (len(order) - n_before) * p_values[i])
        adjusted[i] = min(1.0, highest)
    return adjusted


def permutation_test(
    metric: str,
    a: Sequence[Answered],
    b: Sequence[Answered],
    *,
    statistic: str | None = None,
    reading: Rule | None = None,
    n_rounds: int = N_ROUNDS,
    seed: int = 0,
) -> float:
    """Return the two-sided p of "no difference" by approximate randomisation (Noreen 1989; for F1 Yeh 2000).

    If the systems are alike, their answers to an example may be swapped. Each round swaps those of half of the examples, drawn
    anew and jointly over seeds, and p = (1 + number of rounds with |d*| >= |d|) / (1 + n_rounds) where d is the difference of the
    means over seeds. Where no more than ``n_rounds`` assignments differ, each is counted once. The p holds for these models on
    other examples; for other seeds see `outlay.metrics.scoring.Side`.

    Args:
        metric: One of `METRICS`.
        a: The answers of one side, one item per seed, over the same examples in the same order.
        b: The answers of the other side, for the same seeds and examples.
        statistic: A statistic of the metric; its main one by default.
        reading: ``published`` or ``strict``; the reading of the main score by default.
        n_rounds: Number of rounds; no p is below 1 / (1 + n_rounds), nor below 2 / 2^n over n examples.
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
    """Return the p of each pair of sides; a side has an array of features per seed, ``[n_examples, n_features]``."""
    import numpy as np

    n_sides, n_seeds = len(sides), len(sides[0])
    sums = np.array([[table.sum(0) for table in side] for side in sides])
    scores = value(sums).mean(-1)
    features = np.concatenate([table for side in sides for table in side], axis=1)

    def n_as_large(i: int, j: int, gained: Floats) -> int:
        permuted = (value(sums[i] + gained) - value(sums[j] - gained)).mean(-1)
        return int((abs(permuted) >= abs(scores[i] - scores[j]) - ROUNDING).sum())

    found: list[float | None] = [None] * len(pairs)
    for k, (i, j) in enumerate(pairs):
        gains = np.stack(sides[j]) - np.stack(sides[i])
        apart = gains[:, (abs(gains) > ROUNDING).any((0, 2))]
        if 2 ** apart.shape[1] <= n_rounds:
            every = np.array(list(product((0.0, 1.0), repeat=apart.shape[1])))
            found[k] = n_as_large(i, j, np.einsum("am,smf->asf", every, apart)) / len(every)
    counts = dict.fromkeys((k for k, p in enumerate(found) if p is None), 0)
    for swaps in _swaps(len(features), n_rounds, seed) if counts else ():
        moved = (swaps @ features).reshape(len(swaps), n_sides, n_seeds, -1)
        for k in counts:
            i, j = pairs[k]
            counts[k] += n_as_large(i, j, moved[:, j] - moved[:, i])
    return [(1 + counts[k]) / (1 + n_rounds) if p is None else p for k, p in enumerate(found)]


def _swaps(n_examples: int, n_rounds: int, seed: int) -> Iterator[Floats]:
    """Yield the swaps of the examples (0 or 1) round by round, in chunks ``[n, n_examples]``."""
    import numpy as np

    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // n_examples)
    for start in range(0, n_rounds, chunk):
        drawn = rng.integers(0, 256, (min(chunk, n_rounds - start), (n_examples + 7) // 8), dtype=np.uint8)
        yield np.unpackbits(drawn, axis=1, count=n_examples).astype(np.float64)


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A paired test of two strategy variants at one budget: first minus second, in points of the main score of the task.

    Attributes:
        task: Name of the task.
        budget_usd: The total budget of both.
        n_initial: The initial labels of both, None where neither request has a number.
        first: Label of the first, as :func:`outlay.report.grouping.group` names it among the points of its task.
        second: Label of the second.
        mean: Difference of the means over the seeds that both have.
        low: Lower end of its 95 % interval (`outlay.metrics.Difference`).
        high: Upper end of the interval.
        p: Two-sided p of "no difference" for new seeds and new rows; None where there is no test: one seed, or one row.
        p_holm: ``p`` after Holm's correction over the family.
        p_permuted: Two-sided p by swapping answers, see :func:`permutation_test`: for these models on other rows.
        smallest: The smallest difference that is significant at the first step of Holm's correction, in points; a true
            difference of this size is found about every second time. None without a test.
        n_comparisons: Tests of the family.
        n_seeds: Seeds that both have.
        n_examples: Test rows.
        n_apart: Rows that the two sides score differently in some seed.
        has_rival: True where one of the two is a rival.
        sides: Point ids of the first and of the second, a point for each seed that both have.
    """

    task: str
    budget_usd: float
    n_initial: int | None
    first: str
    second: str
    mean: float
    low: float
    high: float
    p: float | None
    p_holm: float | None
    p_permuted: float
    smallest: float | None
    n_comparisons: int
    n_seeds: int
    n_examples: int
    n_apart: int
    has_rival: bool = False
    sides: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @property
    def is_significant(self) -> bool:
        """True where the difference is significant at 95 % after Holm's correction; False without a test."""
        return self.p_holm is not None and self.p_holm <= ALPHA


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two groups of a task to compare, with the point ids of each by seed, for the seeds that both answered."""

    task: str
    first: Group
    second: Group
    seeds: tuple[int, ...]
    points: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def has_rival(self) -> bool:
        """True where one of the two is a rival."""
        return _is_rival(self.first) or _is_rival(self.second)


def _is_rival(group: Group) -> bool:
    return group.points[0].request.is_rival


def family(results: Results) -> tuple[PairedTest, ...]:
    """Return every paired test between the points of some results, corrected as one family, and as another with rivals.

    Within a task two variants are compared at equal budget, initial labels, pool, machine, prices and dev labels, on the seeds
    that both answered, where they differ in one choice: the strategy; or, within a strategy, one model or the method.
    A field that a strategy does not use (the pool of one that distils nothing) is no difference. A point without kept answers
    is in no pair. Of rivals, the one with the highest mean is compared with each of the others at its budget, whatever their
    models; these tests are a family of their own, so that a rival takes nothing from the tests between strategies.

    Args:
        results: Points of one or several tasks with the outputs of their runs.

    Returns:
        One row per pair: by task, budget and the order of the points, the later variant minus the earlier, a strategy minus a
        rival.

    Raises:
        LabelError: A gold answer is outside its label set.
        DataError: Points of one task answer different examples, or not as their metric needs.
    """
    pairs = _pairs(results)
    tested: dict[int, tuple[Difference, float]] = {}
    for batch in _batches(results, pairs):
        tested.update(zip(batch, _tested(results, [pairs[i] for i in batch]), strict=True))
    by_holm: dict[int, float] = {}
    sizes: dict[int, int] = {}
    for has_rival in (False, True):
        own = [i for i, pair in enumerate(pairs) if pair.has_rival == has_rival]
        p_values = {i: p for i in own if (p := tested[i][0].p) is not None}
        by_holm |= dict(zip(p_values, holm(list(p_values.values())), strict=True))
        sizes |= dict.fromkeys(own, len(p_values))
    return tuple(_row(pair, *tested[i], by_holm.get(i), sizes[i]) for i, pair in enumerate(pairs))


def _row(pair: _Pair, found: Difference, p_permuted: float, p_holm: float | None, n_comparisons: int) -> PairedTest:
    one, other = pair.first.points[0].request, pair.second.points[0].request
    return PairedTest(
        task=pair.task,
        budget_usd=one.budget_usd,
        n_initial=other.n_initial if one.n_initial is None else one.n_initial,
        first=pair.first.label,
        second=pair.second.label,
        mean=found.mean,
        low=found.low,
        high=found.high,
        p=found.p,
        p_holm=p_holm,
        p_permuted=p_permuted,
        smallest=None if found.p is None else found.spread.half(ALPHA / n_comparisons),
        n_comparisons=n_comparisons,
        n_seeds=found.n_seeds,
        n_examples=found.n_examples,
        n_apart=found.n_apart,
        has_rival=pair.has_rival,
        sides=pair.points,
    )


def _pairs(results: Results) -> list[_Pair]:
    answered = {point for point, outputs in results.outputs.items() if outputs.answered is not None}
    if not answered:
        return []
    by_task: dict[str, list[Point]] = {}
    for point in results.points:
        by_task.setdefault(point.request.task, []).append(point)
    found = []
    for task, points in by_task.items():
        buckets: dict[tuple[object, ...], list[tuple[Group, dict[int, str]]]] = {}
        for each in group(points, unnamed=("n_initial", "added_usd")):
            of_seed = {point.request.seed: point.id for point in each.points if point.id in answered}
            if of_seed:
                request = each.points[0].request
                shared = request.budget_usd, request.machine, request.clock, request.price_book, request.dev
                buckets.setdefault(shared, []).append((each, of_seed))
        found += [pair for bucket in buckets.values() for pair in _paired(task, bucket)]
    return found


def _paired(task: str, bucket: Sequence[tuple[Group, dict[int, str]]]) -> Iterator[_Pair]:
    rivals = [each for each, _ in bucket if _is_rival(each)]
    best = max(rivals, key=lambda each: mean_of(point.result.test or 0.0 for point in each.ok) or 0.0, default=None)
    kept = [(each, of_seed) for each, of_seed in bucket if each is best or not _is_rival(each)]
    for (second, others), (first, ones) in combinations(kept, 2):
        if _is_rival(first):
            (first, ones), (second, others) = (second, others), (first, ones)
        seeds = tuple(sorted(set(ones) & set(others)))
        has_rival = _is_rival(second)
        if seeds and (has_rival or differs_in_one_choice(first.points[0].request, second.points[0].request)):
            yield _Pair(task, first, second, seeds, (tuple(ones[s] for s in seeds), tuple(others[s] for s in seeds)))


def differs_in_one_choice(one: PointRequest, other: PointRequest) -> bool:
    """Return True where two requests differ in one choice: the strategy, or within a strategy one model or the method.

    Initial labels and pool must be equal where both requests have them.
    """
    # A strategy without a teacher uses no pool.
    pools = [None if request.teacher is None else request.pool for request in (one, other)]
    for a, b in ((one.n_initial, other.n_initial), pools):
        if a is not None and b is not None and a != b:
            return False
    n_models = _n_apart(_models(one), _models(other))
    methods = ((each.teacher_method, each.student_method) for each in (one, other))
    # A method is chosen for teacher and student together.
    n_others = n_models + min(1, _n_apart(*methods))
    return n_others == (1 if one.policy == other.policy else 0)


def _n_apart(one: Sequence[str | None], other: Sequence[str | None]) -> int:
    """Return the number of places at which two sequences have different values."""
    return sum(a != b for a, b in zip(one, other, strict=True) if a is not None and b is not None)


def _models(request: PointRequest) -> tuple[str | None, str | None]:
    """Return teacher and student of a request; ``None`` for a model that the strategy determines."""
    policy = STRATEGIES.get(request.strategy)
    if policy is None:
        return request.teacher, request.student
    teacher = request.teacher if policy.taught_by == "teacher" else None
    return teacher, None if policy.starts_general else request.student


def _batches(results: Results, pairs: Sequence[_Pair]) -> Iterator[list[int]]:
    """Yield batches of indices of pairs with the same task and seeds, as many as fit into `MOST_FEATURES` features."""
    alike: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for i, pair in enumerate(pairs):
        alike.setdefault((pair.task, pair.seeds), []).append(i)
    for places in alike.values():
        ids = pairs[places[0]].points[0]
        metric, (answered, *_) = _answers(results, ids)
        (table,), _ = featured(metric, [answered])
        most = max(2, MOST_FEATURES // (table.size * len(ids)))
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
    """Return the metric and the answers of some points of one task."""
    outputs = [results.outputs[point] for point in ids]
    metrics = {each.metric or "none" for each in outputs}
    if len(metrics) != 1:
        raise DataError(f"the points of one task are scored by {', '.join(sorted(metrics))}; score all by one metric")
    return metrics.pop(), [each.answered for each in outputs if each.answered is not None]


def _tested(results: Results, pairs: Sequence[_Pair]) -> list[tuple[Difference, float]]:
    """Return the difference and the permutation p of each pair; features of a side are computed once for all its pairs."""
    names = list(dict.fromkeys(side for pair in pairs for side in pair.points))
    metric, answers = _answers(results, [point for side in names for point in side])
    flat, value = featured(metric, answers)
    n_seeds = len(names[0])
    tables = [flat[i : i + n_seeds] for i in range(0, len(flat), n_seeds)]
    sides = [Side.of(each, value) for each in tables]
    place = {name: i for i, name in enumerate(names)}
    places = [(place[pair.points[0]], place[pair.points[1]]) for pair in pairs]
    permuted = _permuted(tables, places, value, N_ROUNDS, seed=0)
    return [(sides[i].minus(sides[j]), p) for (i, j), p in zip(places, permuted, strict=True)]
