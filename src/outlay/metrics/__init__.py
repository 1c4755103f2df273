"""Scores of answers, in two readings, with bootstrap intervals. Everything is in points, 0 to 100.

The ``published`` reading is that of the code of Kang et al. 2023, quirks included; the ``strict`` reading is what a user would
want to know. Both are always reported; ``docs/metrics.md`` has every formula. Intervals are 95 % percentile bootstrap intervals
(Efron & Tibshirani 1993, section 13.3) and depend on nothing but the input and the seed.
"""

from outlay.metrics.answers import NO_PREDICTION, Answered, Rule, missing_text
from outlay.metrics.bootstrap import LEVEL, N_BOOTSTRAP, Difference, Reading, mean_interval, paired_bootstrap
from outlay.metrics.classes import correctness
from outlay.metrics.scoring import METRICS, STATISTICS, featured, main_score, mean_score, paired_bootstrap_scores, score

__all__ = [
    "LEVEL",
    "METRICS",
    "NO_PREDICTION",
    "N_BOOTSTRAP",
    "STATISTICS",
    "Answered",
    "Difference",
    "Reading",
    "Rule",
    "correctness",
    "featured",
    "main_score",
    "mean_interval",
    "mean_score",
    "missing_text",
    "paired_bootstrap",
    "paired_bootstrap_scores",
    "score",
]
