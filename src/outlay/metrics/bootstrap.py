"""Intervals and tests by resampling examples and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from outlay.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.95
N_BOOTSTRAP = 1000
_CHUNK_CELLS = 2_000_000
_KEPT_CELLS = 8_000_000
"""Weights that are kept for the next statistic over as many seeds and examples: 64 MB."""
ROUNDING = 1e-9
"""Points below which a resampled difference is zero: ties must not turn on the order of additions."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A score in points with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float | np.float64, draws: Floats) -> Reading:
        """A value with the percentile interval of its resamples, float64 ``[n_bootstrap]``."""
        return cls(float(value), *_interval(draws))


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

    @classmethod
    def of(cls, mean: float | np.float64, draws: Floats) -> Difference:
        """A mean with the interval of its resamples and p = 2 min(P(<= 0), P(>= 0)); no p is below 2 / (n + 1)."""
        n_below, n_above = int((draws <= ROUNDING).sum()), int((draws >= -ROUNDING).sum())
        p = min(1.0, 2 * (min(n_below, n_above) + 1) / (len(draws) + 1))
        return cls(float(mean), *_interval(draws), p)


def mean_interval(values: ArrayLike, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> Reading:
    """Return the mean of per-example values with an interval over seeds and examples.

    Seeds and examples are drawn with replacement independently of each other (the pigeonhole bootstrap, Owen 2007,
    which errs on the wide side for noise that belongs to single cells). With one seed the interval is over examples
    only; with very few seeds the variance between them is underestimated by the factor (n_seeds - 1) / n_seeds.

    Args:
        values: Shape (n_seeds, n_examples), for instance rows of :func:`outlay.metrics.correctness`.
        n_bootstrap: Number of resamples.
        seed: Seed of the resamples.

    Raises:
        DataError: The shape is not (n_seeds, n_examples) with at least one of each.
    """
    table = _table(values)
    return Reading.of(table.mean(), _resampled_means(table, n_bootstrap, seed))


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
    return Difference.of(table.mean(), _resampled_means(table, n_bootstrap, seed))


def resampled_sums(features: Floats, n_bootstrap: int, seed: int) -> Floats:
    """Sum features over resampled examples: ``[n_examples, n_features]`` → ``[n_bootstrap, n_features]``.

    The weights of a resample sum to one, so a sum is a mean over the drawn examples.
    """
    import numpy as np

    return np.concatenate([examples @ features for _, examples in _draws(1, len(features), n_bootstrap, seed)])


def resampled_scores(
    sides: Sequence[Sequence[Floats]], value: Callable[[Floats], Floats], seed: int, n_bootstrap: int = N_BOOTSTRAP
) -> tuple[Floats, Floats]:
    """Compute a statistic of summed features for several systems, each trained with the same seeds.

    Args:
        sides: Per system and seed, features of the same examples, ``[n_examples, n_features]``.
        value: Summed features ``[..., n_features]`` → the statistic ``[...]``; the scale of the sums must not matter.
        seed: Seed of the resamples: the same seeds and examples are drawn for every system.
        n_bootstrap: Number of resamples.

    Returns:
        Each system's mean over seeds ``[n_sides]``, and its resamples ``[n_sides, n_bootstrap]``.
    """
    import numpy as np

    n_sides, n_seeds = len(sides), len(sides[0])
    values = np.array([[value(table.sum(0)) for table in side] for side in sides]).mean(-1)
    # One product for all systems: a matrix with few columns is multiplied slowly.
    features = np.concatenate([table for side in sides for table in side], axis=1)
    chunks = []
    for seeds, examples in _draws(n_seeds, len(features), n_bootstrap, seed):
        scores = value((examples @ features).reshape(len(examples), n_sides, n_seeds, -1))
        chunks.append(np.einsum("nas,ns->an", scores, seeds))
    return values, np.concatenate(chunks, axis=1)


def _table(values: ArrayLike) -> Floats:
    import numpy as np

    try:
        table = np.asarray(values, dtype=np.float64)
    except ValueError:
        raise DataError("the seeds have different numbers of examples; score the same examples with each") from None
    if table.ndim != 2 or not table.size:
        raise DataError(f"values have the shape {table.shape}; give (n_seeds, n_examples) with at least one of each")
    return table


def _draws(n_seeds: int, n_examples: int, n_bootstrap: int, seed: int) -> Iterable[tuple[Floats, Floats]]:
    """Resampling weights in chunks: (n, n_seeds) and (n, n_examples), every row summing to one.

    The last ones are kept where they are few: the means of a report are all resampled alike.
    """
    if n_examples * n_bootstrap <= _KEPT_CELLS:
        return _kept_draws(n_seeds, n_examples, n_bootstrap, seed)
    return _drawn(n_seeds, n_examples, n_bootstrap, seed)


@lru_cache(maxsize=1)
def _kept_draws(n_seeds: int, n_examples: int, n_bootstrap: int, seed: int) -> list[tuple[Floats, Floats]]:
    return list(_drawn(n_seeds, n_examples, n_bootstrap, seed))


def _drawn(n_seeds: int, n_examples: int, n_bootstrap: int, seed: int) -> Iterator[tuple[Floats, Floats]]:
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


def _interval(draws: Floats) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
