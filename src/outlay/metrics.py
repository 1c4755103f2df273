"""Scores of predicted labels, in two readings, with bootstrap intervals. Everything is in points, 0 to 100.

An answer outside the label set is *unknown*. The ``published`` reading makes it the task's first label, as the code of
Kang et al. 2023 does; the ``strict`` reading makes it wrong: it is no prediction for any class. Intervals are 95 %
percentile bootstrap intervals (Efron & Tibshirani 1993, section 13.3) and depend on nothing but the input and the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from outlay.errors import DataError, LabelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.intp]

Statistic = Literal["accuracy", "micro_f1", "macro_f1"]
Rule = Literal["published", "strict"]

STATISTICS: dict[str, tuple[Statistic, ...]] = {
    "accuracy": ("accuracy", "macro_f1"),
    "f1": ("micro_f1", "macro_f1", "accuracy"),
}
"""A task's metric → the statistics that are reported for it, the main one first."""

LEVEL = 0.95
N_BOOTSTRAP = 1000
_CHUNK_CELLS = 2_000_000
_ROUNDING = 1e-9
"""Points below which a resampled difference is zero: ties must not turn on the order of additions."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A score in points with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of a - b in points, its 95 % interval, and the two-sided p of "no difference"."""

    mean: float
    low: float
    high: float
    p_two_sided: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def main_score(metric: str) -> str:
    """Return the key of :func:`score` that is a task's main score, such as ``accuracy/published``.

    Raises:
        DataError: The metric is unknown.
    """
    return f"{_statistics(metric)[0]}/published"


def score(
    metric: str,
    predictions: Sequence[str],
    golds: Sequence[str],
    labels: Sequence[str],
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Reading]:
    """Score predictions: every statistic of the metric in both readings, with intervals over examples.

    Accuracy is the share of right answers. Micro F1 counts over all classes: 2 TP / (answers + golds), where a strict
    unknown is no answer. Macro F1 is the plain mean over the labels that occur among golds or answers, the convention
    of scikit-learn.

    Args:
        metric: ``accuracy`` or ``f1``.
        predictions: One answer per example; anything outside ``labels`` is unknown.
        golds: One gold label per example.
        labels: The label set; the first one is the published reading of an unknown answer.
        n_bootstrap: Number of resamples of the examples.
        seed: Seed of the resamples.

    Returns:
        ``statistic/reading`` → score, the main one first.

    Raises:
        LabelError: A gold label is outside the label set.
        DataError: The metric is unknown, there is no example, or the two sequences differ in length.
    """
    import numpy as np

    n_labels, n = len(labels), len(golds)
    statistics = _statistics(metric)
    counts = np.bincount(_cells([predictions], golds, labels)[0], minlength=n_labels * (n_labels + 1))
    # Drawing n examples with replacement is drawing cells of the confusion matrix, each as often as it occurs.
    resampled = np.random.default_rng(seed).multinomial(n, counts / n, size=n_bootstrap)
    readings: dict[str, Reading] = {}
    for statistic in statistics:
        for reading in ("published", "strict"):
            value = _statistic(statistic, counts[None], n_labels, reading == "strict")[0]
            draws = _statistic(statistic, resampled, n_labels, reading == "strict")
            readings[f"{statistic}/{reading}"] = _reading(value, draws)
    return readings


def correctness(
    predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str], reading: Rule = "published"
) -> list[float]:
    """Return 100.0 for every right answer and 0.0 for every wrong one; their mean is the accuracy in points."""
    cells = _cells([predictions], golds, labels)[0]
    gold, answer = cells // (len(labels) + 1), cells % (len(labels) + 1)
    if reading == "published":
        answer = answer % len(labels)
    return [100.0 * bool(right) for right in gold == answer]


