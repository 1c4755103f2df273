"""Intervals of values themselves, ``[n_seeds, n_examples]`` in points, and differences of two systems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from outlay.metrics import ALPHA, Answered, Difference, Reading, featured
from outlay.metrics.intervals import ROUNDING, difference_of, reading_of
from outlay.metrics.scoring import Side


def mean_interval(values: ArrayLike) -> Reading:
    table = np.asarray(values, dtype=np.float64)
    return reading_of(float(table.mean()), table)


def paired_difference(a: ArrayLike, b: ArrayLike) -> Difference:
    """The mean of a - b: row i of both has one seed, column j one example."""
    table = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return difference_of(float(table.mean()), table, int((abs(table) > ROUNDING).any(0).sum()))


def is_significant(found: Difference) -> bool:
    return found.p is not None and found.p <= ALPHA


def paired_scores(
    metric: str, a: Sequence[Answered], b: Sequence[Answered], *, statistic: str | None = None
) -> Difference:
    """A statistic of a less that of b, of the same seeds and examples."""
    tables, value = featured(metric, [*a, *b], statistic=statistic)
    return Side.of(tables[: len(a)], value).minus(Side.of(tables[len(a) :], value))
