"""The mean test score of a request over its seeds, its interval, and whom that interval speaks of."""

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
"""Whom an interval speaks of: this model on other test rows; other seeds and rows; other seeds on these test rows."""

ONE_SEED = "this model on these test rows"
"""The label of an interval of one seed."""
ONE_SEED_PAIR = "these two models on these test rows"
"""That of a difference."""
LOPSIDED = 0.1
"""Share of an interval by which its sides may differ and still be written as one "±"."""


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over seeds, 0-100, with the bounds of its 95 % interval; None where nothing says how it varies."""

    mean: float
    bounds: tuple[float, float] | None = None
    covers: Covers | None = None

    @property
    def low(self) -> float:
        """Lower end of the interval; without one the mean."""
        return self.mean if self.bounds is None else self.bounds[0]

    @property
    def high(self) -> float:
        """Upper end of the interval; without one the mean."""
        return self.mean if self.bounds is None else self.bounds[1]


def mean_of_seeds(points: Sequence[Point], left: Mapping[str, RunOutputs]) -> Score | None:
    """Average the test scores of seeds of one request; None where no seed has one.

    The interval comes from the answers where every seed's are there. Else from each seed's score and its own interval over rows,
    which both stand in the points: the rows' variance is then the mean of the seeds', never less than that of their mean. Else,
    for two seeds and more, it is Student's over the scores of seeds alone.

    Args:
        points: The seeds of one request; those without a score are left out.
        left: What runs left, by point id.

    Raises:
        DataError: The seeds answer different examples.
    """
    scored = [(point, test) for point in points if (test := point.result.test) is not None]
    if not scored:
        return None
    tests = [test for _, test in scored]
    mean = statistics.fmean(tests)
    found = _by_answers([left.get(point.id) for point, _ in scored])
    if found is None:
        own = [_own(point, left.get(point.id)) for point, _ in scored]
        readings = [each for each in own if each is not None]
        found = _by_intervals(mean, tests, readings) if len(readings) == len(own) else None
    if found is not None:
        low, high = min(mean, found.low), max(mean, found.high)
        return Score(mean, (low, high), "rows" if len(tests) == 1 else "seeds and rows")
    half = half_of_means(tests)
    if half is None:
        return Score(mean)
    return Score(mean, (min(mean, max(0.0, mean - half)), max(mean, min(100.0, mean + half))), "seeds")


def _by_answers(left: Sequence[RunOutputs | None]) -> Reading | None:
    answers = [each.answered for each in left if each is not None and each.answered is not None]
    metrics = {each.metric for each in left if each is not None and each.metric is not None}
    return mean_score(metrics.pop(), answers) if len(answers) == len(left) and len(metrics) == 1 else None


def measure_of(point: Point, after: RunOutputs | None) -> str | None:
    """Name the score that the test score is: by the run's metric, else the first of the point's that equals it."""
    if after is not None and after.metric is not None:
        return main_score(after.metric)
    return next((name for name, each in point.result.scores.items() if each.value == point.result.test), None)


def _own(point: Point, after: RunOutputs | None) -> Reading | None:
    """The reading of the test score that the point carries."""
    found = point.result.scores.get(measure_of(point, after) or "")
    return None if found is None else Reading(found.value, found.low, found.high)


def _by_intervals(mean: float, tests: Sequence[float], own: Sequence[Reading]) -> Reading:
    if len(own) == 1:
        return own[0]
    rows = statistics.fmean(((each.high - each.low) / 2 / t_quantile(ALPHA, math.inf)) ** 2 for each in own)
    spread = Spread(statistics.variance(tests) / len(tests), rows, rows, len(tests), math.inf)
    return within_ends(mean, spread.half(), 0.0)


# --- how they are written ---------------------------------------------------------------------------------------------


def with_interval(text: str, value: float, low: float, high: float) -> str:
    """Write an interval behind a value: "78.0 ± 0.6"; "98.0 (89.5 to 99.6)" where its sides differ."""
    if abs((high - value) - (value - low)) <= max(0.1, LOPSIDED * (high - low)):
        return f"{text} ± {(high - low) / 2:.1f}"
    return f"{text} ({low:.1f} to {high:.1f})"


def covers_words(covers: Iterable[Covers | None]) -> str:
    """Say what the intervals of a table are: "±: half of a 95 % interval over new seeds and test rows"."""
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
    """Say what the bars of a figure are: "95 % interval"; of one seed whom it speaks of."""
    kinds = {each for each in covers if each is not None}
    return f"95 % interval of {ONE_SEED}" if kinds == {"rows"} else "95 % interval"