def mean_interval(values: ArrayLike, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> Reading:
    """Return the mean of per-example values with an interval over seeds and examples.

    Seeds and examples are drawn with replacement independently of each other (the pigeonhole bootstrap, Owen 2007,
    which errs on the wide side for noise that belongs to single cells). With one seed the interval is over examples
    only; with very few seeds the variance between them is underestimated by the factor (n_seeds - 1) / n_seeds.

    Args:
        values: Shape (n_seeds, n_examples), for instance rows of :func:`correctness`.
        n_bootstrap: Number of resamples.
        seed: Seed of the resamples.

    Raises:
        DataError: The shape is not (n_seeds, n_examples) with at least one of each.
    """
    table = _table(values)
    return _reading(table.mean(), _resampled_means(table, n_bootstrap, seed))


def paired_bootstrap(a: ArrayLike, b: ArrayLike, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> Difference:
    """Compare two systems by per-example values: the same seeds and examples are drawn for both sides.

    Args:
        a: Shape (n_seeds, n_examples).
        b: The same shape; row i has the seed of row i of ``a``, column j the same example.
        n_bootstrap: Number of resamples.
        seed: Seed of the resamples.

    Raises:
        DataError: The shapes differ, or are not (n_seeds, n_examples) with at least one of each.
    """
    left, right = _table(a), _table(b)
    if left.shape != right.shape:
        raise DataError(
            f"paired values have the shapes {left.shape} and {right.shape}; give both the same seeds and examples"
        )
    table = left - right
    return _difference(table.mean(), _resampled_means(table, n_bootstrap, seed))


def mean_score(
    statistic: Statistic,
    predictions: Sequence[Sequence[str]],
    golds: Sequence[str],
    labels: Sequence[str],
    *,
    reading: Rule = "published",
    seed: int = 0,
) -> Reading:
    """Return a statistic's mean over seeds with an interval over seeds and examples, as :func:`mean_interval` does.

    Args:
        statistic: ``accuracy``, ``micro_f1`` or ``macro_f1``.
        predictions: Shape (n_seeds, n_examples).
        golds: One gold label per example.
        labels: The label set.
        reading: What becomes of unknown answers.
        seed: Seed of the resamples.
    """
    value, draws = _resampled_scores(statistic, [predictions], golds, labels, reading == "strict", seed)
    return _reading(value[0], draws[0])


def paired_bootstrap_scores(
    metric: str,
    predictions_a: Sequence[Sequence[str]],
    predictions_b: Sequence[Sequence[str]],
    golds: Sequence[str],
    labels: Sequence[str],
    *,
    reading: Rule = "published",
    seed: int = 0,
) -> Difference:
    """Compare two systems by a metric's main statistic, which need not be a mean over examples (F1).

    For accuracy this equals :func:`paired_bootstrap` over :func:`correctness`, draw by draw.

    Args:
        metric: ``accuracy`` or ``f1``.
        predictions_a: Shape (n_seeds, n_examples).
        predictions_b: The same shape, seeds and examples.
        golds: One gold label per example.
        labels: The label set.
        reading: What becomes of unknown answers.
        seed: Seed of the resamples.

    Raises:
        LabelError: A gold label is outside the label set.
        DataError: The metric is unknown, or the lengths do not agree.
    """
    if len(predictions_a) != len(predictions_b):
        raise DataError(
            f"{len(predictions_a)} seeds are paired with {len(predictions_b)}; give both sides the same seeds"
        )
    sides = [predictions_a, predictions_b]
    value, draws = _resampled_scores(_statistics(metric)[0], sides, golds, labels, reading == "strict", seed)
    return _difference(value[0] - value[1], draws[0] - draws[1])


def _statistics(metric: str) -> tuple[Statistic, ...]:
    if metric not in STATISTICS:
        raise DataError(f"metric {metric!r} is unknown; choose one of {', '.join(STATISTICS)}")
    return STATISTICS[metric]


def _cells(predictions: Sequence[Sequence[str]], golds: Sequence[str], labels: Sequence[str]) -> Ints:
    """Return gold * (n_labels + 1) + answer, shape (n_seeds, n_examples); the answer n_labels is the unknown one."""
    import numpy as np

    if not golds or not predictions:
        raise DataError("there is nothing to score; give at least one prediction and its gold label")
    for row in predictions:
        if len(row) != len(golds):
            raise DataError(f"{len(row)} predictions meet {len(golds)} gold labels; give one prediction per label")
    number = {label: i for i, label in enumerate(labels)}
    for i, gold in enumerate(golds):
        if gold not in number:
            raise LabelError(f"gold label {gold!r} of example {i} is not one of {', '.join(labels)}; correct it")
    gold_numbers = np.array([number[gold] for gold in golds], dtype=np.intp)
    answers = np.array([[number.get(answer, len(labels)) for answer in row] for row in predictions], dtype=np.intp)
    return gold_numbers * (len(labels) + 1) + answers


def _statistic(statistic: Statistic, counts: Ints | Floats, n_labels: int, strict: bool) -> Floats:
    """Compute a statistic in points from confusion counts of shape (..., n_labels * (n_labels + 1)) → (...)."""
    import numpy as np

    confusion = counts.reshape(*counts.shape[:-1], n_labels, n_labels + 1).astype(np.float64)
    answered = confusion[..., :n_labels].copy()
    if not strict:
        answered[..., 0] += confusion[..., n_labels]
    right = np.diagonal(answered, axis1=-2, axis2=-1)
    n_gold = confusion.sum(-1)
    n_answers = answered.sum(-2)
    if statistic == "accuracy":
        return np.asarray(100 * right.sum(-1) / n_gold.sum(-1))
    if statistic == "micro_f1":
        return np.asarray(200 * right.sum(-1) / (n_gold + n_answers).sum(-1))
    present = n_gold + n_answers > 0
    f1 = np.divide(2 * right, n_gold + n_answers, out=np.zeros_like(right), where=present)
    return np.asarray(100 * f1.sum(-1) / present.sum(-1))


def _table(values: ArrayLike) -> Floats:
    import numpy as np

    try:
        table = np.asarray(values, dtype=np.float64)
    except ValueError:
        raise DataError("the seeds have different numbers of examples; score the same examples with each") from None
    if table.ndim != 2 or not table.size:
        raise DataError(f"values have the shape {table.shape}; give (n_seeds, n_examples) with at least one of each")
    return table


def _draws(n_seeds: int, n_examples: int, n_bootstrap: int, seed: int) -> Iterator[tuple[Floats, Floats]]:
    """Yield resampling weights in chunks: (n, n_seeds) and (n, n_examples), every row summing to one."""
    import numpy as np

    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // n_examples)
    for start in range(0, n_bootstrap, chunk):
        n = min(chunk, n_bootstrap - start)
        weights = []
        for size in (n_seeds, n_examples):
            drawn = rng.integers(0, size, (n, size)) + size * np.arange(n)[:, None]
            weights.append(np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size) / size)
        yield weights[0], weights[1]


def _resampled_means(table: Floats, n_bootstrap: int, seed: int) -> Floats:
    import numpy as np

    n_seeds, n_examples = table.shape
    weights = _draws(n_seeds, n_examples, n_bootstrap, seed)
    return np.concatenate([((seeds @ table) * examples).sum(1) for seeds, examples in weights])


def _resampled_scores(
    statistic: Statistic,
    sides: Sequence[Sequence[Sequence[str]]],
    golds: Sequence[str],
    labels: Sequence[str],
    strict: bool,
    seed: int,
) -> tuple[Floats, Floats]:
    """Return each side's mean over seeds, shape (n_sides,), and its resamples, shape (n_sides, N_BOOTSTRAP)."""
    import numpy as np

    n_labels, n_cells = len(labels), len(labels) * (len(labels) + 1)
    cells = np.stack([_cells(side, golds, labels) for side in sides])
    counts = np.stack([[np.bincount(row, minlength=n_cells) for row in side] for side in cells])
    value = _statistic(statistic, counts, n_labels, strict).mean(-1)
    n_seeds, n_examples = cells.shape[1:]
    chunks = []
    for seeds, examples in _draws(n_seeds, n_examples, N_BOOTSTRAP, seed):
        confusion = np.stack([[_weighted_counts(row, examples, n_cells) for row in side] for side in cells])
        scores = _statistic(statistic, confusion, n_labels, strict)
        chunks.append(np.einsum("asn,ns->an", scores, seeds))
    return value, np.concatenate(chunks, axis=1)


def _weighted_counts(cells: Ints, weights: Floats, n_cells: int) -> Floats:
    """Sum the weights of every cell: (n_examples,) cells and (n, n_examples) weights → (n, n_cells)."""
    import numpy as np

    occupied, place = np.unique(cells, return_inverse=True)
    counts = np.zeros((len(weights), n_cells))
    counts[:, occupied] = weights @ np.eye(len(occupied))[place]
    return counts


def _interval(draws: Floats) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _reading(value: float | np.float64, draws: Floats) -> Reading:
    return Reading(float(value), *_interval(draws))


def _difference(mean: float | np.float64, draws: Floats) -> Difference:
    """Turn resampled differences into an interval and p = 2 min(P(<= 0), P(>= 0)); no p is below 2 / (n + 1)."""
    n_below, n_above = int((draws <= _ROUNDING).sum()), int((draws >= -_ROUNDING).sum())
    p = min(1.0, 2 * (min(n_below, n_above) + 1) / (len(draws) + 1))
    return Difference(float(mean), *_interval(draws), p)
