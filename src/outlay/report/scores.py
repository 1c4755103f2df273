"""The mean test score of a request over its seeds, its 95 % interval, and the population of that interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from outlay.engine.outputs import RunOutputs
from outlay.engine.point import Point
from outlay.metrics import ALPHA, Reading, main_score, mean_score
from outlay.metrics.intervals import Spread, half_of_means, t_quantile, within_ends

Covers = Literal["rows", "seeds and rows", "seeds"]
"""Population of an interval: this model on other test rows; other seeds and rows; other seeds on these test rows."""

ONE_SEED = "this model on these test rows"
"""Population of an interval of one seed, in words."""
ONE_SEED_PAIR = "these two models on these test rows"
"""Population of the interval of a difference with one seed, in words."""
LOPSIDED = 0.1
"""Largest difference between the sides of an interval written as one "±", as a share of the interval."""


@dataclass(frozen=True, slots=True)
class Score:
    """A mean score over seeds, 0-100, with its 95 % interval; None where no seed has a score, or the variance is unknown."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    covers: Covers | None = None


def mean_of_seeds(points: Sequence[Point], outputs: Mapping[str, RunOutputs]) -> Score:
    """Average the test scores of the seeds of one request; without a value where no seed has a score.

    The interval is computed from the answers where those of every seed are kept. Else from the score of each seed and its
    interval over rows, both in the points: the variance over rows is then the mean over seeds, never less than that of the mean
    score. Else, with two or more seeds, it is Student's interval over the scores of the seeds alone.

    Args:
        points: The seeds of one request; those without a score are left out.
        outputs: The outputs of the runs, by point id.

    Raises:
        DataError: The seeds answer different examples.
    """
    scored = [(point, test) for point in points if (test := point.result.test) is not None]
    if not scored:
        return Score()
    tests = [test for _, test in scored]
    mean = statistics.fmean(tests)
    found = _by_answers([outputs.get(point.id) for point, _ in scored])
    if found is None:
        own = [point.result.scores.get(measure_of(point, outputs.get(point.id)) or "") for point, _ in scored]
        readings = [Reading(each.value, each.low, each.high) for each in own if each is not None]
        found = _by_intervals(mean, tests, readings) if len(readings) == len(own) else None
    if found is not None:
        covers: Covers = "rows" if len(tests) == 1 else "seeds and rows"
        return Score(mean, min(mean, found.low), max(mean, found.high), covers)
    half = half_of_means(tests)
    if half is None:
        return Score(mean)
    return Score(mean, min(mean, max(0.0, mean - half)), max(mean, min(100.0, mean + half)), "seeds")


def _by_answers(outputs: Sequence[RunOutputs | None]) -> Reading | None:
    answers = [each.answered for each in outputs if each is not None and each.answered is not None]
    metrics = {each.metric for each in outputs if each is not None and each.metric is not None}
    return mean_score(metrics.pop(), answers) if len(answers) == len(outputs) and len(metrics) == 1 else None


def measure_of(point: Point, outputs: RunOutputs | None) -> str | None:
    """Return the name of the test score: from the metric of the run, else the first score of the point that equals it."""
    if outputs is not None and outputs.metric is not None:
        return main_score(outputs.metric)
    return next((name for name, each in point.result.scores.items() if each.value == point.result.test), None)


def _by_intervals(mean: float, tests: Sequence[float], own: Sequence[Reading]) -> Reading:
    if len(own) == 1:
        return own[0]
    rows = statistics.fmean(((each.high - each.low) / 2 / t_quantile(ALPHA, math.inf)) ** 2 for each in own)
    spread = Spread(statistics.variance(tests) / len(tests), rows, rows, len(tests), math.inf)
    return within_ends(mean, spread.half(), 0.0)


# --- text -------------------------------------------------------------------------------------------------------------


def with_interval(text: str, value: float, low: float, high: float) -> str:
    """Return a value with its interval as text: "78.0 ± 0.6"; "98.0 (89.5 to 99.6)" where the sides differ."""
    if abs((high - value) - (value - low)) <= max(0.1, LOPSIDED * (high - low)):
        return f"{text} ± {(high - low) / 2:.1f}"
    return f"{text} ({low:.1f} to {high:.1f})"


def covers_words(covers: Iterable[Covers | None]) -> str:
    """Return the legend of the intervals of a table: "±: half of the 95 % interval over new seeds and new test rows"."""
    kinds = {each for each in covers if each is not None}
    parts = []
    if "seeds and rows" in kinds:
        parts.append("over new seeds and new test rows")
    if "seeds" in kinds:
        parts.append("over new seeds alone (how rows vary is not known)")
    if "rows" in kinds:
        parts.append(f"of {ONE_SEED} where there is one seed" if parts else f"of {ONE_SEED} (one seed)")
    return f"±: half of the 95 % interval {', '.join(parts)}" if parts else ""


def bars_words(covers: Iterable[Covers | None]) -> str:
    """Return the legend of the error bars of a figure: "95 % interval", with its population for one seed."""
    kinds = {each for each in covers if each is not None}
    return f"95 % interval of {ONE_SEED}" if kinds == {"rows"} else "95 % interval"
