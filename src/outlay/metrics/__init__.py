"""Scores of answers, in two readings, with intervals. Everything is in points, 0 to 100.

The ``published`` reading is that of the code of Kang et al. 2023, quirks included; the ``strict`` reading is what a user would
want to know. Both are always reported; ``docs/metrics.md`` has every formula. Intervals are 95 % intervals over new seeds and
test rows (``docs/statistics.md``) and depend on nothing but the input.
"""

from outlay.metrics.answers import Answered, Rule
from outlay.metrics.intervals import ALPHA, Difference, Reading
from outlay.metrics.scoring import METRICS, STATISTICS, featured, main_score, mean_score, score

__all__ = [
    "ALPHA",
    "METRICS",
    "STATISTICS",
    "Answered",
    "Difference",
    "Reading",
    "Rule",
    "featured",
    "main_score",
    "mean_score",
    "score",
]
