"""Intervals and tests of scores over new seeds and new test rows, by variance components.

A claim about a method is one about seeds and test rows that nobody has seen. Every seed answers the same rows, so a mean over
seeds varies by two things: the seeds, of which there are few, and the rows, which all seeds share. Each has its own variance and
its own degrees of freedom; Cochran's approximation (1964) puts them together. ``docs/statistics.md`` has the formulas, their
assumptions, and how often they are wrong in simulated worlds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlay.metrics.answers import Floats

LEVEL = 0.95
ALPHA = 1 - LEVEL
"""The highest p that is called significant."""
ROUNDING = 1e-9
"""Points below which two values are one: ties must not turn on the order of additions."""
_MOST_STEPS, _CLOSE = 100, 1e-10
_SERIES_DF = 30
"""Degrees of freedom from which t quantiles come from a series, true to 1e-5 of themselves for p down to 1e-4."""
_NO_SPREAD = 1e-12
"""Share of the variance over rows below which seeds differ by rounding alone."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A score in points with its 95 % interval; with one seed, that of this model on these test rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of a - b over seeds in points, with its 95 % interval.

    Attributes:
        p: Two-sided p of "no difference" for new seeds and new rows; None where there is no test: one seed, or one row.
        n_seeds: Seeds on either side; with one the interval speaks of these two models on these test rows.
        n_examples: Test rows.
        n_apart: Rows on which the two sides do not score alike.
        spread: What the mean varies by.
    """

    mean: float
    low: float
    high: float
    p: float | None
    n_seeds: int
    n_examples: int
    n_apart: int
    spread: Spread


@dataclass(frozen=True, slots=True)
class Spread:
    """Variance of a mean over seeds and rows, in squared points.

    Attributes:
        seeds: Variance of the scores of seeds over the number of seeds; 0 with one seed.
        rows: Variance of the rows' means over the number of rows: of other rows with these very seeds.
        shared: The part of ``rows`` that ``seeds`` does not hold: what makes a row easy or hard for all seeds.
        n_seeds: Number of seeds.
        df_rows: Degrees of freedom of ``rows``; infinite where the mean itself gives the variance.
    """

    seeds: float
    rows: float
    shared: float
    n_seeds: int
    df_rows: float

    @classmethod
    def of(cls, table: Floats, *, rows: float, df_rows: float) -> Spread:
        """Split the variance of values ``[n_seeds, n_examples]`` (a two-way layout without repetition).

        The mean square of seeds holds the noise of single cells already, so that noise is taken off the rows.
        """
        n_seeds, n_examples = table.shape
        if n_seeds == 1:
            return cls(0.0, rows, rows, 1, df_rows)
        of_seeds = table.mean(1)
        noise = 0.0
        if n_examples > 1:
            rest = table - of_seeds[:, None] - table.mean(0) + table.mean()
            noise = float((rest**2).sum()) / ((n_seeds - 1) * (n_examples - 1)) / (n_seeds * n_examples)
        return cls(float(of_seeds.var(ddof=1)) / n_seeds, rows, max(0.0, rows - noise), n_seeds, df_rows)

    def half(self, alpha: float = ALPHA) -> float:
        """Return half the width of the interval that misses with probability ``alpha``, in points.

        Cochran's mean of the two t quantiles, each weighed by its variance; never less than over rows alone.
        """
        of_rows = t_quantile(alpha, self.df_rows)
        least = of_rows * math.sqrt(self.rows) if self.rows else 0.0
        total = self.seeds + self.shared
        if self.n_seeds == 1 or not total:
            return least
        of_seeds = t_quantile(alpha, self.n_seeds - 1)
        both = self.seeds * of_seeds + (self.shared * of_rows if self.shared else 0.0)
        return max(least, both / math.sqrt(total))

    def p(self, difference: float) -> float:
        """Return the two-sided p of a difference: the ``alpha`` at which :meth:`half` equals it."""
        size = abs(difference)
        if not size:
            return 1.0
        by_rows = t_tail(size / math.sqrt(self.rows), self.df_rows) if self.rows else 0.0
        total = self.seeds + self.shared
        if self.n_seeds == 1 or self.seeds <= _NO_SPREAD * self.rows:
            return by_rows
        wanted = size * math.sqrt(total)

        def beyond(x: float) -> float:
            of_rows = t_quantile(t_tail(x, self.n_seeds - 1), self.df_rows) if self.shared else 0.0
            return self.seeds * x + (self.shared * of_rows if self.shared else 0.0) - wanted

        return max(by_rows, t_tail(_root(beyond, 0.0, wanted / self.seeds), self.n_seeds - 1))


# --- Student's t ------------------------------------------------------------------------------------------------------


def t_tail(x: float, df: float) -> float:
    """Return P(|T| >= x) of Student's t with whole or infinite degrees of freedom.

    The finite sums of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4; many degrees of freedom by their 26.7.8.
    """
    if df < 1:
        return 1.0
    if df > 1000:
        z = x if math.isinf(df) else x * (1 - 1 / (4 * df)) / math.sqrt(1 + x * x / (2 * df))
        return math.erfc(z / math.sqrt(2))
    n = round(df)
    theta = math.atan(x / math.sqrt(n))
    sine, cosine = math.sin(theta), math.cos(theta)
    if n == 1:
        return 2 * math.atan2(1.0, x) / math.pi
    term = total = cosine if n % 2 else 1.0
    for k in range(3 if n % 2 else 2, n - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    inside = 2 / math.pi * (theta + sine * total) if n % 2 else sine * total
    return min(1.0, max(0.0, 1 - inside))


@lru_cache(maxsize=4096)
def t_quantile(alpha: float, df: float) -> float:
    """Return x with P(|T| >= x) = ``alpha``; infinite without a degree of freedom.

    Few degrees of freedom from :func:`t_tail`, `_SERIES_DF` and more by the Cornish-Fisher series of Abramowitz &
    Stegun 1964, 26.7.5.
    """
    if df < 1 or alpha / 2 <= 0:  # the smallest numbers have no half
        return math.inf
    if df == 1:
        return 1 / math.tan(math.pi * alpha / 2)
    if df >= _SERIES_DF:
        z = -NormalDist().inv_cdf(alpha / 2)
        if math.isinf(df):
            return z
        terms = (
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
            (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
        )
        return z + sum(term / df ** (i + 1) for i, term in enumerate(terms))

    def below(x: float) -> float:
        return math.log(alpha / max(t_tail(x, df), 1e-300))

    low, high = 0.0, 1.0
    while below(high) < 0 and high < 1e12:
        low, high = high, 2 * high
    return _root(below, low, high)


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Find the zero of a rising function by regula falsi in its Illinois form (Dowell & Jarratt 1971)."""
    at_low, at_high = rising(low), rising(high)
    kept = 0
    for _ in range(_MOST_STEPS):
        if at_high <= 0:
            return high
        if at_low >= 0 or high - low <= _CLOSE * high:
            return low
        x = high - at_high * (high - low) / (at_high - at_low) if math.isfinite(at_high) else (low + high) / 2
        at_x = rising(x)
        if at_x < 0:
            low, at_low = x, at_x
            at_high, kept = (at_high / 2 if kept < 0 else at_high), -1
        elif at_x > 0:
            high, at_high = x, at_x
            at_low, kept = (at_low / 2 if kept > 0 else at_low), 1
        else:
            return x
    return (low + high) / 2


def half_of_means(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % t-interval of a mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return t_quantile(ALPHA, len(values) - 1) * math.sqrt(variance / len(values))


# --- scores and differences -------------------------------------------------------------------------------------------


def row_values(features: Floats, value: Callable[[Floats], Floats]) -> Floats:
    """Return each row's part in a statistic, in points: jackknife pseudo-values (Tukey 1958), ``[n_examples]``.

    n T - (n - 1) T(without the row). For a mean over rows they are the rows' own values; for a ratio of sums such as F1 their
    variance over n is the jackknife's.

    Args:
        features: Per row, float64 ``[n_examples, n_features]``.
        value: Summed features ``[..., n_features]`` → the statistic ``[...]``.
    """
    import numpy as np

    n = len(features)
    sums = features.sum(0)
    if n == 1:
        return np.asarray(value(sums[None]), dtype=np.float64)
    parts: Floats = n * value(sums) - (n - 1) * value(sums - features)
    return parts


def reading_of(value: float, table: Floats) -> Reading:
    """Return a score with its interval over seeds and rows; with one seed, over rows.

    In the shape of Wilson's (1927), so that it stays within 0 to 100 and is honest at the ends: all of n rows right says no more
    than that 100 n / (n + z²) points or more are likely. The spread takes the binomial's place through the effective number of
    rows (Korn & Graubard 1998; Franco, Little, Louis & Slud 2019).

    Args:
        value: The score, a mean over seeds.
        table: Each row's part in it, float64 ``[n_seeds, n_examples]``.
    """
    import numpy as np

    of_rows = table.mean(0)
    n = len(of_rows)
    # Right or wrong: the mean gives the variance, and nothing is lost to estimating it.
    is_binary = bool((np.minimum(abs(of_rows), abs(of_rows - 100)) <= ROUNDING).all())
    df = math.inf if is_binary else n - 1
    rows = float(of_rows.var(ddof=0 if is_binary else 1)) / n if n > 1 else 0.0
    # One row that is not plainly right or wrong says nothing of others, however many seeds answered it.
    half = Spread.of(table, rows=rows, df_rows=df).half() if df else math.inf
    return within_ends(value, half, t_quantile(ALPHA, df) ** 2 / n)


def within_ends(value: float, half: float, bound: float) -> Reading:
    """Return Wilson's interval of a score whose plain interval is ``value`` ± ``half``.

    Args:
        value: 0-100.
        half: Half of the interval as if there were no ends, in points.
        bound: z² / n of n rows, for a score that shows no spread of its own.
    """
    share = min(1.0, max(0.0, value / 100))
    variance = share * (1 - share)
    is_spread = half > ROUNDING and variance > ROUNDING
    g = (half / 100) ** 2 / variance if is_spread else bound
    if math.isinf(g):
        return Reading(value, min(0.0, value), max(100.0, value))
    centre, reach = share + g / 2, math.sqrt(g * variance + g * g / 4)
    low, high = 100 * (centre - reach) / (1 + g), 100 * (centre + reach) / (1 + g)
    return Reading(value, min(value, max(0.0, low)), max(value, min(100.0, high)))


def difference_of(mean: float, table: Floats, n_apart: int) -> Difference:
    """Return a paired difference with its interval and, for two seeds and rows or more, its p.

    Two rows are added, one that each side wins outright (Bonett & Price 2012 for paired proportions), so that rows which all say
    the same do not say it for certain. No p is below 2 / 2^n of the n rows on which the sides differ: that is the least a sign
    test over them could give.

    Args:
        mean: First minus second, a mean over seeds.
        table: Each row's part in it, float64 ``[n_seeds, n_examples]``.
        n_apart: Rows on which the two sides do not score alike in some seed.
    """
    import numpy as np

    n_seeds, n = table.shape
    wider = np.append(table.mean(0), (100.0, -100.0))
    spread = Spread.of(table, rows=float(wider.var()) / len(wider), df_rows=n - 1)
    centre, half = mean * n / (n + 2), spread.half()
    p = None
    if n_seeds > 1 and n > 1:
        p = min(1.0, max(spread.p(centre), 2.0 ** (1 - n_apart)))
    low, high = max(-100.0, min(mean, centre - half)), min(100.0, max(mean, centre + half))
    return Difference(mean, min(mean, low), max(mean, high), p, n_seeds, n, n_apart, spread)
